"""What each FUSE request means: nodeids and file handles over a tree of nodes.

A nodeid is the id of its node (1 is the root), so a restarted server gives the same numbers again. Only a node whose
write may wait gets a fresh one per LOOKUP: the kernel then has an inode for each opener, and none waits for the lock
of another. The kernel holds a nodeid until it has forgotten as many lookups as it was given; so long it stays here.

Each operation is named after its opcode, takes the nodeid, the caller and the decoded fields, and returns the body of
the reply: b"" where success says it all, None where no reply is due. It is a coroutine if it may wait. Modes are left
to the kernel (`default_permissions`).
"""

import math
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from errno import EAGAIN, EBADF, EEXIST, EINVAL, ENFILE, ENOTSUP, ENOTTY, EPERM, ERANGE, ESTALE
from stat import S_IFDIR, S_ISDIR, S_ISGID, S_ISUID, S_IXGRP
from typing import Any, Final, TypeVar

from vfs.access import check
from vfs.fuse.changes import Changes
from vfs.fuse.journal import Agreed, Journal, Opened
from vfs.fuse.messages import (
    ENTRY_HEAD,
    FORGET_ONE,
    FSYNC_DATASYNC,
    INVAL_INODE,
    LK_OUT,
    LOCK_FLOCK,
    MAX_IO,
    NO_ENTRY,
    OPEN_FLAGS,
    OPEN_KILL_SUIDGID,
    OPEN_OUT,
    POLL_SCHEDULE_NOTIFY,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_ID,
    TWO_U32,
    U64,
    WRITE_KILL_SUIDGID,
    Fattr,
    Fopen,
    Init,
    Notify,
    attr_of_entry,
    attr_out,
    dirent,
    dirent_size,
    encode,
    entry_out,
    statfs_out,
)
from vfs.locks import END, READ_LOCK, UNLOCK, WRITE_LOCK, Lock, LockTable, Owner
from vfs.node import ROOT, Caller, DirEntry, Handle, Node, SetStat, Stat, StatResult, node_id

Body = bytes | memoryview | None
VIEWS = ".views"
UNSHARED: Final = 1 << 63
SETTLED_NS = 1_000_000_000
"""How much older than an open a file's last change must be, so that any later change shows in its ctime."""
MAX_DEPTH = 4096
NO_FILE = -1
"""The `backing` of an open file that no kernel file stands behind."""
DIR_ATTR_SECONDS = 1.0

T = TypeVar("T")


class Inode:
    """A node that the kernel has a number for."""

    __slots__ = ("entry", "listed", "lookups", "node", "settled", "st", "watched")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.lookups = 0
        self.settled: int | None = None
        """The ctime at which the kernel's cached pages (or names) surely are the node's, or None."""
        self.listed = -math.inf
        """When the kernel was last told all about a directory's entries, by time.monotonic()."""
        self.st: Stat | None = None
        """What `node.stat()` returned when `entry`, the reply that tells it, was packed."""
        self.entry = b""
        self.watched = False


class OpenFile:
    """What an fh of OPEN or CREATE stands for. `calls` waits for those that run before the handle is closed."""

    __slots__ = ("backing", "calls", "handle", "lockers", "nodeid", "notify", "released", "watched")

    def __init__(self, nodeid: int, handle: Handle, backing: int) -> None:
        self.nodeid = nodeid
        self.handle = handle
        self.backing = backing
        self.calls = 0
        self.released = False
        self.watched = False
        self.notify = 0
        self.lockers: set[tuple[int, Owner]] | None = None
        """Who took locks through this open file, and under which number the lock table has it."""


class OpenDir:
    """What an fh of OPENDIR stands for: the names as they were when reading last began at the top."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: Sequence[DirEntry] | None = None


class Sharing:
    """How all opens of one file are served, for the kernel wants them alike: `backing` as in `journal.Opened`."""

    __slots__ = ("backing", "users")

    def __init__(self, backing: int) -> None:
        self.backing = backing
        self.users = 0


class Views(Node):
    """The hidden directory `.views` of the root, for the server's user only: each name in it is another tree."""

    __slots__ = ("_tree",)

    def __init__(self, tree: Callable[[str], Node], id: int) -> None:
        self.id = id
        self._tree = tree

    cache_seconds = 3600.0  # nothing ever changes about it

    async def stat(self) -> Stat:
        return Stat(S_IFDIR | 0o700, self.id, 2, os.geteuid(), os.getegid())

    async def lookup(self, name: str, who: Caller) -> Node:
        return self._tree(name)

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        return ()


