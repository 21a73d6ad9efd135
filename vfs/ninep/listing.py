"""A directory's names as Treaddir sends them: encoded once, cut at entry boundaries, kept while nothing changes.

Listing 1,000 names costs far more in Python than sending them. So the encoded names of directories whose times tell
when their names change (`Node.steady`) are kept.
"""

import stat as statmod
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

from vfs.ninep.codec import DIRENT
from vfs.ninep.messages import QTDIR, QTFILE, QTSYMLINK
from vfs.node import Caller, DirEntry, Node

MAX_KEPT: Final = 16 << 20
"""Bytes of listings kept by one `Listings`."""
_SETTLED_NS: Final = 3 * 10**9
"""How old the last change must be for the next one to give another time, on filesystems with the coarsest clocks."""
_QID_TYPE: Final = {statmod.S_IFDIR: QTDIR, statmod.S_IFLNK: QTSYMLINK}


class Listing:
    """The encoded names of one directory; an entry's offset is the number of entries up to and with it."""

    __slots__ = ("_data", "_ends")

    def __init__(self, entries: Iterable[DirEntry]) -> None:
        pack, qid_type = DIRENT.pack, _QID_TYPE.get
        encoded: list[bytes] = []
        append = encoded.append
        for offset, (name, ino, kind, id) in enumerate(entries, 1):
            raw = name.encode("utf-8", "surrogateescape")
            append(pack(qid_type(kind, QTFILE), 0, id or ino, offset, kind >> 12, len(raw)) + raw)
        self._data = memoryview(b"".join(encoded))
        self._ends = list(accumulate(map(len, encoded), initial=0))

    @property
    def cost(self) -> int:
        """About how many bytes of memory it holds."""
        return len(self._data) + 40 * len(self._ends)

    def part(self, offset: int, count: int) -> memoryview:
        """Return the entries after the one at `offset`, as many as fit into `count` bytes; empty after the last."""
        offset = min(offset, len(self._ends) - 1)
        start = self._ends[offset]
        stop = self._ends[bisect_right(self._ends, start + count) - 1]
        return self._data[start:stop]


class Listings:
    """Makes the listings of all connections of a server, and keeps those that are asked for again."""

    __slots__ = ("_bytes", "_kept")

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], tuple[tuple[int, int], Listing]] = OrderedDict()
        self._bytes = 0

    async def take(self, node: Node, parent: Node, who: Caller) -> Listing:
        """Return what the directory holds now, "." and ".." first."""
        key = node.id, parent.id
        stamp = None
        if node.steady:
            st = await node.stat()
            stamp = st.st_mtime_ns, st.st_ctime_ns
            if key in self._kept and self._kept[key][0] == stamp:
                self._kept.move_to_end(key)
                return self._kept[key][1]
            if not st.st_size or time.time_ns() - max(stamp) < _SETTLED_NS:  # /proc and its like have no size
                stamp = None
        dots = DirEntry(".", node.id, statmod.S_IFDIR), DirEntry("..", parent.id, statmod.S_IFDIR)
        listing = Listing((*dots, *await node.readdir(who)))
        if stamp is not None:
            self._keep(key, stamp, listing)
        return listing

    def _keep(self, key: tuple[int, int], stamp: tuple[int, int], listing: Listing) -> None:
        if key in self._kept:
            self._bytes -= self._kept.pop(key)[1].cost
        self._kept[key] = stamp, listing
        self._bytes += listing.cost
        while self._bytes > MAX_KEPT:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._bytes -= oldest.cost
