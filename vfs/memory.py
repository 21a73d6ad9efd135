"""A writable POSIX tree in memory: `/cap/new/mem`, and what other trees are compared with.

A node is the file itself, so an unlinked file lives as long as someone holds its node or a handle, and its memory
returns when the last of them goes. Everything kept (bytes, names, attributes) is charged to one budget per tree.

Opening a fifo, socket or device is ENXIO: kernels that mount this tree give fifos and devices their meaning
themselves and never ask us to open one.
"""

import os
import stat as statmod
import time
from collections.abc import Sequence
from errno import (
    E2BIG,
    EBADF,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    EMLINK,
    ENAMETOOLONG,
    ENODATA,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    ENOTSUP,
    ENXIO,
    EPERM,
    ERANGE,
    EXDEV,
)
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG

from vfs.node import (
    MOMENT,
    Caller,
    DirEntry,
    Handle,
    Node,
    SetStat,
    Stat,
    StatFs,
    Watcher,
    check_name,
    no_entry,
    node_id,
)
from vfs.ownership import for_chmod, for_new, unprivileged
from vfs.sparse import Sparse

MAX_COPY = 1 << 20
INODE_COST = 1024
NAME_COST = 512
MAX_LINKS = 65000
RELATIME_NS = 24 * 3600 * 10**9
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
XATTR_NAME_MAX = 255
XATTR_SIZE_MAX = 65536
XATTR_LIST_MAX = 65536


class MemoryTree:
    """A tree whose memory is bounded by `max_bytes` (ENOSPC beyond).

    `label` names the tree among all that a server serves: the root's id is derived from it, the other ids count from
    a number that is new in every process, so that an id kept from before a restart never names another file.
    """

    __slots__ = ("_last_id", "label", "max_bytes", "root", "used")

    def __init__(self, *, label: str, uid: int = 0, gid: int = 0, mode: int = 0o755, max_bytes: int = 1 << 30) -> None:
        self.label = label
        self.max_bytes = max_bytes
        self.used = 0
        self._last_id = node_id("memory", label, os.urandom(8).hex()) >> 1 | 2
        self.root = MemoryDir(self, S_IFDIR | mode, uid, gid)
        self.root.id = node_id("memory", label)
        self.root.parent = self.root

    def charge(self, amount: int) -> None:
        """Take `amount` bytes of the budget (ENOSPC), or give them back where it is negative."""
        if amount > self.max_bytes - self.used:
            raise OSError(ENOSPC, "memory tree is full")
        self.used += amount

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id


