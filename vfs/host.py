"""A host directory (or one file) as a tree, without ever reaching outside it.

A node is a name in a parent node, plus the inode that was found there. Its O_PATH descriptor is opened by
openat2(2) one name at a time, so no path is ever resolved by string, no symlink is followed, and no swap of names
between two calls can lead to another file: a descriptor whose inode is not the node's is refused (ESTALE).
Descriptors are kept in one LRU over all trees, bounded by RLIMIT_NOFILE, and opened again on demand.

Changes run with the server's authority and then give what was made to the caller; a server that is not root owns
what it creates. Modes are checked by whoever serves the tree.
"""

import os
import resource
import stat as statmod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import (
    EAGAIN,
    EINVAL,
    EISDIR,
    ELOOP,
    ENOENT,
    ENOSYS,
    ENOTDIR,
    ENOTSUP,
    ENXIO,
    EPERM,
    EROFS,
    ESTALE,
    EXDEV,
)
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import TypeVar
from weakref import ref

from vfs.inline import park
from vfs.node import Caller, DirEntry, Handle, Node, SetStat, StatFs, check_name, node_id
from vfs.ownership import for_chmod, for_new, unprivileged
from vfs.pipes import DuplexHandle, PipeReader, PipeWriter
from vfs.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    clone_tree,
    fallocate,
    in_memory,
    openat2,
    renameat2,
    set_times,
)
from vfs.workers import in_worker

T = TypeVar("T")

PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_DSYNC | os.O_SYNC
SAFE_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
MAX_READ = 1 << 24
MAX_COPY = 1 << 26
"""Bytes copied by one call, which nothing can interrupt."""
RENAME_EXCHANGE = 2
INLINE_WRITE = 1 << 20
"""Larger writes go to a worker thread."""
INLINE_DIRECTORY = 1 << 16
"""Directories of more bytes are read in a worker thread."""
MAX_DEPTH = 4096
MAX_BELOW = 256
ID_MULTIPLIER = 0x9E3779B97F4A7C15
ID_MASK = (1 << 62) - 1


class Descriptors:
    """The O_PATH descriptors that nodes hold, oldest use first. Closing one only means opening it again."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, ref[HostNode]] = OrderedDict()
        self.limit = 64

    def fit_limit(self) -> None:
        """Use at most half of the descriptors that the process may open now."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = max(64, soft // 2) if soft != resource.RLIM_INFINITY else 1 << 20

    def add(self, fd: int, node: "HostNode") -> None:
        """Hold `fd` for `node`, and close the one that was not used for longest if there are too many."""
        self._held[fd] = ref(node)
        while len(self._held) > self.limit:
            old, holder = self._held.popitem(last=False)
            os.close(old)
            if (evicted := holder()) is not None:
                evicted.path_fd = -1

    def used(self, fd: int) -> None:
        self._held.move_to_end(fd)

    def drop(self, fd: int) -> None:
        """Close a descriptor whose node has gone."""
        if self._held.pop(fd, None) is not None:
            os.close(fd)


DESCRIPTORS = Descriptors()


class OwnDescriptors:
    """`/proc/self/fd`, open: what is opened from here by number is opened for half of what the whole path costs."""

    def __init__(self) -> None:
        self.fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.register_at_fork(after_in_child=self._reopen)

    def _reopen(self) -> None:
        os.close(self.fd)
        self.fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


OWN_DESCRIPTORS = OwnDescriptors()


