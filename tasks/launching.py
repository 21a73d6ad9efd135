"""What a driver is told of a task that it is to start, and whether it can do what the task asks for."""

import ctypes
import os
from collections.abc import Callable, Mapping
from errno import EINVAL, ENOTSUP
from pathlib import Path

from tasks.drivers.base import Driver, Launch
from tasks.fds import Held, Inherited, Spooled, Stdin
from tasks.homes import Homes
from tasks.model import Spec
from tasks.spool import Spool
from tasks.task import Task

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def require(driver: Driver, kind: str, spec: Spec) -> None:
    """Raise ENOTSUP if the driver, of tasks of this kind, cannot do what is asked of it."""
    limits = spec.limits
    for wanted, capability in (
        (limits.memory is not None, "memlimit"),
        (limits.pids is not None, "pidlimit"),
        (limits.cpu is not None, "cpulimit"),
        (limits.nice != 0, "nice"),
        (spec.pty is not None, "pty"),
        (spec.net not in ("none", "host"), "net"),
    ):
        if wanted and capability not in driver.capabilities:
            raise OSError(ENOTSUP, f"{kind} tasks on this machine have no {capability}")


def descriptors(task: Task, spool: Callable[[int], Spool], opened: list[int]) -> tuple[dict[int, int], dict[int, Path]]:
    """Return what each number of a task will be: a descriptor of ours, or the file that its output goes to.

    Descriptors made only for this are added to `opened` and are the caller's to close.
    """
    table = task.fds
    fds: dict[int, int] = {}
    spools: dict[int, Path] = {}
    if task.spec.pty is None:
        table.stdin()
    for number in table.numbers():
        entry = table.entries.get(number)
        if isinstance(entry, Stdin):
            fds[number] = entry.pipe.take_reader()
            opened.append(fds[number])
        elif isinstance(entry, Held):
            fds[number] = entry.fd
        elif isinstance(entry, Inherited):
            fds[number] = _inherited(task, number)
            opened.append(fds[number])
        elif isinstance(entry, Spooled) or (entry is None and number in (1, 2)):
            if task.spec.pty is not None and number == 2:
                continue
            spools[number] = spool(number).path
    return fds, spools


def described(
    task: Task, homes: Homes, *, fds: Mapping[int, int], spools: Mapping[int, Path], spool_limit: int
) -> Launch:
    """Describe a task to its driver, with these descriptors and spools."""
    spec = task.spec
    own = {"PATH": PATH, "HOME": homes.inside(spec.user), "USER": spec.user.name, "LOGNAME": spec.user.name}
    return Launch(
        id=str(task.id),
        argv=spec.argv,
        env=own | dict(spec.env),
        cwd=spec.cwd,
        uid=task.uid,
        gid=task.gid,
        user=spec.user.name,
        home=homes.path(spec.user),
        fds=fds,
        spools=spools,
        spool_limit=spool_limit,
        pty=spec.pty,
        limits=spec.limits,
        net=spec.net,
        namespace=task.namespace,
    )


def _inherited(task: Task, number: int) -> int:
    parent = task.parent
    if parent is None or not parent.state.live or not parent.main_pid:
        raise OSError(EINVAL, f"descriptor {number} cannot be inherited: the parent has no process")
    return _take_descriptor(parent.main_pid, number)


_libc = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438


def _take_descriptor(pid: int, number: int) -> int:
    """Return a duplicate of another process's descriptor (pidfd_getfd(2)). EINVAL where it has none."""
    process = os.pidfd_open(pid)
    try:
        fd: int = _libc.syscall(_PIDFD_GETFD, process, number, 0)
        if fd < 0:
            reason = os.strerror(ctypes.get_errno())
            raise OSError(EINVAL, f"descriptor {number} cannot be inherited: {reason}")
        os.set_inheritable(fd, False)
        return fd
    finally:
        os.close(process)
