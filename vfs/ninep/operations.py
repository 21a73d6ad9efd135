"""What each request does: one method per T-message, on the fids of one connection.

A method takes the message's fields in the table's order and returns its reply's fields; it answers an error by raising
OSError. It is a coroutine under the inline rule (`vfs.inline`) and may be cancelled at any wait, so it changes the
fids only after its last wait. Modes are checked here, for the user of the attach; root needs no check.
"""

import os
import stat as statmod
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from errno import (
    E2BIG,
    EBADF,
    EBUSY,
    EFBIG,
    EINVAL,
    EISDIR,
    ELOOP,
    EMFILE,
    ENOENT,
    ENOTDIR,
    ENOTSUP,
    EPERM,
    EPROTO,
    ESTALE,
)
from typing import Final

from vfs.access import EXECUTE, READ, WRITE, check, check_setstat, check_sticky, permitted, wanted
from vfs.locks import READ_LOCK, UNLOCK, WRITE_LOCK, Lock, LockTable, Owner, span
from vfs.ninep.codec import qid
from vfs.ninep.fids import AttributeReader, AttributeWriter, Directory, Fid, Step
from vfs.ninep.listing import Listings
from vfs.ninep.messages import (
    DOTL_AT_REMOVEDIR,
    DOTL_DIRECTORY,
    DOTL_EXCL,
    DOTL_NONBLOCK,
    DOTL_OPEN,
    GETATTR_BASIC,
    LOCK_BLOCKED,
    LOCK_BLOCKING,
    LOCK_SUCCESS,
    MAX_WALK,
    QTDIR,
    READ_OVERHEAD,
    SETATTR_ATIME,
    SETATTR_ATIME_SET,
    SETATTR_GID,
    SETATTR_MODE,
    SETATTR_MTIME,
    SETATTR_MTIME_SET,
    SETATTR_SIZE,
    SETATTR_UID,
)
from vfs.ninep.peer import PeerCred
from vfs.node import Caller, Handle, Node, SetStat, check_name, is_dir

Attach = Callable[[str, int, str, PeerCred | None], Awaitable[tuple[Node, Caller]]]
"""attach(uname, n_uname, aname, peer): decide who a client is and which tree it gets.

A coroutine function under the inline rule that returns the root and the caller, or raises OSError (EACCES, EPERM,
ENOENT). `peer` is None where the kernel vouches for nobody (TCP).
"""

MAX_FIDS: Final = 65536
"""Fids of one connection (EMFILE beyond)."""
MAX_XATTR: Final = 65536
_WALKED: Final = 64
"""Directories last walked through that are kept, so that the next walk need not open them again."""
_SECOND: Final = 10**9
_U64: Final = (1 << 64) - 1
_MAX_OFFSET: Final = (1 << 63) - 1
_ACCESS: Final = 0o3
_MINUS_ONE: Final = 0xFFFFFFFF

Qids = tuple[bytes]
Opened = tuple[bytes, int]
Nothing = tuple[()]


