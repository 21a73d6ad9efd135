"""The verbs of `/task/<id>/ctl`, with the authority of the view through which they were written."""

import time
from collections.abc import Mapping
from dataclasses import replace
from errno import ENOTSUP, EPERM

import trio

from tasks import values
from tasks.allowed import allowed
from tasks.model import TYPES, Limits
from tasks.service import TaskService
from tasks.task import Task
from tasks.terminal import Terminal
from tasks.view import View
from vfs.control import Verb, usage
from vfs.inline import park

MAX_ALIAS = 64
MAX_LABELS = 64
RESERVED = frozenset({"new", "self", "wait", "events"})
"""Names served in `/task` itself, which no alias may hide."""


class TaskVerbs:
    """One task's ctl as one view writes it."""

    def __init__(self, service: TaskService, view: View, task: Task) -> None:
        self._service = service
        self._view = view
        self._task = task

    def table(self) -> Mapping[str, Verb]:
        """Return the verbs in the order of the manual."""
        return {
            "type": self.type,
            "cmd": self.cmd,
            "start": self.start,
            "kill": self.kill,
            "pause": self.pause,
            "resume": self.resume,
            "memlimit": self.memlimit,
            "nice": self.nice,
            "cpulimit": self.cpulimit,
            "pidlimit": self.pidlimit,
            "timeout": self.timeout,
            "alias": self.alias,
            "label": self.label,
            "after": self.after,
            "restart": self.restart,
            "user": self.user,
            "net": self.net,
            "quota": self.quota,
            "pty": self.pty,
            "checkpoint": self.checkpoint,
            "restore": self.restore,
            "remove": self.remove,
        }

    @usage("type auto|linux|wasi|vm|remote")
    def type(self, kind: str) -> None:
        """what kind of task it is; auto looks at the program"""
        if kind not in TYPES:
            raise values.invalid(f"not a type: {kind[:64]!r} (one of {', '.join(TYPES)})")
        self._service.configure(self._task, "type", type=kind)

    @usage("cmd ARGV...")
    def cmd(self, program: str, *args: str) -> None:
        """the program and its arguments"""
        self._service.configure(self._task, "cmd", argv=(program, *args))

    async def start(self) -> None:
        """run it; answers once the program runs"""
        await self._service.start(self._task)

    async def kill(self, signal: str) -> None:
        """signal the whole task, by number or name"""
        await self._service.kill(self._task, values.signal_number(signal))

    async def pause(self) -> None:
        """stop every process of the task where it is"""
        await self._service.pause(self._task)

    async def resume(self) -> None:
        """let a paused task go on"""
        await self._service.resume(self._task)

    async def memlimit(self, size: str) -> None:
        """largest memory, in bytes or with K, M, G"""
        await self._limit("memlimit", memory=values.size(size))

    async def nice(self, n: str) -> None:
        """scheduling priority, -20 (first) to 19 (last)"""
        value = values.number(n, -20, 19)
        if not self._view.admin and value < self._task.spec.limits.nice:
            raise OSError(EPERM, "only the administrator raises priority")
        await self._service.set_limits(self._task, "nice", replace(self._task.spec.limits, nice=value))

    async def cpulimit(self, cores: str) -> None:
        """largest share of processors, such as 0.5 or 2"""
        await self._limit("cpulimit", cpu=values.decimal(cores, 0.01, 4096))

    async def pidlimit(self, n: str) -> None:
        """largest number of processes and threads"""
        await self._limit("pidlimit", pids=values.number(n, 1, 4_194_304))

    async def _limit(self, capability: str, **change: float) -> None:
        ((name, value),) = change.items()
        limits = self._task.spec.limits
        bound = getattr(limits if self._view.task is self._task else self._ceiling(), name)
        if bound is not None and value > bound:
            raise OSError(EPERM, f"{capability} can be at most {bound:g} here")
        await self._service.set_limits(self._task, capability, replace(limits, **{name: value}))  # type: ignore[arg-type]

    def _ceiling(self) -> Limits:
        """Return the limits that an ancestor may raise up to: its own; the administrator has none."""
        return self._view.task.spec.limits if self._view.task else Limits()

    def timeout(self, seconds: str) -> None:
        """end it (SIGTERM, then SIGKILL) after this time"""
        value = values.decimal(seconds, 0.001, 1e8)
        task = self._task
        if task.ended:
            task.check_configurable()
        age = time.time() - (task.times.started or 0) if task.state.live else 0.0
        if self._view.task is task and task.spec.timeout is not None and age + value > task.spec.timeout:
            raise OSError(EPERM, "a task may only shorten its own time")
        task.spec = replace(task.spec, timeout=age + value)
        self._service.touched(task, "timeout", None, {"spec": task.spec.to_json()})
        if task.state.live:
            self._service.arm_timeout(task, value)

    def alias(self, name: str) -> None:
        """a second name for /task/ID in its parent's view"""
        if (
            not name
            or name in RESERVED
            or name.isdigit()
            or len(name) > MAX_ALIAS
            or not name[0].isalnum()
            or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
        ):
            raise values.invalid(f"not an alias: {name[:64]!r} (letters, digits, '.', '_', '-'; not only digits)")
        self._service.alias(self._task, name)

    @usage("label K=V")
    def label(self, assignment: str) -> None:
        """a mark of your own, shown in labels; an empty V removes it"""
        key, value = values.label(assignment)
        task = self._task
        self._service.check_kept(task)
        labels = task.spec.labels.set(key, value) if value else task.spec.labels.delete(key)
        if len(labels) > MAX_LABELS:
            raise values.invalid(f"at most {MAX_LABELS} labels")
        task.spec = replace(task.spec, labels=labels)
        self._service.touched(task, "label", {"label": assignment}, {"spec": task.spec.to_json()})

    @usage("after TASK...")
    def after(self, task: str, *more: str) -> None:
        """let start wait until these tasks have exited"""
        names = []
        for name in (task, *more):
            other = self._service.find(name, self._view.task)
            if other is None or not self._view.sees(other):
                raise values.invalid(f"no such task: {name[:64]!r}")
            if other is self._task:
                raise values.invalid("a task cannot come after itself")
            names.append(str(other.id))
        self._service.configure(self._task, "after", after=tuple(names))

    @usage("restart no|on-failure [N]")
    def restart(self, when: str, n: str = "1") -> None:
        """start it again, up to N times, when it fails"""
        if when not in ("no", "on-failure"):
            raise values.invalid("usage: restart no|on-failure [N]")
        self._service.configure(self._task, "restart", restarts=0 if when == "no" else values.number(n, 1, 1_000_000))

    def user(self, name: str) -> None:
        """run as this user of the machine"""
        self._view.require_admin("choose the user")
        homes, spec = self._service.homes, self._task.spec
        user = homes.known(name)
        cwd = homes.inside(user) if spec.cwd == homes.inside(spec.user) else spec.cwd
        self._service.configure(self._task, "user", user=user, cwd=cwd)

    @usage("net none|host|allow HOST:PORT...")
    def net(self, what: str, *hosts: str) -> None:
        """which network it sees"""
        if what not in ("none", "host", "allow") or bool(hosts) != (what == "allow"):
            raise values.invalid("usage: net none|host|allow HOST:PORT...")
        net = " ".join((what, *hosts))
        wanted = {(item.host, item.port) for item in allowed(net)}
        own = self._view.task.spec.net if self._view.task else "none"
        if not self._view.admin and what != "none" and own != "host":
            if what == "host":
                raise OSError(EPERM, "only the administrator may give the host's network")
            if not wanted <= {(item.host, item.port) for item in allowed(own)}:
                raise OSError(EPERM, "a task gives no network that it does not have")
        self._service.configure(self._task, "net", net=net)

    async def quota(self, size: str) -> None:
        """largest size of the home, where the host can hold it to that"""
        task, number = self._task, values.size(size)
        task.check_configurable()
        if task.spec.user.home != str(task.id):
            raise OSError(ENOTSUP, "the home was not made for this task")
        await park()
        await trio.to_thread.run_sync(self._service.homes.limit, task.spec.user, number)
        self._service.configure(task, "quota", quota=number)

    @usage("pty [ROWSxCOLS]")
    def pty(self, size: str = "24x80") -> None:
        """give it a terminal instead of pipes; tell a running one its size"""
        rows, x, columns = size.partition("x")
        if not x:
            raise values.invalid("usage: pty [ROWSxCOLS]")
        pty = (values.number(rows, 1, 10_000), values.number(columns, 1, 10_000))
        stdin = self._task.fds.stdin() if self._task.state.live else None
        if isinstance(stdin, Terminal):
            stdin.resize(*pty)
        else:
            self._service.configure(self._task, "pty", pty=pty)

    @usage("checkpoint [PATH]")
    async def checkpoint(self, path: str = "") -> None:
        """save its state, for types that can"""
        self._service.driver(self._task)
        raise OSError(ENOTSUP, f"{self._task.kind} tasks cannot be checkpointed")

    @usage("restore PATH")
    async def restore(self, path: str) -> None:
        """start it from a saved state, for types that can"""
        self._task.check_configurable()
        raise OSError(ENOTSUP, "no driver here can restore a task")

    async def remove(self) -> None:
        """forget a task that is not running, with its home and output"""
        await self._service.remove(self._task)
