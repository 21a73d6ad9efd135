"""The files of `/task/<id>/ns`: verbs that change a task's namespace, and its tables as text."""

from collections.abc import Mapping
from errno import EBUSY, EPERM

from ns.namespace import Namespace
from ns.script import USAGE, apply, command, dump
from tasks import values
from tasks.model import State
from tasks.service import TaskService
from tasks.task import Task
from tasks.view import View
from vfs.control import Verb, usage
from vfs.words import quote


class NsVerbs:
    """One task's namespace as one view changes it: NEW is named in the writer's namespace, OLD in the task's."""

    def __init__(self, service: TaskService, view: View, task: Task) -> None:
        self._service = service
        self._view = view
        self._task = task

    def table(self) -> Mapping[str, Verb]:
        """Return the verbs in the order of the manual."""
        return {
            "bind": self.bind,
            "unbind": self.unbind,
            "mount": self.mount,
            "mask": self.mask,
            "clear": self.clear,
            "share": self.share,
            "copy": self.copy,
            "clean": self.clean,
        }

    @usage(USAGE["bind"])
    async def bind(self, *words: str) -> None:
        """make what NEW names appear at OLD (-a after, -b before the rest, -c create here, -i its own, -r read-only)"""
        await self._apply("bind", *words)

    @usage(USAGE["unbind"])
    async def unbind(self, *words: str) -> None:
        """take NEW, or all that is bound, from OLD"""
        await self._apply("unbind", *words)

    @usage(USAGE["mount"])
    async def mount(self, *words: str) -> None:
        """make the tree that the 9P server at ADDRESS serves appear at OLD"""
        await self._apply("mount", *words)

    @usage(USAGE["mask"])
    async def mask(self, what: str) -> None:
        """hide what is at PATH, or take the right to name #DEVICE, for good"""
        await self._apply("mask", what)

    async def clear(self) -> None:
        """take every bind away"""
        await self._apply("clear")

    async def _apply(self, *words: str) -> None:
        if self._task.ended:
            raise OSError(EBUSY, "the task has exited")
        await apply(command(words), self._task.namespace, writer=self._view.namespace, who=self._view.caller)
        self._changed()

    def share(self, task: str) -> None:
        """use the same namespace as TASK, live"""
        self._task.check_configurable()
        self._task.namespace.join(self._other(task).namespace)
        self._changed()

    def copy(self, task: str) -> None:
        """start again from a copy of TASK's namespace"""
        self._task.check_configurable()
        self._task.namespace.copy_from(self._other(task).namespace)
        self._changed()

    def clean(self) -> None:
        """start again from an empty namespace of its own"""
        self._task.check_configurable()
        self._task.namespace.clean()
        self._changed()

    def _other(self, name: str) -> Task:
        other = self._service.find(name, self._view.task)
        if other is None or not self._view.sees(other):
            raise values.invalid(f"no such task: {name[:64]!r}")
        if other.state is State.EXITED:
            raise OSError(EPERM, "that task has exited")
        return other

    def _changed(self) -> None:
        namespace = self._task.namespace
        for task in list(self._service.tasks.values()) if namespace.realisers else [self._task]:
            if task is self._task or (not task.ended and task.namespace.shares_with(namespace)):
                self._service.touched(task, "namespace", None, {"ns": dump(namespace.table)})


def mounts(namespace: Namespace) -> str:
    """Return one `PATH ORIGIN FLAGS` line for each mountpoint's members, in search order."""
    lines = []
    for path, members in namespace.table.items():
        for member in members:
            flags = "".join(
                letter for letter, on in (("c", member.create), ("i", member.owned), ("r", member.readonly)) if on
            )
            lines.append(f"{quote(path)} {quote(str(member.origin))} {flags or '-'}")
    return "\n".join(lines)


def binds(namespace: Namespace) -> str:
    """Return one `PATH: ORIGIN...` line for each mountpoint."""
    return "\n".join(
        f"{quote(path)}: {' '.join(quote(str(member.origin)) for member in members)}"
        for path, members in namespace.table.items()
    )
