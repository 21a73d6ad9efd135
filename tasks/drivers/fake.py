"""A driver without processes, for tests of what is above it: tasks end when the test says so, and every fault is named.

driver = FakeDriver(listener)
driver.refuse(ENOENT)           # the next start fails
driver.finish("7", 0)           # task 7 ends
"""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from errno import EEXIST, EINVAL, ENODEV, ESRCH
from signal import SIGCONT, SIGKILL, SIGSTOP

import trio

from tasks.drivers.base import Exit, Launch, Limits, Listener

FIRST_PID = 1000


@dataclass
class FakeTask:
    """What the driver was asked to start, and what has become of it."""

    launch: Launch
    pid: int
    paused: bool = False
    signals: list[int] = field(default_factory=list)
    written: dict[int, int] = field(default_factory=dict)
    exit: Exit | None = None


class FakeDriver:
    """Implements `tasks.drivers.base.Driver` in memory. Nothing happens by itself but what the faults say.

    `survivor` is a driver of a server that "was killed": its tasks are there to be recovered.
    """

    name = "fake"
    capabilities = frozenset({"pause", "nice", "memlimit", "cpulimit", "pidlimit", "pty", "net", "stat"})

    def __init__(self, listener: Listener, survivor: "FakeDriver | None" = None) -> None:
        self._listener = listener
        self.tasks: dict[str, FakeTask] = survivor.tasks if survivor else {}
        self.forgotten: list[str] = []
        self.kills_lost = 0
        """How many of the next signals are swallowed."""
        self._refusals: deque[int] = deque()
        self._early_exits: deque[int] = deque()
        self._gate: trio.Event | None = None
        self._arrived = trio.Event()

    # Faults

    def refuse(self, errno: int) -> None:
        """Make the next start that has no fault yet fail with `errno`."""
        self._refusals.append(errno)

    def exit_early(self, code: int) -> None:
        """Make the next task end, and be reported, before its start has answered."""
        self._early_exits.append(code)

    def hold_starts(self) -> trio.Event:
        """Keep every start from answering until the event that this returns is set."""
        self._gate = trio.Event()
        return self._gate

    async def start_arrived(self) -> None:
        """Wait until a start is being held."""
        await self._arrived.wait()

    def lose(self, reason: str = "supervisor lost") -> None:
        """Let the supervisor die and take its tasks along."""
        self.tasks.clear()
        self._listener.lost(reason)

    # What tasks do

    def finish(self, task: str, code: int, reason: str = "") -> None:
        """End a task by itself; `code` above 128 is a signal's."""
        running = self._running(task)
        for number in running.launch.spools:
            self._report(task, number, eof=True)
        running.exit = Exit(code, reason or (f"signal {code - 128}" if code > 128 else "exited"))
        self._listener.exited(task, running.exit)

    def write(self, task: str, fd: int, data: bytes) -> None:
        """Put output of a task into its spool, keeping the newest `spool_limit` bytes as accounted."""
        running = self._running(task)
        with open(running.launch.spools[fd], "ab") as file:
            file.write(data)
        running.written[fd] = running.written.get(fd, 0) + len(data)
        self._report(task, fd, eof=False)

    def out_of_memory(self, task: str) -> None:
        """Report that a task wanted more memory than it may have."""
        self._listener.event(task, "oom", {"limit_bytes": self._running(task).launch.limits.memory or 0})

    def _report(self, task: str, fd: int, *, eof: bool) -> None:
        running = self.tasks[task]
        end = running.written.get(fd, 0)
        self._listener.output(task, fd, end, max(0, end - running.launch.spool_limit), eof)

    def _running(self, task: str) -> FakeTask:
        found = self.tasks.get(task)
        if found is None or found.exit:
            raise OSError(ESRCH, "no such task")
        return found

    # The contract

    async def start(self, launch: Launch) -> int:
        if launch.id in self.tasks:
            raise OSError(EEXIST, "a task of this id is known")
        self._arrived.set()
        if self._gate is not None:
            await self._gate.wait()
        if self._refusals:
            errno = self._refusals.popleft()
            raise OSError(errno, f"{launch.argv[0]}: {os.strerror(errno)}")
        for path in launch.spools.values():
            path.touch()
        pid = FIRST_PID + len(self.tasks)
        self.tasks[launch.id] = FakeTask(launch, pid)
        if self._early_exits:
            self.finish(launch.id, self._early_exits.popleft())
        return pid

    async def kill(self, task: str, signal: int) -> None:
        running = self._running(task)
        if self.kills_lost:
            self.kills_lost -= 1
            return
        running.signals.append(signal)
        if signal in (SIGSTOP, SIGCONT):
            running.paused = signal == SIGSTOP
        elif signal == SIGKILL or (signal and not running.paused):
            self.finish(task, 128 + signal)

    async def pause(self, task: str) -> None:
        self._running(task).paused = True

    async def resume(self, task: str) -> None:
        self._running(task).paused = False

    async def set_limits(self, task: str, limits: Limits) -> None:
        running = self._running(task)
        running.launch = replace(running.launch, limits=limits)

    async def stat(self, task: str, what: str) -> Mapping[str, int]:
        figures = {
            "mem": {"current_bytes": 4096, "peak_bytes": 8192},
            "cpu": {"user_usec": 10, "system_usec": 5},
            "io": {"read_bytes": 0, "write_bytes": sum(self._running(task).written.values())},
            "pids": {"current": 1},
        }
        if what not in figures:
            raise OSError(EINVAL, f"no figures of {what}")
        return figures[what]

    async def pids(self, task: str) -> Sequence[int]:
        return [self._running(task).pid]

    async def terminal(self, task: str) -> int:
        if self._running(task).launch.pty is None:
            raise OSError(ENODEV, "the task has no terminal")
        return os.open(os.devnull, os.O_RDWR)

    async def recover(self, tasks: Sequence[str]) -> Mapping[str, Exit | None]:
        for task in tasks:
            for number in self.tasks[task].launch.spools if task in self.tasks else ():
                self._report(task, number, eof=self.tasks[task].exit is not None)
        return {task: self.tasks[task].exit for task in tasks if task in self.tasks}

    def forget(self, task: str) -> None:
        self.tasks.pop(task, None)
        self.forgotten.append(task)