class HostTree:
    """The host directory or file `path` (a symlink there is followed) as a tree.

    `readonly` answers EROFS to every change. `devices` lets character devices and fifos be opened (else ENXIO) and
    root make devices. As root, the tree is a private mount of `path` alone: nothing mounted on or below it is
    part of it. Otherwise crossing into a mount is EXDEV. Raises what opening `path` raises.
    """

    def __init__(self, path: str | os.PathLike[str], *, label: str, readonly: bool = False, devices: bool = False):
        self.label = label
        self.readonly = readonly
        self.devices = devices
        self.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
        self.alone = True
        """Nothing is mounted in it, so that one name leads nowhere else and needs no openat2(2)."""
        DESCRIPTORS.fit_limit()
        try:
            self.root_fd = clone_tree(os.fspath(path), readonly=readonly, devices=devices)
        except OSError as error:
            if error.errno not in (EPERM, ENOSYS, EINVAL):
                raise
            self.resolve |= RESOLVE_NO_XDEV
            self.alone = False
            self.root_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self._nodes: dict[int, ref[HostNode]] = {}
        self._bases: dict[int, int] = {}

    def __del__(self) -> None:
        if (fd := getattr(self, "root_fd", -1)) >= 0:
            os.close(fd)

    @property
    def root(self) -> "HostNode":
        """The node of `path` itself. The tree lives as long as any of its nodes."""
        st = os.fstat(self.root_fd)
        id = self.id_of(st)
        return self.known(id) or self.add(HostNode(self, None, "", id, S_IFMT(st.st_mode)))

    def known(self, id: int) -> "HostNode | None":
        """Return the node with this id, if anyone holds it."""
        node = self._nodes.get(id)
        return None if node is None else node()

    def add(self, node: "HostNode") -> "HostNode":
        """Make `node` the one that `known` gives for its id."""
        self._nodes[node.id] = ref(node)
        return node

    def forget(self, node: "HostNode") -> None:
        """Let go of a node that nobody holds any more."""
        if (found := self._nodes.get(node.id)) is not None and found() in (node, None):
            del self._nodes[node.id]

    def open_name(self, parent: int, name: str) -> int:
        """Return an O_PATH descriptor of what is at `name`, a link itself if it is one. As openat2(2)."""
        if self.alone:
            return os.open(name, PATH_FLAGS, dir_fd=parent)
        return openat2(parent, name, PATH_FLAGS, self.resolve)

    def id_of(self, st: os.stat_result) -> int:
        """Return the node id of an inode: unlike inodes of one device never collide (an odd factor, 62 bits)."""
        base = self._bases.get(st.st_dev)
        return _id(self._base(st.st_dev) if base is None else base, st.st_ino)

    def _base(self, device: int) -> int:
        return self._bases.setdefault(device, node_id("host", self.label, device))

    def list(self, fd: int) -> list[DirEntry]:
        """List the open directory `fd`, and close it."""
        try:
            st = os.fstat(fd)
            base = self._base(st.st_dev)
            with os.scandir(fd) as entries:
                return [DirEntry(entry.name, ino := entry.inode(), _type(entry), _id(base, ino)) for entry in entries]
        finally:
            os.close(fd)


