"""Event streams: the journal's rows as JSON lines that a reader waits for."""

import os
import stat as statmod
from collections.abc import Callable
from errno import EACCES, EAGAIN

from tasks.store import Journal
from tasks.values import invalid, number
from vfs.control import LineHandle
from vfs.files import Synthetic
from vfs.node import READABLE, WRITABLE, Caller, Handle
from vfs.waiting import Signal
from vfs.words import split_commands


class Events(Synthetic):
    """A stream of the journal's rows that `visible` admits, as JSON lines.

    With `task` it starts at that task's first row and ends once `ended()`; without, it starts at the moment of the
    open, goes on for ever, and `since SEQ` written to the same open file moves it to after that row.
    """

    __slots__ = ("ended", "journal", "signal", "task", "visible")

    def __init__(
        self,
        journal: Journal,
        signal: Signal,
        *,
        task: int | None = None,
        visible: Callable[[int], bool] = lambda task: True,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(statmod.S_IFREG | (0o400 if task is not None else 0o600))
        self.journal = journal
        self.signal = signal
        self.task = task
        self.visible = visible
        self.ended = ended

    async def open(self, flags: int, who: Caller) -> Handle:
        if self.task is not None and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(EACCES, "read only")
        return EventsHandle(self)


class EventsHandle(LineHandle[list[str]]):
    """An open `Events`."""

    __slots__ = ("_node", "_pending", "_seq")
    stream = True

    def __init__(self, node: Events) -> None:
        super().__init__()
        self._node = node
        self._seq = 0 if node.task is not None else node.journal.last_seq
        self._pending = b""

    def _fill(self) -> bool:
        node = self._node
        while not self._pending and self._seq < node.journal.last_seq:
            rows = node.journal.since(self._seq, node.task)
            if not rows:
                self._seq = node.journal.last_seq
                break
            self._seq = rows[-1].seq
            self._pending = os.fsencode("".join(row.line() for row in rows if node.visible(row.task)))
        return bool(self._pending)

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        while not self._fill():
            if self._node.ended():
                return b""
            if nonblock:
                raise OSError(EAGAIN, "no event yet")
            await self._node.signal.wait()
        data, self._pending = self._pending[:size], self._pending[size:]
        return data

    def split(self, text: str) -> tuple[list[list[str]], str]:
        return split_commands(text)

    async def run(self, line: list[str]) -> None:
        if len(line) != 2 or line[0] != "since":
            raise invalid("usage: since SEQ")
        self._seq = number(line[1], 0, 1 << 62)
        self._pending = b""

    def poll(self) -> int:
        return WRITABLE | (READABLE if self._fill() or self._node.ended() else 0)

    def watch(self, wake: Callable[[], None]) -> None:
        self._node.signal.watch(wake)
