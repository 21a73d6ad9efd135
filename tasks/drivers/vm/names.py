"""What the two sides of a guest agree on: its modules, its ports, its addresses."""

MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "9p",
    "9pnet_fd",
    "virtiofs",
    "vmw_vsock_virtio_transport",
)
"""Kernel modules that a guest loads, beside what they depend on."""
