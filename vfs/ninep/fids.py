"""What a client's fids stand for: a step of the tree, perhaps open, and the requests that wait on it."""

from collections.abc import Iterator
from errno import EINVAL, EISDIR, ENOSPC
from typing import Final, Protocol

from vfs.locks import LockTable, Owner
from vfs.ninep.listing import Listing, Listings
from vfs.ninep.messages import MAX_MSIZE
from vfs.node import Caller, Handle, Node
from vfs.waiting import Signal

XATTR_REPLACE: Final = 2


class Step:
    """One step of the way from an attach's root: a node, its qid, under which name and in which step (None: root)."""

    __slots__ = ("name", "node", "parent", "qid")

    def __init__(self, parent: "Step | None", name: str, node: Node, qid: bytes) -> None:
        self.parent = parent
        self.name = name
        self.node = node
        self.qid = qid

    def way(self) -> "Iterator[Step]":
        """Yield this step and those it was reached by, up to the root."""
        step: Step | None = self
        while step is not None:
            yield step
            step = step.parent


class Waiter(Protocol):
    """A request that waits, as its fid sees it."""

    def abort(self) -> None:
        """Cancel it; it answers EINTR."""


class Fid:
    """A step on behalf of a caller. `handle` is set while it is open, with what it was opened for."""

    __slots__ = (
        "doomed",
        "handle",
        "lockers",
        "locks",
        "node",
        "nonblock",
        "quiet",
        "readable",
        "step",
        "waiters",
        "who",
        "writable",
    )

    def __init__(self, step: Step, who: Caller) -> None:
        self.step = step
        self.node = step.node
        self.who = who
        self.handle: Handle | None = None
        self.readable = self.writable = self.nonblock = False
        self.locks: LockTable | None = None
        self.lockers: set[Owner] = set()
        self.waiters: set[Waiter] = set()
        self.quiet: Signal | None = None
        self.doomed = False

    def leave(self, waiter: Waiter) -> None:
        """Note that a request on this fid no longer waits."""
        self.waiters.discard(waiter)
        if not self.waiters:
            if self.doomed:
                self.close()
            if self.quiet is not None:
                self.quiet.notify()

    async def settle(self) -> None:
        """End every request that waits on this fid, and return when they have ended."""
        for waiter in tuple(self.waiters):
            waiter.abort()
        while self.waiters:
            self.quiet = self.quiet or Signal()
            await self.quiet.wait()

    def close(self) -> None:
        """Close what is open and drop its locks: now, or when the last request that still uses it has ended."""
        self.doomed = True
        if self.waiters:
            return
        if self.locks is not None:
            for owner in self.lockers:
                self.locks.release(owner, self.node.id)
        if self.handle is not None:
            handle, self.handle = self.handle, None
            handle.close()


class Directory(Handle):
    """An open directory: the listing taken when it was read from the start."""

    __slots__ = ("_fid", "_listing", "_listings")

    def __init__(self, fid: Fid, listings: Listings) -> None:
        self._fid = fid
        self._listings = listings
        self._listing: Listing | None = None

    async def part(self, offset: int, count: int) -> memoryview:
        """Return the encoded entries after `offset` (0 takes a new listing). EINVAL if not even one fits."""
        listing = self._listing
        if offset == 0 or listing is None:
            step = self._fid.step
            listing = await self._listings.take(step.node, (step.parent or step).node, self._fid.who)
            self._listing = listing
        part = listing.part(offset, count)
        if not part and listing.part(offset, MAX_MSIZE):
            raise OSError(EINVAL, "too small for the next entry")
        return part

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        raise OSError(EISDIR, "is a directory")


class AttributeReader(Handle):
    """An extended attribute's value, or the list of names, as it was when it was asked for."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        return self._value[offset : offset + size]


class AttributeWriter(Handle):
    """An extended attribute's new value, set when the fid is clunked; size 0 with XATTR_REPLACE removes it."""

    __slots__ = ("_fid", "_flags", "_name", "_size", "_value")

    def __init__(self, fid: Fid, name: str, size: int, flags: int) -> None:
        self._fid = fid
        self._name = name
        self._size = size
        self._flags = flags
        self._value = bytearray()

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        if offset != len(self._value) or offset + len(data) > self._size:
            raise OSError(ENOSPC, "beyond the size announced, or out of order")
        self._value += data
        return len(data)

    async def flush(self) -> None:
        if len(self._value) != self._size:
            raise OSError(EINVAL, "value shorter than announced")
        node, who = self._fid.node, self._fid.who
        if self._size == 0 and self._flags & XATTR_REPLACE:
            await node.removexattr(self._name, who)
        else:
            await node.setxattr(self._name, bytes(self._value), self._flags, who)