class MemoryNode(Node):
    """What files, directories, links and special files have in common."""

    __slots__ = (
        "atime",
        "cost",
        "ctime",
        "gid",
        "mode",
        "mtime",
        "nlink",
        "rdev",
        "told",
        "tree",
        "uid",
        "watchers",
        "xattrs",
    )

    attribute_seconds = MOMENT

    def __init__(self, tree: MemoryTree, mode: int, uid: int, gid: int, rdev: int = 0) -> None:
        self.tree = tree
        self.cost = 0
        self.charge(INODE_COST)
        self.id = tree.next_id()
        self.mode, self.uid, self.gid, self.rdev = mode, uid, gid, rdev
        self.nlink = 0
        self.atime = self.mtime = self.ctime = time.time_ns()
        self.xattrs: dict[str, bytes] = {}
        self.told: Stat | None = None
        """What `stat` returned since the last change: the same object says that nothing has changed."""
        self.watchers: tuple[Watcher, ...] = ()

    def __del__(self) -> None:
        self.tree.used -= self.cost + self.kept

    def charge(self, amount: int) -> None:
        """Charge the tree for something that lives as long as this node."""
        self.tree.charge(amount)
        self.cost += amount

    @property
    def size(self) -> int:
        return 0

    @property
    def kept(self) -> int:
        return 0

    def changed(self, *, content: bool = False) -> None:
        """Set ctime to now, and mtime too where the content changed."""
        self.told = None
        self.ctime = time.time_ns()
        if content:
            self.mtime = self.ctime
        if self.watchers:
            watchers, self.watchers = self.watchers, ()
            for watcher in watchers:
                watcher.changed(self)

    def accessed(self) -> None:
        """Set atime by the rule of relatime (mount(8)), so that reading does not always write."""
        now = time.time_ns()
        atime = self.atime
        if atime <= self.mtime or atime <= self.ctime or now - atime > RELATIME_NS:
            self.atime = now
            self.told = None

    def watch(self, watcher: Watcher) -> None:
        if watcher not in self.watchers:
            self.watchers += (watcher,)

    def unwatch(self, watcher: Watcher) -> None:
        self.watchers = tuple(one for one in self.watchers if one is not watcher)

    async def stat(self) -> Stat:
        if self.told is None:
            self.told = Stat(
                self.mode,
                self.id,
                self.nlink,
                self.uid,
                self.gid,
                self.size,
                self.atime,
                self.mtime,
                self.ctime,
                (self.kept + 511) // 512,
                4096,
                self.rdev,
            )
        return self.told

    async def setstat(self, change: SetStat, who: Caller) -> None:
        if change.size is not None:
            self.resize(change.size, who)
        if change.uid is not None or change.gid is not None:
            self.uid = self.uid if change.uid is None else change.uid
            self.gid = self.gid if change.gid is None else change.gid
            self.mode = unprivileged(self.mode)
        if change.mode is not None:
            if statmod.S_ISLNK(self.mode):
                raise OSError(ENOTSUP, "a symbolic link has no mode")
            self.mode = S_IFMT(self.mode) | for_chmod(self.gid, change.mode, who)
        self.changed()
        if change.atime_ns is not None:
            self.atime = change.atime_ns
        if change.mtime_ns is not None:
            self.mtime = change.mtime_ns

    def resize(self, size: int, who: Caller) -> None:
        raise OSError(EISDIR if statmod.S_ISDIR(self.mode) else EINVAL, "not a regular file")

    async def open(self, flags: int, who: Caller) -> Handle:
        raise OSError(ENXIO, "a special file of a memory tree cannot be opened here")

    async def statfs(self) -> StatFs:
        free = self.tree.max_bytes - self.tree.used
        return StatFs(
            bsize=4096,
            blocks=self.tree.max_bytes // 4096,
            bfree=free // 4096,
            bavail=free // 4096,
            files=self.tree.max_bytes // INODE_COST,
            ffree=free // INODE_COST,
        )

    async def listxattr(self) -> Sequence[str]:
        return tuple(self.xattrs)

    async def getxattr(self, name: str) -> bytes:
        check_xattr_name(name)
        value = self.xattrs.get(name)
        if value is None:
            raise OSError(ENODATA, "no such attribute")
        return value

    async def setxattr(self, name: str, value: bytes, flags: int, who: Caller) -> None:
        self._may_set_xattr(name, who)
        if flags & ~3 or flags == 3:
            raise OSError(EINVAL, "unknown flags")
        if len(value) > XATTR_SIZE_MAX:
            raise OSError(E2BIG, "attribute value longer than 64 KiB")
        old = self.xattrs.get(name)
        if old is not None and flags & os.XATTR_CREATE:
            raise OSError(EEXIST, "attribute exists")
        if old is None and flags & os.XATTR_REPLACE:
            raise OSError(ENODATA, "no such attribute")
        if old is None and sum(len(os.fsencode(n)) + 1 for n in (*self.xattrs, name)) > XATTR_LIST_MAX:
            raise OSError(ENOSPC, "too many attributes")
        self.charge(len(value) - len(old) if old is not None else len(value) + NAME_COST)
        self.xattrs[name] = bytes(value)
        self.changed()

    async def removexattr(self, name: str, who: Caller) -> None:
        self._may_set_xattr(name, who)
        value = self.xattrs.pop(name, None)
        if value is None:
            raise OSError(ENODATA, "no such attribute")
        self.charge(-len(value) - NAME_COST)
        self.changed()

    def _may_set_xattr(self, name: str, who: Caller) -> None:
        """xattr(7): user attributes belong to files and directories only, trusted ones to root."""
        check_xattr_name(name)
        if name.startswith("trusted.") and who.uid != 0:
            raise OSError(EPERM, "only root sets trusted attributes")
        if name.startswith("user.") and S_IFMT(self.mode) not in (S_IFREG, S_IFDIR):
            raise OSError(EPERM, "no user attributes on links and special files")


