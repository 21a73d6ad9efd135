"""What pid 1 of a guest does first: the kernel's own file systems, modules, the network of one interface."""

import fcntl
import os
import socket
import struct
from typing import NoReturn

from tasks.taskd import syscalls

MODULES = "/lib/modules"
ADDRESS, NETMASK = "10.0.2.15", "255.255.255.0"
"""What QEMU's user mode network expects of its guest."""
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}

_IFF_UP = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C


def mount(kind: str, place: str, **options: str) -> None:
    """Mount a new file system at `place`, which is made if it is missing."""
    os.makedirs(place, exist_ok=True)
    attached = syscalls.new_mount(kind, 0, **options)
    try:
        syscalls.move_mount(attached, syscalls.AT_FDCWD, place)
    finally:
        os.close(attached)


def bind(tree: str, place: str) -> None:
    """Show a directory, with what is mounted below it, at another place too."""
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
    attached = syscalls.open_tree(syscalls.AT_FDCWD, tree, flags)
    try:
        syscalls.move_mount(attached, syscalls.AT_FDCWD, place)
    finally:
        os.close(attached)


def mount_kernel(root: str = "") -> None:
    """Mount what the kernel itself shows, below `root`."""
    mount("devtmpfs", f"{root}/dev")
    mount("proc", f"{root}/proc")
    mount("sysfs", f"{root}/sys")
    mount("devpts", f"{root}/dev/pts", mode="620", ptmxmode="666")
    mount("tmpfs", f"{root}/dev/shm", mode="1777")
    for name, target in DEVICE_LINKS.items():
        if not os.path.lexists(f"{root}/dev/{name}"):
            os.symlink(target, f"{root}/dev/{name}")


def load_modules() -> None:
    """Load the modules of the initrd, which are named in the order of what they depend on."""
    for name in sorted(os.listdir(MODULES)):
        file = os.open(f"{MODULES}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.load_module(file)
        except FileExistsError:
            pass  # the kernel has it built in
        finally:
            os.close(file)


def raise_interface(name: str, address: str = "", netmask: str = "") -> None:
    """Give a network interface its IPv4 address, if it has none yet, and bring it up. ENODEV."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, netmask)):
            if value:
                where = struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(value))
                fcntl.ioctl(sock, request, struct.pack("16s16s8x", name.encode(), where))
        asked = struct.pack("16sh22x", name.encode(), 0)
        flags = struct.unpack_from("h", fcntl.ioctl(sock, _SIOCGIFFLAGS, asked), 16)[0]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags | _IFF_UP))


def power_off() -> NoReturn:
    """End the guest (reboot(2))."""
    os.sync()
    syscalls.reboot(syscalls.RB_POWER_OFF)
    raise SystemExit
