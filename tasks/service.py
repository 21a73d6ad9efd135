"""The task service: makes tasks, takes them through their states, and knows them all.

Everything here is synchronous and inline except what waits for a driver.
State changes first, is journalled, and is then told to whoever waits.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from errno import EAGAIN, EBUSY, EDEADLK, EDQUOT, EEXIST, EINVAL, EIO, ENODEV, ENOENT, ENOSPC, ENOTSUP, ESRCH
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from ns.namespace import Namespace
from ns.script import dump
from tasks.drivers.base import Driver, Exit, Launch, Limits
from tasks.fds import STDIN, Held, Spooled, Stdin
from tasks.homes import Homes
from tasks.launching import described, descriptors, require
from tasks.model import Spec, State, User
from tasks.ports import NoVault, Vault
from tasks.spool import Spool
from tasks.store import Journal
from tasks.task import Task
from tasks.terminal import Terminal
from tasks.transitions import Event
from vfs.errors import errno_of
from vfs.inline import park
from vfs.waiting import Signal

log = structlog.get_logger("tasks")

TERM_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL of a task whose time is up."""
MAX_CONSOLE = 64 << 10
MAX_DEPTH = 256
"""Generations of processes that are searched for a task's main one."""
SWEEP_DELAY = 0.5
"""Seconds for which removed homes are gathered before they are deleted together."""
ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL})
CANNOT_START = 126
"""The exit code of a task that was to start later and could not (as shells say it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long what is kept. Seconds, counts and bytes."""

    grace: float = 300.0
    keep_exited: int = 1000
    keep_seconds: float = 86400.0
    max_tasks: int = 200_000
    tasks_of_user: int = 4096
    descriptors_of_user: int = 1024
    """What the tasks of one user may have in all; the administrator may give them more."""
    spool_limit: int = 64 << 20


@dataclass(slots=True)
class Launching:
    """One start under way: who wrote `start` waits for `done`."""

    done: trio.Event = field(default_factory=trio.Event)
    error: OSError | None = None


