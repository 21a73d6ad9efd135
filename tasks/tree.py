"""The tree of `/task`, in the order `ls` shows it. docs/tree.md restates it for users; a test compares the two."""

import stat as statmod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import ENOENT
from functools import partial

from immutables import Map

from ns.script import dump
from tasks import values
from tasks.drivers.base import Exit
from tasks.events import Events
from tasks.fd_verbs import FdVerbs
from tasks.fds import MAX_FD, STDIN, FdTable, Spooled, Stdin, StdinFile
from tasks.model import environment_size
from tasks.ns_verbs import NsVerbs, binds, mounts
from tasks.service import TaskService
from tasks.spool import SpoolFile
from tasks.task import Task
from tasks.terminal import Terminal
from tasks.verbs import TaskVerbs
from tasks.view import View
from vfs.control import Control, LineHandle
from vfs.directory import Dir, LiveDir
from vfs.files import ROOT_OWNER, Allocator, Awaited, Link, Synthetic, Text
from vfs.node import Caller, Handle, Node, no_entry

MAX_ENV = 1 << 20
"""Bytes of a task's environment at the most, E2BIG beyond."""


class TaskTree:
    """Makes the nodes of `/task` for a view. Members of the group `makers` may make tasks besides the administrator."""

    def __init__(self, service: TaskService, *, makers: int | None = None) -> None:
        self._service = service
        self._makers = makers

    def root(self, view: View) -> Node:
        """Return `/task` as `view` sees it."""
        return view.node("task", lambda: self._root(view))

    def _root(self, view: View) -> Dir:
        service = self._service

        def child(name: str, who: Caller) -> Node:
            if name == "self":
                return Link(partial(str, service.task_of(who.pid).id))
            task = service.find(name, view.task)
            if task is None or not view.sees(task):
                raise no_entry(name)
            return self.directory(view, task)

        def names() -> list[str]:
            return [str(task.id) for task in list(service.tasks.values()) if view.sees(task)]

        fixed: dict[str, Node] = {
            "new": self._new(view),
            **({"self": Link(lambda: str(me.id))} if (me := view.task) else {}),
            "wait": self._wait_any(view),
            "events": Events(service.journal, service.changes, visible=lambda number: self._seen(view, number)),
        }
        return LiveDir(
            names,
            child,
            fixed=fixed,
            kind=statmod.S_IFDIR,
            mode=0o755,
            owner=view.task or ROOT_OWNER,
        )

    def _new(self, view: View) -> Allocator:
        new = Allocator(lambda who: self._create(view.acting(who)).id)
        if view.admin and self._makers is not None:
            new.mode |= 0o040
            new.owner = GroupOwner(self._makers)
        return new

    def _create(self, view: View) -> Task:
        if view.task is not None or view.admin:
            return self._service.create(view.task)
        return self._service.create(None, user=self._service.homes.by_uid(view.caller.uid))

    @staticmethod
    def _ns_root(view: View, task: Task) -> Node:
        """Return the live namespace; inside another one, a directory without content or permissions, so `find` ends."""
        return Dir({}, mode=0) if view.inner else view.views.inner_root(task)

    def _seen(self, view: View, number: int) -> bool:
        task = self._service.tasks.get(number)
        return task is not None and view.sees(task)

    def _wait_any(self, view: View) -> Awaited:
        service = self._service
        parent = view.task.id if view.task else 0

        def text() -> str:
            untold = service.untold[parent]
            number = next(iter(untold))
            task = untold.pop(number)
            return f"{number} {task.exit.code if task.exit else ''}"

        return Awaited(lambda: bool(service.untold.get(parent)), text, lambda: service.child_exits, mode=0o400)

    def directory(self, view: View, task: Task) -> Node:
        """Return `/task/<id>` as `view` sees it."""
        return view.node(f"task/{task.id}", lambda: self._directory(view, task))

    def _directory(self, view: View, task: Task) -> Dir:
        service = self._service
        configure = partial(service.configure, task)

        def fds(who: Caller) -> FdVerbs:
            return FdVerbs(service, view.acting(who), task)

        return Dir(
            {
                "ctl": Control(lambda who: TaskVerbs(service, view.acting(who), task).table(), refusal=task),
                "id": Text(lambda: str(task.id)),
                "parent": Text(lambda: str(task.parent.id) if task.parent and view.sees(task.parent) else ""),
                "type": Text(lambda: task.kind or task.spec.type),
                "user": Text(lambda: f"{task.spec.user.name} {task.uid} {task.gid}"),
                "error": Text(lambda: task.error),
                "reason": Text(lambda: task.reason),
                "times": Text(lambda: times(task)),
                "labels": Text(lambda: lines(task.spec.labels)),
                "children": LiveDir(
                    lambda: map(str, list(task.children)),
                    lambda name, who: self._child(view, task, name),
                    kind=statmod.S_IFDIR,
                ),
                "cmd": Text(
                    lambda: values.command_line(task.spec.argv),
                    lambda text: configure("cmd", argv=values.command(text)),
                    mode=0o600,
                ),
                "args": Text(
                    lambda: values.argument_lines(task.spec.argv),
                    lambda text: configure("args", argv=values.arguments(text)),
                    mode=0o600,
                ),
                "cwd": Text(
                    lambda: task.spec.cwd, lambda text: configure("cwd", cwd=values.absolute_path(text)), mode=0o600
                ),
                "env": EnvFile(service, task),
                "status": Text(lambda: task.state.shown),
                "wait": Awaited(lambda: task.ended, lambda: self._tell(task), lambda: task.signal, mode=0o400),
                "exitcode": Text(lambda: str(task.exit.code) if task.exit else ""),
                "fd": LiveDir(
                    lambda: self._fd_names(task),
                    lambda name, who: self._fd(fds, task, name),
                    fixed={"ctl": Control(lambda who: fds(who).table(), refusal=task, note=lambda: fd_table(task.fds))},
                    kind=statmod.S_IFREG,
                ),
                "ns": Dir(
                    {
                        "ctl": Control(lambda who: NsVerbs(service, view.acting(who), task).table(), refusal=task),
                        "mounts": Text(lambda: mounts(task.namespace)),
                        "binds": Text(lambda: binds(task.namespace)),
                        "dump": Text(lambda: dump(task.namespace.table)),
                        "root": partial(self._ns_root, view, task),
                    }
                ),
                "stat": Dir({what: Text(partial(self._stat, task, what)) for what in ("mem", "cpu", "io", "pids")}),
                "home": partial(service.homes.node, task.spec.user),
                "events": Events(service.journal, service.changes, task=task.id, ended=lambda: task.ended),
            },
            mode=0o700,
            owner=Owned(view, task),
        )

    def _child(self, view: View, task: Task, name: str) -> Node:
        child = self._service.find(name, task)
        if child is None or child.parent is not task:
            raise no_entry(name)
        return self.directory(view, child)

    def _tell(self, task: Task) -> str:
        if task.exit is None:
            raise OSError(ENOENT, "the task was removed")
        self._service.untold.get(task.parent.id if task.parent else 0, {}).pop(task.id, None)
        return str(task.exit.code)

    @staticmethod
    def _fd_names(task: Task) -> list[str]:
        return [name for number in task.fds.numbers() for name in (str(number), f"{number}ctl")]

    def _fd(self, fds: Callable[[Caller], FdVerbs], task: Task, name: str) -> Node:
        digits = name.removesuffix("ctl")
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 3 or str(int(digits)) != digits:
            raise no_entry(name)
        number = int(digits)
        if number > MAX_FD or (number not in task.fds.numbers() and name == digits):
            raise no_entry(name)
        if name != digits:
            return Control(
                lambda who: fds(who).table(number), refusal=task, note=lambda: f"# {number} {task.fds.shows(number)}"
            )
        if number == STDIN:
            return StdinFile(partial(self._stdin, task))
        entry = task.fds.entries.get(number)
        if entry is None or isinstance(entry, Spooled):
            return SpoolFile(lambda: self._service.spool(task, number))
        return Text(lambda: b"", mode=0o400)

    @staticmethod
    def _stdin(task: Task) -> Stdin | Terminal | None:
        """Return what writes to fd/0 go to; a terminal is there only while the task runs."""
        if task.ended or (task.spec.pty and not task.state.live):
            return None
        return task.fds.stdin()

    async def _stat(self, task: Task, what: str) -> str:
        if task.state.live:
            figures = await self._service.drivers[task.kind].stat(str(task.id), what)
        else:
            figures = final_figures(task.exit, what)
        return "\n".join(f"{key} {value}" for key, value in figures.items())


