"""The live namespace as a tree of nodes: unions, mountpoints, and the directories inside what is bound.

Every operation asks the table as it is now, so a bind is seen by whoever
already holds a directory. Files of a writable bind are the trees' own nodes:
only directories (whose meaning depends on their path) and what is read-only are wrapped.
"""

import os
import stat as statmod
from collections.abc import Sequence
from dataclasses import replace
from errno import EACCES, EBUSY, EEXIST, EISDIR, ELOOP, ENOENT, EPERM, EROFS, EXDEV
from functools import lru_cache
from typing import Protocol
from weakref import WeakValueDictionary

from ns.table import NOWHERE, BindTable, Member, Origin, Place
from vfs.access import EXECUTE, READ, WRITE, check, check_sticky, permitted
from vfs.node import ROOT, Caller, DirEntry, Handle, Node, SetStat, Stat, StatFs, StatResult, is_dir, no_entry, node_id

MAX_NESTING = 8
"""How many namespaces a path may lead through (`ns/root` inside `ns/root`): ELOOP beyond."""
NAME_SECONDS = 60.0
"""How long a kernel may trust that a mountpoint of a fixed namespace is one."""
_ID_BITS = (1 << 63) - 1
_SPREAD = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing; nested salts must not cancel out
_READONLY = node_id("ns", "readonly")
_SPECIAL = (statmod.S_IFIFO, statmod.S_IFCHR, statmod.S_IFBLK, statmod.S_IFSOCK)


class View(Protocol):
    """What a tree needs of its namespace."""

    label: str
    """Names the view for ever; node ids derive from it."""
    born_ns: int
    dirs: "WeakValueDictionary[int, NsDir]"

    @property
    def fixed(self) -> bool:
        """Whether its table changes no more."""
        ...

    @property
    def table(self) -> BindTable: ...

    async def resolve(self, member: Member, who: Caller) -> Node:
        """Return what `member` shows in this view. ENOENT where this view has no such device."""
        ...


def mixed(id: int, salt: int) -> int:
    """Return `id` as seen under `salt`: as unique as `id` is, never 0 or 1."""
    mix = (id * _SPREAD ^ salt) & _ID_BITS
    return mix if mix > 1 else mix + 2


class Masked(Node):
    """What is seen in place of a hidden file or directory: nothing, mode 0."""

    __slots__ = ("mode", "origins")

    def __init__(self, id: int, mode: int, origins: Sequence[Origin]) -> None:
        self.id = id
        self.mode = mode
        self.origins = origins

    async def stat(self) -> Stat:
        return Stat(self.mode, st_ino=self.id)

    async def lookup(self, name: str, who: Caller) -> Node:
        if not statmod.S_ISDIR(self.mode):
            return await super().lookup(name, who)
        raise no_entry(name)

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        return () if statmod.S_ISDIR(self.mode) else await super().readdir(who)

    async def open(self, flags: int, who: Caller) -> Handle:
        raise OSError(EACCES, "masked")


class ReadOnly(Node):
    """A file of a read-only bind: every change is EROFS. Fifos, sockets and devices still take writes, as in Linux."""

    __slots__ = ("allocates", "cache_seconds", "node", "unshared")

    def __init__(self, node: Node) -> None:
        self.id = mixed(node.id, _READONLY)
        self.node = node
        self.cache_seconds = node.cache_seconds
        self.unshared = node.unshared
        self.allocates = node.allocates

    async def stat(self) -> StatResult:
        return await self.node.stat()

    async def setstat(self, change: SetStat, who: Caller) -> None:
        raise _readonly()

    async def readlink(self) -> str:
        return await self.node.readlink()

    async def open(self, flags: int, who: Caller) -> Handle:
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writes and statmod.S_IFMT((await self.node.stat()).st_mode) not in _SPECIAL:
            raise _readonly()
        return await self.node.open(flags, who)

    async def statfs(self) -> StatFs:
        return await self.node.statfs()

    async def listxattr(self) -> Sequence[str]:
        return await self.node.listxattr()

    async def getxattr(self, name: str) -> bytes:
        return await self.node.getxattr(name)

    async def setxattr(self, name: str, value: bytes, flags: int, who: Caller) -> None:
        raise _readonly()

    async def removexattr(self, name: str, who: Caller) -> None:
        raise _readonly()


