"""VM tasks: a small guest of its own for each, whose root is the task's namespace.

Read in this order: `kernel` and `initrd` (what boots), `machine` (the port)
and `qemu` (what implements it), `guest` (talking to the supervisor in there), `driver`.
"""
