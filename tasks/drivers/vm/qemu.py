"""QEMU as a guest's machine."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PROGRAM = "qemu-system-x86_64"
_TRUSTED = ("kvm_intel", "kvm_amd")


@cache
def accelerator() -> str:
    """Return "kvm" where the hardware does it and this process may use it, else "tcg".

    Other modules that provide /dev/kvm (paravirtual ones) let stock guests hang.
    """
    hardware = any(os.path.exists(f"/sys/module/{module}") for module in _TRUSTED)
    return "kvm" if hardware and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def command(image: Path, initrd: Path, *, memory: int, words: str = "") -> Sequence[str]:
    """Return the command line of a bare machine with virtio ports, entropy, and no other device. `memory` in bytes."""
    machine = f"pc,accel={accelerator()},usb=off,vmport=off,graphics=off"
    return [
        PROGRAM,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", machine),
        *("-m", f"{memory >> 20}", "-kernel", str(image), "-initrd", str(initrd)),
        *("-append", f"console=ttyS0 quiet panic=-1 reboot=t rdinit=/sbin/taskd {words}"),
        *("-device", "virtio-serial-pci", "-device", "virtio-rng-pci"),
    ]
