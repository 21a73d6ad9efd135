"""The whole host as one tree: every mounted filesystem is a host tree of its own, entered where it is mounted.

Host trees hold private copies of single mounts, so that our own FUSE mount is
never below one of them. This is what puts them together for naming; a mount
of ours shows as the empty directory that it covers.
"""

import os
import re
from collections.abc import Sequence

from vfs.host import HostTree
from vfs.node import Caller, DirEntry, Handle, Node, SetStat, StatFs, StatResult

_ESCAPED = re.compile(r"\\([0-7]{3})")


def mountpoints(table: str, *, skip: str) -> set[str]:
    """Return the mountpoints that a mountinfo text (proc(5)) lists, without those of filesystem type `skip`."""
    points = set()
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] != skip:
            points.add(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields.split(" ")[4]))
    return points


class HostMounts:
    """Gives the root of the host's file hierarchy, mounts included, as it is at the moment of the call."""

    def __init__(self, *, label: str = "host", skip: str = "fuse.wanixfs") -> None:
        self._label = label
        self._skip = skip
        self._trees: dict[tuple[str, int], HostTree] = {}

    def root(self) -> Node:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            points = mountpoints(table.read(), skip=self._skip)
        return self._enter("/", points)

    def _enter(self, path: str, points: set[str]) -> Node:
        node = self._tree(path).root
        return self._wrap(node, path, points)

    def _tree(self, path: str) -> HostTree:
        key = (path, os.stat(path).st_dev)
        tree = self._trees.get(key)
        if tree is None:
            tree = self._trees[key] = HostTree(path, label=f"{self._label}:{path}", devices=False)
        return tree

    def _wrap(self, node: Node, path: str, points: set[str]) -> Node:
        prefix = path.rstrip("/") + "/"
        below = {point for point in points if point.startswith(prefix) and point != path}
        return MountedAbove(self, node, path, below) if below else node

    def child(self, parent: "MountedAbove", name: str, node: Node) -> Node:
        """Return what stands at `name` below a directory that leads to mounts."""
        path = parent.path.rstrip("/") + "/" + name
        if path in parent.points:
            return self._enter(path, parent.points)
        return self._wrap(node, path, parent.points)


class MountedAbove(Node):
    """A host directory that leads to mounts: itself in everything but what its names lead to."""

    __slots__ = ("mounts", "node", "path", "points")

    def __init__(self, mounts: HostMounts, node: Node, path: str, points: set[str]) -> None:
        self.id = node.id
        self.mounts = mounts
        self.node = node
        self.path = path
        self.points = points

    async def lookup(self, name: str, who: Caller) -> Node:
        return self.mounts.child(self, name, await self.node.lookup(name, who))

    async def stat(self) -> StatResult:
        return await self.node.stat()

    async def setstat(self, change: SetStat, who: Caller) -> None:
        await self.node.setstat(change, who)

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        return await self.node.readdir(who)

    async def statfs(self) -> StatFs:
        return await self.node.statfs()

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> tuple[Node, Handle]:
        return await self.node.create(name, flags, mode, who)

    async def mkdir(self, name: str, mode: int, who: Caller) -> Node:
        return await self.node.mkdir(name, mode, who)

    async def symlink(self, name: str, target: str, who: Caller) -> Node:
        return await self.node.symlink(name, target, who)

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> Node:
        return await self.node.mknod(name, mode, rdev, who)

    async def link(self, target: Node, name: str, who: Caller) -> None:
        await self.node.link(target, name, who)

    async def unlink(self, name: str, who: Caller) -> None:
        await self.node.unlink(name, who)

    async def rmdir(self, name: str, who: Caller) -> None:
        await self.node.rmdir(name, who)

    async def rename(self, name: str, new_dir: Node, new_name: str, flags: int, who: Caller) -> None:
        target = new_dir.node if isinstance(new_dir, MountedAbove) else new_dir
        await self.node.rename(name, target, new_name, flags, who)