class NsDir(Node):
    """A directory of a namespace at the path `names` (None: named by device, where nothing can be bound)."""

    __slots__ = ("names", "nesting", "salt", "view")

    view: View
    names: tuple[str, ...] | None
    salt: int
    """Tells the directories below one mountpoint from the same ones below another."""
    nesting: int
    """How many further namespaces the path to here leads through."""

    async def members(self, who: Caller) -> Sequence[Member]:
        """Return what shows through here, in search order, each with its node; none where we only lead to binds."""
        raise NotImplementedError

    async def sources(self, who: Caller) -> Sequence[Member]:
        """Return the trees behind this directory, those behind another namespace's directory included."""
        return [source for member in await self.members(who) for source in await _behind(member, who)]

    async def child_sources(self, name: str, who: Caller) -> Sequence[Member]:
        """Return the trees behind the child `name`; none where it only leads to binds. ENOENT."""
        below = self._place().children.get(name)
        if below is not None and below.members:
            shown = await visible(self.view, below.members, who)
            return [source for member in shown for source in await _behind(member, who)]
        try:
            member, node = await self._first(name, who)
        except OSError as error:
            if error.errno == ENOENT and below is not None:
                return []
            raise
        if isinstance(member.node, NsDir):
            return _no_more_than(member, await member.node.child_sources(name, who))
        dir = is_dir(await node.stat())
        return [replace(member, origin=member.origin.child(name), node=node, create=False, dir=dir)]

    async def lookup(self, name: str, who: Caller) -> Node:
        below = self._place().children.get(name)
        if below is not None and below.members:
            return await self._bound(name, below, who)
        try:
            member, node = await self._first(name, who)
        except OSError as error:
            if error.errno == ENOENT and below is not None:
                return path_dir(self.view, (*(self.names or ()), name))
            raise
        st = await node.stat()
        hidden = self.view.table.hidden
        if hidden and (origin := member.origin.child(name)) in hidden:
            return Masked(mixed(node.id, self.salt), statmod.S_IFMT(st.st_mode), [origin])
        if is_dir(st):
            return self._dir(member, name, node)
        return ReadOnly(node) if member.readonly else node

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        children = self._place().children
        members = await self.members(who)
        if len(members) == 1 and not children:
            return await self._listed(members[0], who)
        entries: dict[str, DirEntry] = {}
        for member in members:
            if not await _may(member, members, who, READ):
                continue
            for entry in await self._listed(member, who):
                entries.setdefault(entry.name, entry)
        for name in sorted(children):
            place = children[name]
            if name in entries and not place.members:
                continue  # a directory of the tree that leads to binds
            shown = await visible(self.view, place.members, who, masked=True)
            if shown or place.children or not place.members:
                entries[name] = self._point(name, place, shown)
        return list(entries.values())

    async def open(self, flags: int, who: Caller) -> Handle:
        raise OSError(EISDIR, "a directory")

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> tuple[Node, Handle]:
        return await _node(await self._home(name, who)).create(name, flags, mode, who)

    async def mkdir(self, name: str, mode: int, who: Caller) -> Node:
        member = await self._home(name, who)
        return self._dir(member, name, await _node(member).mkdir(name, mode, who))

    async def symlink(self, name: str, target: str, who: Caller) -> Node:
        return await _node(await self._home(name, who)).symlink(name, target, who)

    async def mknod(self, name: str, mode: int, rdev: int, who: Caller) -> Node:
        return await _node(await self._home(name, who)).mknod(name, mode, rdev, who)

    async def link(self, target: Node, name: str, who: Caller) -> None:
        if isinstance(target, ReadOnly | Masked):
            raise OSError(EXDEV, "the link would not be read-only")
        if isinstance(target, NsDir):
            raise OSError(EPERM, "directories have one name")
        await _node(await self._home(name, who)).link(target, name, who)

    async def unlink(self, name: str, who: Caller) -> None:
        await _node(await self._owner(name, who)).unlink(name, who)

    async def rmdir(self, name: str, who: Caller) -> None:
        await _node(await self._owner(name, who)).rmdir(name, who)

    async def rename(self, name: str, new_dir: Node, new_name: str, flags: int, who: Caller) -> None:
        """Rename inside one tree: neither name may be a mountpoint (EBUSY); EXDEV across trees."""
        if not isinstance(new_dir, NsDir):
            raise OSError(EXDEV, "another tree")
        source = await self._owner(name, who)
        try:
            target = await new_dir._owner(new_name, who)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            target = await new_dir._home(new_name, who)
        await _node(source).rename(name, _node(target), new_name, flags, who)

    async def setstat(self, change: SetStat, who: Caller) -> None:
        await (await self._writable(who)).setstat(change, who)

    async def statfs(self) -> StatFs:
        members = await self.members(ROOT)
        return await _node(_face(members)).statfs() if members else StatFs()

    async def listxattr(self) -> Sequence[str]:
        members = await self.members(ROOT)
        return await _node(_face(members)).listxattr() if members else ()

    async def getxattr(self, name: str) -> bytes:
        members = await self.members(ROOT)
        return await (_node(_face(members)).getxattr(name) if members else super().getxattr(name))

    async def setxattr(self, name: str, value: bytes, flags: int, who: Caller) -> None:
        await (await self._writable(who)).setxattr(name, value, flags, who)

    async def removexattr(self, name: str, who: Caller) -> None:
        await (await self._writable(who)).removexattr(name, who)

    def _point(self, name: str, place: Place, shown: Sequence[Member]) -> DirEntry:
        """Return the entry of the mountpoint `name`, where `shown` is visible."""
        id = path_id(self.view.label, (*(self.names or ()), name))
        if not place.members or place.members[0].dir:
            return DirEntry(name, id, statmod.S_IFDIR)
        if shown and not self.view.table.hidden.issuperset(member.origin for member in place.members):
            id = mixed(_node(shown[0]).id, _READONLY) if shown[0].readonly else _node(shown[0]).id
        return DirEntry(name, id, 0)

    async def _listed(self, member: Member, who: Caller) -> Sequence[DirEntry]:
        """Return the names of `member`, each with the id of what `lookup` makes of it."""
        salt = _salt(member, self.salt)
        entries = await _node(member).readdir(who)
        return [
            entry._replace(id=mixed(entry.id or entry.ino, salt if entry.type == statmod.S_IFDIR else _READONLY))
            if entry.type == statmod.S_IFDIR or member.readonly
            else entry
            for entry in entries
        ]

    def _union(self) -> bool:
        """Tell whether creating needs a member that is marked for it."""
        return False

    def _place(self) -> Place:
        return (self.view.table.find(self.names) if self.names is not None else None) or NOWHERE

    async def _first(self, name: str, who: Caller) -> tuple[Member, Node]:
        """Return the first member that has `name` and that `who` may search, and its node there. ENOENT."""
        members = await self.members(who)
        for member in members:
            try:
                node = await _node(member).lookup(name, who)
            except OSError as error:
                if error.errno != ENOENT:
                    raise
                continue
            if await _may(member, members, who, EXECUTE):
                return member, node
        raise no_entry(name)

    def _dir(self, member: Member, name: str, node: Node) -> "TreeDir":
        """Return the directory `node`, which is the child `name` of `member`."""
        names = None if self.names is None else (*self.names, name)
        child = Member(member.origin.child(name), node, readonly=member.readonly, owned=member.owned)
        return tree_dir(self.view, names, child, self.salt)

    async def _bound(self, name: str, place: Place, who: Caller) -> Node:
        """Return the mountpoint `name`."""
        names = (*(self.names or ()), name)
        first = place.members[0]
        origins = [member.origin for member in place.members]
        if self.view.table.hidden.issuperset(origins):
            kind = statmod.S_IFDIR if first.dir else statmod.S_IFREG
            return Masked(path_id(self.view.label, names), kind, origins)
        if first.dir:
            return path_dir(self.view, names)
        node = await self.view.resolve(first, who)
        return ReadOnly(node) if first.readonly else node

    async def _home(self, name: str, who: Caller) -> Member:
        """Return the member that takes a new `name`. EEXIST, EPERM, EROFS."""
        if name in self._place().children:
            raise OSError(EEXIST, "a mountpoint")
        members = await self.members(who)
        if self._union():
            try:
                await self._first(name, who)
            except OSError as error:
                if error.errno != ENOENT:
                    raise
            else:
                raise OSError(EEXIST, "exists in the union")
            members = [member for member in members if member.create]
        if not members:
            raise OSError(EPERM, "nothing bound here takes new files")
        if members[0].readonly:
            raise _readonly()
        return members[0]  # whose attributes are shown, so the server has checked it

    async def _owner(self, name: str, who: Caller) -> Member:
        """Return the member whose `name` is seen here, to be changed there. EBUSY for mountpoints, EROFS, ENOENT."""
        if name in self._place().children:
            raise OSError(EBUSY, "a mountpoint")
        member, node = await self._first(name, who)
        if member.origin.child(name) in self.view.table.hidden:
            raise OSError(EPERM, "masked")
        if member.readonly:
            raise _readonly()
        if member is not _face(await self.members(who)):
            parent = await _node(member).stat()
            check(parent, who, WRITE | EXECUTE)
            check_sticky(parent, await node.stat(), who)
        return member

    async def _writable(self, who: Caller) -> Node:
        """Return the node whose attributes are this directory's. EPERM, EROFS."""
        members = await self.members(who)
        if not members:
            raise OSError(EPERM, "the directory only leads to binds")
        face = _face(members)
        if face.readonly:
            raise _readonly()
        return _node(face)


