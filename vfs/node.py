"""The contract between trees and the protocols that serve them.

A tree is made of nodes; opening a node gives a handle. A node implements only
what it means: every operation it leaves out answers with the errno stated
here. All operations are coroutines that follow the inline rule of
`vfs.inline`: they run inside the caller until the first real wait.

Errors are `OSError(errno, detail)`; nothing else leaves a node on purpose.
Names are `str` decoded with surrogateescape, file data is bytes.
Operations do not check modes: whoever serves the tree does that once
(`vfs.access` for 9P and HTTP, the kernel's `default_permissions` for FUSE).
"""

import os
import stat as statmod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EINVAL, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTSUP, ENXIO, EPERM, EXDEV
from hashlib import blake2b
from typing import NamedTuple, Protocol

NAME_MAX = 255
READABLE = 0x0001 | 0x0040  # POLLIN | POLLRDNORM
WRITABLE = 0x0004 | 0x0100  # POLLOUT | POLLWRNORM
HANGUP = 0x0010  # POLLHUP
ACCESS_MODE = os.O_ACCMODE


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the uid, gid and supplementary groups on whose behalf an operation runs.

    `pid` is the asking process as the FUSE kernel names it, 0 when unknown; it
    is a hint for `/task/self` on the administrator's mount and decides nothing else.
    """

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    pid: int = 0


ROOT = Caller(0, 0)


class StatResult(Protocol):
    """What `stat` returns: the fields of `os.stat_result` that the protocols use (times in ns, sizes in bytes)."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_atime_ns(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...
    @property
    def st_blocks(self) -> int: ...
    @property
    def st_blksize(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...


class Stat(NamedTuple):
    """A `StatResult` that a synthetic node makes itself."""

    st_mode: int
    st_ino: int = 0
    st_nlink: int = 1
    st_uid: int = 0
    st_gid: int = 0
    st_size: int = 0
    st_atime_ns: int = 0
    st_mtime_ns: int = 0
    st_ctime_ns: int = 0
    st_blocks: int = 0
    st_blksize: int = 4096
    st_rdev: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStat:
    """The attributes to change; None leaves one as it is. Times are absolute ns: "now" is resolved by the caller."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class StatFs(NamedTuple):
    """statvfs(3) figures: blocks of `bsize` bytes."""

    type: int = 0x01021997
    bsize: int = 4096
    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    fsid: int = 0
    namelen: int = NAME_MAX


class DirEntry(NamedTuple):
    """One name of a directory: `ino` as shown by stat, `type` a `stat.S_IFMT` value (0 where unknown).

    `id` is the id of the node that `lookup` gives, where that is not `ino` (0).
    """

    name: str
    ino: int
    type: int
    id: int = 0


def node_id(*parts: object) -> int:
    """Derive a 64-bit node id from what names the node for ever (a tree's own id, then a path or inode).

    Derived rather than counted, so that a restarted server gives the same file the same id. The top bit is
    clear; 0 and 1 are never returned (FUSE reserves them).
    """
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1 | 2


def check_name(name: str) -> str:
    """Return `name` if a directory may hold it.

    EINVAL for empty, ".", "..", "/" or NUL; ENAMETOOLONG past 255 bytes.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(EINVAL, f"not a file name: {name!r}")
    if len(name) > NAME_MAX // 4 and len(os.fsencode(name)) > NAME_MAX:
        raise OSError(ENAMETOOLONG, "file name longer than 255 bytes")
    return name


MOMENT = 1e-3
"""`attribute_seconds` of files that the program makes: the open(2) that looked one up may use what it was told. The
kernel rounds it up to a tick or two of its clock, and asks again for each path."""


class Watcher(Protocol):
    """Told of a node's next change of attributes."""

    def changed(self, node: "Node") -> None: ...


class Handle:
    """One open file. Reads and writes carry their offset; streams ignore it.

    A handle may serve several calls at once (pipelined 9P, threads over FUSE).
    After `close` no method is called again; a call that still waits is
    cancelled before.
    """

    __slots__ = ()

    direct = True
    """True: size and content are made on the fly, so the kernel must not cache them (FOPEN_DIRECT_IO)."""
    stream = False
    """True: no offsets, reads give what comes next (FOPEN_STREAM | FOPEN_NONSEEKABLE)."""

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        """Return up to `size` bytes; b"" is end of file.

        EAGAIN instead of waiting with `nonblock`; EBADF if not opened for reading.
        """
        raise OSError(EINVAL, "not readable")

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        """Take `data` (valid only until the first wait: copy what is kept) and return how many bytes were taken."""
        raise OSError(EINVAL, "not writable")

    async def flush(self) -> None:
        """Someone closed a descriptor of this open file (close(2)): the last chance to report an error."""

    async def fsync(self, datasync: bool = False) -> None:
        """Make what was written durable."""

    def close(self) -> None:
        """Release everything. Never raises, never waits; called exactly once."""

    async def seek(self, offset: int, whence: int) -> int:
        """lseek(2) for SEEK_DATA and SEEK_HOLE only. EINVAL where holes mean nothing."""
        raise OSError(EINVAL, "no holes here")

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        raise OSError(ENOTSUP, "cannot preallocate")

    async def copy(self, offset: int, target: "Handle", target_offset: int, length: int) -> int:
        """copy_file_range(2): return how much was copied. EXDEV where that takes no less than to read and write."""
        raise OSError(EXDEV, "to be read and written")

    def poll(self) -> int:
        """Return which of READABLE, WRITABLE and HANGUP hold now."""
        return READABLE | WRITABLE

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake()` once, from the event loop, when `poll` may have changed; always-ready files never do."""

    def fileno(self) -> int:
        """Return a kernel descriptor that is this open file, owned by the handle, or -1. Its data needs no server."""
        return -1


class Node:
    """One object of a tree.

    `id` names it for ever: two nodes with the same id are the same file seen
    through the same tree (64 bits; 9P's qid.path). Nodes hold no open state.
    """

    __slots__ = ("__weakref__", "id")
    id: int

    kind = 0
    """The type bits of its mode (`stat.S_IFMT`), where they are known for good; 0: `stat` tells."""
    cache_seconds = 0.0
    """How long a kernel may trust this node's name and attributes. 0 for anything synthetic."""
    attribute_seconds = 0.0
    """How long it may trust the attributes where it may not trust the name; see `MOMENT`."""
    name_seconds = 0.0
    """How long it may trust the name where it may not trust the attributes."""
    unshared = False
    """True where a write may wait: FUSE gives each lookup its own inode, so that openers never share its lock."""
    allocates = False
    """True: opening this file makes something, so nobody may open it just to look."""
    steady = False
    """True: `readdir` gives the same entries as long as mtime and ctime stay the same, as a filesystem on disk does."""

    async def stat(self) -> StatResult:
        """Return the attributes."""
        raise NotImplementedError

    def watch(self, watcher: "Watcher") -> None:
        """Tell `watcher`, once, when the attributes that `stat` gave last (time of access aside) are no longer so.

        Nothing happens where nobody depends on their being right, or where nobody can tell.
        """

    def unwatch(self, watcher: "Watcher") -> None:
        """Tell `watcher` no more."""

    def host_path(self) -> str | None:
        """Return a path that leads, until the next call on any node, to the directory of this host that this one is.

        None if it is none, or more than one: then nobody but the server changes it, or nobody can tell.
        """
        return None

    async def setstat(self, change: SetStat, who: Caller) -> None:
        """Change attributes. EPERM by default."""
        raise OSError(EPERM, "attributes are fixed")

    async def readlink(self) -> str:
        """Return a symlink's target. EINVAL if this is not one."""
        raise OSError(EINVAL, "not a symbolic link")

    async def open(self, flags: int, who: Caller) -> Handle:
        """Open a file by open(2) flags: access mode, O_TRUNC, O_APPEND, O_NONBLOCK. ENXIO.

        Directories are not opened: `readdir` reads them.
        """
        raise OSError(ENXIO, "cannot be opened")

    async def statfs(self) -> StatFs:
        """Return the figures of the filesystem that holds this node."""
        return StatFs()

    # Directories

    async def lookup(self, name: str, who: Caller) -> "Node":
        """Return the child `name` (never "." or ".."). ENOENT; ENOTDIR if this is no directory."""
        raise OSError(ENOTDIR, "not a directory")

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        """Return a snapshot of all names, without "." and "..", in a stable order. ENOTDIR."""
        raise OSError(ENOTDIR, "not a directory")

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> "tuple[Node, Handle]":
        """Make a regular file owned by `who` and open it; `mode` has the umask applied. EEXIST, EPERM."""
        raise OSError(EPERM, "files cannot be created here")

    async def mkdir(self, name: str, mode: int, who: Caller) -> "Node":
        raise OSError(EPERM, "directories cannot be made here")

    async def symlink(self, name: str, target: str, who: Caller) -> "Node":
        raise OSError(EPERM, "links cannot be made here")

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> "Node":
        """Make what `mode`'s type bits say: a regular file, fifo, socket or device."""
        raise OSError(EPERM, "nodes cannot be made here")

    async def link(self, target: "Node", name: str, who: Caller) -> None:
        """Give `target` the further name `name` in this directory. EXDEV if it is of another tree."""
        raise OSError(EPERM, "links cannot be made here")

    async def unlink(self, name: str, who: Caller) -> None:
        """Remove a name that is not a directory (EISDIR)."""
        raise OSError(EPERM, "cannot be removed")

    async def rmdir(self, name: str, who: Caller) -> None:
        """Remove an empty directory (ENOTEMPTY, ENOTDIR)."""
        raise OSError(EPERM, "cannot be removed")

    async def rename(self, name: str, new_dir: "Node", new_name: str, flags: int, who: Caller) -> None:
        """renameat2(2) from this directory. EXDEV across trees.

        `flags` may hold RENAME_NOREPLACE 1 and RENAME_EXCHANGE 2.
        """
        raise OSError(EPERM, "cannot be renamed")

    # Extended attributes (xattr(7)); names include their "user." prefix

    async def listxattr(self) -> Sequence[str]:
        return ()

    async def getxattr(self, name: str) -> bytes:
        """ENODATA where it is not set; ENOTSUP where there are none at all."""
        raise OSError(ENOTSUP, "no extended attributes")

    async def setxattr(self, name: str, value: bytes, flags: int, who: Caller) -> None:
        """`flags` may hold XATTR_CREATE 1 (EEXIST) and XATTR_REPLACE 2 (ENODATA)."""
        raise OSError(ENOTSUP, "no extended attributes")

    async def removexattr(self, name: str, who: Caller) -> None:
        raise OSError(ENOTSUP, "no extended attributes")


def is_dir(st: StatResult) -> bool:
    """Tell whether these attributes are a directory's."""
    return statmod.S_ISDIR(st.st_mode)


def no_entry(name: str) -> OSError:
    """Return the error for a name that is not there."""
    return OSError(ENOENT, f"no such file: {name!r}")
