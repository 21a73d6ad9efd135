"""A tree served by someone else over 9P2000.L, as nodes: what `vfs.ninep.client` attaches.

A node holds one fid, clunked soon after the node is garbage; an open handle holds another, clunked by `close`.
The remote server checks modes, for the user that attached; the `who` of an operation decides nothing but the group
asked for a new file.
"""

import os
from collections.abc import Sequence
from errno import E2BIG, EINVAL, EIO, EISDIR, ENOTDIR, EOPNOTSUPP, EXDEV
from typing import TYPE_CHECKING, Any, Final

from vfs.ninep.codec import DIRENT, Values, qid_parts
from vfs.ninep.messages import (
    DOTL_AT_REMOVEDIR,
    DOTL_DIRECTORY,
    DOTL_EXCL,
    DOTL_NOFOLLOW,
    DOTL_OPEN,
    GETATTR_BASIC,
    QTDIR,
    SETATTR_ATIME,
    SETATTR_ATIME_SET,
    SETATTR_GID,
    SETATTR_MODE,
    SETATTR_MTIME,
    SETATTR_MTIME_SET,
    SETATTR_SIZE,
    SETATTR_UID,
)
from vfs.node import Caller, DirEntry, Handle, Node, SetStat, Stat, StatFs, check_name, no_entry

if TYPE_CHECKING:
    from vfs.ninep.client import Client

MAX_ENTRIES: Final = 1 << 20
MAX_XATTR: Final = 1 << 16
XATTR_REPLACE: Final = 2
_SECOND: Final = 10**9


class RemoteHandle(Handle):
    """An open file of a remote tree."""

    __slots__ = ("_client", "_fid")

    def __init__(self, client: "Client", fid: int) -> None:
        self._client = client
        self._fid: int | None = fid

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        size = min(size, self._client.payload)
        data: memoryview = (await self._client.rpc("Tread", self._fid, offset, size, nonblock=nonblock))[0]
        if len(data) > size:
            raise OSError(EIO, "the server sent more than it was asked for")
        return data

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        part = bytes(data[: self._client.payload])
        taken: int = (await self._client.rpc("Twrite", self._fid, offset, part, nonblock=nonblock))[0]
        if taken > len(part):
            raise OSError(EIO, "the server took more than it was sent")
        return taken

    async def fsync(self, datasync: bool = False) -> None:
        await self._client.rpc("Tfsync", self._fid, int(datasync))

    async def clunk(self) -> None:
        """Close it, and raise what the server says of that: 9P has no other way to tell a late error."""
        fid, self._fid = self._fid, None
        if fid is not None:
            await self._client.rpc("Tclunk", fid)

    def close(self) -> None:
        fid, self._fid = self._fid, None
        if fid is not None:
            self._client.clunk(fid)


