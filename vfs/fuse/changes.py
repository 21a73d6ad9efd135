"""What others do to host directories that the kernel knows through the mount: inotify(7) says it, and names expire.

Without it the kernel trusts what it was told until its time is over (`Node.cache_seconds`); so nothing is lost where
there are too many directories, or where inotify knows nothing (a network filesystem). Names expire, they are not taken
away: what is mounted on them stays.
"""

import ctypes
import os
from collections.abc import Awaitable, Callable, Iterable
from errno import EAGAIN
from struct import Struct

import trio

_libc = ctypes.CDLL(None)
_EVENT = Struct("=iIII")  # wd mask cookie len, then the name padded with NUL
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _DELETE = 0x02, 0x04, 0x40, 0x80, 0x200
_IGNORED = 0x8000
_ONLYDIR, _EXCL_UNLINK = 0x0100_0000, 0x0400_0000
_WANTED = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _DELETE | _ONLYDIR | _EXCL_UNLINK
PAUSE = 0.05
"""Seconds between two rounds, so that a file that is being written costs little. The first change is told at once."""

Tell = Callable[[Iterable[tuple[int, str]]], Awaitable[None]]


class Changes:
    """Watches directories for one mount, at most `most` at a time, the oldest are let go."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)  # -1 where the user has too many
        self._watches: dict[int, int] = {}
        """The watch of each nodeid. Several nodeids may be one directory, which has one watch."""
        self._nodeids: dict[int, set[int]] = {}

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def watch(self, nodeid: int, path: str) -> None:
        """Watch the directory `path`, which the kernel knows as `nodeid`. Nothing happens where that cannot be."""
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(path), _WANTED)
        if watch < 0:
            return
        self.unwatch(nodeid)
        while len(self._watches) >= self._most:
            self.unwatch(next(iter(self._watches)))
        self._watches[nodeid] = watch
        self._nodeids.setdefault(watch, set()).add(nodeid)

    def unwatch(self, nodeid: int) -> None:
        watch = self._watches.pop(nodeid, None)
        if watch is not None:
            self._nodeids[watch].discard(nodeid)
            if not self._nodeids[watch]:
                del self._nodeids[watch]
                _libc.inotify_rm_watch(self._fd, watch)

    async def run(self, tell: Tell) -> None:
        """Await `tell` with the names that changed, each with its directory's nodeid, until cancelled."""
        while self._fd >= 0:
            await trio.lowlevel.wait_readable(self._fd)
            if changed := self._read():
                await tell(changed)
            await trio.sleep(PAUSE)

    def _read(self) -> set[tuple[int, str]]:
        changed: set[tuple[int, str]] = set()
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError as error:
                if error.errno != EAGAIN:
                    raise
                return changed
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                name = os.fsdecode(data[at - length : at].rstrip(b"\0"))
                if mask & _IGNORED:  # the directory is gone
                    for nodeid in self._nodeids.pop(watch, ()):
                        del self._watches[nodeid]
                elif name:
                    changed.update((nodeid, name) for nodeid in self._nodeids.get(watch, ()))
