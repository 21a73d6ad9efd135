"""Linux calls that the standard library lacks, as thin functions that raise OSError.

Numbers at and above 424 are the same on every architecture.
"""

import ctypes
import os
import struct
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_size_t, c_uint
from functools import partial

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_PARENT = 0x0000_8000
CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000
CLONE_INTO_CGROUP = 0x2_0000_0000
CLONE_CLEAR_SIGHAND = 0x1_0000_0000

MS_PRIVATE = 1 << 18
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
_MOUNT_ATTR_IDMAP = 0x10_0000
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_SECCOMP = 1, 4, 15, 22
PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 28, 36, 38

_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_CLOSE_RANGE_CLOEXEC = 4
_SPLICE_F_NONBLOCK = 2
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_SECCOMP_MODE_FILTER = 2
_SIG_SETMASK = 2
_CAPABILITY_VERSION_3 = 0x2008_0522
_SECBIT_NOROOT, _SECBIT_NOROOT_LOCKED = 1, 2

RB_POWER_OFF = 0x4321_FEDC

NO_SIGNALS, ALL_SIGNALS = bytes(128), b"\xff" * 128  # of type sigset_t


def _system_call(
    number: int, *types: type[c_int] | type[c_uint] | type[c_size_t] | type[c_char_p]
) -> Callable[..., int]:
    """Return the system call as a function of arguments of these types."""
    return partial(ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *types, use_errno=True)(("syscall", _libc)), number)


_fd, _path, _flags, _bytes, _size = c_int, c_char_p, c_uint, c_char_p, c_size_t
_open_tree = _system_call(428, _fd, _path, _flags)
_move_mount = _system_call(429, _fd, _path, _fd, _path, _flags)
_fsopen = _system_call(430, _path, _flags)
_fsconfig = _system_call(431, _fd, _flags, _path, _path, c_int)
_fsmount = _system_call(432, _fd, _flags, _flags)
_clone3 = _system_call(435, _bytes, _size)
_close_range = _system_call(436, _flags, _flags, _flags)
_openat2 = _system_call(437, _fd, _path, _bytes, _size)
_mount_setattr = _system_call(442, _fd, _path, _flags, _bytes, _size)
_pivot_root = _system_call(41 if os.uname().machine == "aarch64" else 155, _path, _path)
_finit_module = _system_call(273 if os.uname().machine == "aarch64" else 313, _fd, _path, c_int)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def clone3(flags: int, *, cgroup: int = -1) -> int:
    """fork(2) with namespace flags, born inside the cgroup v2 directory `cgroup`; returns the pid, 0 in the child.

    Only for a single-threaded caller: the interpreter's own fork hooks do not run.
    """
    exit_signal = 0 if flags & CLONE_PARENT else 17  # SIGCHLD; a sibling takes the caller's own
    if cgroup >= 0:
        flags |= CLONE_INTO_CGROUP
    args = struct.pack("11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup, 0))
    return _check(_clone3(args, len(args)), "clone3")


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, ctypes.c_int(kind)), "setns")


def prctl(option: int, value: int, more: "int | ctypes.c_void_p" = 0) -> None:
    third = ctypes.c_ulong(more) if isinstance(more, int) else more
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), third, zero, zero), f"prctl {option}")


def set_signal_mask(mask: bytes) -> bytes:
    """Block the signals of a sigset_t and no others; return the mask that it replaces.

    The signal module does the same, but makes an object of every signal.
    """
    before = ctypes.create_string_buffer(len(mask))
    _libc.pthread_sigmask(_SIG_SETMASK, mask, before)
    return before.raw


def seccomp(program: bytes) -> None:
    """Install a classic BPF program (8 bytes an instruction) as this process's system call filter. Cannot be undone."""
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(header)))


