"""What a descriptor number of a module stands for: a descriptor of the process, or a file or directory of the tree."""

import os
import stat as statmod
import time
from collections.abc import Sequence
from errno import EBADF, EINVAL, EISDIR, ENOTDIR, ENOTSUP, ESPIPE
from fcntl import F_GETFL, F_SETFL, fcntl
from typing import NamedTuple

from tasks.drivers.wasi.abi import (
    ALL_RIGHTS,
    APPEND,
    DIRECTORY_RIGHTS,
    FILE_RIGHTS,
    NONBLOCK,
    READING,
    REGULAR_FILE,
    SEEKING,
    WRITING,
    filetype,
)
from tasks.drivers.wasi.client import PAYLOAD, Client
from vfs.ninep.codec import DIRENT as NINEP_DIRENT
from vfs.ninep.messages import (
    SETATTR_ATIME,
    SETATTR_ATIME_SET,
    SETATTR_MTIME,
    SETATTR_MTIME_SET,
    SETATTR_SIZE,
)

MAX_OFFSET = (1 << 63) - 1
NOW = -1
"""A time to be set: the present."""


class Stat(NamedTuple):
    device: int
    inode: int
    type: int
    links: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Entry(NamedTuple):
    """One name of a directory; `cookie` continues after it."""

    cookie: int
    inode: int
    type: int
    name: bytes


