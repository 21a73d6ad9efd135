"""What a task wrote, kept for late readers: a file that grows and blocks at its end until the writer is gone."""

import os
import stat as statmod
from collections.abc import Callable
from errno import EACCES, EAGAIN
from pathlib import Path

from vfs.files import Synthetic
from vfs.node import READABLE, Caller, Handle
from vfs.waiting import Signal


class Spool:
    """One descriptor's output: `end` bytes so far, those below `start` dropped, `eof` when nothing more will come.

    `told` is how many dropped bytes the events speak of.
    """

    __slots__ = ("changed", "end", "eof", "path", "start", "told")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = 0
        self.end = 0
        self.told = 0
        self.eof = False
        self.changed = Signal()

    def grew(self, end: int, start: int, eof: bool) -> None:
        self.end = max(self.end, end)
        self.start = max(self.start, start)
        self.eof = eof
        self.changed.notify()

    def measure(self) -> None:
        """Take the size from the file, for a spool that another server saw grow."""
        try:
            self.end = max(self.end, self.path.stat().st_size)
        except FileNotFoundError:
            pass


class SpoolFile(Synthetic):
    """A spool as a file that can be read from any place, as often as one likes, also long after the task is gone."""

    __slots__ = ("get",)
    attribute_seconds = 0.0  # it grows

    def __init__(self, get: Callable[[], Spool]) -> None:
        super().__init__(statmod.S_IFREG | 0o400)
        self.get = get

    def size(self) -> int:
        return self.get().end

    async def open(self, flags: int, who: Caller) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(EACCES, "output can only be read")
        return SpoolHandle(self.get())


class SpoolHandle(Handle):
    """An open `SpoolFile`. A read of dropped bytes goes on at the oldest that are kept, as if they followed."""

    __slots__ = ("_fd", "_skipped", "_spool")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._fd = -1
        self._skipped = 0

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        spool = self._spool
        if offset == 0:
            self._skipped = 0
        while True:
            place = offset + self._skipped
            if place < spool.start:
                self._skipped += spool.start - place
                place = spool.start
            if place < spool.end:
                return os.pread(self._descriptor(), min(size, spool.end - place), place)
            if spool.eof:
                return b""
            if nonblock:
                raise OSError(EAGAIN, "no output yet")
            await spool.changed.wait()

    def _descriptor(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self._spool.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def poll(self) -> int:
        return READABLE

    def watch(self, wake: Callable[[], None]) -> None:
        self._spool.changed.watch(wake)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
