"""A tar archive as a read-only tree: `/cap` tar. The index is read once; contents are read as they are asked for.

An archive comes from anyone. It is refused whole (EINVAL) if any name in it is hostile: "..", a NUL, a path through
something that is no directory, a hard link to what the archive does not hold. Symlinks are only text: whoever walks
the tree follows them inside it. Devices and fifos are shown, never opened.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import math
import os
import stat as statmod
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from errno import EBADF, EFBIG, EINVAL, EIO, EISDIR, ELOOP, ENOTDIR, ENXIO, EROFS
from typing import IO, Any, NoReturn

from vfs.inline import park
from vfs.node import NAME_MAX, Caller, DirEntry, Handle, Node, Stat, StatFs, check_name, no_entry, node_id
from vfs.workers import in_worker

MAX_MEMBERS = 200_000
MAX_BYTES = 1 << 36
"""The largest archive, unpacked of its compression."""
MAX_PATH = 4096
MAX_DEPTH = 256
MAX_HEADER = 1 << 20
MAX_SEGMENTS = 10_000
MAX_READ = 1 << 24
MAX_SIZE = (1 << 63) - 1

KINDS = {
    tarfile.REGTYPE: statmod.S_IFREG,
    tarfile.AREGTYPE: statmod.S_IFREG,
    tarfile.CONTTYPE: statmod.S_IFREG,
    tarfile.GNUTYPE_SPARSE: statmod.S_IFREG,
    tarfile.DIRTYPE: statmod.S_IFDIR,
    tarfile.SYMTYPE: statmod.S_IFLNK,
    tarfile.CHRTYPE: statmod.S_IFCHR,
    tarfile.BLKTYPE: statmod.S_IFBLK,
    tarfile.FIFOTYPE: statmod.S_IFIFO,
}
BAD_ARCHIVE = (
    tarfile.TarError,
    EOFError,
    ValueError,
    ArithmeticError,
    RecursionError,
    OSError,  # those without an errno: gzip, bz2
    zlib.error,
    lzma.LZMAError,
)


class Archive:
    """The descriptor of an archive without compression, closed with the last node that reads from it."""

    __slots__ = ("fd", "label", "size")

    def __init__(self, fd: int, label: str) -> None:
        self.fd = fd
        self.label = label
        self.size = os.fstat(fd).st_size

    def __del__(self) -> None:
        os.close(self.fd)


class TarTree:
    """The archive `source` (a path or an open file; plain, gzip, bzip2 or xz) as a tree.

    Reads the whole index at once, and unpacks a compressed archive to an unnamed temporary file: call it in a worker.
    EINVAL for what is no archive or a hostile one; EFBIG past MAX_MEMBERS or `max_bytes`.
    """

    def __init__(self, source: str | os.PathLike[str] | IO[bytes], *, label: str, max_bytes: int = MAX_BYTES) -> None:
        try:
            if isinstance(source, str | os.PathLike):
                with open(source, "rb") as file:
                    fd = _plain(file, max_bytes)
            else:
                fd = _plain(source, max_bytes)
            self._archive = Archive(fd, label)
            self.root = TarNode(self._archive, "", statmod.S_IFDIR | 0o755)
            self._index()
        except BAD_ARCHIVE as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise OSError(EINVAL, f"not a tar archive: {error}") from error

    def _index(self) -> None:
        with (
            open(self._archive.fd, "rb", closefd=False) as file,
            tarfile.open(fileobj=_HeaderReader(file), mode="r:", errors="surrogateescape") as archive,  # type: ignore[call-overload]
        ):
            count = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile would keep them all
                count += 1
                if count > MAX_MEMBERS:
                    raise OSError(EFBIG, f"more than {MAX_MEMBERS} members")
                self._add(member)

    def _add(self, member: tarfile.TarInfo) -> None:
        path = _parts(member.name)
        if not path:
            if member.isdir():
                self.root.describe(member)
            return
        parent = self.root
        for depth, name in enumerate(path[:-1], 1):
            below = parent.entries.get(name)
            if below is None:
                below = parent.put(name, TarNode(self._archive, "/".join(path[:depth]), statmod.S_IFDIR | 0o755))
            parent = below.directory()
        name = path[-1]
        if member.islnk():
            target = self.root
            for part in _parts(member.linkname):
                if (below := target.entries.get(part)) is None:
                    raise OSError(EINVAL, f"hard link to what is not there: {member.linkname!r}")
                target = below
            if target.kind == statmod.S_IFDIR:
                raise OSError(EINVAL, f"hard link to a directory: {member.linkname!r}")
            parent.put(name, target)
            return
        kind = KINDS.get(member.type)
        if kind is None:
            raise OSError(EINVAL, f"unknown kind of member: {member.type!r}")
        there = parent.entries.get(name)
        if there is None or kind != statmod.S_IFDIR or there.kind != statmod.S_IFDIR:
            there = parent.put(name, TarNode(self._archive, "/".join(path), kind))
        there.describe(member)


class TarNode(Node):
    """A member of the archive, or a directory that its paths imply."""

    __slots__ = ("_segments", "_stat", "_target", "archive", "entries", "kind", "nlink")

    cache_seconds = 1.0

    def __init__(self, archive: Archive, path: str, mode: int) -> None:
        self.archive = archive
        self.id = node_id("tar", archive.label, path)
        self.kind = statmod.S_IFMT(mode)
        self.nlink = 2 if self.kind == statmod.S_IFDIR else 0
        self.entries: dict[str, TarNode] = {}
        self._stat = Stat(mode, self.id)
        self._target = ""
        self._segments: list[tuple[int, int, int]] = []
        """Where the content lies: (offset in the file, length, offset in the archive); the rest is zeros."""

    def describe(self, member: tarfile.TarInfo) -> None:
        """Take over what the archive says about this node."""
        if self.kind == statmod.S_IFREG:
            self._locate(member)
        elif self.kind == statmod.S_IFLNK:
            self._target = member.linkname
            if not 0 < len(os.fsencode(self._target)) < MAX_PATH or "\0" in self._target:
                raise OSError(EINVAL, f"not a link target: {self._target[:80]!r}")
        size = len(os.fsencode(self._target)) if self._target else member.size if self._segments else 0
        mtime = int(member.mtime * 10**9) if math.isfinite(member.mtime) and abs(member.mtime) < 1 << 33 else 0
        special = self.kind in (statmod.S_IFCHR, statmod.S_IFBLK)
        self._stat = Stat(
            self.kind | member.mode & 0o7777,
            self.id,
            st_uid=_owner(member.uid),
            st_gid=_owner(member.gid),
            st_size=size,
            st_atime_ns=mtime,
            st_mtime_ns=mtime,
            st_ctime_ns=mtime,
            st_blocks=(sum(length for _, length, _ in self._segments) + 511) // 512,
            st_rdev=os.makedev(member.devmajor & 0xFFF, member.devminor & 0xFFFFF) if special else 0,
        )

    def _locate(self, member: tarfile.TarInfo) -> None:
        sparse: list[tuple[int, int]] | None = getattr(member, "sparse", None)
        layout = [(0, member.size)] if sparse is None else sparse
        if len(layout) > MAX_SEGMENTS:
            raise OSError(EFBIG, "more than 10,000 segments in a sparse member")
        at, end = member.offset_data, 0
        for offset, length in layout:
            if not length:
                continue
            if length < 0 or offset < end or offset + length > min(member.size, MAX_SIZE):
                raise OSError(EINVAL, f"impossible size of {member.name!r}")
            self._segments.append((offset, length, at))
            at, end = at + length, offset + length
        if at > self.archive.size:
            raise OSError(EINVAL, f"cut short in {member.name!r}")

    def directory(self) -> "TarNode":
        """Return this node if paths may go through it. EINVAL: a symlink or file in the middle of a member's path."""
        if self.kind != statmod.S_IFDIR:
            raise OSError(EINVAL, "a path in the archive goes through something that is no directory")
        return self

    def put(self, name: str, node: "TarNode") -> "TarNode":
        """Let `name` mean `node`; a later member replaces an earlier one."""
        old = self.entries.get(name)
        if old is not None:
            old.nlink -= 1
            self.nlink -= old.kind == statmod.S_IFDIR
        self.entries[name] = node
        if node.kind == statmod.S_IFDIR:
            self.nlink += 1
        else:
            node.nlink += 1
        return node

    def content(self, size: int, offset: int) -> bytes:
        """Read a piece of the content, blocking. EIO where the archive has been cut meanwhile."""
        out = bytearray(max(0, min(size, MAX_READ, self._stat.st_size - offset)))
        for start, length, at in self._segments:
            first, last = max(start, offset), min(start + length, offset + len(out))
            if first < last:
                data = os.pread(self.archive.fd, last - first, at + first - start)
                if len(data) != last - first:
                    raise OSError(EIO, "the archive has become shorter")
                out[first - offset : last - offset] = data
        return bytes(out)

    async def stat(self) -> Stat:
        return self._stat._replace(st_nlink=self.nlink)

    async def statfs(self) -> StatFs:
        return StatFs(blocks=self.archive.size // 4096 + 1)

    async def readlink(self) -> str:
        if self.kind != statmod.S_IFLNK:
            raise OSError(EINVAL, "not a symbolic link")
        return self._target

    async def open(self, flags: int, who: Caller) -> Handle:
        if self.kind != statmod.S_IFREG:
            raise OSError({statmod.S_IFDIR: EISDIR, statmod.S_IFLNK: ELOOP}.get(self.kind, ENXIO), "not a file")
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(EROFS, "read-only archive")
        return TarHandle(self)

    async def lookup(self, name: str, who: Caller) -> "TarNode":
        if self.kind != statmod.S_IFDIR:
            raise OSError(ENOTDIR, "not a directory")
        node = self.entries.get(name)
        if node is None:
            raise no_entry(check_name(name))
        return node

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        if self.kind != statmod.S_IFDIR:
            raise OSError(ENOTDIR, "not a directory")
        return [DirEntry(name, node.id, node.kind) for name, node in self.entries.items()]

    async def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise OSError(EROFS, "read-only archive")

    setstat = create = mkdir = symlink = mknod = link = unlink = rmdir = rename = _refuse
    setxattr = removexattr = _refuse


class TarHandle(Handle):
    """An open member."""

    __slots__ = ("_node",)

    direct = False

    def __init__(self, node: TarNode) -> None:
        self._node = node

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        if size < 0 or offset < 0:
            raise OSError(EINVAL, "negative offset or size")
        await park()
        return await in_worker(lambda: self._node.content(size, offset))

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        raise OSError(EBADF, "not open for writing")


class _HeaderReader:
    """What tarfile may read while it indexes: headers, a bounded piece at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise OSError(EINVAL, "header of a tar member larger than 1 MiB")
        return self._file.read(size)


def _plain(source: IO[bytes], max_bytes: int) -> int:
    """Return a descriptor of the archive without compression: the file's own where it has one and needs no more."""
    magic = source.read(6)
    source.seek(0)
    stream: Any = source
    for start, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if magic.startswith(start):
            stream = opener(source, "rb")
    if stream is source:
        with contextlib.suppress(io.UnsupportedOperation):  # bytes in memory
            return os.open(f"/proc/self/fd/{source.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    left = max_bytes
    with tempfile.TemporaryFile() as spool:
        while data := stream.read(1 << 20):
            left -= len(data)
            if left < 0:
                raise OSError(EFBIG, "archive too large when unpacked")
            spool.write(data)
        spool.seek(0)
        return os.dup(spool.fileno())


def _parts(path: str) -> list[str]:
    """Return the names of a member's path. EINVAL for a hostile one; a leading "/" means nothing, as in tar(1)."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(path) > MAX_PATH or len(parts) > MAX_DEPTH:
        raise OSError(EINVAL, "a path in the archive is too long")
    for part in parts:
        if part == ".." or "\0" in part or len(os.fsencode(part)) > NAME_MAX:
            raise OSError(EINVAL, f"hostile name in the archive: {part[:80]!r}")
    return parts


def _owner(number: int) -> int:
    return number if 0 <= number < 0xFFFFFFFF else 65534