class PathDir(NsDir):
    """What the table says about a path now: a mountpoint, a union, or a directory that only leads to binds.

    The attributes of a union are those of the member that takes new files, else of the first. So a server that
    checks them has checked that member; the others are checked here, lest a union opens what a path had closed.
    """

    __slots__ = ("_shown", "_table", "name_seconds")

    def __init__(self, view: View, names: tuple[str, ...]) -> None:
        self.view = view
        self.names = names
        self.nesting = 0
        self.id = self.salt = path_id(view.label, names)
        self.name_seconds = NAME_SECONDS if view.fixed else 0.0
        self._table: BindTable | None = None  # for which `_shown` holds
        self._shown: Sequence[Member] = ()

    def _union(self) -> bool:
        return len(self._place().members) > 1

    async def members(self, who: Caller) -> Sequence[Member]:
        table = self.view.table
        if self._table is table:
            return self._shown
        bound = self._place().members
        if not bound:
            return ()
        shown = await visible(self.view, bound, who)
        if not shown and table.hidden.issuperset(member.origin for member in bound):
            raise OSError(EACCES, "masked")
        if len(shown) == len(bound) and all(member.node or not member.origin.path for member in bound):
            self._table, self._shown = table, shown  # whole trees: the same for whoever asks
        return shown

    async def stat(self) -> StatResult:
        if members := await self.members(ROOT):
            return await _node(_face(members)).stat()
        if self.names and not self._place().children:
            raise OSError(ENOENT, "no longer bound")
        time = self.view.born_ns
        return Stat(statmod.S_IFDIR | 0o755, self.id, 2, st_atime_ns=time, st_mtime_ns=time, st_ctime_ns=time)

    def host_path(self) -> str | None:
        bound = self._place().members
        return bound[0].node.host_path() if len(bound) == 1 and bound[0].node else None


