"""A tree as one user may use it, for servers whose clients' word does not count.

A guest's kernel says who asks and has checked the modes, but whoever rules the guest rules its kernel. So every
operation runs as the one user whom the guest is for, and is checked here: it does what that user might do without it,
whatever else it claims to be. An owner may do all with what is his (he could change the modes first).
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from errno import EACCES
from stat import S_ISVTX

from vfs.access import EXECUTE, READ, WRITE, check, check_setstat, check_sticky, permitted, wanted
from vfs.node import Caller, DirEntry, Handle, Node, SetStat, StatFs, StatResult

TRUST_SECONDS = 1.0
"""How long a client may trust a name or attributes at the most: there is no way to tell it of a change."""
NOW_NS = 1_000_000_000
"""Times so near to the clock's are what a write would set as well."""


class Confined(Node):
    """`node`, for `user` alone: who asks is ignored."""

    __slots__ = ("allocates", "cache_seconds", "kind", "node", "steady", "unshared", "user")

    def __init__(self, node: Node, user: Caller) -> None:
        self.id = node.id
        self.node = node
        self.user = user
        self.kind = node.kind
        self.cache_seconds = min(node.cache_seconds, TRUST_SECONDS)
        self.unshared = node.unshared
        self.allocates = node.allocates
        self.steady = node.steady

    async def _check(self, want: int) -> None:
        if self.user.uid:
            st = await self.node.stat()
            if st.st_uid != self.user.uid:
                check(st, self.user, want)

    async def stat(self) -> StatResult:
        return await self.node.stat()

    async def setstat(self, change: SetStat, who: Caller) -> None:
        st = await self.node.stat()
        owner = st.st_uid == self.user.uid
        if not (_touches(change) and (owner or permitted(st, self.user, WRITE))):
            check_setstat(st, self.user, replace(change, size=None) if owner else change)
        await self.node.setstat(change, self.user)

    async def readlink(self) -> str:
        return await self.node.readlink()

    async def open(self, flags: int, who: Caller) -> Handle:
        await self._check(wanted(flags))
        return await self.node.open(flags, self.user)

    async def statfs(self) -> StatFs:
        return await self.node.statfs()

    # Directories

    async def lookup(self, name: str, who: Caller) -> "Confined":
        await self._check(EXECUTE)
        return Confined(await self.node.lookup(name, self.user), self.user)

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        await self._check(READ)
        return await self.node.readdir(self.user)

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> "tuple[Confined, Handle]":
        await self._check(WRITE | EXECUTE)
        node, handle = await self.node.create(name, flags, mode, self.user)
        return Confined(node, self.user), handle

    async def mkdir(self, name: str, mode: int, who: Caller) -> "Confined":
        await self._check(WRITE | EXECUTE)
        return Confined(await self.node.mkdir(name, mode, self.user), self.user)

    async def symlink(self, name: str, target: str, who: Caller) -> "Confined":
        await self._check(WRITE | EXECUTE)
        return Confined(await self.node.symlink(name, target, self.user), self.user)

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> "Confined":
        await self._check(WRITE | EXECUTE)
        return Confined(await self.node.mknod(name, mode, rdev, self.user), self.user)

    async def link(self, target: Node, name: str, who: Caller) -> None:
        """As Linux with fs.protected_hardlinks: another's file only if it may be read and written."""
        await self._check(WRITE | EXECUTE)
        if isinstance(target, Confined):
            await target._check(READ | WRITE)
            target = target.node
        await self.node.link(target, name, self.user)

    async def unlink(self, name: str, who: Caller) -> None:
        await self._check_removal(name)
        await self.node.unlink(name, self.user)

    async def rmdir(self, name: str, who: Caller) -> None:
        await self._check_removal(name)
        await self.node.rmdir(name, self.user)

    async def rename(self, name: str, new_dir: Node, new_name: str, flags: int, who: Caller) -> None:
        await self._check_removal(name)
        if isinstance(new_dir, Confined):
            await new_dir._check_removal(new_name)
            new_dir = new_dir.node
        await self.node.rename(name, new_dir, new_name, flags, self.user)

    async def _check_removal(self, name: str) -> None:
        """Raise EACCES or EPERM unless the user may take `name` away (or put something there, if nothing is)."""
        await self._check(WRITE | EXECUTE)
        st = await self.node.stat()
        if st.st_mode & S_ISVTX and self.user.uid not in (0, st.st_uid):
            try:
                victim = await (await self.node.lookup(name, self.user)).stat()
            except FileNotFoundError:
                return
            check_sticky(st, victim, self.user)

    # Extended attributes

    async def listxattr(self) -> Sequence[str]:
        return await self.node.listxattr()

    async def getxattr(self, name: str) -> bytes:
        if name.startswith("user."):
            await self._check(READ)
        elif name.startswith("trusted.") and self.user.uid:
            raise OSError(EACCES, "an attribute for root only")
        return await self.node.getxattr(name)

    async def setxattr(self, name: str, value: bytes, flags: int, who: Caller) -> None:
        await self._check(WRITE)
        await self.node.setxattr(name, value, flags, self.user)

    async def removexattr(self, name: str, who: Caller) -> None:
        await self._check(WRITE)
        await self.node.removexattr(name, self.user)


def _touches(change: SetStat) -> bool:
    """Tell whether all that changes is what a write would change: the size, and times to about now."""
    if (change.mode, change.uid, change.gid) != (None, None, None):
        return False
    now = time.time_ns()
    return all(abs(when - now) < NOW_NS for when in (change.atime_ns, change.mtime_ns) if when is not None)