class Operations:
    """The state of one mount, and what its requests do to it.

    `notify(code, body)` sends the kernel a message, `interrupt(fh)` ends the calls that wait on an open file,
    `backing_open(fd)` and `backing_close(id)` register a file for passthrough (None where the transport has none).
    """

    def __init__(
        self,
        root: Node,
        *,
        views: Callable[[str], Node] | None,
        journal: Journal | None,
        locks: LockTable | None,
        changes: Changes | None,
        max_nodes: int,
        max_files: int,
        interrupt: Callable[[int], None],
    ) -> None:
        self._journal = journal
        self._locks = locks
        self._changes = changes
        self._max_nodes = max_nodes
        self._max_files = max_files
        self._interrupt = interrupt
        self._views = Views(views, node_id(root.id, VIEWS)) if views else None
        self._root = root
        self.notify: Callable[[int, bytes], None] | None = None
        self.backing_open: Callable[[int], int] | None = None
        self.backing_close: Callable[[int], None] | None = None
        self.inodes: dict[int, Inode] = {ROOT_ID: Inode(root)}
        self.files: dict[int, OpenFile] = {}
        self.dirs: dict[int, OpenDir] = {}
        self._sharing: dict[int, Sharing] = {}
        # Numbers from the clock, so that none of an earlier server's is given twice.
        self._fresh = time.time_ns()
        self.agreed = journal.agreed if journal else None
        self._unopened: dict[int, Opened] = dict(journal.files) if journal else {}
        for left in self._unopened.values():
            if left.backing != NO_FILE:
                self._sharing.setdefault(left.nodeid, Sharing(left.backing)).users += 1

    def agree(self, agreed: Agreed) -> None:
        """Begin anew after INIT: a guest that boots again holds nothing of what was."""
        self.close()
        self.agreed = agreed
        if self._journal:
            self._journal.agree(agreed)

    def close(self) -> None:
        """Close every handle, once the calls on it have ended, and forget every number."""
        for nodeid, inode in self.inodes.items():
            inode.node.unwatch(self)
            if inode.watched and self._changes:
                self._changes.unwatch(nodeid)
        for fh, file in self.files.items():
            self._drop(fh, file)
        self.files.clear()
        self.dirs.clear()
        self._unopened.clear()
        self._sharing.clear()
        self.inodes = {ROOT_ID: Inode(self._root)}

    # Numbers

    def _number(self) -> int:
        self._fresh += 1
        return self._fresh

    def _remember(self, parent: int, name: str, node: Node) -> int:
        """Count a lookup of `node` and return its nodeid. ENFILE when there are too many."""
        nodeid = UNSHARED | self._number() if node.unshared else node.id
        inode = self.inodes.get(nodeid)
        if inode is None:
            if len(self.inodes) >= self._max_nodes:
                raise OSError(ENFILE, "too many nodes")
            inode = self.inodes[nodeid] = Inode(node)
            if self._journal:
                self._journal.named(nodeid, parent, encode(name))
        else:
            inode.node = node
        inode.lookups += 1
        return nodeid

    def _forget(self, nodeid: int, lookups: int) -> None:
        inode = self.inodes.get(nodeid)
        if inode is not None:
            inode.lookups -= lookups
            if inode.lookups > 0:
                return
            if nodeid == ROOT_ID:
                return
            del self.inodes[nodeid]
            if inode.watched and self._changes:
                self._changes.unwatch(nodeid)
        if self._journal:
            self._journal.forgotten(nodeid)

    def _watch(self, nodeid: int, directory: Inode) -> None:
        """Have the names of a directory of which the kernel caches some expire when others change them."""
        directory.watched = True
        if self._changes and self.agreed and self.agreed.flags & Init.EXPIRE_ONLY:
            path = directory.node.host_path()
            if path is not None:
                self._changes.watch(nodeid, path)

    async def _recall(self, nodeid: int) -> Inode:
        """Resolve a nodeid that an earlier server gave out, by the names in the journal. ESTALE."""
        names = self._journal.names if self._journal else {}
        steps: list[int] = []
        here = nodeid
        while here not in self.inodes:
            if here not in names or len(steps) == MAX_DEPTH:
                raise OSError(ESTALE, "unknown nodeid")
            steps.append(here)
            here = names[here].parent
        inode = self.inodes[here]
        for step in reversed(steps):
            parent, name = names[step]
            try:
                node = await self._child(parent, inode, str(name, "utf-8", "surrogateescape"), ROOT)
            except OSError as error:
                raise OSError(ESTALE, "its name is gone") from error
            if not step & UNSHARED and node.id != step:
                raise OSError(ESTALE, "its name is another file's")
            inode = self.inodes.setdefault(step, Inode(node))
            inode.lookups = inode.lookups or 1
        return inode

    async def _node(self, nodeid: int) -> Node:
        return (self.inodes.get(nodeid) or await self._recall(nodeid)).node

    async def _child(self, nodeid: int, directory: Inode, name: str, who: Caller) -> Node:
        if self._views is not None and nodeid == ROOT_ID and name == VIEWS:
            return self._views
        return await directory.node.lookup(name, who)

    def _known(self, parent: int, name: str, node: Node, st: StatResult) -> bytes:
        """Pack what the kernel is told of `node`, counting it as one lookup."""
        inode = self.inodes.get(node.id)
        if inode is not None and inode.st is st and inode.node is node:
            inode.lookups += 1
            return inode.entry
        number = self._remember(parent, name, node)
        named = 0 if node.unshared else node.cache_seconds or node.name_seconds
        entry = entry_out(st, number, node.id, named, self._trusted(node, st))
        if type(st) is Stat and number == node.id:  # immutable: the same object will say the same
            inode = self.inodes[number]
            inode.st, inode.entry = st, entry
        return entry

    def _trusted(self, node: Node, st: StatResult) -> float:
        """Return how many seconds the kernel may trust the attributes that it is being told.

        A directory's are trusted even where its name is not: each walk looks the name up and brings them anew, so
        this only saves the kernel from asking again, for every step of every path, before it checks the permission
        to search.
        """
        if node.cache_seconds:
            return node.cache_seconds
        if S_ISDIR(st.st_mode):
            return DIR_ATTR_SECONDS
        if self.notify is None or not node.attribute_seconds:
            return 0.0
        node.watch(self)
        return node.attribute_seconds

    def changed(self, node: Node) -> None:
        """Have the kernel ask for the attributes of `node` again (`vfs.node.Watcher`)."""
        if self.notify is not None and node.id in self.inodes:
            # Attributes only: this waits for nothing, so it need not go by a thread.
            self.notify(Notify.INVAL_INODE, INVAL_INODE.pack(node.id, -1, 0))

    # Names

    async def lookup(self, nodeid: int, who: Caller, name: str) -> Body:
        directory = self.inodes.get(nodeid) or await self._recall(nodeid)
        if name == VIEWS:
            node = await self._child(nodeid, directory, name, who)
        else:
            node = await directory.node.lookup(name, who)
        if node.cache_seconds and not directory.watched:
            self._watch(nodeid, directory)
        return self._known(nodeid, name, node, await node.stat())

    def forget(self, nodeid: int, who: Caller, lookups: int) -> Body:
        self._forget(nodeid, lookups)
        return None

    def batch_forget(self, nodeid: int, who: Caller, data: memoryview) -> Body:
        whole = len(data) // FORGET_ONE.size * FORGET_ONE.size
        for forgotten, lookups in FORGET_ONE.iter_unpack(data[:whole]):
            self._forget(forgotten, lookups)
        return None

    async def readlink(self, nodeid: int, who: Caller) -> Body:
        return encode(await (await self._node(nodeid)).readlink())

    async def symlink(self, nodeid: int, who: Caller, name: str, target: str) -> Body:
        directory = await self._node(nodeid)
        node = await directory.symlink(name, target, who)
        return self._known(nodeid, name, node, await node.stat())

    async def mknod(self, nodeid: int, who: Caller, mode: int, rdev: int, name: str) -> Body:
        directory = await self._node(nodeid)
        node = await directory.mknod(name, mode, rdev, who)
        return self._known(nodeid, name, node, await node.stat())

    async def mkdir(self, nodeid: int, who: Caller, mode: int, name: str) -> Body:
        directory = await self._node(nodeid)
        node = await directory.mkdir(name, mode, who)
        return self._known(nodeid, name, node, await node.stat())

    async def unlink(self, nodeid: int, who: Caller, name: str) -> Body:
        await (await self._node(nodeid)).unlink(name, who)
        return b""

    async def rmdir(self, nodeid: int, who: Caller, name: str) -> Body:
        await (await self._node(nodeid)).rmdir(name, who)
        return b""

    async def rename(self, nodeid: int, who: Caller, new_parent: int, name: str, new_name: str) -> Body:
        return await self.rename2(nodeid, who, new_parent, 0, name, new_name)

    async def rename2(self, nodeid: int, who: Caller, new_parent: int, flags: int, name: str, new_name: str) -> Body:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(EINVAL, "rename flags")
        old, new = await self._node(nodeid), await self._node(new_parent)
        await old.rename(name, new, new_name, flags, who)
        if self._journal:
            await self._renamed(new_parent, new, new_name)
            if flags & RENAME_EXCHANGE:
                await self._renamed(nodeid, old, name)
        return b""

    async def _renamed(self, parent: int, directory: Node, name: str) -> None:
        """Note the new name of a nodeid that the kernel holds."""
        try:
            moved = (await directory.lookup(name, ROOT)).id
        except OSError:
            return  # gone again: whoever moved it knows
        if moved in self.inodes and self._journal:
            self._journal.named(moved, parent, encode(name))

    async def link(self, nodeid: int, who: Caller, target: int, name: str) -> Body:
        directory = await self._node(nodeid)
        await directory.link(await self._node(target), name, who)
        node = await directory.lookup(name, who)
        return self._known(nodeid, name, node, await node.stat())

    # Attributes

    async def getattr(self, nodeid: int, who: Caller) -> Body:
        inode = self.inodes.get(nodeid) or await self._recall(nodeid)
        node = inode.node
        st = await node.stat()
        if st is inode.st:
            return attr_of_entry(inode.entry)
        return attr_out(st, node.id, self._trusted(node, st))

    async def setattr(
        self,
        nodeid: int,
        who: Caller,
        valid: int,
        size: int,
        atime: int,
        mtime: int,
        atime_ns: int,
        mtime_ns: int,
        mode: int,
        uid: int,
        gid: int,
    ) -> Body:
        node = await self._node(nodeid)
        now = time.time_ns()
        if valid & Fattr.KILL_SUIDGID and not valid & Fattr.MODE:
            await self._kill_suidgid(nodeid, node)
        change = SetStat(
            mode=mode & 0o7777 if valid & Fattr.MODE else None,
            uid=uid if valid & Fattr.UID else None,
            gid=gid if valid & Fattr.GID else None,
            size=size if valid & Fattr.SIZE else None,
            atime_ns=_when(valid & Fattr.ATIME, valid & Fattr.ATIME_NOW, atime, atime_ns, now),
            mtime_ns=_when(valid & Fattr.MTIME, valid & Fattr.MTIME_NOW, mtime, mtime_ns, now),
        )
        await node.setstat(change, who)
        st = await node.stat()
        return attr_out(st, node.id, self._trusted(node, st))

    async def _kill_suidgid(self, nodeid: int, node: Node) -> None:
        """Take away the bits that a write by another must not leave (what the kernel leaves to us, KILLPRIV_V2)."""
        mode = (await node.stat()).st_mode
        killed = mode & ~S_ISUID
        if mode & S_IXGRP:
            killed &= ~S_ISGID
        if killed != mode:
            await node.setstat(SetStat(mode=killed & 0o7777), ROOT)
            if self.notify is not None and node.cache_seconds:
                # Attributes only, of a node in use: this waits for nothing, so it need not go by a thread.
                self.notify(Notify.INVAL_INODE, INVAL_INODE.pack(nodeid, -1, 0))

    async def statfs(self, nodeid: int, who: Caller) -> Body:
        return statfs_out(await (await self._node(nodeid)).statfs())

    async def access(self, nodeid: int, who: Caller, mask: int) -> Body:
        check(await (await self._node(nodeid)).stat(), who, mask & 7)
        return b""

    async def setxattr(self, nodeid: int, who: Caller, size: int, flags: int, name: str, value: bytes) -> Body:
        if len(value) != size:
            raise OSError(EINVAL, "attribute value is not as long as stated")
        await (await self._node(nodeid)).setxattr(name, value, flags, who)
        return b""

    async def getxattr(self, nodeid: int, who: Caller, size: int, name: str) -> Body:
        return _sized(await (await self._node(nodeid)).getxattr(name), size)

    async def listxattr(self, nodeid: int, who: Caller, size: int) -> Body:
        names = await (await self._node(nodeid)).listxattr()
        return _sized(b"".join(encode(name) + b"\0" for name in names), size)

    async def removexattr(self, nodeid: int, who: Caller, name: str) -> Body:
        await (await self._node(nodeid)).removexattr(name, who)
        return b""

    # Open files

    async def open(self, nodeid: int, who: Caller, flags: int, open_flags: int) -> Body:
        inode = self.inodes.get(nodeid) or await self._recall(nodeid)
        handle = await inode.node.open(flags & OPEN_FLAGS, who)
        return await self._opened(nodeid, inode, handle, flags, open_flags, who)

    async def create(self, nodeid: int, who: Caller, flags: int, mode: int, open_flags: int, name: str) -> Body:
        directory = self.inodes.get(nodeid) or await self._recall(nodeid)
        try:
            node, handle = await directory.node.create(name, flags & OPEN_FLAGS, mode, who)
        except OSError as error:
            if error.errno == EEXIST and not flags & os.O_EXCL:
                raise OSError(ESTALE, "another made it meanwhile: the kernel looks again") from error
            raise
        try:
            entry = self._known(nodeid, name, node, await node.stat())
        except BaseException:
            handle.close()
            raise
        child = ENTRY_HEAD.unpack_from(entry)[0]
        try:
            return entry + await self._opened(child, self.inodes[child], handle, flags, open_flags, who)
        except BaseException:
            self._forget(child, 1)
            raise

    async def _opened(
        self, nodeid: int, inode: Inode, handle: Handle, flags: int, open_flags: int, who: Caller
    ) -> bytes:
        """Give `handle` an fh and say how the kernel may treat it; on an error the handle is closed."""
        backing = NO_FILE
        try:
            if len(self.files) >= self._max_files:
                raise OSError(ENFILE, "too many open files")
            is_file = not handle.direct and handle.fileno() >= 0
            by_kernel = is_file and flags & os.O_ACCMODE and who.uid and self._passes_through()
            if by_kernel or (open_flags & OPEN_KILL_SUIDGID and flags & os.O_TRUNC):
                await self._kill_suidgid(nodeid, inode.node)  # what the kernel writes by itself keeps the bits
            if is_file:
                backing = self._share(nodeid, handle.fileno())
            if backing > 0:
                how = Fopen.PASSTHROUGH
            elif handle.stream:
                how = Fopen.DIRECT_IO | Fopen.STREAM | Fopen.NONSEEKABLE
            elif handle.direct:
                how = Fopen.DIRECT_IO
            elif inode.node.cache_seconds and await self._is_settled(inode):
                how = Fopen.KEEP_CACHE
            else:
                how = 0
        except BaseException:
            self._unshare(nodeid, backing)
            handle.close()
            raise
        if type(handle).flush is Handle.flush and (self._locks is None or handle.direct):
            how |= Fopen.NOFLUSH  # besides, a close then needs no server; locks on made files go with the last close
        fh = self._number()
        self.files[fh] = OpenFile(nodeid, handle, backing)
        if self._journal:
            self._journal.opened(fh, Opened(nodeid, flags & 0xFFFF_FFFF, backing))
        return OPEN_OUT.pack(fh, how, max(backing, 0))

    async def _is_settled(self, inode: Inode) -> bool:
        """Tell whether pages that the kernel kept from an earlier open are still the file's.

        They are if the ctime then was old enough for any later change to give another, and it is the same.
        """
        changed = (await inode.node.stat()).st_ctime_ns
        kept = inode.settled == changed
        inode.settled = changed if time.time_ns() - changed > SETTLED_NS else None
        return kept

    def _passes_through(self) -> bool:
        return self.backing_open is not None and self.agreed is not None and self.agreed.flags & Init.PASSTHROUGH != 0

    def _share(self, nodeid: int, fd: int) -> int:
        """Return the backing id for one more open of a file: the first opener's, whose kind the kernel wants kept."""
        sharing = self._sharing.get(nodeid)
        if sharing is None:
            backing = 0
            if self.backing_open is not None and self._passes_through():
                try:
                    backing = self.backing_open(fd)
                except OSError as error:
                    if error.errno == EPERM:  # not root: it will never be granted
                        self.backing_open = None
            sharing = self._sharing[nodeid] = Sharing(backing)
        sharing.users += 1
        return sharing.backing

    def _unshare(self, nodeid: int, backing: int) -> None:
        if backing == NO_FILE:
            return
        sharing = self._sharing[nodeid]
        sharing.users -= 1
        if not sharing.users:
            del self._sharing[nodeid]
            if sharing.backing and self.backing_close is not None:
                self.backing_close(sharing.backing)

    async def _reopen(self, fh: int) -> OpenFile:
        """Open again what an earlier server had open as `fh`. EBADF if it had nothing."""
        left = self._unopened.get(fh)
        if left is None:
            raise OSError(EBADF, "unknown file handle")
        inode = self.inodes.get(left.nodeid) or await self._recall(left.nodeid)
        handle = await inode.node.open(left.flags & OPEN_FLAGS & ~os.O_TRUNC, ROOT)
        if self._unopened.pop(fh, None) is None:  # another call was quicker, or it was released
            handle.close()
            if fh not in self.files:
                raise OSError(EBADF, "released meanwhile")
        else:
            self.files[fh] = OpenFile(left.nodeid, handle, left.backing)
        return self.files[fh]

    def _drop(self, fh: int, file: OpenFile) -> None:
        file.released = True
        if file.calls:
            self._interrupt(fh)
        else:
            self._close(file)

    def _call_ended(self, file: OpenFile) -> None:
        file.calls -= 1
        if file.released and not file.calls:
            self._close(file)

    def _close(self, file: OpenFile) -> None:
        self._unlock(file)
        file.handle.close()

    async def read(self, nodeid: int, who: Caller, fh: int, offset: int, size: int, flags: int) -> Body:
        file = self.files.get(fh) or await self._reopen(fh)
        if size > MAX_IO:
            size = MAX_IO
        file.calls += 1
        try:
            data = await file.handle.read(size, offset, flags & os.O_NONBLOCK != 0)
        finally:
            self._call_ended(file)
        return data if len(data) <= size else data[:size]

    async def write(
        self,
        nodeid: int,
        who: Caller,
        fh: int,
        offset: int,
        size: int,
        write_flags: int,
        flags: int,
        data: memoryview,
    ) -> Body:
        if len(data) != size:
            raise OSError(EINVAL, "data is not as long as stated")
        file = self.files.get(fh) or await self._reopen(fh)
        file.calls += 1
        try:
            if write_flags & WRITE_KILL_SUIDGID:
                await self._kill_suidgid(nodeid, await self._node(nodeid))
            taken = await file.handle.write(data, offset, flags & os.O_NONBLOCK != 0)
        finally:
            self._call_ended(file)
        return TWO_U32.pack(taken, 0)

    async def flush(self, nodeid: int, who: Caller, fh: int, lock_owner: int) -> Body:
        if fh in self.files:
            self._unlock(self.files[fh], lock_owner)
        await self._call(fh, lambda handle: handle.flush())
        return b""

    async def fsync(self, nodeid: int, who: Caller, fh: int, flags: int) -> Body:
        await self._call(fh, lambda handle: handle.fsync(flags & FSYNC_DATASYNC != 0))
        return b""

    async def fallocate(self, nodeid: int, who: Caller, fh: int, offset: int, length: int, mode: int) -> Body:
        await self._call(fh, lambda handle: handle.allocate(mode, offset, length))
        return b""

    async def lseek(self, nodeid: int, who: Caller, fh: int, offset: int, whence: int) -> Body:
        return U64.pack(await self._call(fh, lambda handle: handle.seek(offset, whence)))

    async def copy_file_range(
        self, nodeid: int, who: Caller, fh: int, offset: int, target: int, target_offset: int, length: int
    ) -> Body:
        async def copy(source: Handle) -> int:
            return await self._call(target, lambda sink: source.copy(offset, sink, target_offset, length))

        return TWO_U32.pack(await self._call(fh, copy), 0)

    async def _call(self, fh: int, call: Callable[[Handle], Coroutine[Any, Any, T]]) -> T:
        file = self.files.get(fh) or await self._reopen(fh)
        file.calls += 1
        try:
            return await call(file.handle)
        finally:
            self._call_ended(file)

    def release(self, nodeid: int, who: Caller, fh: int, release_flags: int, lock_owner: int) -> Body:
        file = self.files.pop(fh, None)
        if file is not None:
            self._drop(fh, file)
            self._unshare(file.nodeid, file.backing)
        elif fh in self._unopened:
            left = self._unopened.pop(fh)
            self._unshare(left.nodeid, left.backing)
        if self._journal:
            self._journal.released(fh)
        return b""

    async def poll(self, nodeid: int, who: Caller, fh: int, kh: int, flags: int, events: int) -> Body:
        file = self.files.get(fh) or await self._reopen(fh)
        if flags & POLL_SCHEDULE_NOTIFY:
            file.notify = kh
            if not file.watched:
                file.watched = True
                file.handle.watch(lambda: self._woken(file))
        return TWO_U32.pack(file.handle.poll(), 0)

    def _woken(self, file: OpenFile) -> None:
        file.watched = False
        if self.notify is not None and not file.released:
            self.notify(Notify.POLL, U64.pack(file.notify))

    def ioctl(self, nodeid: int, who: Caller, data: memoryview) -> Body:
        raise OSError(ENOTTY, "no ioctl here")

    # Locks: those of fcntl(2) and of flock(2) do not see each other, as on any Linux filesystem

    async def getlk(
        self, nodeid: int, who: Caller, fh: int, owner: int, start: int, end: int, kind: int, pid: int, flags: int
    ) -> Body:
        locks, _, key, wanted = await self._lock(fh, owner, start, end, kind, pid, flags)
        held = locks.conflict(key, wanted)
        if held is None:
            return LK_OUT.pack(start, end, UNLOCK, 0)
        return LK_OUT.pack(held.start, held.end - 1, held.kind, held.pid)

    async def setlk(
        self, nodeid: int, who: Caller, fh: int, owner: int, start: int, end: int, kind: int, pid: int, flags: int
    ) -> Body:
        locks, _, key, wanted = await self._lock(fh, owner, start, end, kind, pid, flags)
        if locks.set(key, wanted) is not None:
            raise OSError(EAGAIN, "locked by another")
        return b""

    async def setlkw(
        self, nodeid: int, who: Caller, fh: int, owner: int, start: int, end: int, kind: int, pid: int, flags: int
    ) -> Body:
        locks, file, key, wanted = await self._lock(fh, owner, start, end, kind, pid, flags)
        file.calls += 1
        try:
            await locks.wait(key, wanted)
        finally:
            self._call_ended(file)
        return b""

    async def _lock(
        self, fh: int, owner: int, start: int, end: int, kind: int, pid: int, flags: int
    ) -> tuple[LockTable, OpenFile, int, Lock]:
        """Return the table, the open file, the number of that file in the table, and the lock that is spoken of."""
        if self._locks is None:
            raise OSError(ENOTSUP, "locks are the kernel's own here")
        if kind not in (READ_LOCK, WRITE_LOCK, UNLOCK) or not start <= end < END:
            raise OSError(EINVAL, "not a lock")
        file = self.files.get(fh) or await self._reopen(fh)
        id = (await self._node(file.nodeid)).id
        flock = flags & LOCK_FLOCK
        key, locker = ~id if flock else id, (self, flock, owner)
        if file.lockers is None:
            file.lockers = set()
        file.lockers.add((key, locker))
        return self._locks, file, key, Lock(kind, start, end + 1, locker, pid)

    def _unlock(self, file: OpenFile, owner: int | None = None) -> None:
        """Drop the fcntl(2) locks of `owner` on an open file, or all locks taken through it."""
        for key, locker in list(file.lockers or ()):
            if self._locks is not None and (owner is None or locker[1:] == (0, owner)):
                self._locks.release(locker, key)

    # Open directories

    async def opendir(self, nodeid: int, who: Caller) -> Body:
        if len(self.dirs) >= self._max_files:
            raise OSError(ENFILE, "too many open directories")
        inode = self.inodes.get(nodeid) or await self._recall(nodeid)
        how = 0
        if inode.node.steady:
            how = Fopen.CACHE_DIR
            # The kernel keeps the names no longer than it trusts the entries: READDIRPLUS renews all at once.
            trusted = time.monotonic() - inode.listed < inode.node.cache_seconds or not inode.node.cache_seconds
            if await self._is_settled(inode) and trusted:
                how |= Fopen.KEEP_CACHE
        fh = self._number()
        self.dirs[fh] = OpenDir()
        return OPEN_OUT.pack(fh, how, 0)

    async def readdir(self, nodeid: int, who: Caller, fh: int, offset: int, size: int, flags: int) -> Body:
        entries = await self._entries(nodeid, who, fh, offset)
        size = min(size, MAX_IO)
        reply = bytearray()
        for index in range(offset, len(entries)):
            name = encode(entries[index].name)
            if len(reply) + dirent_size(name) > size:
                break
            reply += dirent(name, entries[index].ino, index + 1, entries[index].type)
        return bytes(reply)

    async def readdirplus(self, nodeid: int, who: Caller, fh: int, offset: int, size: int, flags: int) -> Body:
        """As readdir, with what LOOKUP would say of each entry where the kernel may cache it."""
        inode = self.inodes.get(nodeid) or await self._recall(nodeid)
        node = inode.node
        if offset == 0:
            inode.listed = time.monotonic()
            if node.cache_seconds and not inode.watched:
                self._watch(nodeid, inode)
        entries = await self._entries(nodeid, who, fh, offset)
        room = min(size, MAX_IO)
        found: list[tuple[Node, StatResult] | None] = []
        for index in range(offset, len(entries)):
            room -= len(NO_ENTRY) + dirent_size(encode(entries[index].name))
            if room < 0:
                break
            found.append(await self._found(node, entries[index].name, who) if index >= 2 else None)
        reply = bytearray()
        for index, known in enumerate(found, offset):  # nothing waits from here on: what is counted is also told
            entry = entries[index]
            reply += self._known(nodeid, entry.name, *known) if known else NO_ENTRY
            reply += dirent(encode(entry.name), entry.ino, index + 1, entry.type)
        return bytes(reply)

    async def _found(self, directory: Node, name: str, who: Caller) -> tuple[Node, StatResult] | None:
        """Look up what the kernel may cache of a directory, or None: an entry's own LOOKUP says what is wrong."""
        if not directory.cache_seconds:
            return None
        try:
            node = await directory.lookup(name, who)
            return node, await node.stat()
        except OSError:
            return None

    async def _entries(self, nodeid: int, who: Caller, fh: int, offset: int) -> Sequence[DirEntry]:
        directory = self.dirs.get(fh)
        if directory is None:
            if self._journal is None or len(self.dirs) >= self._max_files:
                raise OSError(EBADF, "unknown directory handle")
            directory = self.dirs[fh] = OpenDir()  # an earlier server's: listings come in a stable order
        if directory.entries is None or offset == 0:
            node = await self._node(nodeid)
            ino = (await node.stat()).st_ino or node.id
            dots = (DirEntry(".", ino, S_IFDIR), DirEntry("..", ino, S_IFDIR))
            directory.entries = (*dots, *await node.readdir(who))
        return directory.entries

    def releasedir(self, nodeid: int, who: Caller, fh: int, release_flags: int, lock_owner: int) -> Body:
        self.dirs.pop(fh, None)
        return b""

    def fsyncdir(self, nodeid: int, who: Caller, fh: int, flags: int) -> Body:
        return b""


def _when(given: int, now_given: int, seconds: int, nanoseconds: int, now: int) -> int | None:
    if now_given:
        return now
    return seconds * 1_000_000_000 + nanoseconds if given else None


def _sized(value: bytes, size: int) -> bytes:
    """Answer an xattr request: its size where 0 bytes were asked for. ERANGE where it does not fit."""
    if size == 0:
        return TWO_U32.pack(len(value), 0)
    if len(value) > size:
        raise OSError(ERANGE, "attribute is larger than asked for")
    return value
