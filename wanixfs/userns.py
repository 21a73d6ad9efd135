"""A plain user's server is root in a user namespace of its own, so that its tasks have roots of their own, too.

All of them have that one user's uid (user_namespaces(7)). A supervisor that was left by an earlier server has the
namespaces already: then they are joined.
"""

import os
import socket
import struct
from errno import ENOTSUP
from pathlib import Path

from tasks.drivers.linux.client import dial
from tasks.taskd import syscalls

BOTH = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS


def enter(state: Path) -> None:
    """Become root in the user namespace of this state directory. Only before any thread is started.

    ENOTSUP, saying what it needs, where a plain user may not make one or could not mount in it.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise OSError(ENOTSUP, "/dev/fuse cannot be opened by you, and a task's root needs it")
    try:
        supervisor = _supervisor(state)
        if supervisor:
            _join(supervisor)
        else:
            _make()
    except OSError as error:
        raise OSError(ENOTSUP, f"no user namespace: {error.strerror}") from error


def _make() -> None:
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(BOTH)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", name).write_text(text)


def _join(supervisor: int) -> None:
    if os.path.samefile(f"/proc/{supervisor}/ns/user", "/proc/self/ns/user"):
        return  # it was started without one
    pidfd = os.pidfd_open(supervisor)
    try:
        syscalls.setns(pidfd, BOTH)
    finally:
        os.close(pidfd)


def _supervisor(state: Path) -> int:
    """Return the pid of the supervisor that runs for a state directory, 0 for none."""
    try:
        with dial(state) as sock:
            pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return pid
    except (FileNotFoundError, ConnectionRefusedError):
        return 0
