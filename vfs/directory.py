"""Synthetic directories: literal ones, whose tree is written down in source, and live ones, whose names come and go."""

import stat as statmod
from collections.abc import Callable, Iterable, Mapping, Sequence

from vfs.files import Owner, Synthetic
from vfs.node import Caller, DirEntry, Node, Stat, no_entry, node_id

Child = Node | Callable[[], Node]


class Dir(Synthetic):
    """A directory written down as a literal: names in the order `ls` shows them.

    Children without an id or owner get theirs from here, so a whole tree
    needs one id and one owner, at its top. A child that costs something may be
    given as a function that makes it at lookup.
    """

    __slots__ = ("children",)

    def __init__(
        self,
        children: Mapping[str, Child],
        *,
        mode: int = 0o555,
        owner: Owner | None = None,
        id: int = 0,
    ) -> None:
        super().__init__(statmod.S_IFDIR | mode, owner, id)
        self.children = children

    async def stat(self) -> Stat:
        return (await super().stat())._replace(st_nlink=2)

    async def lookup(self, name: str, who: Caller) -> Node:
        child = self.children.get(name)
        if child is None:
            raise no_entry(name)
        return self.adopt(name, child)

    def adopt(self, name: str, child: Child) -> Node:
        """Give `child` what it left open: an id derived from ours and its name, and our owner."""
        if not isinstance(child, Node):
            child = child()
        if isinstance(child, Synthetic):
            if not child.id:
                child.id = node_id(self.id, name)
            if child.owner is None:
                child.owner = self.owner
        return child

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        return [self._entry(name, child) for name, child in self.children.items()]

    def _entry(self, name: str, child: Child) -> DirEntry:
        if not isinstance(child, Node):
            return DirEntry(name, node_id(self.id, name), 0)
        self.adopt(name, child)
        kind = statmod.S_IFMT(child.mode) if isinstance(child, Synthetic) else 0
        return DirEntry(name, child.id, kind)


class LiveDir(Dir):
    """A directory whose further names come and go: `names()` lists them, `child(name, who)` makes one or raises ENOENT.

    `fixed` holds the names that are always there; they come first and win.
    The listing must be cheap: it makes no nodes. `kind` is the file type that it shows for live names.
    """

    __slots__ = ("child", "child_kind", "names")

    def __init__(
        self,
        names: Callable[[], Iterable[str]],
        child: Callable[[str, Caller], Node],
        *,
        fixed: Mapping[str, Child] | None = None,
        kind: int = 0,
        mode: int = 0o555,
        owner: Owner | None = None,
        id: int = 0,
    ) -> None:
        super().__init__(fixed or {}, mode=mode, owner=owner, id=id)
        self.names = names
        self.child = child
        self.child_kind = kind

    async def lookup(self, name: str, who: Caller) -> Node:
        fixed = self.children.get(name)
        if fixed is not None:
            return self.adopt(name, fixed)
        return self.adopt(name, self.child(name, who))

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        entries = [self._entry(name, child) for name, child in self.children.items()]
        entries += [DirEntry(name, node_id(self.id, name), self.child_kind) for name in self.names()]
        return entries
