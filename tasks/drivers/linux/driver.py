"""Tasks that are processes of this machine.

As root, if only of a user namespace, each task has its namespace as its root,
its own pid, ipc and network namespaces, and a cgroup. Without root it is a
process tree in the host's own root, paused by signals and limited by nothing
but `nice`; if the supervisor is killed, only main processes are sure to die
with it.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from errno import EEXIST, EINVAL, ENOKEY, ENOTSUP, ESRCH
from pathlib import Path

import trio

from ns.namespace import Namespace, Realiser
from tasks.allowed import allowed
from tasks.drivers.base import Exit, Launch, Limits, Listener
from tasks.drivers.linux import procstat
from tasks.drivers.linux.cgroup import Cgroups, Group, Hierarchy, hierarchies
from tasks.drivers.linux.client import Client, connect, ensure
from tasks.drivers.linux.layouts import Layouts, Stock
from tasks.drivers.linux.live import LiveRoot
from tasks.drivers.linux.oom import OomWatch
from tasks.drivers.linux.roots import Holder, Roots
from tasks.drivers.linux.seccomp import FILTER
from tasks.drivers.linux.vault import SupervisorVault
from tasks.taskd.protocol import Message

SIGKILL, SIGCONT, SIGSTOP = 9, 18, 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """A task that a warm program becomes, instead of executing one (see `tasks.taskd.zygote`).

    `program` is that program's command line; `fds` and `fields` go to it beside what every task has.
    """

    program: Sequence[str]
    fds: Mapping[str, int]
    fields: Mapping[str, object]


class LinuxDriver:
    """Implements `tasks.drivers.base.Driver` over a supervisor process. Made by `opened`."""

    name = "linux"

    def __init__(self, listener: Listener, cgroups: Cgroups) -> None:
        self._listener = listener
        self.listeners: dict[str, Listener] = {}
        """Who is told of these tasks instead: a driver that runs its own kind of task as a process."""
        self._cgroups = cgroups
        self._client: Client  # set when connected
        self._nursery: trio.Nursery
        self._oom: dict[str, OomWatch] = {}
        self._groups: dict[str, Group] = {}
        self._known: set[str] = set()
        self._live: dict[str, tuple[list[Realiser], LiveRoot]] = {}
        self._unclaimed: dict[str, Message] = {}  # ends of tasks that `recover` was not asked for yet
        self._quitting = False
        self.vault: SupervisorVault
        """Keeps descriptors that must outlive this process."""
        self._layouts: Layouts | None = None
        self._stocks: set[str] = set()  # those that the supervisor was told
        self.capabilities = self._find_capabilities()

    def _find_capabilities(self) -> frozenset[str]:
        found = {"pause", "nice", "stat", "pty"}
        limits = {"memory": "memlimit", "pids": "pidlimit", "cpu": "cpulimit"}
        found |= {limits[controller] for controller in self._cgroups.controllers if controller in limits}
        if os.geteuid() == 0:
            found |= {"net", "bind"}
        return frozenset(found)

    @property
    def roots(self) -> Roots | None:
        """What namespaces are made of; None: tasks see the host's own root."""
        return self._layouts.roots if self._layouts else None

    @roots.setter
    def roots(self, roots: Roots | None) -> None:
        self._layouts = Layouts(roots) if roots else None

    @property
    def supervisor_pid(self) -> int:
        return self._client.pid

    async def start(self, launch: Launch, warm: Warm | None = None) -> int:
        """Start a task; with `warm` it has no root of its own. EAGAIN unless that program is warm (`warm_up`)."""
        task = launch.id
        if task in self._known:
            raise OSError(EEXIST, "a task of this id is known")
        group = self._new_group(task, launch.limits)
        self._known.add(task)
        opened: list[int] = []
        made: list[Path] = []
        try:
            message, fds = self._message(launch, group, opened, made)
            with trio.CancelScope(shield=True):  # the supervisor's own deadline ends it
                if warm:
                    message |= {"warm": list(warm.program), **warm.fields}
                    for name, fd in warm.fds.items():
                        fds.append(fd)
                        message[name] = len(fds) - 1
                    started = await self._client.call("start", fds, **message)
                elif launch.namespace and self._layouts:
                    holder = Holder(task=launch.id, user=launch.user, home=launch.home, uid=launch.uid)
                    async with launch.namespace.hold() as table:
                        message["seccomp"] = FILTER
                        root, stock = await self._layouts.stocked(holder, launch.namespace, table)
                        self._follow(holder, launch.namespace, self._layouts)
                        started = await self._start(message | {"root": root}, fds, stock)
                else:
                    started = await self._client.call("start", fds, **message)
        except OSError:
            for path in made:
                path.unlink(missing_ok=True)
            self._known.discard(task)
            self._unfollow(task)
            self._drop_group(task)
            raise
        finally:
            for fd in opened:
                os.close(fd)
        return _integer(started["pid"])

    async def _start(self, message: Message, fds: Sequence[int], stock: Stock) -> Message:
        """Send `start`, with the steps of the stock unless the supervisor still knows them."""
        if stock.key in self._stocks:
            try:
                return await self._client.call("start", fds, **message)
            except OSError as error:
                if error.errno != ENOKEY:
                    raise
        self._stocks.add(stock.key)
        return await self._client.call("start", fds, **message, stock=stock.steps)

    async def warm_up(self, program: Sequence[str]) -> None:
        """Have the supervisor start a warm program, unless it runs, and wait until it is ready. EIO if it fails."""
        await self._client.call("warm", program=list(program))

    def follow(self, launch: Launch) -> None:
        """Let a recovered task's mounts follow its namespace again. Of the launch only who and where is looked at."""
        if launch.namespace and self._layouts and launch.id in self._known:
            holder = Holder(task=launch.id, user=launch.user, home=launch.home, uid=launch.uid)
            self._follow(holder, launch.namespace, self._layouts)

    def _follow(self, holder: Holder, namespace: Namespace, layouts: Layouts) -> None:
        live = LiveRoot(self._client, holder, namespace, layouts)
        namespace.realisers.append(live)
        self._live[holder.task] = (namespace.realisers, live)

    def _unfollow(self, task: str) -> None:
        if task in self._live:
            realisers, live = self._live.pop(task)
            realisers.remove(live)

    def _new_group(self, task: str, limits: Limits) -> Group | None:
        if not self._cgroups:
            if limits != Limits(nice=limits.nice):
                raise OSError(ENOTSUP, "no cgroups here to set limits with")
            return None
        group = self._cgroups.make(task)
        try:
            if limits != Limits():
                group.limit(limits)
        except OSError:
            self._cgroups.remove(group)
            raise
        self._groups[task] = group
        self._watch_memory(task, group, limits)
        return group

    def _watch_memory(self, task: str, group: Group, limits: Limits) -> None:
        """Report kills for want of memory when they happen, from the first limit on."""
        if limits.memory is None or task in self._oom or not (notice := group.oom_notice()):
            return

        def tell(kills: int) -> None:
            limit = group.stat("mem").get("limit_bytes", 0)
            self._told(task).event(task, "oom", {"kills": kills, "limit_bytes": limit})

        watch = self._oom[task] = OomWatch(notice, group.oom_kills, tell)
        self._nursery.start_soon(watch.run)

    def _message(
        self, launch: Launch, group: Group | None, opened: list[int], made: list[Path]
    ) -> tuple[Message, list[int]]:
        """Return the `start` request and its descriptors, of which `opened` are to be closed after it."""
        fds: list[int] = []

        def index(fd: int) -> int:
            if fd not in fds:
                fds.append(fd)
            return fds.index(fd)

        def open_index(path: Path | str, flags: int) -> int:
            opened.append(os.open(path, flags | os.O_CLOEXEC, 0o600))
            return index(opened[-1])

        message: Message = {
            "task": launch.id,
            "argv": list(launch.argv),
            "env": dict(launch.env),
            "cwd": launch.cwd,
            "uid": launch.uid,
            "gid": launch.gid,
            "nice": launch.limits.nice,
            "fds": {str(number): index(fd) for number, fd in launch.fds.items()},
            "spool_limit": launch.spool_limit,
        }
        spools: dict[Path, int] = {}
        for path in launch.spools.values():
            if path not in spools:
                if not path.exists():
                    made.append(path)
                spools[path] = open_index(path, os.O_RDWR | os.O_CREAT)
        message["spools"] = {str(number): spools[path] for number, path in launch.spools.items()}
        if launch.pty:
            message["pty"] = {"rows": launch.pty[0], "columns": launch.pty[1]}
        if group:
            message["sweep"] = open_index(group.sweep, os.O_RDONLY | os.O_DIRECTORY)
            if group.unified:
                message["cgroup"] = message["sweep"]
            message["join"] = group.joined
        if launch.net != "host" and "net" in self.capabilities:
            message["net"] = "none"
            message["allow"] = [item._asdict() for item in allowed(launch.net)]
        return message, fds

    async def kill(self, task: str, signal: int) -> None:
        await self._client.call("kill", task=task, signal=signal)
        group = self._groups.get(task)
        if signal == SIGKILL and group and not group.unified:
            group.kill()  # a version 1 freezer holds on even to the killed

    async def pause(self, task: str) -> None:
        group = self._groups.get(task)
        if group and group.can_pause:
            await group.pause(True)
        else:
            await self._client.call("kill", task=task, signal=SIGSTOP)

    async def resume(self, task: str) -> None:
        group = self._groups.get(task)
        if group and group.can_pause:
            await group.pause(False)
        else:
            await self._client.call("kill", task=task, signal=SIGCONT)

    async def set_limits(self, task: str, limits: Limits) -> None:
        pids = await self.pids(task)
        group = self._groups.get(task)
        if group:
            group.limit(limits)
            self._watch_memory(task, group, limits)
        elif limits != Limits(nice=limits.nice):
            raise OSError(ENOTSUP, "no cgroups here to set limits with")
        for pid in pids:
            try:
                if os.getpriority(os.PRIO_PROCESS, pid) != limits.nice:
                    os.setpriority(os.PRIO_PROCESS, pid, limits.nice)
            except ProcessLookupError:
                continue

    async def stat(self, task: str, what: str) -> Mapping[str, int]:
        if what not in ("mem", "cpu", "io", "pids"):
            raise OSError(EINVAL, f"no figures of {what}")
        group = self._groups.get(task)
        figures = group.stat(what) if group else {}
        return figures or procstat.stat(what, await self.pids(task))

    async def pids(self, task: str) -> Sequence[int]:
        pids = (await self._client.call("pids", task=task))["pids"]
        if not pids:
            raise OSError(ESRCH, "the task has ended")
        assert isinstance(pids, list)
        return pids

    async def terminal(self, task: str) -> int:
        _, fds = await self._client.request("terminal", task=task)
        return fds[0]

    async def recover(self, tasks: Sequence[str]) -> Mapping[str, Exit | None]:
        found: dict[str, Exit | None] = {}
        table = await self._client.call("list")
        for task in tasks:
            record = table.get(task)
            if not isinstance(record, dict):
                continue
            self._known.add(task)
            if group := self._cgroups.find(task):
                self._groups[task] = group
                self._watch_memory(task, group, Limits(memory=group.stat("mem").get("limit_bytes")))
            for number, (end, start, eof) in record["spools"].items():
                self._told(task).output(task, int(number), end, start, bool(eof))
            end_record = self._unclaimed.pop(task, record["exit"])
            found[task] = None if end_record is None else self._account(task, end_record)
        return found

    def forget(self, task: str) -> None:
        self._known.discard(task)
        self.listeners.pop(task, None)
        self._client.post("forget", task=task)

    async def is_idle(self) -> bool:
        """Tell whether the supervisor knows no task, running or ended."""
        return not await self._client.call("list")

    async def quit(self) -> None:
        """Kill every task and end the supervisor."""
        self._quitting = True
        for group in self._groups.values():
            group.kill()
        with suppress(ConnectionResetError):  # where it ends with posts of ours unread, its answer is lost
            await self._client.call("quit")

    # What the supervisor reports

    def _told(self, task: str) -> Listener:
        return self.listeners.get(task, self._listener)

    def _event(self, event: Message) -> None:
        if event["event"] in ("output", "exited"):
            assert isinstance(event["spools"], list)
            for task, number, end, start, eof in event["spools"]:
                self._told(task).output(task, number, end, start, bool(eof))
        if event["event"] == "exited":
            task, exit = event["task"], event["exit"]
            assert isinstance(task, str) and isinstance(exit, dict)
            if task in self._known:
                self._told(task).exited(task, self._account(task, exit))
            else:
                self._unclaimed[task] = exit

    def _account(self, task: str, record: Mapping[str, object]) -> Exit:
        """Return how a task ended, with its group's figures where it has one, and remove the group."""
        exit = Exit(
            _integer(record["code"]),
            str(record["reason"]),
            user_usec=_integer(record["user_usec"]),
            system_usec=_integer(record["system_usec"]),
            peak_bytes=_integer(record["peak_bytes"]),
        )
        self._unfollow(task)
        group = self._groups.get(task)
        if not group:
            return exit
        used = group.used()
        if exit.code == 128 + SIGKILL and group.oom_kills():
            exit = replace(exit, reason="out of memory")
        self._drop_group(task)
        return replace(
            exit,
            user_usec=used.get("user_usec", exit.user_usec),
            system_usec=used.get("system_usec", exit.system_usec),
            peak_bytes=used.get("peak_bytes", exit.peak_bytes),
        )

    def _drop_group(self, task: str) -> None:
        if watch := self._oom.pop(task, None):
            watch.finish()
        if group := self._groups.pop(task, None):
            self._cgroups.remove(group)

    def _lost(self, reason: str) -> None:
        if not self._quitting:
            self._cgroups.kill_all()
            for listener in {id(each): each for each in (*self.listeners.values(), self._listener)}.values():
                listener.lost(reason)


