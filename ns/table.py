"""The bind table: what is bound where, as one immutable value.

Immutable so that a fork is a shared reference whatever the table's size, and
so that a change can be made, tried on running tasks and dropped without a trace.
It is a trie of path elements: one walk down answers both "what is bound here"
and "is anything bound below", and a long path costs its elements, not its prefixes.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from errno import EINVAL, ENAMETOOLONG
from typing import NamedTuple

from immutables import Map

from vfs.node import Node, check_name
from vfs.walk import split

MAX_DEPTH = 256
"""Elements of a bound path at the most: every lookup below one goes through them all."""
DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")


class Origin(NamedTuple):
    """What a bind shows, by name: a path inside a device. Prints as `#host/usr/bin`, the whole device as `#task`."""

    device: str
    path: str = ""

    def __str__(self) -> str:
        return f"#{self.device}/{self.path}" if self.path else f"#{self.device}"

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """Read `#device/path`. EINVAL for anything else, ".." included."""
        device, _, path = text[1:].partition("/")
        if text[:1] != "#" or not DEVICE.fullmatch(device):
            raise OSError(EINVAL, f"not a device name: {text!r}")
        names = split(path)
        if ".." in names:
            raise OSError(EINVAL, "no .. in a device path")
        return cls(device, "/".join(names))

    def child(self, name: str) -> "Origin":
        return Origin(self.device, f"{self.path}/{name}" if self.path else name)

    def upward(self) -> "Iterator[Origin]":
        """Yield this origin, then each one above it up to the whole device."""
        path = self.path
        while path:
            yield Origin(self.device, path)
            path = path.rpartition("/")[0]
        yield Origin(self.device)

    def below(self, above: "Origin") -> list[str]:
        """Return the path elements that lead from `above`, which holds this one, down to it."""
        return [name for name in self.path[len(above.path) :].split("/") if name]


@dataclass(frozen=True, slots=True)
class Member:
    """One thing bound at a path; a path with several is a union, searched in order.

    `node` is what was bound, None where each view has its own (`#task`): then it is found by `origin` at every
    lookup. `create`: new files of the union may go here. `owned`: its owner appears as the task's user. `dir`: whether
    it is a directory.
    """

    origin: Origin
    node: Node | None = field(default=None, compare=False)
    create: bool = False
    readonly: bool = False
    owned: bool = False
    dir: bool = True


class Order(Enum):
    """Where a bind puts what is new: instead of what is there, before it or after it."""

    REPLACE = ""
    BEFORE = "b"
    AFTER = "a"


class Place(NamedTuple):
    """A path with something bound at it (`members`) or below it (`children`), or both.

    `serial` orders the bound places by age; `size` counts this place, its members and all that is below.
    """

    members: tuple[Member, ...]
    children: "Map[str, Place]"
    serial: int
    size: int


NOWHERE = Place((), Map(), 0, 0)
NOBODY: "Map[int, Member]" = Map()


def names_of(path: str) -> tuple[str, ...]:
    """Return the elements of the absolute `path`; ".." at the root stays there.

    EINVAL if relative; ENAMETOOLONG.
    """
    if not path.startswith("/"):
        raise OSError(EINVAL, f"not an absolute path: {path!r}")
    names: list[str] = []
    for name in split(path):
        if name != "..":
            names.append(check_name(name))
        elif names:
            names.pop()
    if len(names) > MAX_DEPTH:
        raise OSError(ENAMETOOLONG, f"more than {MAX_DEPTH} directories deep")
    return tuple(names)


@dataclass(frozen=True, slots=True, eq=False)
class BindTable:
    """Every bind of a namespace, the devices it may not name (`mask`) and the things it may not see (`hidden`).

    A member belongs to one path: whoever binds the same thing twice makes two. `held` finds members by origin,
    each under its `id()`.
    """

    root: Place = NOWHERE
    held: "Map[Origin, Map[int, Member]]" = field(default_factory=Map)
    mask: frozenset[str] = frozenset()
    hidden: frozenset[Origin] = frozenset()
    serial: int = 0

    @property
    def size(self) -> int:
        """How much the table holds: path elements, members and masks."""
        return self.root.size + len(self.mask) + len(self.hidden)

    def find(self, names: Iterable[str]) -> Place | None:
        """Return the place at this path, None if nothing is bound there nor below."""
        place: Place | None = self.root
        for name in names:
            if place is None:
                return None
            place = place.children.get(name)
        return place

    def members(self, path: str) -> tuple[Member, ...]:
        """Return what is bound at exactly this path, in search order."""
        place = self.find(names_of(path))
        return place.members if place else ()

    def children_below(self, path: str) -> frozenset[str]:
        """Return the names in this directory that exist because something is bound at or below them."""
        place = self.find(names_of(path))
        return frozenset(place.children) if place else frozenset()

    def items(self) -> list[tuple[str, tuple[Member, ...]]]:
        """Return every bound path with its members, oldest bind first."""
        return [("/" + "/".join(names), place.members) for names, place in self.places()]

    def places(self) -> list[tuple[tuple[str, ...], Place]]:
        """Return every bound place by its path elements, oldest bind first."""
        found: list[tuple[tuple[str, ...], Place]] = []
        todo: list[tuple[tuple[str, ...], Place]] = [((), self.root)]
        while todo:
            names, place = todo.pop()
            if place.members:
                found.append((names, place))
            todo.extend(((*names, name), child) for name, child in place.children.items())
        found.sort(key=lambda item: item[1].serial)
        return found

    def holder(self, origin: Origin) -> Member | None:
        """Return a bound member that is `origin` or holds it, the nearest and a writable one if there is a choice."""
        for above in origin.upward():
            if members := self.held.get(above):
                for member in members.values():
                    if not member.readonly:
                        return member
                return member
        return None

    def bind(self, path: str, members: Sequence[Member], order: Order = Order.REPLACE) -> "BindTable":
        """Put `members` at `path`. A union holds an origin once: binding it again moves it."""
        names = names_of(path)
        place = self.find(names) or NOWHERE
        new = tuple(members)
        if order is Order.REPLACE or not place.members:
            return self._with(names, new, self.serial + 1)
        origins = {member.origin for member in new}
        old = tuple(member for member in place.members if member.origin not in origins)
        return self._with(names, new + old if order is Order.BEFORE else old + new, place.serial)

    def unbind(self, path: str, origins: Iterable[Origin] | None = None) -> "BindTable":
        """Take away those origins, by default all, from `path`; the same table if none of them is there."""
        names = names_of(path)
        place = self.find(names) or NOWHERE
        gone = None if origins is None else frozenset(origins)
        left = () if gone is None else tuple(member for member in place.members if member.origin not in gone)
        return self if left == place.members else self._with(names, left, place.serial)

    def clear(self) -> "BindTable":
        """Take every bind away; the masks stay."""
        return BindTable(mask=self.mask, hidden=self.hidden, serial=self.serial)

    def masked(self, *, mask: Iterable[str] = (), hidden: Iterable[Origin] = ()) -> "BindTable":
        """Take away devices and things, for good: nothing but `revealed` gives them back."""
        more_mask, more_hidden = self.mask.union(mask), self.hidden.union(hidden)
        if more_mask == self.mask and more_hidden == self.hidden:
            return self
        return BindTable(self.root, self.held, more_mask, more_hidden, self.serial)

    def revealed(self, hidden: Iterable[Origin]) -> "BindTable":
        """Show these things again."""
        return BindTable(self.root, self.held, self.mask, self.hidden.difference(hidden), self.serial)

    def hidden_paths(self) -> list[str]:
        """Return every path at which a hidden thing would otherwise be seen, for whoever mounts the namespace."""
        bound: dict[Origin, list[tuple[tuple[str, ...], Place]]] = {}
        for names, place in self.places() if self.hidden else ():
            for member in place.members:
                bound.setdefault(member.origin, []).append((names, place))
        return [
            "/" + "/".join((*names, *below))
            for origin in self.hidden
            for above in origin.upward()
            for names, place in bound.get(above, ())
            if self._shows(place, below := origin.below(above))
        ]

    def _shows(self, place: Place, below: list[str]) -> bool:
        """Tell whether the path `below` a bound place leads to something hidden, and not to another bind."""
        if not below:
            return self.hidden.issuperset(member.origin for member in place.members)
        for name in below:
            inner = place.children.get(name)
            if inner is None:
                return True
            if inner.members:
                return False
            place = inner
        return True

    def _with(self, names: tuple[str, ...], members: tuple[Member, ...], serial: int) -> "BindTable":
        chain = [self.root]
        for name in names:
            chain.append(chain[-1].children.get(name, NOWHERE))
        old = chain.pop()
        new = Place(members, old.children, serial, (old.size or 1) + len(members) - len(old.members))
        for parent, name in zip(reversed(chain), reversed(names), strict=True):
            if new.members or new.children:
                children = parent.children.set(name, new)
                size = (parent.size or 1) + new.size - old.size
            else:
                children = parent.children.delete(name)
                size = parent.size - old.size
            old, new = parent, Place(parent.members, children, parent.serial, size)
        root = new if new.members or new.children else NOWHERE
        place = self.find(names) or NOWHERE
        held = self.held
        stay = {id(member) for member in members}.intersection(id(member) for member in place.members)
        for member in place.members:
            if id(member) not in stay:
                others = held[member.origin].delete(id(member))
                held = held.set(member.origin, others) if others else held.delete(member.origin)
        for member in members:
            if id(member) not in stay:
                held = held.set(member.origin, held.get(member.origin, NOBODY).set(id(member), member))
        return BindTable(root, held, self.mask, self.hidden, max(self.serial, serial))

    def __eq__(self, other: object) -> bool:
        """Tables are equal when they show the same: how old the binds are does not count."""
        if not isinstance(other, BindTable):
            return NotImplemented
        return self.mask == other.mask and self.hidden == other.hidden and dict(self.items()) == dict(other.items())

    __hash__ = None  # type: ignore[assignment]


EMPTY = BindTable()
