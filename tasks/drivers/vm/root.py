"""A task's namespace as a guest's root: with places to mount the kernel's own trees on."""

import stat as statmod
from collections.abc import Sequence

from tasks.taskd.guest import KERNEL_TREES
from vfs.directory import Dir
from vfs.node import Caller, DirEntry, Handle, Node, SetStat, StatFs, StatResult, node_id


class GuestRoot(Node):
    """The root directory of a namespace, with an empty directory for each of the kernel's trees that it lacks."""

    __slots__ = ("_node",)

    def __init__(self, node: Node) -> None:
        self._node = node
        self.id = node_id("guest", node.id)

    async def stat(self) -> StatResult:
        return await self._node.stat()

    async def setstat(self, change: SetStat, who: Caller) -> None:
        await self._node.setstat(change, who)

    async def statfs(self) -> StatFs:
        return await self._node.statfs()

    async def lookup(self, name: str, who: Caller) -> Node:
        try:
            return await self._node.lookup(name, who)
        except FileNotFoundError:
            if name not in KERNEL_TREES:
                raise
        return Dir({}, id=node_id(self.id, name))

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        entries = list(await self._node.readdir(who))
        missing = [name for name in KERNEL_TREES if all(entry.name != name for entry in entries)]
        return entries + [DirEntry(name, node_id(self.id, name), statmod.S_IFDIR) for name in missing]

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> tuple[Node, Handle]:
        return await self._node.create(name, flags, mode, who)

    async def mkdir(self, name: str, mode: int, who: Caller) -> Node:
        return await self._node.mkdir(name, mode, who)

    async def symlink(self, name: str, target: str, who: Caller) -> Node:
        return await self._node.symlink(name, target, who)

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> Node:
        return await self._node.mknod(name, mode, rdev, who)

    async def link(self, target: Node, name: str, who: Caller) -> None:
        await self._node.link(target, name, who)

    async def unlink(self, name: str, who: Caller) -> None:
        await self._node.unlink(name, who)

    async def rmdir(self, name: str, who: Caller) -> None:
        await self._node.rmdir(name, who)

    async def rename(self, name: str, new_dir: Node, new_name: str, flags: int, who: Caller) -> None:
        target = new_dir._node if isinstance(new_dir, GuestRoot) else new_dir
        await self._node.rename(name, target, new_name, flags, who)
