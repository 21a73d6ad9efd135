"""The Linux system calls that host trees need and the standard library lacks."""

import ctypes
import os
from errno import EAGAIN, EINTR
from functools import lru_cache

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_SYS_OPEN_TREE = 428
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

RESOLVE_NO_XDEV = 0x01  # openat2(2)
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 1
MOUNT_ATTR_RDONLY = 0x01  # mount_setattr(2)
MOUNT_ATTR_NODEV = 0x04
MS_PRIVATE = 1 << 18
TMPFS_MAGIC = 0x01021994  # statfs(2)
RAMFS_MAGIC = 0x858458F6
UTIME_OMIT = (1 << 30) - 2


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_long)]


@lru_cache
def _how(flags: int, resolve: int) -> _OpenHow:
    return _OpenHow(flags, 0, resolve)


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def openat2(dir_fd: int, name: str, flags: int, resolve: int) -> int:
    """openat2(2), without creating. Tried again where a rename elsewhere made the kernel unsure (EAGAIN)."""
    path = os.fsencode(name)
    how = ctypes.byref(_how(flags, resolve))
    while True:
        fd: int = _syscall(_SYS_OPENAT2, dir_fd, path, how, 24)
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in (EINTR, EAGAIN):
            raise _failed("openat2")


def clone_tree(path: str, *, readonly: bool, devices: bool) -> int:
    """Return an O_PATH descriptor of a private mount of `path` alone: no mount on or below it is part of it.

    EPERM without CAP_SYS_ADMIN; ENOSYS before Linux 5.12.
    """
    fd: int = _syscall(_SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | os.O_CLOEXEC)
    if fd < 0:
        raise _failed("open_tree")
    attr = _MountAttr(
        attr_set=(MOUNT_ATTR_RDONLY if readonly else 0) | (0 if devices else MOUNT_ATTR_NODEV), propagation=MS_PRIVATE
    )
    if _syscall(_SYS_MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr)):
        error = _failed("mount_setattr")
        os.close(fd)
        raise error
    return fd


def renameat2(dir_fd: int, name: str, new_dir_fd: int, new_name: str, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(dir_fd, os.fsencode(name), new_dir_fd, os.fsencode(new_name), flags):
        raise _failed("rename")


def set_times(path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2), following links; None leaves a time as it is."""
    times = (_Timespec * 2)()
    for slot, ns in zip(times, (atime_ns, mtime_ns), strict=True):
        slot.tv_sec, slot.tv_nsec = (0, UTIME_OMIT) if ns is None else divmod(ns, 10**9)
    if _libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0):
        raise _failed("utimensat")


def in_memory(fd: int) -> bool:
    """Tell whether the file lies on a filesystem without storage (tmpfs, ramfs; fstatfs(2))."""
    figures = (ctypes.c_long * 15)()
    return _libc.fstatfs(fd, figures) == 0 and figures[0] in (TMPFS_MAGIC, RAMFS_MAGIC)


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    if _libc.syncfs(fd):
        raise _failed("syncfs")


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise _failed("fallocate")