class HostNode(Node):
    """A file of the host. `parent` and `name` say where it was seen last; a rename through the tree changes them."""

    __slots__ = ("_below", "kind", "name", "opened", "parent", "path_fd", "tree")

    cache_seconds = 1.0
    steady = True

    def __init__(self, tree: HostTree, parent: "HostNode | None", name: str, id: int, kind: int) -> None:
        self.tree = tree
        self.parent = parent
        self.name = name
        self.id = id
        self.kind = kind
        self.path_fd = -1
        self.opened: dict[int, None] = {}
        """Descriptors of open handles: they are this file even when its name has gone."""
        self._below: dict[str, ref[HostNode]] = {}
        """Directories looked up here lately, by name: as long as someone holds one, it is not opened again."""

    def __del__(self) -> None:
        self.tree.forget(self)
        if self.path_fd >= 0:
            DESCRIPTORS.drop(self.path_fd)

    # Where the file is

    def fd(self) -> int:
        """Return a descriptor that is this file, good until the next call of `fd` on any node. ESTALE."""
        if self.path_fd >= 0:
            DESCRIPTORS.used(self.path_fd)
            return self.path_fd
        if self.opened:
            return next(iter(self.opened))
        if self.parent is None:
            return self.tree.root_fd
        chain = [self]
        while (above := chain[-1].parent) is not None and above.path_fd < 0:
            chain.append(above)
            if len(chain) > MAX_DEPTH:  # deep, or the host has moved directories into each other
                raise OSError(ESTALE, "the file is no longer where it was")
        fd = self.tree.root_fd if above is None else above.fd()
        for node in reversed(chain):
            if node.parent is not None:
                fd = node._open_path(fd)
        return fd

    def _open_path(self, parent_fd: int) -> int:
        try:
            fd = self.tree.open_name(parent_fd, self.name)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, ELOOP, EXDEV):
                raise
            raise OSError(ESTALE, f"no longer there: {self.name!r}") from error
        if self.tree.id_of(os.fstat(fd)) != self.id:
            os.close(fd)
            raise OSError(ESTALE, f"another file now: {self.name!r}")
        self._hold(fd)
        return fd

    def _hold(self, fd: int) -> None:
        self.path_fd = fd
        DESCRIPTORS.add(fd, self)

    def _proc(self) -> str:
        """Return a path that leads to exactly this file, for calls that take no O_PATH descriptor."""
        return f"/proc/self/fd/{self.fd()}"

    def host_path(self) -> str:
        return self._proc()

    def _child(self, name: str, st: os.stat_result, fd: int = -1) -> "HostNode":
        """Return the one node of an inode just seen at `name`; takes over the O_PATH descriptor `fd`."""
        id = self.tree.id_of(st)
        kind = S_IFMT(st.st_mode)
        node = self.tree.known(id)
        if node is None:
            node = self.tree.add(HostNode(self.tree, self, name, id, kind))
        elif node.parent is not None:
            node.parent, node.name, node.kind = self, name, kind
        if fd >= 0:
            if node.path_fd >= 0 or node.parent is None:
                os.close(fd)
            else:
                node._hold(fd)
        return node

    def _changing(self) -> None:
        if self.tree.readonly:
            raise OSError(EROFS, "read-only tree")

    # Every node

    async def stat(self) -> os.stat_result:
        return os.fstat(self.fd())

    async def statfs(self) -> StatFs:
        v = os.fstatvfs(self.fd())
        return StatFs(
            bsize=v.f_frsize,
            blocks=v.f_blocks,
            bfree=v.f_bfree,
            bavail=v.f_bavail,
            files=v.f_files,
            ffree=v.f_ffree,
            fsid=v.f_fsid,
            namelen=v.f_namemax,
        )

    async def readlink(self) -> str:
        if self.kind != S_IFLNK:
            raise OSError(EINVAL, "not a symbolic link")
        return os.readlink("", dir_fd=self.fd())

    async def setstat(self, change: SetStat, who: Caller) -> None:
        self._changing()
        path = self._proc()
        if change.size is not None:
            if self.kind != S_IFREG:
                raise OSError(EISDIR if self.kind == S_IFDIR else EINVAL, "not a regular file")
            os.truncate(path, change.size)
            _drop_privileges(self.fd(), who)
        if change.uid is not None or change.gid is not None:
            os.chown(path, -1 if change.uid is None else change.uid, -1 if change.gid is None else change.gid)
        if change.mode is not None:
            os.chmod(path, for_chmod(os.fstat(self.fd()).st_gid, change.mode, who))
        if change.atime_ns is not None or change.mtime_ns is not None:
            set_times(path, change.atime_ns, change.mtime_ns)

    async def open(self, flags: int, who: Caller) -> Handle:
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if self.kind in (S_IFDIR, S_IFLNK):
            raise OSError(EISDIR if self.kind == S_IFDIR else ELOOP, "not a file")
        if flags & os.O_DIRECTORY:
            raise OSError(ENOTDIR, "not a directory")
        if self.kind != S_IFREG:
            if not self.tree.devices or self.kind not in (statmod.S_IFCHR, statmod.S_IFIFO):
                raise OSError(ENXIO, "special files of this tree cannot be opened")
            return _stream(os.open(self._proc(), flags & os.O_ACCMODE | SAFE_FLAGS), flags)
        if writing:
            self._changing()
        truncates = writing and flags & os.O_TRUNC
        kept = flags & (OPEN_FLAGS | os.O_TRUNC if truncates else OPEN_FLAGS)
        fd = os.open(str(self.fd()), kept | SAFE_FLAGS, dir_fd=OWN_DESCRIPTORS.fd)
        handle = HostHandle(self, fd, flags, who)
        if truncates:
            _drop_privileges(fd, who)
        return handle

    # Directories

    async def lookup(self, name: str, who: Caller) -> "HostNode":
        parent = self.fd()
        seen = self._below.get(check_name(name))
        if seen is not None and (node := seen()) is not None and node.path_fd >= 0:
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if self.tree.id_of(st) == node.id:
                return self._child(name, st)
        fd = self.tree.open_name(parent, name)
        node = self._child(name, os.fstat(fd), fd)
        if node.kind == S_IFDIR:
            if len(self._below) >= MAX_BELOW:
                self._below.clear()
            self._below[name] = ref(node)
        return node

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        fd = openat2(self.fd(), ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, self.tree.resolve)
        if os.fstat(fd).st_size <= INLINE_DIRECTORY:
            return self.tree.list(fd)
        try:
            await park()
        except BaseException:
            os.close(fd)
            raise
        return await in_worker(lambda: self.tree.list(fd))

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> "tuple[HostNode, Handle]":
        self._changing()
        parent = self.fd()
        kept = flags & OPEN_FLAGS | SAFE_FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(check_name(name), kept, 0, dir_fd=parent)
        try:
            self._give(parent, fd, mode, who)
            node = self._child(name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=parent)
            raise
        return node, HostHandle(node, fd, flags, who)

    async def mkdir(self, name: str, mode: int, who: Caller) -> "HostNode":
        self._changing()
        parent = self.fd()
        os.mkdir(check_name(name), 0, dir_fd=parent)
        return self._made(parent, name, S_IFDIR | mode, who)

    async def symlink(self, name: str, target: str, who: Caller) -> "HostNode":
        self._changing()
        if "\0" in target:
            raise OSError(EINVAL, "not a link target")
        parent = self.fd()
        os.symlink(target, check_name(name), dir_fd=parent)
        return self._made(parent, name, S_IFLNK, who)

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> "HostNode":
        self._changing()
        kind = S_IFMT(mode) or S_IFREG
        if kind in (statmod.S_IFCHR, statmod.S_IFBLK):
            if who.uid != 0 or not self.tree.devices:
                raise OSError(EPERM, "devices cannot be made here")
        elif kind not in (S_IFREG, statmod.S_IFIFO, statmod.S_IFSOCK):
            raise OSError(EPERM if kind == S_IFDIR else EINVAL, "not a type that mknod makes")
        parent = self.fd()
        os.mknod(check_name(name), kind, rdev, dir_fd=parent)
        return self._made(parent, name, kind | statmod.S_IMODE(mode), who)

    def _made(self, parent: int, name: str, mode: int, who: Caller) -> "HostNode":
        """Give what was just made at `name` to `who`, if that is what is there now.

        Between making and opening, another may put something of his own there: it must not get a new owner or mode.
        What was made is ours, of its kind, has one name and, but for links, no permission at all; anything else is
        left as it is (so is what a filesystem without modes made).
        """
        fd = openat2(parent, name, PATH_FLAGS, self.tree.resolve)
        try:
            st = os.fstat(fd)
            kind = S_IFMT(mode)
            bare = S_IFLNK | 0o777 if kind == S_IFLNK else kind
            single = kind == S_IFDIR or st.st_nlink == 1
            if st.st_mode & ~statmod.S_ISGID == bare and st.st_uid == os.geteuid() and single:
                self._give(parent, f"/proc/self/fd/{fd}", mode, who)
        except BaseException:
            os.close(fd)
            raise
        return self._child(name, st, fd)

    def _give(self, parent: int, made: int | str, mode: int, who: Caller) -> None:
        """Set owner, then exact mode, of `made` (a descriptor or its path). A server that is not root keeps it."""
        above = os.fstat(parent)
        kind = S_IFMT(mode)
        bits, gid = for_new(above.st_mode, above.st_gid, statmod.S_IMODE(mode), who, directory=kind == S_IFDIR)
        if os.geteuid() == 0:
            os.chown(made, who.uid, gid)
        if kind != S_IFLNK:
            os.chmod(made, bits)

    @contextmanager
    def _pinned(self) -> Iterator[int]:
        """Give a descriptor of this file that stays while other nodes' descriptors are opened."""
        fd = os.dup(self.fd())
        try:
            yield fd
        finally:
            os.close(fd)

    async def link(self, target: Node, name: str, who: Caller) -> None:
        self._changing()
        if not isinstance(target, HostNode) or target.tree is not self.tree:
            raise OSError(EXDEV, "another tree")
        with self._pinned() as parent:
            os.link(target._proc(), check_name(name), dst_dir_fd=parent, follow_symlinks=True)

    async def unlink(self, name: str, who: Caller) -> None:
        self._changing()
        os.unlink(check_name(name), dir_fd=self.fd())

    async def rmdir(self, name: str, who: Caller) -> None:
        self._changing()
        os.rmdir(check_name(name), dir_fd=self.fd())

    async def rename(self, name: str, new_dir: Node, new_name: str, flags: int, who: Caller) -> None:
        self._changing()
        if not isinstance(new_dir, HostNode) or new_dir.tree is not self.tree:
            raise OSError(EXDEV, "another tree")
        check_name(name)
        check_name(new_name)
        with self._pinned() as here:
            there = new_dir.fd()
            moved = [(self._known(here, name), new_dir, new_name)]
            if flags & RENAME_EXCHANGE:
                moved.append((self._known(there, new_name), self, name))
            renameat2(here, name, there, new_name, flags)
        for node, parent, its_name in moved:
            if node is not None:
                node.parent, node.name = parent, its_name

    def _known(self, parent: int, name: str) -> "HostNode | None":
        """Return the node of what is at `name`, if anyone holds it."""
        with suppress(OSError):
            return self.tree.known(self.tree.id_of(os.stat(name, dir_fd=parent, follow_symlinks=False)))
        return None

    # Extended attributes: "user." for everyone, "trusted." and "security." for root

    async def listxattr(self) -> Sequence[str]:
        return [name for name in os.listxattr(self._proc()) if not name.startswith("system.")]

    async def getxattr(self, name: str) -> bytes:
        return os.getxattr(self._proc(), _xattr_name(name))

    async def setxattr(self, name: str, value: bytes, flags: int, who: Caller) -> None:
        self._changing()
        os.setxattr(self._proc(), _xattr_name(name, who), value, flags)

    async def removexattr(self, name: str, who: Caller) -> None:
        self._changing()
        os.removexattr(self._proc(), _xattr_name(name, who))


