"""A tree that belongs to somebody else than it says: the owner of its root appears as another user.

What idmapped mounts (mount_setattr(2)) do in the kernel: the files of one uid
and gid appear, and are used, as those of another; who makes a file here makes
it the owner's. Files of any third owner appear as nobody's, whom nobody is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from errno import EPERM, EXDEV

from vfs.node import Caller, DirEntry, Handle, Node, SetStat, Stat, StatFs, StatResult, node_id

NOBODY = 2**32 - 2
"""The owner shown for third owners: no process has this uid, while some are called nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Files of `from_uid` and `from_gid` are shown as those of `uid` and `gid`."""

    from_uid: int
    from_gid: int
    uid: int
    gid: int

    def shown(self, st: StatResult) -> Stat:
        """Return these attributes as they appear."""
        fields = {name: getattr(st, name) for name in Stat._fields}
        fields["st_uid"] = self.uid if st.st_uid == self.from_uid else NOBODY
        fields["st_gid"] = self.gid if st.st_gid == self.from_gid else NOBODY
        return Stat(**fields)

    def inside(self, who: Caller) -> Caller:
        """Return as whom `who` acts in the tree."""

        def group(gid: int) -> int:
            return self.from_gid if gid == self.gid else gid

        uid = self.from_uid if who.uid == self.uid else who.uid
        return replace(who, uid=uid, gid=group(who.gid), groups=frozenset(map(group, who.groups)))

    def change(self, change: SetStat) -> SetStat:
        """Return the change that is meant. EPERM for an owner that the tree does not have."""
        if change.uid not in (None, self.uid) or change.gid not in (None, self.gid):
            raise OSError(EPERM, "this tree has one owner")
        uid = None if change.uid is None else self.from_uid
        return replace(change, uid=uid, gid=None if change.gid is None else self.from_gid)


class Owned(Node):
    """A node of such a tree."""

    __slots__ = ("cache_seconds", "node", "shift", "steady", "unshared")

    def __init__(self, node: Node, shift: Shift) -> None:
        self.id = node_id("owned", node.id, shift.uid, shift.gid)
        self.node = node
        self.shift = shift
        self.cache_seconds = node.cache_seconds
        self.steady = node.steady
        self.unshared = node.unshared

    def _wrap(self, node: Node) -> Node:
        return Owned(node, self.shift)

    async def stat(self) -> StatResult:
        return self.shift.shown(await self.node.stat())

    async def setstat(self, change: SetStat, who: Caller) -> None:
        await self.node.setstat(self.shift.change(change), self.shift.inside(who))

    async def readlink(self) -> str:
        return await self.node.readlink()

    async def open(self, flags: int, who: Caller) -> Handle:
        return await self.node.open(flags, self.shift.inside(who))

    async def statfs(self) -> StatFs:
        return await self.node.statfs()

    async def lookup(self, name: str, who: Caller) -> Node:
        return self._wrap(await self.node.lookup(name, self.shift.inside(who)))

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        return await self.node.readdir(self.shift.inside(who))

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> tuple[Node, Handle]:
        node, handle = await self.node.create(name, flags, mode, self.shift.inside(who))
        return self._wrap(node), handle

    async def mkdir(self, name: str, mode: int, who: Caller) -> Node:
        return self._wrap(await self.node.mkdir(name, mode, self.shift.inside(who)))

    async def symlink(self, name: str, target: str, who: Caller) -> Node:
        return self._wrap(await self.node.symlink(name, target, self.shift.inside(who)))

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> Node:
        return self._wrap(await self.node.mknod(name, mode, rdev, self.shift.inside(who)))

    async def link(self, target: Node, name: str, who: Caller) -> None:
        await self.node.link(self._same(target), name, self.shift.inside(who))

    async def unlink(self, name: str, who: Caller) -> None:
        await self.node.unlink(name, self.shift.inside(who))

    async def rmdir(self, name: str, who: Caller) -> None:
        await self.node.rmdir(name, self.shift.inside(who))

    async def rename(self, name: str, new_dir: Node, new_name: str, flags: int, who: Caller) -> None:
        await self.node.rename(name, self._same(new_dir), new_name, flags, self.shift.inside(who))

    def _same(self, other: Node) -> Node:
        """Return what another node of this tree is behind its owner. EXDEV for any other."""
        if not isinstance(other, Owned) or other.shift != self.shift:
            raise OSError(EXDEV, "of another tree")
        return other.node

    async def listxattr(self) -> Sequence[str]:
        return await self.node.listxattr()

    async def getxattr(self, name: str) -> bytes:
        return await self.node.getxattr(name)

    async def setxattr(self, name: str, value: bytes, flags: int, who: Caller) -> None:
        await self.node.setxattr(name, value, flags, self.shift.inside(who))

    async def removexattr(self, name: str, who: Caller) -> None:
        await self.node.removexattr(name, self.shift.inside(who))
