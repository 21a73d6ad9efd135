"""The verbs of `fd/Nctl` and `fd/ctl`: where a task's descriptors point, opened with the writer's authority."""

import os
from collections.abc import Mapping
from contextlib import suppress
from errno import EBUSY, EINVAL, EPIPE
from functools import partial

from tasks import values
from tasks.fds import MAX_FD, STDIN, Gone, Held, Inherited
from tasks.pump import open_pump
from tasks.service import TaskService
from tasks.task import Task
from tasks.terminal import Terminal
from tasks.view import View
from vfs.access import check, wanted
from vfs.control import Verb, usage
from vfs.pipes import PipeEnd
from vfs.walk import open_path, split, walk

_MODES = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "rw": os.O_RDWR | os.O_CREAT,
}


class FdVerbs:
    """One task's descriptor table as one view writes it. All but closing stdin need a task that is not started."""

    def __init__(self, service: TaskService, view: View, task: Task) -> None:
        self._service = service
        self._view = view
        self._task = task

    def table(self, number: int | None = None) -> Mapping[str, Verb]:
        """Return the verbs of `fd/<number>ctl`, or of `fd/ctl`, where each has the number as its first word."""
        names: dict[str, tuple[Verb, str]] = {
            ("open" if number is None else "file"): (self.file, " PATH [r|w|a|rw]"),
            "dup": (self.dup, " PATH"),
            "pipe": (self.pipe, " TASK/fd/M"),
            "close": (self.close, ""),
            "inherit": (self.inherit, ""),
        }
        table: dict[str, Verb] = {}
        for name, (method, words) in names.items():
            verb = partial(method) if number is None else partial(method, str(number))
            verb.__doc__ = method.__doc__
            table[name] = usage(name + (" N" if number is None else "") + words)(verb)
        return table

    async def dup(self, n: str, path: str) -> None:
        """point it to the file at PATH (0 reads it, others write it)"""
        await self._open("dup", n, path, "")

    async def file(self, n: str, path: str, mode: str = "") -> None:
        """open the file at PATH in that mode"""
        await self._open("file", n, path, mode)

    async def _open(self, verb: str, n: str, path: str, mode: str) -> None:
        number = self._configurable(n)
        mode = mode or ("r" if number == STDIN else "w")
        if mode not in _MODES:
            raise values.invalid(f"not a mode: {mode[:16]!r} (r, w, a or rw)")
        fd = await self._descriptor(path, _MODES[mode])
        try:
            self._configurable(n)
        except OSError:
            os.close(fd)
            raise
        self._set(number, Held(fd, f"{verb} {path} {mode}"))

    def _configurable(self, n: str) -> int:
        """Return the number of a descriptor that can still be set. EBUSY."""
        number = values.number(n, 0, MAX_FD)
        self._task.check_configurable()
        if self._task.spec.pty is not None and number < 3:
            raise OSError(EBUSY, f"descriptor {number} is the terminal")
        if not self._view.admin:
            self._service.check_descriptors(self._task)
        return number

    def _set(self, number: int, entry: Held | Inherited | Gone) -> None:
        table, key = self._task.fds, f"task/{self._task.id}/fd/{number}"
        table.set(number, entry)
        if isinstance(entry, Held):
            self._service.vault.hold(key, [entry.fd])
        else:
            self._service.vault.drop(key)
        self._service.touched(self._task, "fd", {"fd": number, "to": entry.shows}, {"fd": {str(number): entry.shows}})

    async def _descriptor(self, path: str, flags: int) -> int:
        """Open `path` in the writer's namespace, once and for all, as a kernel descriptor."""
        root, who = self._view.namespace.root, self._view.caller
        with suppress(FileNotFoundError):
            node = await walk(root, path, who)
            if isinstance(node, PipeEnd):
                check(await node.stat(), who, wanted(flags))
                return node.take()
        _, handle = await open_path(root, path, flags | os.O_NONBLOCK, who)
        if handle.fileno() >= 0:
            fd = os.dup(handle.fileno())
            os.set_blocking(fd, True)
            handle.close()
            return fd
        access = flags & os.O_ACCMODE
        if access == os.O_RDWR:
            handle.close()
            raise OSError(EINVAL, "this file can be read or written by a task, not both at once")
        return open_pump(handle, reads=access == os.O_RDONLY, spawn=self._service.spawn, name=path)

    def pipe(self, n: str, task_fd: str) -> None:
        """connect it to another task's descriptor by a pipe"""
        number = self._configurable(n)
        words = split(task_fd.removeprefix("/task/"))
        if len(words) != 3 or words[1] != "fd":
            raise values.invalid("usage: pipe TASK/fd/M")
        task = self._service.find(words[0], self._view.task)
        if task is None or not self._view.sees(task):
            raise values.invalid(f"no such task: {words[0][:64]!r}")
        other = FdVerbs(self._service, self._view, task)
        theirs = other._configurable(words[2])
        reads = number == STDIN or theirs != STDIN
        if number == theirs == STDIN or (task is self._task and theirs == number):
            raise values.invalid("a pipe needs a writer and a reader")
        read, write = os.pipe2(os.O_CLOEXEC)
        ours, its = (read, write) if reads else (write, read)
        self._set(number, Held(ours, f"pipe {task.id}/fd/{theirs}"))
        other._set(theirs, Held(its, f"pipe {self._task.id}/fd/{number}"))

    def close(self, n: str) -> None:
        """close it; stdin then reads end of file"""
        number = values.number(n, 0, MAX_FD)
        task = self._task
        if task.state.configurable:
            self._set(number, Gone())
            return
        if number != STDIN:
            raise OSError(EBUSY, f"the task is {task.state.shown}")
        stdin = task.fds.stdin()
        if stdin is None:
            raise OSError(EPIPE, "stdin is closed or points elsewhere")
        if isinstance(stdin, Terminal):
            stdin.end_input()
            return
        task.fds.set(STDIN, Gone())
        self._service.vault.drop(f"task/{task.id}/stdin")
        self._service.record(task, "stdin closed", None, {"fd": {"0": "closed"}})

    def inherit(self, n: str) -> None:
        """use the parent's descriptor of this number"""
        number = self._configurable(n)
        if self._task.parent is None:
            raise OSError(EINVAL, "the administrator has no descriptors to inherit")
        self._set(number, Inherited())