class HostHandle(Handle):
    """An open regular file of the host: its descriptor may also be used by the kernel or by a task."""

    __slots__ = ("_busy", "_closing", "_fd", "_node", "_nowait", "_who")

    direct = False

    def __init__(self, node: HostNode, fd: int, flags: int, who: Caller) -> None:
        node.opened[fd] = None
        self._node = node
        self._fd = fd
        self._who = who
        self._nowait = os.RWF_NOWAIT
        self._busy = 0
        self._closing = False

    async def _in_worker(self, call: Callable[[], T]) -> T:
        """Run `call` in a thread; the descriptor stays open until it ends, whatever comes."""
        await park()
        with self._kept_open():
            return await in_worker(call)

    @contextmanager
    def _kept_open(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._closing and not self._busy:
                os.close(self._fd)

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        if offset < 0:
            raise OSError(EINVAL, "negative offset")
        buffer = memoryview(bytearray(min(size, MAX_READ)))
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._fd, [buffer[done:]], offset + done, self._nowait)
            except OSError as error:
                if error.errno == ENOTSUP and in_memory(self._fd):
                    self._nowait = 0
                    continue
                if error.errno not in (EAGAIN, ENOTSUP):
                    raise
                rest = buffer[done:]
                got = await self._in_worker(lambda rest=rest, at=offset + done: os.preadv(self._fd, [rest], at))  # type: ignore[misc]
            if not got:
                break
            done += got
        return buffer[:done]

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        if len(data) <= INLINE_WRITE:
            taken = os.pwrite(self._fd, data, offset)
        else:
            kept = bytes(data)
            taken = await self._in_worker(lambda: os.pwrite(self._fd, kept, offset))
        _drop_privileges(self._fd, self._who)
        return taken

    async def fsync(self, datasync: bool = False) -> None:
        sync = os.fdatasync if datasync else os.fsync
        await self._in_worker(lambda: sync(self._fd))

    async def seek(self, offset: int, whence: int) -> int:
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(EINVAL, "only SEEK_DATA and SEEK_HOLE")
        return os.lseek(self._fd, offset, whence)

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        await self._in_worker(lambda: fallocate(self._fd, mode, offset, length))
        _drop_privileges(self._fd, self._who)

    async def copy(self, offset: int, target: Handle, target_offset: int, length: int) -> int:
        if not isinstance(target, HostHandle):
            raise OSError(EXDEV, "another tree")
        source, sink, size = self._fd, target._fd, min(length, MAX_COPY)
        with target._kept_open():
            taken = await self._in_worker(lambda: os.copy_file_range(source, sink, size, offset, target_offset))
            _drop_privileges(sink, target._who)
        return taken

    def close(self) -> None:
        del self._node.opened[self._fd]
        self._closing = True
        if not self._busy:
            os.close(self._fd)

    def fileno(self) -> int:
        os.set_blocking(self._fd, True)  # opened so as not to wait; nobody else is to notice
        return self._fd