class RemoteNode(Node):
    """A file of a remote tree, by a fid that is never opened."""

    __slots__ = ("_client", "_fid")

    def __init__(self, client: "Client", fid: int, raw_qid: bytes) -> None:
        self._client = client
        self._fid = fid
        self.id = client.id_of(qid_parts(raw_qid)[2])

    def __del__(self) -> None:
        self._client.drop(self._fid)

    async def _rpc(self, name: str, *values: Any) -> Values:
        return await self._client.rpc(name, self._fid, *values)

    async def _walk(self, *names: str) -> tuple[int, bytes | None]:
        """Return a new fid for what `names` lead to from here, and its qid (None for no names)."""
        fid = self._client.new_fid()
        try:
            qids = (await self._rpc("Twalk", fid, names))[0]
            if len(qids) != len(names):
                raise no_entry(names[-1]) if len(qids) < len(names) else OSError(EIO, "a walk longer than asked for")
        except BaseException:
            self._client.free_fid(fid)
            raise
        return fid, qids[-1] if qids else None

    async def lookup(self, name: str, who: Caller) -> Node:
        fid, raw = await self._walk(check_name(name))
        assert raw is not None
        return RemoteNode(self._client, fid, raw)

    async def stat(self) -> Stat:
        values = await self._rpc("Tgetattr", GETATTR_BASIC)
        _, _, mode, uid, gid, nlink, rdev, size, blksize, blocks, *times = values
        atime, mtime, ctime = (_nanoseconds(*times[i : i + 2]) for i in (0, 2, 4))
        return Stat(mode, self.id, nlink, uid, gid, size, atime, mtime, ctime, blocks, blksize, rdev)

    async def setstat(self, change: SetStat, who: Caller) -> None:
        valid = 0
        for bit, value in (
            (SETATTR_MODE, change.mode),
            (SETATTR_UID, change.uid),
            (SETATTR_GID, change.gid),
            (SETATTR_SIZE, change.size),
            (SETATTR_ATIME | SETATTR_ATIME_SET, change.atime_ns),
            (SETATTR_MTIME | SETATTR_MTIME_SET, change.mtime_ns),
        ):
            if value is not None:
                valid |= bit
        await self._rpc(
            "Tsetattr",
            valid,
            change.mode or 0,
            change.uid or 0,
            change.gid or 0,
            change.size or 0,
            *_timespec(change.atime_ns or 0),
            *_timespec(change.mtime_ns or 0),
        )

    async def readlink(self) -> str:
        target: str = (await self._rpc("Treadlink"))[0]
        return target

    async def open(self, flags: int, who: Caller) -> Handle:
        return RemoteHandle(self._client, await self._open_fid(flags))

    async def _open_fid(self, flags: int) -> int:
        fid, _ = await self._walk()
        try:
            await self._client.rpc("Tlopen", fid, flags & (DOTL_OPEN | DOTL_DIRECTORY) | DOTL_NOFOLLOW)
        except BaseException:
            self._client.clunk(fid)
            raise
        return fid

    async def statfs(self) -> StatFs:
        return StatFs(*await self._rpc("Tstatfs"))

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        fid = await self._open_fid(os.O_RDONLY | DOTL_DIRECTORY)
        entries: list[DirEntry] = []
        offset = 0
        try:
            while data := (await self._client.rpc("Treaddir", fid, offset, self._client.payload))[0]:
                offset = self._read_entries(data, entries, offset)
                if len(entries) > MAX_ENTRIES:
                    raise OSError(E2BIG, "too many names")
        finally:
            self._client.clunk(fid)
        return entries

    def _read_entries(self, data: memoryview, entries: list[DirEntry], offset: int) -> int:
        """Append the entries of one Rreaddir and return the offset to go on from. EIO for anything but entries."""
        at = 0
        while at < len(data):
            if at + DIRENT.size > len(data):
                raise OSError(EIO, "a broken directory entry")
            _, _, path, next_offset, kind, length = DIRENT.unpack_from(data, at)
            at += DIRENT.size
            name = str(data[at : at + length], "utf-8", "surrogateescape")
            at += length
            if at > len(data) or next_offset == offset:
                raise OSError(EIO, "a broken directory entry")
            offset = next_offset
            if name not in (".", ".."):
                entries.append(DirEntry(check_name(name), self._client.id_of(path), kind << 12))
        return offset

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> tuple[Node, Handle]:
        fid, _ = await self._walk()
        try:
            await self._client.rpc(
                "Tlcreate", fid, check_name(name), flags & DOTL_OPEN | DOTL_EXCL, mode & 0o7777, who.gid
            )
            node = await self.lookup(name, who)
        except BaseException:
            self._client.clunk(fid)
            raise
        return node, RemoteHandle(self._client, fid)

    async def mkdir(self, name: str, mode: int, who: Caller) -> Node:
        await self._rpc("Tmkdir", check_name(name), mode, who.gid)
        return await self.lookup(name, who)

    async def symlink(self, name: str, target: str, who: Caller) -> Node:
        await self._rpc("Tsymlink", check_name(name), target, who.gid)
        return await self.lookup(name, who)

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> Node:
        await self._rpc("Tmknod", check_name(name), mode, os.major(rdev), os.minor(rdev), who.gid)
        return await self.lookup(name, who)

    async def link(self, target: Node, name: str, who: Caller) -> None:
        await self._rpc("Tlink", self._same_tree(target)._fid, check_name(name))

    async def unlink(self, name: str, who: Caller) -> None:
        await self._remove(check_name(name), 0)

    async def rmdir(self, name: str, who: Caller) -> None:
        await self._remove(check_name(name), DOTL_AT_REMOVEDIR)

    async def _remove(self, name: str, flags: int) -> None:
        try:
            await self._rpc("Tunlinkat", name, flags)
            return
        except OSError as error:
            if error.errno != EOPNOTSUPP:
                raise
        fid, raw = await self._walk(name)  # as Linux does with servers that lack it, diod among them
        directory = raw is not None and bool(raw[0] & QTDIR)
        if directory != bool(flags):
            self._client.clunk(fid)
            raise OSError(EISDIR if directory else ENOTDIR, "a directory" if directory else "not a directory")
        await self._client.rpc("Tremove", fid)

    async def rename(self, name: str, new_dir: Node, new_name: str, flags: int, who: Caller) -> None:
        if flags:
            raise OSError(EINVAL, "9P can neither exchange nor refuse to replace")
        into = self._same_tree(new_dir)
        try:
            await self._rpc("Trenameat", check_name(name), into._fid, check_name(new_name))
            return
        except OSError as error:
            if error.errno != EOPNOTSUPP:
                raise
        fid, _ = await self._walk(name)
        try:
            await self._client.rpc("Trename", fid, into._fid, new_name)
        finally:
            self._client.clunk(fid)

    def _same_tree(self, node: Node) -> "RemoteNode":
        if not isinstance(node, RemoteNode) or node._client is not self._client:
            raise OSError(EXDEV, "of another tree")
        return node

    async def listxattr(self) -> Sequence[str]:
        return [os.fsdecode(name) for name in (await self._attribute("")).split(b"\0") if name]

    async def getxattr(self, name: str) -> bytes:
        return await self._attribute(name)

    async def _attribute(self, name: str) -> bytes:
        client, fid = self._client, self._client.new_fid()
        try:
            size = (await self._rpc("Txattrwalk", fid, name))[0]
        except BaseException:
            client.free_fid(fid)
            raise
        try:
            if size > MAX_XATTR:
                raise OSError(E2BIG, "value too large")
            value = bytearray()
            while len(value) < size:
                part = (await client.rpc("Tread", fid, len(value), min(size - len(value), client.payload)))[0]
                if not part:
                    raise OSError(EIO, "value shorter than announced")
                value += part
            return bytes(value)
        finally:
            client.clunk(fid)

    async def setxattr(self, name: str, value: bytes, flags: int, who: Caller) -> None:
        fid, _ = await self._walk()
        handle = RemoteHandle(self._client, fid)
        try:
            await self._client.rpc("Txattrcreate", fid, name, len(value), flags)
            at = 0
            while at < len(value):
                at += await handle.write(value[at:], at)
            await handle.clunk()
        finally:
            handle.close()

    async def removexattr(self, name: str, who: Caller) -> None:
        fid, _ = await self._walk()
        handle = RemoteHandle(self._client, fid)
        try:
            await self._client.rpc("Txattrcreate", fid, name, 0, XATTR_REPLACE)
            await handle.clunk()
        finally:
            handle.close()


def _nanoseconds(seconds: int, nanoseconds: int) -> int:
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * _SECOND + nanoseconds


def _timespec(time_ns: int) -> tuple[int, int]:
    seconds, nanoseconds = divmod(time_ns, _SECOND)
    return seconds & (1 << 64) - 1, nanoseconds