def cgroup_name(state: Path) -> str:
    """Return the name under which the groups of this state directory go, the same after a restart."""
    digest = hashlib.blake2b(os.fsencode(state.resolve()), digest_size=4).hexdigest()
    return f"wanixfs-{digest}.scope"


@asynccontextmanager
async def opened(state: Path, listener: Listener, *, cgroup: str | None = "auto") -> AsyncIterator[LinuxDriver]:
    """Yield a driver whose supervisor belongs to the state directory, started unless it runs.

    Leaving the block leaves the tasks running; `quit` ends them. `cgroup` is the name of the directory that holds
    the tasks' groups, "auto" for one of the state directory's own, None for none. The caller holds the state
    directory's lock.
    """
    groups = Cgroups(cgroup_name(state) if cgroup == "auto" else cgroup or "", _mounted() if cgroup else [])
    driver = LinuxDriver(listener, groups)
    ensure(state)
    try:
        async with (
            trio.open_nursery() as nursery,
            connect(state, on_event=driver._event, on_lost=driver._lost) as client,
        ):
            driver._client = client
            driver._nursery = nursery
            driver.vault = SupervisorVault(client)
            groups.kill_all(but=await client.call("list"))
            yield driver
            nursery.cancel_scope.cancel()
    finally:
        groups.close()


def _mounted() -> list[Hierarchy]:
    return hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value
