"""What the two sides of a guest agree on beside the protocol: modules, ports, addresses."""

from typing import Final

MODULES: Final = (
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

INPUT, OUTPUT, ERROR = "in", "out", "err"
"""Ports of the task's streams."""
FILES_ADDRESS, FILES_PORT = "10.0.2.100", 564
"""Where the guest finds the 9P server."""