class MemoryFile(MemoryNode):
    """A regular file."""

    __slots__ = ("data",)

    def __init__(self, tree: MemoryTree, mode: int, uid: int, gid: int) -> None:
        self.data = Sparse(tree.charge)
        super().__init__(tree, mode, uid, gid)

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def kept(self) -> int:
        return self.data.kept

    def modified(self, who: Caller) -> None:
        """Account for a change of content by `who`."""
        self.changed(content=True)
        if who.uid != 0:
            self.mode = unprivileged(self.mode)

    def resize(self, size: int, who: Caller) -> None:
        self.data.truncate(size)
        self.modified(who)

    async def open(self, flags: int, who: Caller) -> Handle:
        if flags & os.O_DIRECTORY:
            raise OSError(ENOTDIR, "not a directory")
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
            self.resize(0, who)
        return MemoryHandle(self, flags, who)


class MemoryHandle(Handle):
    """An open file. The kernel may cache its pages, so mmap works; it sees changes by others through mtime."""

    __slots__ = ("_file", "_flags", "_who")

    direct = False

    def __init__(self, file: MemoryFile, flags: int, who: Caller) -> None:
        self._file = file
        self._flags = flags
        self._who = who

    def _for_writing(self) -> MemoryFile:
        if self._flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(EBADF, "not open for writing")
        return self._file

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        if self._flags & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(EBADF, "not open for reading")
        data = self._file.data.read(size, offset)
        if not self._flags & os.O_NOATIME:
            self._file.accessed()
        return data

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        file = self._for_writing()
        if not len(data):
            return 0
        taken = file.data.write(data, file.data.size if self._flags & os.O_APPEND else offset)
        file.modified(self._who)
        return taken

    async def seek(self, offset: int, whence: int) -> int:
        if whence == os.SEEK_DATA:
            return self._file.data.seek_data(offset)
        if whence == os.SEEK_HOLE:
            return self._file.data.seek_hole(offset)
        raise OSError(EINVAL, "only SEEK_DATA and SEEK_HOLE")

    async def copy(self, offset: int, target: Handle, target_offset: int, length: int) -> int:
        if not isinstance(target, MemoryHandle):
            raise OSError(EXDEV, "another tree")
        return await target.write(await self.read(min(length, MAX_COPY), offset), target_offset)

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        file = self._for_writing()
        file.told = None  # a refused one may have kept a part
        file.data.allocate(mode, offset, length)
        file.modified(self._who)


class MemoryLink(MemoryNode):
    """A symbolic link."""

    __slots__ = ("target",)

    def __init__(self, tree: MemoryTree, target: str, uid: int, gid: int) -> None:
        super().__init__(tree, S_IFLNK | 0o777, uid, gid)
        self.target = target
        self.charge(self.size)

    @property
    def size(self) -> int:
        return len(os.fsencode(self.target))

    async def open(self, flags: int, who: Caller) -> Handle:
        raise OSError(ELOOP, "a symbolic link")

    async def readlink(self) -> str:
        self.accessed()
        return self.target