class Descriptor:
    """What all kinds have. Methods that a kind does not have raise what the function that needs them answers."""

    type: int
    rights: int
    inheriting = 0
    flags = 0
    """APPEND and NONBLOCK."""

    def read(self, parts: Sequence[memoryview], offset: int | None) -> int:
        """Fill `parts` from `offset`, or with None from the position, which moves on; return how many bytes came."""
        raise OSError(EISDIR, "is a directory")

    def write(self, parts: Sequence[memoryview], offset: int | None) -> int:
        raise OSError(EISDIR, "is a directory")

    def seek(self, offset: int, whence: int) -> int:
        """Move the position and return it; `whence` as in lseek(2)."""
        raise OSError(ESPIPE, "no position")

    def stat(self) -> Stat:
        raise NotImplementedError

    def set_flags(self, flags: int) -> None:
        raise OSError(EBADF, "no flags")

    def set_size(self, size: int) -> None:
        raise OSError(EINVAL, "no size")

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set times, None leaving one alone, NOW meaning the present."""
        raise NotImplementedError

    def sync(self, *, data_only: bool) -> None:
        raise NotImplementedError

    def readdir(self, cookie: int, count: int) -> list[Entry]:
        raise OSError(ENOTDIR, "not a directory")

    def close(self) -> None:
        raise NotImplementedError


class HostFile(Descriptor):
    """A descriptor of the process: a standard stream, or another that the task was given."""

    def __init__(self, number: int) -> None:
        self.number = number
        mode = os.fstat(number).st_mode
        access = fcntl(number, F_GETFL)
        self.type = filetype(mode)
        self.flags = (APPEND if access & os.O_APPEND else 0) | (NONBLOCK if access & os.O_NONBLOCK else 0)
        self.rights = FILE_RIGHTS
        if access & os.O_ACCMODE == os.O_RDONLY:
            self.rights &= ~WRITING
        if access & os.O_ACCMODE == os.O_WRONLY:
            self.rights &= ~READING
        if not statmod.S_ISREG(mode):
            self.rights &= ~SEEKING

    def read(self, parts: Sequence[memoryview], offset: int | None) -> int:
        return os.readv(self.number, parts) if offset is None else os.preadv(self.number, parts, offset)

    def write(self, parts: Sequence[memoryview], offset: int | None) -> int:
        return os.writev(self.number, parts) if offset is None else os.pwritev(self.number, parts, offset)

    def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self.number, offset, whence)

    def stat(self) -> Stat:
        st = os.fstat(self.number)
        times = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns
        return Stat(st.st_dev, st.st_ino, filetype(st.st_mode), st.st_nlink, st.st_size, *times)

    def set_flags(self, flags: int) -> None:
        """Only for this process where nobody else has the descriptor: the flags belong to the open file."""
        kept = fcntl(self.number, F_GETFL) & ~(os.O_APPEND | os.O_NONBLOCK)
        wanted = (os.O_APPEND if flags & APPEND else 0) | (os.O_NONBLOCK if flags & NONBLOCK else 0)
        fcntl(self.number, F_SETFL, kept | wanted)
        self.flags = flags

    def set_size(self, size: int) -> None:
        os.ftruncate(self.number, size)

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        if (atime_ns, mtime_ns) == (NOW, NOW):
            os.utime(self.number)
            return
        st, now = os.fstat(self.number), time.time_ns()
        atime, mtime = (
            old if new is None else now if new == NOW else new
            for old, new in ((st.st_atime_ns, atime_ns), (st.st_mtime_ns, mtime_ns))
        )
        os.utime(self.number, ns=(atime, mtime))

    def sync(self, *, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self.number)

    def close(self) -> None:
        os.close(self.number)


class PassedFile(HostFile):
    """An open file of the tree that is one of the host's: its data need no server, its attributes are the tree's."""

    def __init__(self, client: Client, fid: int, number: int, rights: int, flags: int) -> None:
        self._client = client
        self._fid = fid
        self.number = number
        self.type = REGULAR_FILE
        self.rights = rights
        self.flags = flags

    def stat(self) -> Stat:
        return stat_of(self._client, self._fid)

    def set_size(self, size: int) -> None:
        self._client.setattr(self._fid, SETATTR_SIZE, size=size)

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        set_times(self._client, self._fid, atime_ns, mtime_ns)

    def close(self) -> None:
        os.close(self.number)
        self._client.clunk(self._fid)


class TreeFile(Descriptor):
    """An open file of the tree that the server makes. The position is kept here: the server knows none."""

    def __init__(self, client: Client, fid: int, type: int, access: int, rights: int, flags: int) -> None:
        self._client = client
        self._fid = fid
        self._access = access
        self.type = type
        self.rights = rights
        self.flags = flags
        self.position = 0

    def read(self, parts: Sequence[memoryview], offset: int | None) -> int:
        count = sum(map(len, parts))
        if not count:
            return 0
        data = self._client.read(self._fid, self.position if offset is None else offset, count)
        left = data
        for part in parts:
            size = min(len(part), len(left))
            part[:size] = left[:size]
            left = left[size:]
        if offset is None:
            self.position += len(data)
        return len(data)

    def write(self, parts: Sequence[memoryview], offset: int | None) -> int:
        data = parts[0] if len(parts) == 1 else _joined(parts)
        if offset is None and self.flags & APPEND:
            self.position = self.stat().size  # where the server puts it, unless others append just now
        count = self._client.write(self._fid, self.position if offset is None else offset, data)
        if offset is None:
            self.position += count
        return count

    def seek(self, offset: int, whence: int) -> int:
        base = (0, self.position)[whence] if whence < 2 else self.stat().size
        if not 0 <= base + offset <= MAX_OFFSET:
            raise OSError(EINVAL, "no such position")
        self.position = base + offset
        return self.position

    def stat(self) -> Stat:
        return stat_of(self._client, self._fid)

    def set_flags(self, flags: int) -> None:
        """Open the file anew: in 9P the flags are part of opening."""
        fid = self._client.clone(self._fid)
        try:
            self._client.open(fid, self._access | open_flags(flags))
        except OSError:
            self._client.clunk(fid)
            raise
        self._fid, old = fid, self._fid
        self.flags = flags
        self._client.clunk(old)

    def set_size(self, size: int) -> None:
        self._client.setattr(self._fid, SETATTR_SIZE, size=size)

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        set_times(self._client, self._fid, atime_ns, mtime_ns)

    def sync(self, *, data_only: bool) -> None:
        self._client.fsync(self._fid, data_only)

    def close(self) -> None:
        self._client.clunk(self._fid)


class TreeDirectory(Descriptor):
    """A directory of the tree: `fid` is walked from; listing opens one of its own.

    `preopened` is the name under which the module finds it without having opened it.
    """

    type = filetype(statmod.S_IFDIR)

    def __init__(
        self, client: Client, fid: int, rights: int, inheriting: int, *, flags: int = 0, preopened: bytes | None = None
    ) -> None:
        self._client = client
        self._listed = 0
        self.fid = fid
        self.rights = rights & DIRECTORY_RIGHTS
        self.inheriting = inheriting & ALL_RIGHTS
        self.flags = flags
        self.preopened = preopened

    def stat(self) -> Stat:
        return stat_of(self._client, self.fid)

    def set_flags(self, flags: int) -> None:
        self.flags = flags

    def set_size(self, size: int) -> None:
        raise OSError(EISDIR, "is a directory")

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        set_times(self._client, self.fid, atime_ns, mtime_ns)

    def sync(self, *, data_only: bool) -> None:
        self._client.fsync(self._opened(), data_only)

    def readdir(self, cookie: int, count: int) -> list[Entry]:
        """Return the entries after `cookie`, at least one unless there is none, about as many as fill `count` bytes."""
        if cookie == 0 and self._listed:  # what the directory holds now
            self._listed, old = 0, self._listed
            self._client.clunk(old)
        data = self._client.readdir(self._opened(), cookie, max(count, 4096))
        entries: list[Entry] = []
        at = 0
        while at < len(data):
            _, _, inode, after, kind, size = NINEP_DIRENT.unpack_from(data, at)
            at += NINEP_DIRENT.size + size
            entries.append(Entry(after, inode, filetype(kind << 12), bytes(data[at - size : at])))
        return entries

    def _opened(self) -> int:
        if not self._listed:
            fid = self._client.clone(self.fid)
            try:
                self._client.open(fid, os.O_RDONLY)
            except OSError:
                self._client.clunk(fid)
                raise
            self._listed = fid
        return self._listed

    def close(self) -> None:
        if self._listed:
            self._client.clunk(self._listed)
        self._client.clunk(self.fid)


def _joined(parts: Sequence[memoryview]) -> bytes:
    """Return what one write takes of these parts of memory."""
    room = PAYLOAD
    taken = []
    for part in parts:
        taken.append(part[:room])
        room -= len(taken[-1])
    return b"".join(taken)


def open_flags(flags: int) -> int:
    """Return what Tlopen takes for WASI's descriptor flags."""
    return (os.O_APPEND if flags & APPEND else 0) | (os.O_NONBLOCK if flags & NONBLOCK else 0)