class TaskService:
    """All tasks of one node. `run` must be running while tasks are started; it is its drivers' `Listener`.

    `fork` gives a new task its namespace: called with the parent (None: the administrator) when the task is made,
    it returns what builds the namespace later. `sniff` tells a task's type from its command.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        drivers: Mapping[str, Driver],
        homes: Homes,
        spools: Path,
        fork: Callable[[Task | None], Callable[[Task], Namespace]],
        sniff: Callable[[Task], Coroutine[Any, Any, str]],
        vault: Vault | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.journal = journal
        self.drivers = drivers
        self.homes = homes
        self.spools = spools
        self.vault: Vault = vault or NoVault()
        self.policy = policy or Policy()
        self.tasks: dict[int, Task] = {}
        self.top: dict[int, Task] = {}
        self.count_of: Counter[int] = Counter()  # tasks by uid
        self.aliases: dict[tuple[int, str], Task] = {}
        self.changes = Signal()
        self.child_exits = Signal()
        self.untold: dict[int, dict[int, Task]] = {}
        self.on_removed: list[Callable[[Task], None]] = []
        self.on_lost: list[Callable[[str], None]] = []
        """Called with the reason before the tasks of a lost supervisor count as ended."""
        self.fork = fork
        self._sniff = sniff
        self._nursery: trio.Nursery | None = None
        self._unused: dict[int, float] = {}
        self._exited: dict[int, float] = {}
        self._waiting: dict[int, Task] = {}
        self._launches: dict[int, Launching] = {}
        self._settling = False
        self._homes_removed = trio.Event()

    # Making, finding and removing

    def create(self, parent: Task | None, *, user: User | None = None, now: float | None = None) -> Task:
        """Allocate a task as a child of `parent` (None: the administrator). ENOSPC, EDQUOT at a limit.

        A task of the administrator gets a new user unless one is given.
        """
        if len(self.tasks) >= self.policy.max_tasks:
            raise OSError(ENOSPC, "too many tasks")
        maker = parent.spec.user if parent else user
        if maker and self.count_of[maker.uid] >= self.policy.tasks_of_user:
            raise OSError(EDQUOT, f"a user has at most {self.policy.tasks_of_user} tasks")
        number = self.journal.next("task")
        if parent is None:
            user = user or self.homes.new(number)
            spec = Spec(user=user, cwd=self.homes.inside(user))
        else:
            spec = parent.spec.for_child()
        task = Task(number, parent, spec, self.fork(parent), time.time() if now is None else now)
        self._add(task)
        self._unused[number] = task.times.created + self.policy.grace
        self.record(task, "allocated", {"parent": str(parent.id) if parent else ""}, {"spec": spec.to_json()})
        return task

    def restore(self, task: Task) -> None:
        """Take up a task that an earlier server made."""
        self._add(task)

    def schedule(self, now: float) -> None:
        """Set the times at which restored tasks are no longer needed, and let those that waited go on."""
        self.count_of = Counter(task.uid for task in self.tasks.values())
        for task in self.tasks.values():
            if task.ended:
                self._exited[task.id] = (task.times.exited or now) + self.policy.keep_seconds
            elif task.state is State.WAITING:
                self._waiting[task.id] = task
            elif task.state is State.ALLOCATED and not task.touched:
                self._unused[task.id] = now + self.policy.grace
        self._trim()

    def _add(self, task: Task) -> None:
        self.tasks[task.id] = task
        self.count_of[task.uid] += 1
        (task.parent.children if task.parent else self.top)[task.id] = task

    def children(self, parent: Task | None) -> dict[int, Task]:
        """Return the living record of a task's children (None: the administrator's)."""
        return parent.children if parent else self.top

    def find(self, name: str, parent: Task | None) -> Task | None:
        """Return the task that `name` (an id, or an alias given by `parent`) means, if any."""
        if name.isascii() and name.isdigit():
            return self.tasks.get(int(name)) if len(name) < 19 and not name.startswith("0") else None
        return self.aliases.get((parent.id if parent else 0, name))

    def task_of(self, pid: int) -> Task:
        """Return the task that process `pid` of this machine belongs to: the one whose main process it descends from.

        ENOENT if it is none's.
        """
        mains = {task.main_pid: task for task in self.tasks.values() if task.state.live and task.main_pid}
        for _ in range(MAX_DEPTH):
            if pid in mains:
                return mains[pid]
            try:
                status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            except OSError:
                break
            pid = int(status.rpartition(")")[2].split()[1])
        raise OSError(ENOENT, "the caller is no task's process")

    def alias(self, task: Task, name: str) -> None:
        """Let the parent's view know `task` as `name` too, instead of an earlier alias. EEXIST."""
        self.check_kept(task)
        if self.aliases.get((task.parent.id if task.parent else 0, name), task) is not task:
            raise OSError(EEXIST, f"another task is called {name!r}")
        self.name(task, name)
        self.touched(task, "alias", {"alias": name}, {"alias": name})

    def name(self, task: Task, alias: str) -> None:
        """Make `alias` the task's only one."""
        self._drop_alias(task)
        self.aliases[(task.parent.id if task.parent else 0, alias)] = task
        task.alias = alias

    def _drop_alias(self, task: Task) -> None:
        if task.alias:
            self.aliases.pop((task.parent.id if task.parent else 0, task.alias), None)
            task.alias = ""

    async def remove(self, task: Task) -> None:
        """Forget a task that has no process, with its home, output and events. EBUSY while it runs."""
        self.check_kept(task)
        if task.state.live or task.state is State.STARTING:
            raise OSError(EBUSY, "the task is running")
        self._forget([task])

    def _forget(self, tasks: list[Task]) -> None:
        for task in tasks:
            task.state = State.EXITED  # nothing that is still open of it can start it any more
            self._uncount(task.uid)
            self._adopt_children(task)
            for known in (self.tasks, self._unused, self._exited, self._waiting):
                known.pop(task.id, None)
            self.children(task.parent).pop(task.id, None)
            self.untold.get(task.parent.id if task.parent else 0, {}).pop(task.id, None)
            self.untold.pop(task.id, None)
            self._drop_alias(task)
            self._close_fds(task)
            if task.kind and task.times.started is not None:
                self.drivers[task.kind].forget(str(task.id))
            self._remove_spools(task)
            home = str(task.id)
            if self.homes.exists(home) and not self._home_used(home):
                self.homes.remove(home)
                self._homes_removed.set()
            for removed in self.on_removed:
                removed(task)
            self._end_output(task)
            task.notify()
        self.journal.forget(task.id for task in tasks)
        self._announce()
        self._release_waiting()

    def _remove_spools(self, task: Task) -> None:
        folder = f"{self.spools}/{task.id}"
        try:
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)
        except FileNotFoundError:
            pass  # it was never started
        except OSError as error:
            log.warning("the output of a removed task is left", path=folder, error=str(error))

    def _home_used(self, home: str) -> bool:
        return any(task.spec.user.home == home for task in self.tasks.values())

    def _adopt_children(self, task: Task) -> None:
        ancestor = task.parent
        while ancestor is not None and ancestor.ended:
            ancestor = ancestor.parent
        for child in list(task.children.values()):
            if not child.ended:
                self.adopt(child, ancestor)
                # The namespace too: what it was a copy of goes with the parent's rows.
                names = {"ns": dump(child.namespace.table)}
                self.record(child, "adopted", {"parent": str(ancestor.id) if ancestor else ""}, names)

    def adopt(self, task: Task, parent: Task | None) -> None:
        """Make `task` a child of `parent`; an alias stays if it is free there."""
        alias = task.alias
        self._drop_alias(task)
        del self.children(task.parent)[task.id]
        task.parent = parent
        self.children(parent)[task.id] = task
        if alias and (parent.id if parent else 0, alias) not in self.aliases:
            self.name(task, alias)

    # The journal

    def record(
        self, task: Task, kind: str, data: Mapping[str, object] | None = None, state: Mapping[str, object] | None = None
    ) -> None:
        """Journal what happened to a task and wake whoever reads events."""
        self.journal.append(task.id, kind, data, state)
        self._announce()

    def _announce(self) -> None:
        self.changes.notify()

    def check_kept(self, task: Task) -> None:
        """Raise ENOENT for a task that was removed, though a file of it is still open."""
        if self.tasks.get(task.id) is not task:
            raise OSError(ENOENT, "the task was removed")

    def touched(
        self, task: Task, what: str, data: Mapping[str, object] | None = None, state: Mapping[str, object] | None = None
    ) -> None:
        """A task was configured: journal it, and no longer count it as never used."""
        task.touched = True
        task.changed_ns = time.time_ns()
        self._unused.pop(task.id, None)
        self.record(task, "configured", {"what": what, **(data or {})}, state)

    def configure(self, task: Task, what: str, **fields: Any) -> None:
        """Change the description of a task that is not started, and journal it. EBUSY."""
        before = task.uid
        task.configure(**fields)
        if task.uid != before:
            self._uncount(before)
            self.count_of[task.uid] += 1
        self.touched(task, what, None, {"spec": task.spec.to_json()})

    def _uncount(self, uid: int) -> None:
        self.count_of[uid] -= 1
        if not self.count_of[uid]:
            del self.count_of[uid]

    def check_descriptors(self, task: Task) -> None:
        """Raise EDQUOT where the tasks of this one's user hold as many descriptors as they may."""
        limit = self.policy.descriptors_of_user
        tables = (other.fds for other in self.tasks.values() if other.has_fds and other.uid == task.uid)
        if sum(table.held for table in tables) >= limit:
            raise OSError(EDQUOT, f"the tasks of a user hold at most {limit} descriptors")

    # Starting

    async def start(self, task: Task) -> None:
        """Start a task, or let it wait for the ends of those it comes after. Answers once the program runs.

        EBUSY if it was started before, EINVAL without a command, ENOTSUP for what its type cannot do, and what
        the driver says of the program; the task is then as it was.
        """
        if not task.spec.argv and task.spec.type != "vm":
            task.check_configurable()
            raise OSError(EINVAL, "no command: write `cmd ARGV...` first")
        self._check_order(task)
        if self._settling:
            raise OSError(EAGAIN, "the server is being replaced; try again")
        if self._waits_for(task):
            task.become(Event.WAIT)
            self._waiting[task.id] = task
            self.touched(task, "start", {"after": [str(other) for other in task.spec.after]})
            return
        task.become(Event.START)
        self._unused.pop(task.id, None)
        launching = self._launch_soon(task)
        await park()
        await launching.done.wait()
        if launching.error is not None:
            raise launching.error

    def _launch_soon(self, task: Task) -> Launching:
        if self._nursery is None:
            task.become(Event.FAILED)
            raise OSError(EIO, "the task service is not running")
        launching = self._launches[task.id] = Launching()
        self._nursery.start_soon(self._launch, task, launching)
        return launching

    def _waits_for(self, task: Task) -> list[Task]:
        others = (self.tasks.get(int(name)) for name in task.spec.after)
        return [other for other in others if other is not None and not other.ended]

    def _check_order(self, task: Task) -> None:
        seen: set[int] = set()
        pending = list(self._waits_for(task))
        while pending:
            other = pending.pop()
            if other is task:
                raise OSError(EDEADLK, "the task would wait for itself")
            if other.id not in seen:
                seen.add(other.id)
                pending += self._waits_for(other)

    def _release_waiting(self) -> None:
        if self._nursery is None or self._settling:  # `run`, of the next server, does it again
            return
        for task in list(self._waiting.values()):
            if task.state is not State.WAITING:
                del self._waiting[task.id]
            elif not self._waits_for(task):
                del self._waiting[task.id]
                task.become(Event.RELEASED)
                self._launch_soon(task)

    async def _launch(self, task: Task, launching: Launching) -> None:
        """Start a task that is `starting`; the only place that talks to a driver about it."""
        late = task.times.started is not None or bool(task.spec.after)
        opened: list[int] = []

        def current() -> bool:
            """Tell whether no restart has followed: the end of a short run is known before its start has answered."""
            return self._launches.get(task.id) is launching

        try:
            driver = await self._driver_for(task)
            launch = self._prepare(task, opened)
            pid = await driver.start(launch)
        except Exception as problem:
            number = errno_of(problem, f"start task {task.id}")
            detail = problem.strerror if isinstance(problem, OSError) else None
            launching.error = OSError(number, detail or os.strerror(number))
            task.error = str(launching.error.strerror)
            if current() and self.tasks.get(task.id) is task and task.state is State.STARTING:
                self.record(task, "refused", {"error": task.error})
                if late:
                    self.end(task, Exit(CANNOT_START, f"could not start: {task.error}"))
                else:
                    task.become(Event.FAILED)
        else:
            if current():
                task.main_pid = pid
                if launch.pty and STDIN not in launch.fds:
                    await self.take_terminal(task, driver)
            if current() and task.state is State.STARTING:
                self._started(task)
        finally:
            if current():
                del self._launches[task.id]
            for fd in opened:
                os.close(fd)
            launching.done.set()

    async def take_terminal(self, task: Task, driver: Driver) -> None:
        """Put the terminal of a task that runs behind its fd/0, unless the task has ended meanwhile."""
        try:
            fd = await driver.terminal(str(task.id))
        except OSError as error:
            if error.errno not in (ESRCH, ENODEV):
                raise
            return
        if task.ended:
            os.close(fd)
        else:
            task.fds.set(STDIN, Terminal(fd))

    async def settle(self) -> None:
        """Start nothing any more, and return when no start is under way: a start needs this server to its end."""
        self._settling = True
        while self._launches:
            await next(iter(self._launches.values())).done.wait()

    async def _driver_for(self, task: Task) -> Driver:
        kind = task.spec.type
        if kind == "auto":
            kind = await self._sniff(task)
        driver = self.drivers.get(kind)
        if driver is None:
            raise OSError(ENOTSUP, f"no driver for tasks of type {kind} here")
        require(driver, kind, task.spec)
        task.kind = kind
        return driver

    def _prepare(self, task: Task, opened: list[int]) -> Launch:
        """Gather a launch; descriptors made only for it are added to `opened` and are the caller's to close."""
        folder = self.spools / str(task.id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.launch(task, *descriptors(task, partial(self.spool, task), opened))

    def launch(self, task: Task, fds: Mapping[int, int], spools: Mapping[int, Path]) -> Launch:
        """Describe a task to its driver, with these descriptors and spools."""
        return described(task, self.homes, fds=fds, spools=spools, spool_limit=self.policy.spool_limit)

    def spool(self, task: Task, number: int) -> Spool:
        """Return the spool of a descriptor, made on first use."""
        entry = task.fds.entries.get(number)
        if not isinstance(entry, Spooled):
            entry = Spooled(Spool(self.spools / str(task.id) / str(number)))
            entry.spool.eof = task.ended
            task.fds.entries[number] = entry
        return entry.spool

    def console(self, task: Task) -> str:
        """Return the end of what the machine of a VM task has said; "" for other tasks."""
        try:
            with (self.spools / str(task.id) / "console").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_CONSOLE))
                return file.read(MAX_CONSOLE).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _started(self, task: Task) -> None:
        task.become(Event.STARTED)
        task.times = replace(task.times, started=time.time())
        task.changed_ns = time.time_ns()
        table = task.fds
        stdin = table.entries.get(STDIN)
        if not task.spec.restarts:  # else the next run gets them too
            for number, entry in table.entries.items():
                if isinstance(entry, Held):
                    self.vault.drop(f"task/{task.id}/fd/{number}")
            table.hand_over()
        if isinstance(stdin, Stdin):
            self.vault.hold(f"task/{task.id}/stdin", [stdin.write])
        given = {str(number): table.shows(number) for number in table.numbers()}
        state = {"type": task.kind, "pid": task.main_pid, "spec": task.spec.to_json(), "fds": given}
        self.record(task, "started", {"type": task.kind, "argv": list(task.spec.argv)}, state)
        if task.spec.timeout is not None:
            self.arm_timeout(task, task.spec.timeout)

    # Controlling

    def driver(self, task: Task) -> Driver:
        """Return the driver of a task that has a process. ESRCH."""
        if not task.state.live:
            raise OSError(ESRCH, f"the task has no process: {task.state.shown}")
        return self.drivers[task.kind]

    async def kill(self, task: Task, number: int) -> None:
        """Signal the whole task. One that still waits for others is cancelled. ESRCH without a process."""
        if task.state is State.WAITING:
            self.end(task, Exit(128 + number, "cancelled before it started"))
            return
        driver = self.driver(task)
        if number in ENDING:
            task.spec = replace(task.spec, restarts=0)  # who ends a task does not want it back
        self.record(task, "signal", {"signal": signal.Signals(number).name if number < 32 else str(number)})
        await park()
        await driver.kill(str(task.id), number)

    async def pause(self, task: Task) -> None:
        driver = self._capable(task, "pause")
        if task.state is State.STOPPED:
            raise OSError(EBUSY, "the task is stopped already")
        await park()
        await driver.pause(str(task.id))
        if task.state is State.RUNNING:
            task.become(Event.PAUSE)
            self.record(task, "paused")

    async def resume(self, task: Task) -> None:
        driver = self._capable(task, "pause")
        if task.state is State.RUNNING:
            raise OSError(EBUSY, "the task is not stopped")
        await park()
        await driver.resume(str(task.id))
        if task.state is State.STOPPED:
            task.become(Event.RESUME)
            self.record(task, "resumed")

    def _capable(self, task: Task, capability: str) -> Driver:
        driver = self.driver(task)
        if capability not in driver.capabilities:
            raise OSError(ENOTSUP, f"{task.kind} tasks on this machine cannot {capability}")
        return driver

    async def set_limits(self, task: Task, capability: str, limits: Limits) -> None:
        """Change the limits of a task, running or not. ENOTSUP where its driver cannot."""
        if task.ended:
            raise OSError(EBUSY, "the task has exited")
        if task.state.live:
            driver = self._capable(task, capability)
            await park()
            await driver.set_limits(str(task.id), limits)
        task.spec = replace(task.spec, limits=limits)
        self.touched(task, capability, None, {"spec": task.spec.to_json()})

    def arm_timeout(self, task: Task, seconds: float) -> None:
        """End a running task after that many seconds from now, in place of an earlier deadline."""
        if task.cancel_timeout is not None:
            task.cancel_timeout()
        if self._nursery is not None:
            scope = trio.CancelScope()
            task.cancel_timeout = scope.cancel
            self._nursery.start_soon(self._time_out, task, seconds, scope)

    async def _time_out(self, task: Task, seconds: float, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(seconds)
            task.reason = f"timed out after {task.spec.timeout:g} s"
            for number, grace in ((signal.SIGTERM, TERM_GRACE), (signal.SIGKILL, 0.0)):
                try:
                    await self.kill(task, number)
                except OSError as error:
                    log.warning("timeout", task=task.id, error=str(error))
                await trio.sleep(grace)

    def _close_fds(self, task: Task) -> None:
        if task.has_fds:
            for number, entry in task.fds.entries.items():
                if isinstance(entry, Held):
                    self.vault.drop(f"task/{task.id}/fd/{number}")
                elif isinstance(entry, Stdin) and task.times.started is not None:
                    self.vault.drop(f"task/{task.id}/stdin")
            task.fds.close()

    @staticmethod
    def _end_output(task: Task) -> None:
        for entry in task.fds.entries.values() if task.has_fds else ():
            if isinstance(entry, Spooled):
                entry.spool.measure()
                entry.spool.grew(entry.spool.end, entry.spool.start, True)

    # What drivers report

    def exited(self, task: str, exit: Exit) -> None:
        record = self.tasks.get(int(task))
        if record is None or record.ended:
            return
        if record.state is State.STARTING:
            self._started(record)
        left = record.spec.restarts
        if exit.code and left and not record.reason and self._nursery is not None and not self._settling:
            record.become(Event.RESTART)
            record.spec = replace(record.spec, restarts=left - 1)
            self.record(record, "restarted", {"code": exit.code, "reason": exit.reason, "left": left - 1})
            self.drivers[record.kind].forget(task)
            self._launch_soon(record)
            return
        self.end(record, exit)

    def end(self, task: Task, exit: Exit) -> None:
        """A task is over: release what it held, tell everyone who waits, start what comes after it."""
        task.become(Event.CANCEL if task.state is State.WAITING else Event.EXITED)
        if task.cancel_timeout is not None:
            task.cancel_timeout()
            task.cancel_timeout = None
        task.exit = exit
        task.reason = task.reason or exit.reason
        task.times = replace(task.times, exited=time.time())
        task.changed_ns = time.time_ns()
        self._close_fds(task)
        self._end_output(task)
        self._adopt_children(task)
        usage = {"user_usec": exit.user_usec, "system_usec": exit.system_usec, "peak_bytes": exit.peak_bytes}
        spools = {str(number): entry.spool for number, entry in task.fds.entries.items() if isinstance(entry, Spooled)}
        dropped = {number: spool.start for number, spool in spools.items() if spool.start}
        self.record(task, "exited", {"code": exit.code, "reason": task.reason, **usage}, {"dropped": dropped})
        self._exited[task.id] = time.time() + self.policy.keep_seconds
        self._unused.pop(task.id, None)
        self.untold.setdefault(task.parent.id if task.parent else 0, {})[task.id] = task
        task.notify()
        self.child_exits.notify()
        self._release_waiting()
        self._trim()

    def output(self, task: str, fd: int, end: int, start: int, eof: bool) -> None:
        record = self.tasks.get(int(task))
        if record is None:
            return
        spool = self.spool(record, fd)
        if start > 2 * spool.told:  # each doubling, so that an endless output does not fill the journal
            spool.told = start
            self.record(record, "dropped", {"fd": fd, "dropped_bytes": start})
        spool.grew(end, start, eof and not record.spec.restarts)  # another run may go on where this one ended

    def event(self, task: str, kind: str, detail: Mapping[str, object]) -> None:
        record = self.tasks.get(int(task))
        if record is not None:
            self.record(record, kind, detail)
            if kind == "oom":
                record.error = "out of memory"
            elif kind == "trap":
                record.reason, record.error = "trap", str(detail["error"])

    def lost(self, reason: str) -> None:
        for told in self.on_lost:
            told(reason)
        for task in list(self.tasks.values()):
            if task.state.live:
                self.end(task, Exit(128 + signal.SIGKILL, reason))

    # Running

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled: launches, deadlines, and the reaping of what is no longer needed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self._release_waiting()
                nursery.start_soon(self._sweep_homes)
                task_status.started()
                while True:
                    await trio.sleep(self.policy.grace / 10)
                    self.reap(time.time())
            finally:
                self._nursery = None

    async def _sweep_homes(self) -> None:
        while True:
            await self._homes_removed.wait()
            await trio.sleep(SWEEP_DELAY)
            self._homes_removed = trio.Event()
            await trio.to_thread.run_sync(self.homes.sweep, abandon_on_cancel=True)

    def spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Run `work(*args)` for as long as the service runs. EIO before it does."""
        if self._nursery is None:
            raise OSError(EIO, "the task service is not running")
        self._nursery.start_soon(work, *args)

    def reap(self, now: float) -> None:
        """Forget tasks that were never used for the grace period, and exited ones past their time."""
        for deadlines in (self._unused, self._exited):
            due = []
            for number, deadline in deadlines.items():
                if deadline > now:
                    break
                due.append(self.tasks[number])
            if due:
                self._forget(due)

    def _trim(self) -> None:
        excess = len(self._exited) - self.policy.keep_exited
        if excess > 0:
            self._forget([self.tasks[number] for number in list(self._exited)[:excess]])
