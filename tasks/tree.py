"""The tree of `/task`, in the order `ls` shows it. docs/tree.md restates it for users; a test compares the two."""

import stat as statmod
from collections.abc import Callable, Mapping, Sequence
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
from vfs.control import Control, LineHandle, Verbs
from vfs.directory import Dir, LiveDir
from vfs.files import ROOT_OWNER, Allocator, Awaited, Link, Synthetic, Text
from vfs.node import Caller, DirEntry, Handle, Node, no_entry, node_id

MAX_ENV = 1 << 20
"""Bytes of a task's environment at the most, E2BIG beyond."""


class TaskTree:
    """Makes the nodes of `/task` for a view. Members of the group `makers` may make tasks besides the administrator."""

    def __init__(self, service: TaskService, *, makers: int | None = None) -> None:
        self.service = service
        self._makers = makers

    def root(self, view: View) -> Node:
        """Return `/task` as `view` sees it."""
        return view.node("task", lambda: self._root(view))

    def _root(self, view: View) -> Dir:
        service = self.service

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
            "events": Events(service.journal, service.changes, visible=lambda row: self._seen(view, row.task)),
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
            return self.service.create(view.task)
        return self.service.create(None, user=self.service.homes.by_uid(view.caller.uid))

    @staticmethod
    def ns_root(view: View, task: Task) -> Node:
        """Return the live namespace; inside another one, a directory without content or permissions, so `find` ends."""
        return Dir({}, mode=0) if view.inner else view.views.inner_root(task)

    def _seen(self, view: View, number: int) -> bool:
        task = self.service.tasks.get(number)
        return task is not None and view.sees(task)

    def _wait_any(self, view: View) -> Awaited:
        service = self.service
        parent = view.task.id if view.task else 0

        def text() -> str:
            untold = service.untold[parent]
            number = next(iter(untold))
            task = untold.pop(number)
            return f"{number} {task.exit.code if task.exit else ''}"

        return Awaited(lambda: bool(service.untold.get(parent)), text, lambda: service.child_exits, mode=0o400)

    def directory(self, view: View, task: Task) -> Node:
        """Return `/task/<id>` as `view` sees it."""
        return view.node(f"task/{task.id}", lambda: TaskDir(self, view, task))

    def child(self, view: View, task: Task, name: str) -> Node:
        child = self.service.find(name, task)
        if child is None or child.parent is not task:
            raise no_entry(name)
        return self.directory(view, child)

    def tell(self, task: Task) -> str:
        if task.exit is None:
            raise OSError(ENOENT, "the task was removed")
        self.service.untold.get(task.parent.id if task.parent else 0, {}).pop(task.id, None)
        return str(task.exit.code)

    @staticmethod
    def fd_names(task: Task) -> list[str]:
        return [name for number in task.fds.numbers() for name in (str(number), f"{number}ctl")]

    def fd(self, fds: Callable[[Caller], FdVerbs], task: Task, name: str) -> Node:
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
            return SpoolFile(lambda: self.service.spool(task, number))
        return Text(lambda: b"", mode=0o400)

    @staticmethod
    def _stdin(task: Task) -> Stdin | Terminal | None:
        """Return what writes to fd/0 go to; a terminal is there only while the task runs."""
        if task.ended or (task.spec.pty and not task.state.live):
            return None
        return task.fds.stdin()

    async def figures(self, task: Task, what: str) -> str:
        if task.state.live:
            figures = await self.service.drivers[task.kind].stat(str(task.id), what)
        else:
            figures = final_figures(task.exit, what)
        return "\n".join(f"{key} {value}" for key, value in figures.items())


