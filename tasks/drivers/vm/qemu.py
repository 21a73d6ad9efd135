"""QEMU as a guest's machine."""

import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tasks.drivers.vm import machine, names
from tasks.drivers.vm.monitor import Monitor
from tasks.taskd.guest import CONTROL

PROGRAM = "qemu-system-x86_64"
_PORTS = (CONTROL, names.INPUT, names.OUTPUT, names.ERROR)
"""In the order in which they are made."""
_TRUSTED = ("kvm_intel", "kvm_amd")


@cache
def accelerator() -> str:
    """Return "kvm" where the hardware does it and this process may use it, else "tcg".

    Other modules that provide /dev/kvm (paravirtual ones) let stock guests hang.
    """
    hardware = any(os.path.exists(f"/sys/module/{module}") for module in _TRUSTED)
    return "kvm" if hardware and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def command(image: Path, initrd: Path, *, memory: int, words: str = "", options: str = "") -> list[str]:
    """Return the command line of a bare machine with virtio ports, entropy, and no other device. `memory` in bytes."""
    accel = "kvm" if accelerator() == "kvm" else "tcg,tb-size=64"
    return [
        shutil.which(PROGRAM) or PROGRAM,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-M", f"pc,usb=off,vmport=off,graphics=off{options}", "-accel", accel),
        *("-m", f"{memory >> 20}", "-kernel", str(image), "-initrd", str(initrd)),
        *("-append", f"console=ttyS0 quiet panic=-1 reboot=t tsc=reliable rdinit=/sbin/taskd {words}"),
        *("-device", "virtio-serial-pci,id=ports", "-device", "virtio-rng-pci"),
    ]


def _port(name: str, *backend: str) -> list[str]:
    return ["-chardev", ",".join((*backend, f"id={name}")), "-device", f"virtserialport,chardev={name},name={name}"]


class Qemu:
    """Implements `tasks.drivers.vm.machine.Machine`. The guest's only network is a wire to the 9P server."""

    name = "qemu"

    def missing(self) -> str:
        return "" if shutil.which(PROGRAM) else f"no {PROGRAM} here (Debian: qemu-system-x86)"

    def group(self) -> int | None:
        return os.stat("/dev/kvm").st_gid if accelerator() == "kvm" else None

    async def drained(self, monitor: Monitor, output: int) -> bool:
        at = _PORTS.index({machine.OUT: names.OUTPUT, machine.ERR: names.ERROR}[output]) + 1  # 0 is for a console
        where = "/machine/peripheral/ports/virtio-backend"
        status = await monitor.execute("x-query-virtio-queue-status", path=where, queue=2 * at + 3)
        return isinstance(status, dict) and status.get("inuse") == 0

    def command(self, memory: int, *, clone: bool) -> Sequence[str]:
        parts = command(
            Path(f"/dev/fd/{machine.KERNEL}"),
            Path(f"/dev/fd/{machine.INITRD}"),
            memory=memory,
            options=",memory-backend=ram",
        )
        shared = f"size={memory},mem-path=/dev/fd/{machine.RAM},share={'off' if clone else 'on'}"
        parts += ["-object", f"memory-backend-file,id=ram,{shared}"]
        if clone:
            parts += ["-incoming", "defer"]
        wire = f"guestfwd=tcp:{names.FILES_ADDRESS}:{names.FILES_PORT}-chardev:files"
        parts += ["-chardev", f"socket,id=files,fd={machine.FILES}"]
        parts += ["-netdev", f"user,id=net,ipv6=off,restrict=on,{wire}"]
        parts += ["-device", "virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:01", "-device", "vmgenid,guid=auto"]
        parts += _port(CONTROL, "socket", f"fd={machine.CONTROL}")
        parts += _port(names.INPUT, "stdio", "signal=off")
        parts += _port(names.OUTPUT, "file", f"path=/dev/fd/{machine.OUT}", "append=on")
        parts += _port(names.ERROR, "file", f"path=/dev/fd/{machine.ERR}", "append=on")
        parts += ["-chardev", f"file,id=console,path=/dev/fd/{machine.CONSOLE},append=on", "-serial", "chardev:console"]
        parts += ["-chardev", f"socket,id=monitor,fd={machine.MONITOR}", "-mon", "chardev=monitor,mode=control"]
        parts += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        return parts
