"""What a restarted server needs in order to go on with a mount: which names the kernel's numbers stand for.

The kernel keeps nodeids and file handles over a server's death, as long as
someone holds the /dev/fuse descriptor. This file keeps, in a mapping shared
with the kernel (so kill -9 loses nothing), the name of each nodeid, the open files,
and what INIT agreed on. It is rewritten with only what is still alive when it is opened and
when it is full, and doubles if that is more than half of it.

A record is one byte of kind, then its fields. The kind is stored last: a record that
was cut short by death has kind 0, which is where reading stops.
"""

import mmap
import os
from collections.abc import Iterator
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from struct import Struct
from typing import NamedTuple

END, NAMED, FORGOTTEN, OPENED, RELEASED, AGREED = range(6)
_NAMED = Struct("=QQH")  # nodeid parent namelen, then the name
_NUMBER = Struct("=Q")
_OPENED = Struct("=QQIi")  # fh nodeid flags backing
_AGREED = Struct("=IQ")  # minor flags
_FIXED = {NAMED: _NAMED, FORGOTTEN: _NUMBER, OPENED: _OPENED, RELEASED: _NUMBER, AGREED: _AGREED}
_MAGIC = b"wanixfs fuse journal 1\n"
_SMALLEST = 1 << 16


class Name(NamedTuple):
    parent: int
    name: bytes


class Opened(NamedTuple):
    """An open file: `backing` is the kernel's id of its passthrough file, 0 if it is copied, -1 where that can't be."""

    nodeid: int
    flags: int
    backing: int


class Agreed(NamedTuple):
    """What INIT agreed on: the kernel's minor version and the flags of both."""

    minor: int
    flags: int


class Journal:
    """The live names and open files of one mount, in `path` (made with mode 0600, readable by its owner only)."""

    def __init__(self, path: Path) -> None:
        """Read what is there and compact it. OSError as from open(2); a file that is no journal counts as empty."""
        self.path = path
        self.names: dict[int, Name] = {}
        self.files: dict[int, Opened] = {}
        self.agreed: Agreed | None = None
        self._map: mmap.mmap | None = None
        self._end = 0
        if path.exists():
            self._read(path.read_bytes())
        self._compact(0)

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def agree(self, agreed: Agreed) -> None:
        """Start anew with what INIT agreed on: whatever was before belongs to another mount."""
        self.names.clear()
        self.files.clear()
        self.agreed = agreed
        self._compact(0)

    def named(self, nodeid: int, parent: int, name: bytes) -> None:
        """Keep where a nodeid was found. A later name of the same nodeid replaces the earlier."""
        self.names[nodeid] = Name(parent, name)
        self._append(NAMED, _NAMED.pack(nodeid, parent, len(name)) + name)

    def forgotten(self, nodeid: int) -> None:
        if self.names.pop(nodeid, None) is not None:
            self._append(FORGOTTEN, _NUMBER.pack(nodeid))

    def opened(self, fh: int, opened: Opened) -> None:
        self.files[fh] = opened
        self._append(OPENED, _OPENED.pack(fh, *opened))

    def released(self, fh: int) -> None:
        if self.files.pop(fh, None) is not None:
            self._append(RELEASED, _NUMBER.pack(fh))

    def _append(self, kind: int, body: bytes) -> None:
        assert self._map is not None
        start = self._end
        end = start + 1 + len(body)
        if end >= len(self._map):
            self._compact(len(body))  # writes the new record too: the tables hold it already
            return
        self._map[start + 1 : end] = body
        self._map[start] = kind
        self._end = end

    def _compact(self, more: int) -> None:
        live = b"".join(self._live())
        size = _SMALLEST
        while size < 2 * (len(live) + more):
            size *= 2
        fresh = self.path.with_name(self.path.name + ".new")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            mapped = _room(fd, size)
        finally:
            os.close(fd)
        mapped[: len(live)] = live
        os.rename(fresh, self.path)
        self.close()
        self._map = mapped
        self._end = len(live)

    def _live(self) -> Iterator[bytes]:
        yield _MAGIC
        if self.agreed is not None:
            yield bytes((AGREED,)) + _AGREED.pack(*self.agreed)
        for nodeid, (parent, name) in self.names.items():
            yield bytes((NAMED,)) + _NAMED.pack(nodeid, parent, len(name)) + name
        for fh, opened in self.files.items():
            yield bytes((OPENED,)) + _OPENED.pack(fh, *opened)

    def _read(self, data: bytes) -> None:
        if not data.startswith(_MAGIC):
            return
        at = len(_MAGIC)
        while at < len(data):
            kind = data[at]
            fixed = _FIXED.get(kind)
            if fixed is None or at + 1 + fixed.size > len(data):
                return
            fields = fixed.unpack_from(data, at + 1)
            at += 1 + fixed.size
            if kind == NAMED:
                nodeid, parent, length = fields
                self.names[nodeid] = Name(parent, data[at : at + length])
                at += length
            elif kind == FORGOTTEN:
                self.names.pop(fields[0], None)
            elif kind == OPENED:
                self.files[fields[0]] = Opened(*fields[1:])
            elif kind == RELEASED:
                self.files.pop(fields[0], None)
            else:
                self.agreed = Agreed(*fields)


def _room(fd: int, size: int) -> mmap.mmap:
    """Map `size` bytes of a file whose blocks are there for certain: writing to a hole of a full disk is SIGBUS.

    Memory instead where the disk is full: then a killed server's mount is not taken up again, and that is all.
    """
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT, EFBIG):
            raise
        return mmap.mmap(-1, size)
    return mmap.mmap(fd, size)
