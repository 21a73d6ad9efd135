"""POSIX byte-range locks (fcntl(2), "advisory record locking") for every protocol that serves a tree."""

from errno import EDEADLK, EINVAL, ENOLCK
from typing import Final, NamedTuple

from vfs.waiting import Signal

READ_LOCK: Final = 0
WRITE_LOCK: Final = 1
UNLOCK: Final = 2
END: Final = 1 << 63
"""The end of a lock that reaches to the end of the file, however it grows."""

Owner = tuple[object, ...]
"""Who holds a lock: (connection, process, client id) or what else is one owner to its protocol."""


class Lock(NamedTuple):
    """`kind` (READ_LOCK or WRITE_LOCK) over the bytes [start, end), held by `owner`; `pid` is what getlk shows."""

    kind: int
    start: int
    end: int
    owner: Owner
    pid: int

    @property
    def length(self) -> int:
        """The length as protocols give it: 0 means to the end of the file."""
        return 0 if self.end == END else self.end - self.start


def span(start: int, length: int) -> tuple[int, int]:
    """Return (start, end) of a range whose length 0 means "to the end of the file". EINVAL."""
    end = start + length if length else END
    if not 0 <= start < end <= END:
        raise OSError(EINVAL, "not a range of bytes")
    return start, end


class LockTable:
    """All locks on files, which are named by their node id. Never more than `most` locks (ENOLCK)."""

    __slots__ = ("_count", "_held", "_most", "_waiting")

    def __init__(self, *, most: int = 65536) -> None:
        self._held: dict[int, list[Lock]] = {}
        self._waiting: dict[Signal, tuple[int, Lock]] = {}
        self._count = 0
        self._most = most

    def conflict(self, file: int, wanted: Lock) -> Lock | None:
        """Return the first lock of another owner that keeps `wanted` from being had (F_GETLK), or None."""
        for held in self._held.get(file, ()):
            if (
                held.start < wanted.end
                and wanted.start < held.end
                and held.owner != wanted.owner
                and WRITE_LOCK in (held.kind, wanted.kind)
            ):
                return held
        return None

    def set(self, file: int, wanted: Lock) -> Lock | None:
        """Take, change or (kind UNLOCK) drop a lock (F_SETLK); return the lock in the way, or None if it is done.

        The owner's own locks in that range are replaced, split or joined. ENOLCK.
        """
        if wanted.kind != UNLOCK:
            blocker = self.conflict(file, wanted)
            if blocker is not None:
                return blocker
        old = self._held.get(file, [])
        new: list[Lock] = []
        start, end = wanted.start, wanted.end
        for held in old:
            if held.owner != wanted.owner or held.end < start or end < held.start:
                new.append(held)
            elif held.kind == wanted.kind:  # touching or overlapping: one lock
                start, end = min(start, held.start), max(end, held.end)
            else:
                if held.start < start:
                    new.append(held._replace(end=min(held.end, start)))
                if end < held.end:
                    new.append(held._replace(start=max(held.start, end)))
        if wanted.kind != UNLOCK:
            new.append(wanted._replace(start=start, end=end))
        growth = len(new) - len(old)
        if growth > 0 and self._count + growth > self._most:
            raise OSError(ENOLCK, "too many locks")
        self._store(file, sorted(new, key=lambda lock: lock.start))
        return None

    def _store(self, file: int, locks: list[Lock]) -> None:
        self._count += len(locks) - len(self._held.get(file, ()))
        if locks:
            self._held[file] = locks
        else:
            self._held.pop(file, None)
        for signal, (waited, _) in self._waiting.items():
            if waited == file:
                signal.notify()

    async def wait(self, file: int, wanted: Lock) -> None:
        """Take a lock, waiting until it can be had (F_SETLKW). EDEADLK where that would never end; ENOLCK."""
        signal = Signal()
        while (blocker := self.set(file, wanted)) is not None:
            self._check_deadlock(wanted.owner, blocker)
            self._waiting[signal] = file, wanted
            try:
                await signal.wait()
            finally:
                del self._waiting[signal]

    def _check_deadlock(self, owner: Owner, blocker: Lock) -> None:
        """Raise EDEADLK if whoever holds `blocker` waits, however indirectly, for `owner`."""
        blocked_by = {blocker.owner}
        todo = [blocker.owner]
        while todo:
            holder = todo.pop()
            if holder == owner:
                raise OSError(EDEADLK, "waiting for this lock would never end")
            for file, wanted in self._waiting.values():
                further = self.conflict(file, wanted) if wanted.owner == holder else None
                if further is not None and further.owner not in blocked_by:
                    blocked_by.add(further.owner)
                    todo.append(further.owner)

    def release(self, owner: Owner, file: int | None = None) -> None:
        """Drop all locks of `owner`, or those on one file."""
        for held_file in [file] if file is not None else list(self._held):
            locks = self._held.get(held_file, [])
            kept = [lock for lock in locks if lock.owner != owner]
            if len(kept) != len(locks):
                self._store(held_file, kept)
