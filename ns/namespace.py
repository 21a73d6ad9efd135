"""A task's namespace: the table it may change, seen through the devices of one view.

Tasks that share a namespace share a cell (one table, one queue of changes)
and still have a view each, because `#task` means something else to each of
them. A change reaches the table only when every running task has applied it.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from errno import EACCES, EBUSY, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, EPERM
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import structlog
import trio

from ns.mounts import mount_origin
from ns.table import EMPTY, BindTable, Member, Order, Origin, names_of
from ns.tree import Masked, NsDir, PathDir, tree_dir
from vfs.inline import park
from vfs.node import Caller, Node, is_dir, node_id
from vfs.owned import Owned, Shift
from vfs.waiting import Signal
from vfs.walk import MAX_PATH, split, walk_chain

GROWING = frozenset({Origin("dev")})
"""Directories of devices that take further mountpoints, because nothing of theirs could be meant by a new name."""
LIMIT = 1 << 16
"""How much a table may hold by default: path elements, members and masks together."""

log: Callable[..., Any] = structlog.get_logger("ns").error


class Devices(Protocol):
    """What `#name` means to the holder of one view, and what that holder may name."""

    @property
    def admin(self) -> bool:
        """Whether the holder may take masks away again."""
        ...

    @property
    def owner(self) -> tuple[int, int] | None:
        """The uid and gid of the task that holds the view, None for no task."""
        ...

    def allowed(self, name: str) -> bool:
        """Tell whether the holder may name the device by its own authority (`#host` is the administrator's)."""
        ...

    def per_view(self, origin: Origin) -> bool:
        """Tell whether each view has its own: such a bind is looked up anew, with the authority of who looks."""
        ...

    async def device(self, name: str) -> Node:
        """Return the device. ENOENT."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A step from one table to the next, by a change at `path`; None: anywhere."""

    before: BindTable
    after: BindTable
    path: str | None = None

    def paths(self) -> list[str]:
        """Return every path at which something else is bound or hidden afterwards."""
        if self.path is not None:
            return [self.path]
        before, after = dict(self.before.items()), dict(self.after.items())
        bound = {path for path in before.keys() | after.keys() if before.get(path) is not after.get(path)}
        return sorted(bound.union(set(self.before.hidden_paths()) ^ set(self.after.hidden_paths())))


class Mountpoint(NamedTuple):
    """Where a bind goes: a real path, whether a directory is there (None: nothing is), and the trees behind it."""

    path: str
    dir: bool | None
    own: Sequence[Member]


Plan = Callable[[BindTable], Awaitable[tuple[BindTable, str | None]]]
"""Makes the next table, and names the path that differs if it is one."""


class Realiser(Protocol):
    """Whoever must follow a change: a running task with mounts of its own, a kernel's cache."""

    async def apply(self, change: Change) -> None:
        """Do all of it, or raise OSError (or Cancelled) with nothing done."""
        ...

    async def revert(self, change: Change) -> None:
        """Take an applied change back, because another realiser refused it. Runs shielded from cancellation."""
        ...

    async def settle(self, change: Change) -> None:
        """The table has the change: do what needs the live tree to show it. Too late to refuse: raises nothing."""
        ...


class Cell:
    """A table that changes one step at a time, for all who share it."""

    __slots__ = ("busy", "changed", "fixed", "limit", "realisers", "table")

    def __init__(self, table: BindTable, limit: int) -> None:
        self.table = table
        self.limit = limit
        self.realisers: list[Realiser] = []
        self.busy = False
        self.fixed = False
        self.changed = Signal()

    async def __aenter__(self) -> BindTable:
        """Keep everyone else from changing the table until the block ends."""
        while self.busy:
            await self.changed.wait()
        self.busy = True
        return self.table

    async def __aexit__(self, *_: object) -> None:
        self.busy = False
        self.changed.notify()

    async def change(self, plan: Plan) -> None:
        """Take the step that `plan` makes of the present table; it is asked again if the table changed while it waited.

        ENOSPC; what a realiser raised, and then nothing has changed.
        """
        while True:
            before = self.table
            after, path = await plan(before)
            if after is before:
                return
            if self.fixed:
                raise OSError(EBUSY, "this namespace is fixed")
            if after.size > max(self.limit, before.size):
                raise OSError(ENOSPC, f"the namespace holds more than {self.limit} names")
            async with self as now:
                if now is before:
                    change = Change(before, after, path)
                    if self.realisers:
                        await self._realise(change)
                    self.table = after
                    for realiser in tuple(self.realisers):
                        await realiser.settle(change)
                    return

    async def _realise(self, change: Change) -> None:
        await park()
        done: list[Realiser] = []
        try:
            for realiser in tuple(self.realisers):
                await realiser.apply(change)
                done.append(realiser)
        except BaseException:
            with trio.CancelScope(shield=True):
                for realiser in reversed(done):
                    try:
                        await realiser.revert(change)
                    except OSError as error:
                        log("a task kept a change that was taken back", path=change.path, error=repr(error))
            raise


class Namespace:
    """One view of a namespace. `root` is the live tree; `label` names the view for ever (node ids derive from it)."""

    def __init__(self, devices: Devices, *, label: str, table: BindTable = EMPTY, limit: int = LIMIT) -> None:
        self.devices = devices
        self.label = label
        self.born_ns = time.time_ns()
        self.dirs: WeakValueDictionary[int, NsDir] = WeakValueDictionary()
        self._cell = Cell(table, limit)
        self.root: Node = PathDir(self, ())

    @property
    def table(self) -> BindTable:
        return self._cell.table

    @property
    def fixed(self) -> bool:
        return self._cell.fixed

    def fix(self) -> None:
        """Refuse every further change (EBUSY), so that a kernel may remember what is bound."""
        self._cell.fixed = True

    @property
    def realisers(self) -> list[Realiser]:
        """Who applies changes, in this order; shared by all who share the namespace."""
        return self._cell.realisers

    @property
    def changed(self) -> Signal:
        """Is notified after every change."""
        return self._cell.changed

    def shares_with(self, other: "Namespace") -> bool:
        return self._cell is other._cell

    def allowed(self, name: str) -> bool:
        """Tell whether `#name` may be named from here."""
        return name not in self.table.mask and self.devices.allowed(name)

    def fork(self, devices: Devices, *, label: str, mask: Iterable[str] = ()) -> "Namespace":
        """Return a copy that goes its own way, with these devices masked besides. O(1)."""
        return Namespace(devices, label=label, table=self.table.masked(mask=mask), limit=self._cell.limit)

    def share(self, devices: Devices, *, label: str) -> "Namespace":
        """Return another view of this very namespace."""
        view = Namespace(devices, label=label)
        view._cell = self._cell
        return view

    def join(self, other: "Namespace") -> None:
        """Leave the present table and share that of `other`. EPERM where that would lift a mask."""
        if not (self.table.mask <= other.table.mask and self.table.hidden <= other.table.hidden):
            raise OSError(EPERM, "that namespace has fewer masks")
        self._cell = other._cell

    def copy_from(self, other: "Namespace") -> None:
        """Leave the present table and go on with a copy of that of `other`; masks of both hold. O(1)."""
        table = other.table.masked(mask=self.table.mask, hidden=self.table.hidden)
        self._cell = Cell(table, self._cell.limit)

    def clean(self) -> None:
        """Leave the present table, shared or not, and go on with an empty one. Masks stay."""
        self._cell = Cell(self.table.clear(), self._cell.limit)

    def hold(self) -> AbstractAsyncContextManager[BindTable]:
        """Return an async context manager that gives the table and lets nobody change it: to start a task from it.

        A realiser added inside misses no change and sees none twice.
        """
        return self._cell

    async def resolve(self, member: Member, who: Caller) -> Node:
        """Return what `member` shows in this view. ENOENT where this view has no such device."""
        if member.node is not None:
            return member.node
        node = await self.devices.device(member.origin.device)
        for name in split(member.origin.path):
            node = await node.lookup(name, who)
            if isinstance(node, NsDir):
                raise OSError(ELOOP, "a bind that leads through a namespace")
        return node

    async def named(self, name: str, who: Caller) -> Sequence[Member]:
        """Return the trees that `name` (a path or `#device/path`) stands for here and now.

        Several for a union. EPERM for a device that may not be named, EACCES for what is masked, EINVAL for a
        directory with nothing behind it but binds.
        """
        start, path = await self._start(name, who)
        found = (start,) if isinstance(start, Member) else await self._sources(start, path, who)
        if not found:
            raise OSError(EINVAL, f"{name!r} only leads to binds: there is nothing of its own to bind")
        hidden = self.table.hidden
        if hidden and not all(hidden.isdisjoint(source.origin.upward()) for source in found):
            raise OSError(EACCES, "masked")
        return found

    async def bind(
        self,
        new: str,
        old: str,
        *,
        writer: "Namespace",
        who: Caller,
        order: Order = Order.REPLACE,
        create: bool = False,
        readonly: bool = False,
        owned: bool = False,
    ) -> None:
        """Make what `new` names in the writer's namespace appear at `old` here; `owned`: as the task's user's own.

        EINVAL if just one of both is a directory, or for a union of files; ENOENT where `old` would have to be
        created in a tree; EPERM for a device the writer may not name; ENOSPC.
        """
        sources = await writer.named(new, who)
        members = [self._lasting(source, readonly=readonly) for source in sources]
        members[0] = replace(members[0], create=create)
        for member in members:
            await self.resolve(member, who)
            if len(member.origin.path) > MAX_PATH:
                raise OSError(ENAMETOOLONG, "what is bound has too long a name")
        if owned:
            if not writer.devices.admin:
                raise OSError(EPERM, "only the administrator may give away what belongs to others")
            members = [await self._given(member) for member in members]
        if order is not Order.REPLACE and not members[0].dir:
            raise OSError(EINVAL, "only directories make a union")

        async def plan(table: BindTable) -> tuple[BindTable, str | None]:
            point = await self._mountpoint(old, who)
            if point.dir not in (None, members[0].dir):
                raise OSError(EINVAL, "a directory and a file")
            if order is not Order.REPLACE and point.own and not table.members(point.path):
                table = table.bind(point.path, [self._lasting(own) for own in point.own])
            return table.bind(point.path, members, order), point.path

        await self._cell.change(plan)

    async def mount(
        self,
        address: str,
        old: str,
        aname: str = "/",
        *,
        writer: "Namespace",
        who: Caller,
        order: Order = Order.REPLACE,
        create: bool = False,
        readonly: bool = False,
    ) -> None:
        """Dial a 9P server and make its tree appear at `old`: `bind` of what the device `#9p` dials."""
        new = str(mount_origin(address, aname))
        await self.bind(new, old, writer=writer, who=who, order=order, create=create, readonly=readonly)

    async def unbind(self, old: str, new: str | None = None, *, writer: "Namespace", who: Caller) -> None:
        """Take `new`, or all that is bound, from `old`; the administrator also unmasks a path so.

        ENOENT where nothing is bound; EPERM for another's mask.
        """
        origins: set[Origin] | None = None
        if new is not None:
            found = [Origin.parse(new)] if new[:1] == "#" else [s.origin for s in await writer.named(new, who)]
            origins = set(found)

        async def plan(table: BindTable) -> tuple[BindTable, str | None]:
            path, bound = self._bound_at(old)
            if not bound or table.hidden.issuperset(member.origin for member in bound):
                chain = await walk_chain(self.root, old, who)
                last = chain[-1][1]
                if isinstance(last, Masked):
                    if not writer.devices.admin:
                        raise OSError(EPERM, "only the administrator takes a mask away")
                    return table.revealed(last.origins), None
                path = "/" + "/".join(name for name, _ in chain[1:])
            after = table.unbind(path, origins)
            if after is table:
                raise OSError(ENOENT, f"not bound at {path!r}")
            return after, path

        await self._cell.change(plan)

    async def mask(self, what: str, *, who: Caller) -> None:
        """Take away, for good and for every fork: the right to name `#device`, or the sight of what is at a path.

        A path's mask follows the thing (`#device/path` names it directly), wherever else it is or gets bound.
        """
        devices: list[str] = []
        things: list[Origin] = []
        if what[:1] == "#":
            origin = Origin.parse(what)
            if origin.path:
                things.append(origin)
            else:
                devices.append(origin.device)
        else:
            things += [source.origin for source in await self.named(what, who)]

        async def plan(table: BindTable) -> tuple[BindTable, str | None]:
            return table.masked(mask=devices, hidden=things), None

        await self._cell.change(plan)

    async def clear(self) -> None:
        """Take every bind away, for all who share. Masks stay."""

        async def plan(table: BindTable) -> tuple[BindTable, str | None]:
            return table.clear(), None

        await self._cell.change(plan)

    async def _sources(self, start: NsDir, path: str | list[str], who: Caller) -> Sequence[Member]:
        chain = await walk_chain(start, path, who)
        step, last = chain[-1]
        if isinstance(last, Masked):
            raise OSError(EACCES, "masked")
        if isinstance(last, NsDir):
            return await last.sources(who)
        parent = chain[-2][1]
        assert isinstance(parent, NsDir)
        return await parent.child_sources(step, who)

    async def _start(self, name: str, who: Caller) -> tuple[NsDir | Member, str | list[str]]:
        """Return where the walk to `name` begins and what is left to walk; a member for a device that is a file."""
        if name[:1] != "#":
            if name[:1] != "/":
                raise OSError(EINVAL, f"neither an absolute path nor a device: {name!r}")
            assert isinstance(self.root, NsDir)
            return self.root, name
        origin = Origin.parse(name)
        if self.allowed(origin.device):
            node = await self.devices.device(origin.device)
            top = Member(Origin(origin.device), node, dir=is_dir(await node.stat()))
        else:
            holder = self.table.holder(origin)
            if holder is None:
                raise OSError(EPERM, f"#{origin.device} may not be named here")
            top = replace(holder, node=await self.resolve(holder, who), create=False)
        rest = origin.below(top.origin)
        if top.dir:
            return tree_dir(self, None, top, node_id("ns", self.label, "#")), rest
        if rest:
            raise OSError(ENOTDIR, f"not a directory: {str(top.origin)!r}")
        return top, rest

    async def _given(self, member: Member) -> Member:
        """Return what its owner holds at `member` as what the holder of this namespace does. EINVAL."""
        if member.node is None or self.devices.owner is None:
            raise OSError(EINVAL, "-i gives a tree that is not each view's own to a task")
        node = member.node.node if isinstance(member.node, Owned) else member.node
        st = await node.stat()
        if not (st.st_uid and st.st_gid):
            raise OSError(
                EPERM, "what belongs to root is not given away: its new owner could make programs that act as root"
            )
        uid, gid = self.devices.owner
        return replace(
            member, node=Owned(node, Shift(from_uid=st.st_uid, from_gid=st.st_gid, uid=uid, gid=gid)), owned=True
        )

    def _lasting(self, source: Member, *, readonly: bool = False) -> Member:
        """Return `source` as a table keeps it: without a node where each view has its own."""
        node = None if self.devices.per_view(source.origin) else source.node
        return Member(source.origin, node, readonly=readonly or source.readonly, owned=source.owned, dir=source.dir)

    def _bound_at(self, old: str) -> tuple[str, Sequence[Member]]:
        """Return the path and what the table says about it without asking any tree: one may be dead or slow.

        Binds are kept by their real path, so a path that is bound as it stands is real.
        """
        path = "/" + "/".join(names_of(old))
        return path, () if ".." in split(old) else self.table.members(path)

    async def _mountpoint(self, old: str, who: Caller) -> Mountpoint:
        """Resolve `old`. ENOENT where it is missing in a tree: only directories of our own grow mountpoints."""
        path, bound = self._bound_at(old)
        if bound:
            return Mountpoint(path, bound[0].dir, ())
        chain, rest = await self._walk_as_far_as_possible(split(old), who)
        path = "/" + "/".join([name for name, _ in chain[1:]] + rest)
        step, last = chain[-1]
        if isinstance(last, Masked):
            raise OSError(EACCES, "masked")
        if isinstance(last, NsDir):
            own = await last.sources(who)
        elif rest:
            raise OSError(ENOTDIR, f"not a directory: {step!r}")
        else:
            own = ()
        if not rest:
            return Mountpoint(path, isinstance(last, NsDir), own)
        if not {member.origin for member in own} <= GROWING or ".." in rest:
            raise OSError(ENOENT, f"{path!r} does not exist, and a bind creates nothing in a tree")
        return Mountpoint(path, None, ())

    async def _walk_as_far_as_possible(self, parts: list[str], who: Caller) -> tuple[list[tuple[str, Node]], list[str]]:
        """Return the steps to the deepest part of the path that exists, and the names that do not."""
        found, missing = [("", self.root)], len(parts) + 1
        known, probe = 0, len(parts)
        while known < probe:
            try:
                found = await walk_chain(self.root, parts[:probe], who)
                known = probe
            except OSError as error:
                if error.errno != ENOENT:
                    raise
                missing = probe
            probe = (known + missing) // 2
        return found, parts[known:]