class MemoryDir(MemoryNode):
    """A directory. `parent` is None once it has been removed."""

    __slots__ = ("entries", "parent")

    steady = True

    def __init__(self, tree: MemoryTree, mode: int, uid: int, gid: int) -> None:
        super().__init__(tree, mode, uid, gid)
        self.nlink = 2
        self.entries: dict[str, MemoryNode] = {}
        self.parent: MemoryDir | None = None

    @property
    def size(self) -> int:
        return len(self.entries)

    async def open(self, flags: int, who: Caller) -> Handle:
        raise OSError(EISDIR, "is a directory")

    async def lookup(self, name: str, who: Caller) -> MemoryNode:
        return self._entry(name)

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        self.accessed()
        return [DirEntry(name, node.id, S_IFMT(node.mode)) for name, node in self.entries.items()]

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> tuple[MemoryNode, Handle]:
        self._check_new(name)
        mode, gid = for_new(self.mode, self.gid, mode, who)
        file = MemoryFile(self.tree, S_IFREG | mode, who.uid, gid)
        self._add(name, file)
        return file, MemoryHandle(file, flags, who)

    async def mkdir(self, name: str, mode: int, who: Caller) -> MemoryNode:
        self._check_new(name)
        mode, gid = for_new(self.mode, self.gid, mode, who, directory=True)
        return self._add(name, MemoryDir(self.tree, S_IFDIR | mode, who.uid, gid))

    async def symlink(self, name: str, target: str, who: Caller) -> MemoryNode:
        if not target or "\0" in target:
            raise OSError(EINVAL if target else ENOENT, "not a link target")
        if len(os.fsencode(target)) > 4095:
            raise OSError(ENAMETOOLONG, "link target longer than 4095 bytes")
        self._check_new(name)
        _, gid = for_new(self.mode, self.gid, 0, who)
        return self._add(name, MemoryLink(self.tree, target, who.uid, gid))

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> MemoryNode:
        kind = S_IFMT(mode) or S_IFREG
        if kind in (statmod.S_IFCHR, statmod.S_IFBLK):
            if who.uid != 0:
                raise OSError(EPERM, "only root makes devices")
        elif kind in (S_IFREG, statmod.S_IFIFO, statmod.S_IFSOCK):
            rdev = 0
        else:
            raise OSError(EPERM if kind == S_IFDIR else EINVAL, "not a type that mknod makes")
        self._check_new(name)
        mode, gid = for_new(self.mode, self.gid, mode, who)
        if kind == S_IFREG:
            return self._add(name, MemoryFile(self.tree, kind | mode, who.uid, gid))
        return self._add(name, MemoryNode(self.tree, kind | mode, who.uid, gid, rdev))

    async def link(self, target: Node, name: str, who: Caller) -> None:
        self._check_new(name)
        if not isinstance(target, MemoryNode) or target.tree is not self.tree:
            raise OSError(EXDEV, "another tree")
        if isinstance(target, MemoryDir):
            raise OSError(EPERM, "a directory has one name")
        if target.nlink == 0:
            raise OSError(ENOENT, "the file has been removed")
        if target.nlink >= MAX_LINKS:
            raise OSError(EMLINK, "too many links")
        self._add(name, target)
        target.changed()

    async def unlink(self, name: str, who: Caller) -> None:
        node = self._entry(name)
        if isinstance(node, MemoryDir):
            raise OSError(EISDIR, "is a directory")
        self._remove(name)

    async def rmdir(self, name: str, who: Caller) -> None:
        node = self._entry(name)
        if not isinstance(node, MemoryDir):
            raise OSError(ENOTDIR, "not a directory")
        if node.entries:
            raise OSError(ENOTEMPTY, "directory not empty")
        self._remove(name)

    async def rename(self, name: str, new_dir: Node, new_name: str, flags: int, who: Caller) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise OSError(EINVAL, "unknown rename flags")
        if not isinstance(new_dir, MemoryNode) or new_dir.tree is not self.tree:
            raise OSError(EXDEV, "another tree")
        if not isinstance(new_dir, MemoryDir):
            raise OSError(ENOTDIR, "not a directory")
        node = self._entry(name)
        check_name(new_name)
        if new_dir.parent is None:
            raise OSError(ENOENT, "the directory has been removed")
        there = new_dir.entries.get(new_name)
        if there is not None and flags & RENAME_NOREPLACE:
            raise OSError(EEXIST, "name is taken")
        if there is None and flags & RENAME_EXCHANGE:
            raise no_entry(new_name)
        if new_dir._is_below(node):
            raise OSError(EINVAL, "cannot move a directory below itself")
        if there is not None and self._is_below(there):
            raise OSError(EINVAL if flags & RENAME_EXCHANGE else ENOTEMPTY, "that directory holds this one")
        if there is node:
            return
        if flags & RENAME_EXCHANGE:
            assert there is not None
            self._put(name, there)
            there.changed()
        else:
            _check_replaceable(node, there)
            if there is not None:
                new_dir._remove(new_name)
            del self.entries[name]
            self._lost(node)
            self.charge(-NAME_COST)  # given back first, so that a full tree can rename
            new_dir.charge(NAME_COST)
        new_dir._put(new_name, node)
        node.changed()

    def _entry(self, name: str) -> MemoryNode:
        node = self.entries.get(name)
        if node is None:
            raise no_entry(check_name(name))
        return node

    def _check_new(self, name: str) -> None:
        check_name(name)
        if self.parent is None:
            raise OSError(ENOENT, "the directory has been removed")
        if name in self.entries:
            raise OSError(EEXIST, f"file exists: {name!r}")

    def _is_below(self, node: MemoryNode) -> bool:
        """Tell whether `node` is this directory or above it."""
        here: MemoryDir = self
        while here is not node:
            if here.parent is None or here.parent is here:
                return False
            here = here.parent
        return True

    def _add(self, name: str, node: MemoryNode) -> MemoryNode:
        """Give `node` a further name here."""
        self.charge(NAME_COST)
        if not isinstance(node, MemoryDir):
            node.nlink += 1
        self.entries[name] = node
        self._got(node)
        return node

    def _put(self, name: str, node: MemoryNode) -> None:
        """Let `name` mean `node`, which comes from another name; what was there goes there or has gone."""
        there = self.entries.get(name)
        if there is not None:
            self._lost(there)
        self.entries[name] = node
        self._got(node)

    def _remove(self, name: str) -> None:
        """Take `name` away from a node that may go."""
        node = self.entries.pop(name)
        self.charge(-NAME_COST)
        self._lost(node)
        if isinstance(node, MemoryDir):
            node.parent = None
            node.nlink = 0
        else:
            node.nlink -= 1
        node.changed()

    def _got(self, node: MemoryNode) -> None:
        if isinstance(node, MemoryDir):
            node.parent = self
            self.nlink += 1
        self.changed(content=True)

    def _lost(self, node: MemoryNode) -> None:
        if isinstance(node, MemoryDir):
            self.nlink -= 1
        self.changed(content=True)


def check_xattr_name(name: str) -> None:
    """ERANGE for an empty name or one past 255 bytes, ENOTSUP outside "user." and "trusted."."""
    if not 0 < len(os.fsencode(name)) <= XATTR_NAME_MAX:
        raise OSError(ERANGE, "attribute name of 1 to 255 bytes")
    namespace, _, rest = name.partition(".")
    if namespace not in ("user", "trusted"):
        raise OSError(ENOTSUP, "only user and trusted attributes")
    if not rest or "\0" in rest:
        raise OSError(EINVAL, "not an attribute name")


def _check_replaceable(node: MemoryNode, there: MemoryNode | None) -> None:
    """Raise what rename(2) says where `node` may not take the place of `there`."""
    if there is None:
        return
    if isinstance(node, MemoryDir):
        if not isinstance(there, MemoryDir):
            raise OSError(ENOTDIR, "a directory replaces directories only")
        if there.entries:
            raise OSError(ENOTEMPTY, "directory not empty")
    elif isinstance(there, MemoryDir):
        raise OSError(EISDIR, "is a directory")