def _drop_privileges(fd: int, who: Caller) -> None:
    """Clear the set-id bits of a file that another than root has changed: the kernel sees only the server."""
    if who.uid != 0:
        mode = os.fstat(fd).st_mode
        if mode != unprivileged(mode):
            os.chmod(f"/proc/self/fd/{fd}", statmod.S_IMODE(unprivileged(mode)))


def _stream(fd: int, flags: int) -> Handle:
    """Return the handle of an open device or fifo."""
    nonblock = bool(flags & os.O_NONBLOCK)
    access = flags & os.O_ACCMODE
    if access == os.O_RDONLY:
        return PipeReader(fd, nonblock)
    if access == os.O_WRONLY:
        return PipeWriter(fd, nonblock)
    return DuplexHandle(PipeReader(fd, nonblock), PipeWriter(os.dup(fd), nonblock))


def _id(base: int, ino: int) -> int:
    return (base + ino * ID_MULTIPLIER & ID_MASK) | 1 << 62


def _type(entry: "os.DirEntry[str]") -> int:
    if entry.is_file(follow_symlinks=False):
        return S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return S_IFDIR
    return S_IFLNK if entry.is_symlink() else 0


def _xattr_name(name: str, who: Caller | None = None) -> str:
    """Return an attribute name that may be read, or set by `who`. EINVAL, ENOTSUP, EPERM."""
    if "\0" in name:
        raise OSError(EINVAL, "not an attribute name")
    if name.startswith("system."):
        raise OSError(ENOTSUP, "no system attributes")
    if who is not None and who.uid != 0 and not name.startswith("user."):
        raise OSError(EPERM, "only root sets such attributes")
    return name