def stat_of(client: Client, fid: int) -> Stat:
    """Return the attributes of a fid's file. The tree is one device; node ids are unique in it."""
    _, qid, mode, _, _, links, _, size, _, _, *times = client.getattr(fid)
    atime, mtime, ctime = (times[i] * 10**9 + times[i + 1] for i in (0, 2, 4))
    return Stat(1, int.from_bytes(qid[5:], "little"), filetype(mode), links, size, atime, mtime, ctime)


def set_times(client: Client, fid: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    valid = 0
    for value, bit, exact in (
        (atime_ns, SETATTR_ATIME, SETATTR_ATIME_SET),
        (mtime_ns, SETATTR_MTIME, SETATTR_MTIME_SET),
    ):
        if value is not None:
            valid |= bit | (0 if value == NOW else exact)
    client.setattr(fid, valid, atime_ns=max(atime_ns or 0, 0), mtime_ns=max(mtime_ns or 0, 0))


def allocate(descriptor: Descriptor, offset: int, size: int) -> None:
    """Make the file reach to `offset + size` at least, as posix_fallocate(3) does."""
    if size == 0 or offset + size > MAX_OFFSET:
        raise OSError(EINVAL, "no such range")
    if descriptor.type != REGULAR_FILE:
        raise OSError(ENOTSUP, "not a regular file")
    if descriptor.stat().size < offset + size:
        descriptor.set_size(offset + size)