class TreeDir(NsDir):
    """A directory inside one bound tree; made by `tree_dir`."""

    __slots__ = ("cache_seconds", "member")

    def __init__(self, view: View, names: tuple[str, ...] | None, member: Member, salt: int) -> None:
        self.view = view
        self.names = names
        self.member = member
        self.salt = salt
        self.nesting = 0
        node = _node(member)
        if isinstance(node, NsDir):
            self.nesting = node.nesting + 1
            if self.nesting > MAX_NESTING:
                raise OSError(ELOOP, "too many namespaces inside each other")
        self.cache_seconds = node.cache_seconds

    async def members(self, who: Caller) -> Sequence[Member]:
        return (self.member,)

    async def stat(self) -> StatResult:
        return await _node(self.member).stat()

    def host_path(self) -> str | None:
        return _node(self.member).host_path()


@lru_cache(maxsize=1 << 14)
def path_id(label: str, names: tuple[str, ...]) -> int:
    """Return the id of what the table of that view says about a path."""
    return node_id("ns", label, *names)


def path_dir(view: View, names: tuple[str, ...]) -> PathDir:
    """Return what the table says about a path: the same object while anyone holds it."""
    id = path_id(view.label, names)
    found = view.dirs.get(id)
    if not isinstance(found, PathDir):
        found = view.dirs[id] = PathDir(view, names)
    return found


