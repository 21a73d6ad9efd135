"""What an isolated task may not ask of the kernel: the calls that only serve to leave a sandbox, or to attack from one.

Most need a privilege that a task lacks anyway; refusing them here keeps their
code out of reach. Programs see EPERM; `clone3` is ENOSYS, so that libc falls
back to `clone`, whose flags can be looked at (seccomp(2), bpf(4)). Sockets of
families that a network namespace does not hold in, such as AF_VSOCK, which
reaches the hypervisor from any, are EAFNOSUPPORT.
"""

import os
import struct
from collections.abc import Mapping
from errno import EAFNOSUPPORT, ENOSYS, EPERM
from types import MappingProxyType

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_DENIED = {  # number on x86_64, number on aarch64
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_adjtime": (305, 266),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
    "kcmp": (312, 272),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
}
_CLONE, _IOCTL, _SOCKET, _CLONE3 = (56, 220), (16, 29), (41, 198), 435
_CLONE_NEW = 0x7E020000  # every namespace that clone(2) makes
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_X32 = 0x4000_0000

_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24  # offsets in struct seccomp_data
_ALLOW = 0x7FFF_0000


def filter_program(
    machine: str = os.uname().machine, *, also: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> bytes:
    """Return the filter as classic BPF, 8 bytes an instruction; b"" for a machine whose numbers are not known here.

    `also` are further calls to refuse, each with its number on x86_64 and on aarch64.
    """
    if machine not in _ARCHITECTURES:
        return b""
    column = list(_ARCHITECTURES).index(machine)
    code: list[bytes] = []

    def emit(operation: int, value: int, *, then: int = 0, otherwise: int = 0) -> None:
        code.append(struct.pack("<HBBI", operation, then, otherwise, value))

    def refuse(errno: int) -> None:
        emit(_RETURN, 0x0005_0000 | errno)

    emit(_LOAD, _ARCHITECTURE)
    emit(_JUMP_EQUAL, _ARCHITECTURES[machine], then=1)
    refuse(EPERM)
    emit(_LOAD, _NUMBER)
    emit(_JUMP_ABOVE, _X32, otherwise=1)
    refuse(EPERM)
    for numbers in (*_DENIED.values(), *also.values()):
        emit(_JUMP_EQUAL, numbers[column], otherwise=1)
        refuse(EPERM)
    emit(_JUMP_EQUAL, _CLONE3, otherwise=1)
    refuse(ENOSYS)
    emit(_JUMP_EQUAL, _CLONE[column], otherwise=4)
    emit(_LOAD, _ARGUMENT_0)
    emit(_JUMP_SET, _CLONE_NEW, otherwise=1)
    refuse(EPERM)
    emit(_RETURN, _ALLOW)
    emit(_JUMP_EQUAL, _IOCTL[column], otherwise=5)
    emit(_LOAD, _ARGUMENT_1)
    emit(_JUMP_EQUAL, _TIOCSTI, then=1)
    emit(_JUMP_EQUAL, _TIOCLINUX, otherwise=1)
    refuse(EPERM)
    emit(_RETURN, _ALLOW)
    emit(_JUMP_EQUAL, _SOCKET[column], otherwise=len(_FAMILIES) + 2)
    emit(_LOAD, _ARGUMENT_0)
    for after in range(len(_FAMILIES), 0, -1):
        emit(_JUMP_EQUAL, _FAMILIES[-after], then=after)
    refuse(EAFNOSUPPORT)
    emit(_RETURN, _ALLOW)
    return b"".join(code)


FILTER = filter_program().hex()
