"""What a task is and how it lives: its description, states, descriptors, tree and drivers."""
