"""Who may speak to the control plane, and as whom."""