def drop_capabilities() -> None:
    """Give up every capability for good: uid 0 then counts as what it owns, and no more (capabilities(7))."""
    prctl(PR_SET_SECUREBITS, _SECBIT_NOROOT | _SECBIT_NOROOT_LOCKED)
    _check(_libc.capset(struct.pack("II", _CAPABILITY_VERSION_3, 0), bytes(24)), "capset")


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from `first` up close-on-exec."""
    _check(_close_range(first, 0xFFFF_FFFF, _CLOSE_RANGE_CLOEXEC), "close_range")


def splice(pipe: int, file: int, offset: int, size: int) -> int:
    """Move up to `size` bytes from a pipe to `offset` of a file; 0 at its end, BlockingIOError when empty."""
    where = ctypes.c_longlong(offset)
    _libc.splice.restype = ctypes.c_ssize_t
    while True:
        try:
            args = (pipe, None, file, ctypes.byref(where), ctypes.c_size_t(size), _SPLICE_F_NONBLOCK)
            return _check(_libc.splice(*args), "splice")
        except InterruptedError:  # ctypes, unlike os, leaves repeating the call to us
            continue


def punch_hole(file: int, offset: int, size: int) -> None:
    """Free the blocks of a range; the file keeps its size."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    while True:
        try:
            _check(_libc.fallocate(file, mode, ctypes.c_longlong(offset), ctypes.c_longlong(size)), "fallocate")
            return
        except InterruptedError:
            continue


def umount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    _check(_pivot_root(os.fsencode(new), os.fsencode(old)), "pivot_root")


def open_tree(directory: int, path: str, flags: int) -> int:
    return _check(_open_tree(directory, os.fsencode(path), flags | OPEN_TREE_CLOEXEC), f"open_tree {path}")


def move_mount(mount: int, directory: int, path: str = "", *, name: str = "") -> None:
    """Attach a detached mount at `path` below `directory`, or onto `directory` itself.

    With `name` it is the mount of that name below `mount`, which is taken away there.
    """
    flags = (0 if name else MOVE_MOUNT_F_EMPTY_PATH) | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    moved = _move_mount(mount, os.fsencode(name), directory, os.fsencode(path), flags)
    _check(moved, f"move_mount {path}")


def mount_setattr(
    mount_fd: int, attributes: int, *, lifted: int = 0, recursive: bool = False, owners: int = -1
) -> None:
    """Give a mount (and those below) `attributes`, take those `lifted`, and make it private.

    With the user namespace `owners` its files appear as that maps them. EINVAL where the filesystem cannot do that.
    """
    if owners >= 0:
        attributes |= _MOUNT_ATTR_IDMAP
    args = struct.pack("4Q", attributes, lifted, MS_PRIVATE, max(owners, 0))
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _check(_mount_setattr(mount_fd, b"", flags, args, len(args)), "mount_setattr")


def new_mount(kind: str, attributes: int, **options: str) -> int:
    """Return a detached mount of a new filesystem."""
    context = _check(_fsopen(kind.encode(), _FSOPEN_CLOEXEC), f"fsopen {kind}")
    try:
        for key, value in options.items():
            done = _fsconfig(context, _FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
            _check(done, f"{kind} {key}")
        _check(_fsconfig(context, _FSCONFIG_CMD_CREATE, None, None, 0), f"{kind} create")
        return _check(_fsmount(context, _FSMOUNT_CLOEXEC, attributes), f"fsmount {kind}")
    finally:
        os.close(context)


def load_module(file: int) -> None:
    """Load a kernel module. EEXIST if it is loaded."""
    _check(_finit_module(file, b"", 0), "finit_module")


def reboot(command: int) -> None:
    """Stop or restart the machine, at once and without writing anything back."""
    _check(_libc.reboot(ctypes.c_int(command)), "reboot")


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    how = struct.pack("3Q", flags | os.O_CLOEXEC, 0, resolve)
    return _check(_openat2(directory, os.fsencode(path), how, len(how)), f"open {path}")