@dataclass(frozen=True, slots=True)
class GroupOwner:
    """Owned by the administrator and a group."""

    gid: int
    uid: int = ROOT_OWNER.uid
    changed_ns: int = 0


class Owned:
    """Says whose a task's files are: in the administrator's view the task's user's, in a task's view the viewer's."""

    __slots__ = ("_task", "_view")

    def __init__(self, view: View, task: Task) -> None:
        self._view = view
        self._task = task

    @property
    def uid(self) -> int:
        return (self._view.task or self._task).uid

    @property
    def gid(self) -> int:
        return (self._view.task or self._task).gid

    @property
    def changed_ns(self) -> int:
        return self._task.changed_ns


class EnvFile(Synthetic):
    """`env`: shows K=V lines; each line written merges one variable, `-K` removes one, `clear` all."""

    __slots__ = ("service", "task")

    def __init__(self, service: TaskService, task: Task) -> None:
        super().__init__(statmod.S_IFREG | 0o600)
        self.service = service
        self.task = task

    async def open(self, flags: int, who: Caller) -> Handle:
        return EnvHandle(self)


class EnvHandle(LineHandle[str]):
    """An open `EnvFile`."""

    __slots__ = ("_node",)

    def __init__(self, node: EnvFile) -> None:
        super().__init__()
        self._node = node

    def text(self) -> str:
        return lines(self._node.task.spec.env)

    def split(self, text: str) -> tuple[list[str], str]:
        *complete, tail = text.split("\n")
        return complete, tail

    async def run(self, line: str) -> None:
        env: Map[str, str] = self._node.task.spec.env
        if line == "clear":
            env = Map()
        elif line.startswith("-"):
            env = env.delete(line[1:]) if values.variable(line[1:]) in env else env
        elif line:
            key, value = values.assignment(line)
            env = env.set(key, value)
        if environment_size(env) > MAX_ENV:
            raise values.too_big(f"an environment is at most {MAX_ENV} bytes")
        self._node.service.configure(self._node.task, "env", env=env)
        self._node.task.error = ""

    def refused(self, error: OSError) -> None:
        self._node.task.error = error.strerror or ""


def fd_table(table: FdTable) -> str:
    """Return the descriptor table as comment lines, one a number."""
    return "\n".join(fd_line(table, number) for number in table.numbers())


def fd_line(table: FdTable, number: int) -> str:
    """Return where one descriptor points, as a comment line."""
    return f"# {number} {table.shows(number)}"


def lines(mapping: Map[str, str]) -> str:
    """Return K=V lines in the order of the keys."""
    return "\n".join(f"{key}={value}" for key, value in sorted(mapping.items()))


def times(task: Task) -> str:
    """Return when the task was created, started and ended (UTC), one a line."""

    def stamp(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")

    shown = (("created", task.times.created), ("started", task.times.started), ("exited", task.times.exited))
    return "\n".join(f"{name} {stamp(when)}" for name, when in shown if when is not None)


def final_figures(exit: Exit | None, what: str) -> dict[str, int]:
    """Return what is known of a task without a process."""
    if exit is None:
        return {}
    return {
        "mem": {"current_bytes": 0, "peak_bytes": exit.peak_bytes},
        "cpu": {"user_usec": exit.user_usec, "system_usec": exit.system_usec},
        "io": {},
        "pids": {"current": 0},
    }[what]