class Operations:
    """The fids of one connection and every request on them.

    `payload` is the most bytes that one reply carries; it is set, and every fid released, by `reset`.
    """

    def __init__(self, attach: Attach, locks: LockTable, listings: Listings, peer: PeerCred | None) -> None:
        self.fids: dict[int, Fid] = {}
        self.payload = 0
        self.passed: list[int] | None = None
        """For a client that takes them: descriptors of what it opened, to be sent beside the reply and closed."""
        self._walked: deque[Node] = deque(maxlen=_WALKED)
        self._attach = attach
        self._locks = locks
        self._listings = listings
        self._peer = peer

    def reset(self, msize: int) -> None:
        """Release every fid, as Tversion and the end of the connection do (nothing is flushed: the client is gone)."""
        self.payload = msize - READ_OVERHEAD
        while self.passed:
            os.close(self.passed.pop())
        self._walked.clear()
        fids, self.fids = self.fids, {}
        for fid in fids.values():
            fid.close()

    # Fids

    def _fid(self, number: int) -> Fid:
        fid = self.fids.get(number)
        if fid is None:
            raise OSError(EBADF, "no such fid")
        return fid

    def _closed(self, number: int) -> Fid:
        fid = self._fid(number)
        if fid.handle is not None:
            raise OSError(EBADF, "the fid is open")
        return fid

    def _open(self, number: int) -> tuple[Fid, Handle]:
        fid = self._fid(number)
        if fid.handle is None:
            raise OSError(EBADF, "the fid is not open")
        return fid, fid.handle

    def _check_new(self, number: int) -> None:
        if number in self.fids:
            raise OSError(EBADF, "the fid is in use")
        if len(self.fids) >= MAX_FIDS:
            raise OSError(EMFILE, "too many fids")

    async def attach(self, fid: int, afid: int, uname: str, aname: str, n_uname: int) -> Qids:
        if not self.payload:
            raise OSError(EPROTO, "Tversion comes first")
        self._check_new(fid)
        root, who = await self._attach(uname, n_uname, aname, self._peer)
        raw = qid((await root.stat()).st_mode, root.id)
        self._check_new(fid)
        self.fids[fid] = Fid(Step(None, "", root, raw), who)
        return (raw,)

    async def auth(self, afid: int, uname: str, aname: str, n_uname: int) -> Qids:
        raise OSError(ENOENT, "no authentication is needed")  # the errno that diod's clients take for just that

    async def walk(self, number: int, newfid: int, names: tuple[str, ...]) -> tuple[list[bytes]]:
        fid = self._fid(number)
        in_place = newfid == number
        if len(names) > MAX_WALK:
            raise OSError(EINVAL, "too many names")
        if not in_place:
            self._check_new(newfid)
        elif fid.handle is not None:
            raise OSError(EINVAL, "an open fid stays where it is")
        step, who = fid.step, fid.who
        qids: list[bytes] = []
        try:
            for name in names:
                if not step.qid[0] & QTDIR:
                    raise OSError(ENOTDIR, "not a directory")
                if who.uid:
                    check(await step.node.stat(), who, EXECUTE)
                if name == "..":
                    step = step.parent or step
                elif name != ".":  # walked by diod's clients
                    node = await step.node.lookup(check_name(name), who)
                    kind = node.kind or (await node.stat()).st_mode
                    step = Step(step, name, node, qid(kind, node.id))
                    if step.qid[0] & QTDIR:
                        self._walked.append(node)
                qids.append(step.qid)
        except OSError:
            if not qids:
                raise
            return (qids,)
        if not in_place:
            self._check_new(newfid)
        elif self._fid(newfid) is not fid or fid.handle is not None:
            raise OSError(EBADF, "the fid changed meanwhile")
        self.fids[newfid] = Fid(step, who)
        return (qids,)

    async def clunk(self, number: int) -> Nothing:
        fid = self._fid(number)
        del self.fids[number]
        try:
            if fid.waiters:
                await fid.settle()
            if fid.handle is not None:
                await fid.handle.flush()
        finally:
            fid.close()
        return ()

    async def remove(self, number: int) -> Nothing:
        fid = self._fid(number)
        try:
            step = await self._named(fid)
            assert step.parent is not None
            await self._unlink(step.parent.node, step.name, is_dir(await fid.node.stat()), fid.who)
        finally:
            if self.fids.get(number) is fid:
                await self.clunk(number)
        return ()

    async def _named(self, fid: Fid) -> Step:
        """Return the fid's step, after making sure that its name still names it. ESTALE; EBUSY for a root."""
        step = fid.step
        if step.parent is None:
            raise OSError(EBUSY, "the root stays")
        if (await step.parent.node.lookup(step.name, fid.who)).id != step.node.id:
            raise OSError(ESTALE, "the name is another file's by now")
        return step

    # Files

    async def lopen(self, number: int, flags: int) -> Opened:
        fid = self._closed(number)
        handle = await self._opened(fid, fid.node, flags)
        self._install(fid, number, handle, flags)
        return fid.step.qid, 0

    async def _opened(self, fid: Fid, node: Node, flags: int) -> Handle:
        """Open what `fid` or, after a lost race to create it, `node` is."""
        if flags & _ACCESS == _ACCESS:
            raise OSError(EINVAL, "no access mode")
        st = await node.stat() if fid.who.uid or not node.kind else None
        kind = statmod.S_IFMT(st.st_mode) if st else node.kind
        directory = kind == statmod.S_IFDIR
        if directory and wanted(flags) & WRITE:
            raise OSError(EISDIR, "is a directory")
        if flags & DOTL_DIRECTORY and not directory:
            raise OSError(ENOTDIR, "not a directory")
        if kind == statmod.S_IFLNK:
            raise OSError(ELOOP, "is a symbolic link")
        if st:
            check(st, fid.who, wanted(flags))
        return Directory(fid, self._listings) if directory else await node.open(flags & DOTL_OPEN, fid.who)

    def _install(self, fid: Fid, number: int, handle: Handle, flags: int) -> None:
        """Make `fid` open, unless it was clunked or opened while the file was being opened."""
        if fid.handle is not None or self.fids.get(number) is not fid:
            handle.close()
            raise OSError(EBADF, "the fid changed meanwhile")
        fid.handle = handle
        fid.readable = flags & _ACCESS != os.O_WRONLY
        fid.writable = flags & _ACCESS != os.O_RDONLY
        fid.nonblock = bool(flags & DOTL_NONBLOCK)
        if self.passed is not None and handle.fileno() >= 0:
            with suppress(OSError):  # too many are open: the client reads and writes through us
                self.passed.append(os.dup(handle.fileno()))

    async def lcreate(self, number: int, name: str, flags: int, mode: int, gid: int) -> Opened:
        fid = self._closed(number)
        directory = fid.node
        check_name(name)
        if flags & _ACCESS == _ACCESS:
            raise OSError(EINVAL, "no access mode")
        await self._check_change(fid)
        try:
            node, handle = await directory.create(name, flags & DOTL_OPEN, mode & 0o7777, _with_gid(fid.who, gid))
            kind = statmod.S_IFREG
        except FileExistsError:
            if flags & DOTL_EXCL:
                raise
            node = await directory.lookup(name, fid.who)
            kind = node.kind or (await node.stat()).st_mode
            if statmod.S_ISDIR(kind):
                raise OSError(EISDIR, "is a directory") from None
            handle = await self._opened(fid, node, flags)
        self._install(fid, number, handle, flags)
        fid.step = Step(fid.step, name, node, qid(kind, node.id))
        fid.node = node
        return fid.step.qid, 0

    async def read(self, number: int, offset: int, count: int) -> tuple[bytes | memoryview]:
        fid, handle = self._open(number)
        if not fid.readable:
            raise OSError(EBADF, "not open for reading")
        if offset > _MAX_OFFSET - count:
            raise OSError(EINVAL, "offset too large")
        count = min(count, self.payload)
        data = await handle.read(count, offset, fid.nonblock)
        return (data if len(data) <= count else data[:count],)

    async def write(self, number: int, offset: int, data: memoryview) -> tuple[int]:
        fid, handle = self._open(number)
        if not fid.writable:
            raise OSError(EBADF, "not open for writing")
        if offset > _MAX_OFFSET - len(data):
            raise OSError(EFBIG, "offset too large")
        return (await handle.write(data, offset, fid.nonblock),)

    async def fsync(self, number: int, datasync: int) -> Nothing:
        _, handle = self._open(number)
        await handle.fsync(bool(datasync))
        return ()

    async def readdir(self, number: int, offset: int, count: int) -> tuple[memoryview]:
        _, handle = self._open(number)
        if not isinstance(handle, Directory):
            raise OSError(ENOTDIR, "not a directory")
        return (await handle.part(offset, min(count, self.payload)),)

    # Attributes

    async def getattr(self, number: int, request_mask: int) -> tuple[int | bytes, ...]:
        fid = self._fid(number)
        st = await fid.node.stat()
        atime, atime_nsec = divmod(st.st_atime_ns, _SECOND)
        mtime, mtime_nsec = divmod(st.st_mtime_ns, _SECOND)
        ctime, ctime_nsec = divmod(st.st_ctime_ns, _SECOND)
        return (
            GETATTR_BASIC,
            fid.step.qid,
            st.st_mode,
            st.st_uid,
            st.st_gid,
            st.st_nlink,
            st.st_rdev,
            st.st_size,
            st.st_blksize,
            st.st_blocks,
            atime & _U64,
            atime_nsec,
            mtime & _U64,
            mtime_nsec,
            ctime & _U64,
            ctime_nsec,
            0,
            0,
            0,
            0,
        )

    async def setattr(
        self,
        number: int,
        valid: int,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        atime_sec: int,
        atime_nsec: int,
        mtime_sec: int,
        mtime_nsec: int,
    ) -> Nothing:
        fid = self._fid(number)
        if size > _MAX_OFFSET and valid & SETATTR_SIZE:
            raise OSError(EFBIG, "size too large")
        if (valid & SETATTR_UID and uid == _MINUS_ONE) or (valid & SETATTR_GID and gid == _MINUS_ONE):
            raise OSError(EINVAL, "no such id")
        change = SetStat(
            mode=mode & 0o7777 if valid & SETATTR_MODE else None,
            uid=uid if valid & SETATTR_UID else None,
            gid=gid if valid & SETATTR_GID else None,
            size=size if valid & SETATTR_SIZE else None,
            atime_ns=_when(valid & SETATTR_ATIME_SET, atime_sec, atime_nsec) if valid & SETATTR_ATIME else None,
            mtime_ns=_when(valid & SETATTR_MTIME_SET, mtime_sec, mtime_nsec) if valid & SETATTR_MTIME else None,
        )
        if fid.who.uid:
            await self._check_setattr(fid, change, bool(valid & (SETATTR_ATIME_SET | SETATTR_MTIME_SET)))
        if change != SetStat():
            await fid.node.setstat(change, fid.who)
        return ()

    async def _check_setattr(self, fid: Fid, change: SetStat, explicit_times: bool) -> None:
        st = await fid.node.stat()
        if not explicit_times and permitted(st, fid.who, WRITE):
            change = replace(change, atime_ns=None, mtime_ns=None)
        if fid.writable:
            change = replace(change, size=None)  # ftruncate(2) goes by the open file, not by the mode
        check_setstat(st, fid.who, change)

    async def statfs(self, number: int) -> tuple[int, ...]:
        return tuple(await self._fid(number).node.statfs())

    async def readlink(self, number: int) -> tuple[str]:
        return (await self._fid(number).node.readlink(),)

    async def xattrwalk(self, number: int, newfid: int, name: str) -> tuple[int]:
        fid = self._fid(number)
        self._check_new(newfid)
        if name:
            await self._check_xattr(fid, name, READ)
            value = await fid.node.getxattr(name)
        else:
            value = b"".join(os.fsencode(known) + b"\0" for known in await fid.node.listxattr())
        self._check_new(newfid)
        self.fids[newfid] = attribute = Fid(fid.step, fid.who)
        attribute.handle = AttributeReader(value)
        attribute.readable = True
        return (len(value),)

    async def xattrcreate(self, number: int, name: str, size: int, flags: int) -> Nothing:
        fid = self._closed(number)
        if size > MAX_XATTR:
            raise OSError(E2BIG, "value too large")
        await self._check_xattr(fid, name, WRITE)
        self._install(fid, number, AttributeWriter(fid, name, size, flags), os.O_WRONLY)
        return ()

    async def _check_xattr(self, fid: Fid, name: str, want: int) -> None:
        """Check xattr(7)'s rules for the class of `name`. ENOTSUP for a name of no class."""
        space = name.partition(".")[0]
        if space not in ("user", "trusted", "security", "system"):
            raise OSError(ENOTSUP, "no such class of attributes")
        if fid.who.uid == 0:
            return
        st = await fid.node.stat()
        if space == "user":
            check(st, fid.who, want)
        elif space == "trusted" or (want == WRITE and (space == "security" or st.st_uid != fid.who.uid)):
            raise OSError(EPERM, "not permitted")

    # Names

    async def _check_change(self, fid: Fid) -> None:
        """Check that the caller may change the directory's names."""
        if fid.who.uid:
            check(await fid.node.stat(), fid.who, WRITE | EXECUTE)

    async def mkdir(self, number: int, name: str, mode: int, gid: int) -> Qids:
        fid = self._fid(number)
        check_name(name)
        await self._check_change(fid)
        node = await fid.node.mkdir(name, mode & 0o7777, _with_gid(fid.who, gid))
        return (qid(statmod.S_IFDIR, node.id),)

    async def symlink(self, number: int, name: str, target: str, gid: int) -> Qids:
        fid = self._fid(number)
        check_name(name)
        if not target or "\0" in target:
            raise OSError(ENOENT, "no target")
        await self._check_change(fid)
        node = await fid.node.symlink(name, target, _with_gid(fid.who, gid))
        return (qid(statmod.S_IFLNK, node.id),)

    async def mknod(self, number: int, name: str, mode: int, major: int, minor: int, gid: int) -> Qids:
        fid = self._fid(number)
        check_name(name)
        if fid.who.uid and statmod.S_IFMT(mode) in (statmod.S_IFCHR, statmod.S_IFBLK):
            raise OSError(EPERM, "only root makes devices")
        await self._check_change(fid)
        if major > 0xFFF or minor > 0xFFFFF:
            raise OSError(EINVAL, "no such device number")
        node = await fid.node.mknod(name, mode, os.makedev(major, minor), _with_gid(fid.who, gid))
        return (qid(mode, node.id),)

    async def link(self, directory: int, number: int, name: str) -> Nothing:
        into, fid = self._fid(directory), self._fid(number)
        check_name(name)
        await self._check_change(into)
        if fid.step.qid[0] & QTDIR:
            raise OSError(EPERM, "a directory has one name")
        await into.node.link(fid.node, name, into.who)
        return ()

    async def unlinkat(self, number: int, name: str, flags: int) -> Nothing:
        fid = self._fid(number)
        await self._unlink(fid.node, check_name(name), bool(flags & DOTL_AT_REMOVEDIR), fid.who)
        return ()

    async def _unlink(self, directory: Node, name: str, is_directory: bool, who: Caller) -> None:
        await _check_removal(directory, name, who)
        await (directory.rmdir if is_directory else directory.unlink)(name, who)

    async def rename(self, number: int, directory: int, name: str) -> Nothing:
        fid, into = self._fid(number), self._fid(directory)
        step = await self._named(fid)
        assert step.parent is not None
        await self._move(step.parent.node, step.name, into.step, name, fid.who)
        return ()

    async def renameat(self, olddir: int, oldname: str, newdir: int, newname: str) -> Nothing:
        old, new = self._fid(olddir), self._fid(newdir)
        await self._move(old.node, oldname, new.step, newname, old.who)
        return ()

    async def _move(self, old: Node, name: str, into: Step, new_name: str, who: Caller) -> None:
        new = into.node
        check_name(name)
        check_name(new_name)
        if who.uid:
            await _check_removal(old, name, who)
            await _check_removal(new, new_name, who, missing_ok=True)
            moved = await (await old.lookup(name, who)).stat()
            if is_dir(moved) and old.id != new.id:
                check(moved, who, WRITE)  # its ".." changes
        await old.rename(name, new, new_name, 0, who)
        self._renamed(old.id, name, into, new_name)

    def _renamed(self, old: int, name: str, into: Step, new_name: str) -> None:
        """Let the fids that came by the old name follow it, so that "..", Tremove and Trename go by the new one."""
        above = set(into.way())
        for fid in self.fids.values():
            for step in fid.step.way():
                if step.name == name and step.parent is not None and step.parent.node.id == old and step not in above:
                    step.parent, step.name = into, new_name
                    break

    # Locks

    async def lock(
        self, number: int, kind: int, flags: int, start: int, length: int, proc_id: int, client_id: str
    ) -> tuple[int]:
        fid, wanted_lock = self._lock(number, kind, start, length, proc_id, client_id)
        fid.locks = self._locks
        fid.lockers.add(wanted_lock.owner)
        if flags & LOCK_BLOCKING:
            await self._locks.wait(fid.node.id, wanted_lock)
            return (LOCK_SUCCESS,)
        return (LOCK_BLOCKED if self._locks.set(fid.node.id, wanted_lock) else LOCK_SUCCESS,)

    async def getlock(
        self, number: int, kind: int, start: int, length: int, proc_id: int, client_id: str
    ) -> tuple[int, int, int, int, str]:
        fid, wanted_lock = self._lock(number, kind, start, length, proc_id, client_id)
        held = self._locks.conflict(fid.node.id, wanted_lock)
        if held is None:
            return UNLOCK, start, length, proc_id, client_id
        return held.kind, held.start, held.length, held.pid, str(held.owner[-1])

    def _lock(self, number: int, kind: int, start: int, length: int, proc_id: int, client_id: str) -> tuple[Fid, Lock]:
        fid, _ = self._open(number)
        if kind not in (READ_LOCK, WRITE_LOCK, UNLOCK):
            raise OSError(EINVAL, "no such kind of lock")
        owner: Owner = (id(self), proc_id, client_id)
        return fid, Lock(kind, *span(start, length), owner, proc_id)


async def _check_removal(directory: Node, name: str, who: Caller, *, missing_ok: bool = False) -> None:
    """Check that `who` may take `name` out of `directory` (path_resolution(7), sticky bit)."""
    if not who.uid:
        return
    st = await directory.stat()
    check(st, who, WRITE | EXECUTE)
    if st.st_mode & statmod.S_ISVTX:
        try:
            victim = await directory.lookup(name, who)
        except FileNotFoundError:
            if missing_ok:
                return
            raise
        check_sticky(st, await victim.stat(), who)


def _with_gid(who: Caller, gid: int) -> Caller:
    """Return who makes a file for which the client asks the group `gid`: that group if the caller is in it."""
    if gid == who.gid or (who.uid and gid not in who.groups) or gid == _MINUS_ONE:
        return who
    return replace(who, gid=gid)


def _when(explicit: int, seconds: int, nanoseconds: int) -> int:
    """Return a time of Tsetattr in ns: the one given (64-bit two's complement), or now."""
    if not explicit:
        return time.time_ns()
    if nanoseconds >= _SECOND:
        raise OSError(EINVAL, "no such time")
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * _SECOND + nanoseconds
