"""What a driver owes the task service: start, control and account for one kind of task.

The service decides (states, authority, descriptors, names); a driver only
acts, and reports what happened through a `Listener`. A driver must be able
to recover: after the server was killed, `recover` tells what still runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import ns.namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None leaves a limit open. Bytes, counts, cores (a float) and a nice(2) value."""

    memory: int | None = None
    pids: int | None = None
    cpu: float | None = None
    nice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything needed to start one task.

    `fds` maps the task's descriptor numbers to open descriptors of this process; the driver duplicates them, the
    caller closes its own. `spools` maps descriptor numbers to files: the supervisor gives the task a pipe and
    appends what comes out of it to the file, keeping the newest `spool_limit` bytes (older ones are punched
    out, offsets never change). With `pty` (rows, columns) descriptors 0-2 that `fds` does not name are a
    terminal, whose output goes to the spool of 1.
    """

    id: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    uid: int
    gid: int
    user: str
    home: Path
    fds: Mapping[int, int] = field(default_factory=dict)
    spools: Mapping[int, Path] = field(default_factory=dict)
    spool_limit: int = 64 << 20
    pty: tuple[int, int] | None = None
    limits: Limits = Limits()
    net: str = "none"
    namespace: "ns.namespace.Namespace | None" = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a task ended: its exit code, or 128+N for signal N, and one line of why ("exited", "signal 9", ...)."""

    code: int
    reason: str
    user_usec: int = 0
    system_usec: int = 0
    peak_bytes: int = 0


class Listener(Protocol):
    """What a driver reports, from the event loop, in the order it happened."""

    def exited(self, task: str, exit: Exit) -> None:
        """The task's main process ended and everything it left behind is gone."""

    def output(self, task: str, fd: int, end: int, start: int, eof: bool) -> None:
        """The spool of `fd` reaches to `end`; bytes below `start` were dropped; `eof`: nothing more will come."""

    def event(self, task: str, kind: str, detail: Mapping[str, object]) -> None:
        """Something worth a line in the task's events ("oom", ...)."""

    def lost(self, reason: str) -> None:
        """The supervisor is gone and with it every task of this driver."""


class Driver(Protocol):
    """One kind of task. Methods raise OSError with the errno that the writer of the control file shall see."""

    name: str
    capabilities: frozenset[str]
    """Of: pause, nice, memlimit, cpulimit, pidlimit, pty, net, stat, bind, checkpoint."""

    async def start(self, launch: Launch) -> int:
        """Start the task and return the pid of its main process (0 where it has none here).

        Answers after exec: ENOENT or EACCES for a program that can't be run, ENOEXEC for one that isn't; then
        nothing is left behind. The output spools exist before this returns.
        """
        ...

    async def kill(self, task: str, signal: int) -> None:
        """Signal the whole task (every process for SIGKILL, SIGSTOP, SIGCONT; else the main process). ESRCH."""
        ...

    async def pause(self, task: str) -> None: ...

    async def resume(self, task: str) -> None: ...

    async def set_limits(self, task: str, limits: Limits) -> None:
        """Apply to a running task what can be applied."""
        ...

    async def stat(self, task: str, what: str) -> Mapping[str, int]:
        """Return the figures of `what` (mem, cpu, io, pids), units in the keys (current_bytes, user_usec, ...)."""
        ...

    async def pids(self, task: str) -> Sequence[int]:
        """Return the host pids of the task's processes."""
        ...

    async def terminal(self, task: str) -> int:
        """Return a new descriptor of the task's terminal, non-blocking: its input is written there, TIOCSWINSZ resizes.

        Reading it would steal what belongs in the spool. ENODEV without one, ESRCH.
        """
        ...

    async def recover(self, tasks: Sequence[str]) -> Mapping[str, Exit | None]:
        """Say of each task that was running whether it still is (None) or how it ended; unknown ones are left out.

        From then on their events reach the listener.
        """
        ...

    def forget(self, task: str) -> None:
        """The task is over and reported: drop what is kept of it."""
        ...