class TaskDir(Dir):
    """`/task/<id>` as one view sees it. Its files are made when they are looked up: most never are."""

    __slots__ = ("task", "tree", "view")

    def __init__(self, tree: TaskTree, view: View, task: Task) -> None:
        super().__init__({}, mode=0o700, owner=Owned(view, task))
        self.tree = tree
        self.view = view
        self.task = task

    async def lookup(self, name: str, who: Caller) -> Node:
        make = TASK_FILES.get(name)
        if make is None:
            raise no_entry(name)
        return self.adopt(name, make(self))

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        return [
            DirEntry(name, node_id(self.id, name), statmod.S_IFDIR if name in TASK_DIRECTORIES else statmod.S_IFREG)
            for name in TASK_FILES
        ]

    def configure(self, what: str, **fields: object) -> None:
        self.tree.service.configure(self.task, what, **fields)

    def verbs(self, who: Caller) -> Verbs:
        return TaskVerbs(self.tree.service, self.view.acting(who), self.task).table()

    def fd_verbs(self, who: Caller) -> FdVerbs:
        return FdVerbs(self.tree.service, self.view.acting(who), self.task)

    def ns_verbs(self, who: Caller) -> Verbs:
        return NsVerbs(self.tree.service, self.view.acting(who), self.task).table()

    def parent(self) -> str:
        parent = self.task.parent
        return str(parent.id) if parent and self.view.sees(parent) else ""


TASK_DIRECTORIES = frozenset({"children", "fd", "ns", "stat", "home"})
TASK_FILES: Mapping[str, Callable[[TaskDir], Node]] = {
    "ctl": lambda of: Control(of.verbs, refusal=of.task),
    "id": lambda of: Text(lambda: str(of.task.id)),
    "parent": lambda of: Text(of.parent),
    "type": lambda of: Text(lambda: of.task.kind or of.task.spec.type),
    "user": lambda of: Text(lambda: f"{of.task.spec.user.name} {of.task.uid} {of.task.gid}"),
    "error": lambda of: Text(lambda: of.task.error),
    "reason": lambda of: Text(lambda: of.task.reason),
    "times": lambda of: Text(lambda: times(of.task)),
    "labels": lambda of: Text(lambda: lines(of.task.spec.labels)),
    "children": lambda of: LiveDir(
        lambda: map(str, list(of.task.children)),
        lambda name, who: of.tree.child(of.view, of.task, name),
        kind=statmod.S_IFDIR,
    ),
    "cmd": lambda of: Text(
        lambda: values.command_line(of.task.spec.argv),
        lambda text: of.configure("cmd", argv=values.command(text)),
        mode=0o600,
    ),
    "args": lambda of: Text(
        lambda: values.argument_lines(of.task.spec.argv),
        lambda text: of.configure("args", argv=values.arguments(text)),
        mode=0o600,
    ),
    "cwd": lambda of: Text(
        lambda: of.task.spec.cwd, lambda text: of.configure("cwd", cwd=values.absolute_path(text)), mode=0o600
    ),
    "env": lambda of: EnvFile(of.tree.service, of.task),
    "status": lambda of: Text(lambda: of.task.state.shown),
    "wait": lambda of: Awaited(
        lambda: of.task.ended, lambda: of.tree.tell(of.task), lambda: of.task.signal, mode=0o400
    ),
    "exitcode": lambda of: Text(lambda: str(of.task.exit.code) if of.task.exit else ""),
    "fd": lambda of: LiveDir(
        lambda: of.tree.fd_names(of.task),
        lambda name, who: of.tree.fd(of.fd_verbs, of.task, name),
        fixed={
            "ctl": Control(lambda who: of.fd_verbs(who).table(), refusal=of.task, note=lambda: fd_table(of.task.fds))
        },
        kind=statmod.S_IFREG,
    ),
    "ns": lambda of: Dir(
        {
            "ctl": Control(of.ns_verbs, refusal=of.task),
            "mounts": Text(lambda: mounts(of.task.namespace)),
            "binds": Text(lambda: binds(of.task.namespace)),
            "dump": Text(lambda: dump(of.task.namespace.table)),
            "root": lambda: of.tree.ns_root(of.view, of.task),
        }
    ),
    "stat": lambda of: Dir(
        {what: Text(partial(of.tree.figures, of.task, what)) for what in ("mem", "cpu", "io", "pids")}
    ),
    "home": lambda of: of.tree.service.homes.node(of.task.spec.user),
    "events": lambda of: Events(
        of.tree.service.journal, of.tree.service.changes, of=of.task.id, ended=lambda: of.task.ended
    ),
    "console": lambda of: Text(lambda: of.tree.service.console(of.task)),
}
"""Every file of a task, in the order `ls` shows them."""


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
