"""A directory's names as Treaddir sends them: encoded once per listing, then cut at entry boundaries."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from vfs.ninep.codec import DIRENT
from vfs.ninep.messages import QTDIR, QTFILE, QTSYMLINK
from vfs.node import DirEntry

_QID_TYPE = {0o040000: QTDIR, 0o120000: QTSYMLINK}


class Listing:
    """The encoded names of one directory; an entry's offset is the number of entries up to and with it."""

    __slots__ = ("_data", "_ends")

    def __init__(self, entries: Sequence[DirEntry]) -> None:
        pack, qid_type = DIRENT.pack, _QID_TYPE.get
        encoded: list[bytes] = []
        for offset, (name, ino, kind) in enumerate(entries, 1):
            raw = os.fsencode(name)
            encoded.append(pack(qid_type(kind, QTFILE), 0, ino, offset, kind >> 12, len(raw)) + raw)
        self._data = memoryview(b"".join(encoded))
        self._ends = list(accumulate(map(len, encoded), initial=0))

    def part(self, offset: int, count: int) -> memoryview:
        """Return the entries after the one at `offset`, as many as fit into `count` bytes; empty after the last."""
        offset = min(offset, len(self._ends) - 1)
        start = self._ends[offset]
        stop = self._ends[bisect_right(self._ends, start + count) - 1]
        return self._data[start:stop]
