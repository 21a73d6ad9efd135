"""Event streams: the journal's rows as JSON lines that a reader waits for."""

import os
import stat as statmod
from collections.abc import Callable, Sequence
from errno import EACCES, EAGAIN
from typing import Any, Generic, Protocol, TypeVar

from tasks.values import invalid, number
from vfs.control import LineHandle
from vfs.files import Synthetic
from vfs.node import READABLE, WRITABLE, Caller, Handle
from vfs.waiting import Signal
from vfs.words import split_commands


class Row(Protocol):
    """What happened, numbered in the order it did."""

    @property
    def seq(self) -> int: ...

    def line(self) -> str:
        """Return it as one line of JSON."""
        ...


R = TypeVar("R", bound=Row)
R_co = TypeVar("R_co", bound=Row, covariant=True)
Of = TypeVar("Of")
Of_contra = TypeVar("Of_contra", contravariant=True)


class Source(Protocol[R_co, Of_contra]):
    """Where the rows stand: a journal."""

    last_seq: int

    def since(self, seq: int, of: Of_contra | None = None, /) -> Sequence[R_co]:
        """Return the next rows after `seq`, all or those `of` one thing; none where there are no more."""
        ...


class Events(Synthetic, Generic[R, Of]):
    """A stream of the rows of `source` that `visible` admits, as JSON lines.

    With `of` it starts at that thing's first row and ends once `ended()`; without, it starts at the moment of the
    open and goes on for ever. Where it is `movable`, as it is without `of`, `since SEQ` written to the same open file
    moves it to after that row.
    """

    __slots__ = ("ended", "movable", "of", "signal", "source", "visible")

    def __init__(
        self,
        source: Source[R, Of],
        signal: Signal,
        *,
        of: Of | None = None,
        movable: bool = False,
        visible: Callable[[R], bool] = lambda row: True,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        self.movable = movable or of is None
        super().__init__(statmod.S_IFREG | (0o600 if self.movable else 0o400))
        self.source = source
        self.signal = signal
        self.of = of
        self.visible = visible
        self.ended = ended

    async def open(self, flags: int, who: Caller) -> Handle:
        if not self.movable and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(EACCES, "read only")
        return EventsHandle(self)


class EventsHandle(LineHandle[list[str]]):
    """An open `Events`."""

    __slots__ = ("_node", "_pending", "_seq")
    stream = True

    def __init__(self, node: Events[Any, Any]) -> None:
        super().__init__()
        self._node = node
        self._seq = 0 if node.of is not None else node.source.last_seq
        self._pending = b""

    def _fill(self) -> bool:
        node = self._node
        while not self._pending and self._seq < node.source.last_seq:
            rows = node.source.since(self._seq, node.of)
            if not rows:
                self._seq = node.source.last_seq
                break
            self._seq = rows[-1].seq
            self._pending = os.fsencode("".join(row.line() for row in rows if node.visible(row)))
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