def tree_dir(view: View, names: tuple[str, ...] | None, member: Member, salt: int) -> TreeDir:
    """Return the directory `member` below the mountpoint of `salt`, found now at `names`.

    The same directory is the same object while anyone holds it, and learns its present path at each lookup:
    it may have been renamed.
    """
    id = mixed(_node(member).id, _salt(member, salt))
    found = view.dirs.get(id)
    if not isinstance(found, TreeDir):
        found = view.dirs[id] = TreeDir(view, names, member, salt)
        found.id = id
    else:
        found.names = names
        found.member = member
    return found


def _salt(member: Member, salt: int) -> int:
    """Return what tells the directories of `member` below the mountpoint of `salt` from all others."""
    return salt ^ _READONLY if member.readonly else salt


async def visible(view: View, members: Sequence[Member], who: Caller, *, masked: bool = False) -> Sequence[Member]:
    """Return those `members` that this view shows, each with its node; with `masked` the hidden ones too."""
    hidden = view.table.hidden
    shown = []
    for member in members:
        if not masked and member.origin in hidden:
            continue
        if member.node is None:
            try:
                member = replace(member, node=await view.resolve(member, who))
            except OSError as error:
                if error.errno != ENOENT:
                    raise
                continue
        shown.append(member)
    return shown


async def _behind(member: Member, who: Caller) -> Sequence[Member]:
    """Return the trees that `member` shows if it is a directory of another namespace, else itself."""
    if not isinstance(member.node, NsDir):
        return (member,)
    return _no_more_than(member, await member.node.sources(who))


def _no_more_than(member: Member, sources: Sequence[Member]) -> Sequence[Member]:
    """Return `sources`, reached through `member`, read-only if that is."""
    return [replace(source, readonly=True) for source in sources] if member.readonly else sources


def _face(members: Sequence[Member]) -> Member:
    """Return the member whose attributes a directory shows."""
    return members[0] if len(members) == 1 else next((m for m in members if m.create), members[0])


async def _may(member: Member, members: Sequence[Member], who: Caller, want: int) -> bool:
    """Tell whether `who` may use this one of `members`; the server has checked the one that is shown."""
    return len(members) == 1 or member is _face(members) or permitted(await _node(member).stat(), who, want)


def _node(member: Member) -> Node:
    assert member.node is not None, member
    return member.node


def _readonly() -> OSError:
    return OSError(EROFS, "bound read-only")
