"""How the roots of tasks are laid out, worked out once for all that are alike.

A fork shares its parent's table but for what was bound since, so most of a
new task's root is known already: it is remembered by the directories of the
table's root. Of that, what is the same file of the host in every task goes
into a stock, which the supervisor is told once and then knows by its key.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

from immutables import Map

from ns.namespace import Namespace
from ns.table import BindTable, Member, Place
from tasks.drivers.linux.roots import Holder, Roots, steps_of, text_of, view_path
from tasks.taskd.protocol import Message
from tasks.taskd.stocks import MAX_STOCKS

MAX_PARTS = 256

Placed = tuple[int, Message | int]
"""A step (or its number in a stock) with the depth of its path: what lies deeper is mounted later."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one directory of a table's root brings: steps that are alike for all, and files with texts of their own."""

    place: Place
    common: tuple[Message, ...]
    others: tuple[tuple[int, Message], ...]
    texts: tuple[tuple[str, Member], ...]
    paths: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stock:
    """The common steps of some parts: as the supervisor takes them, by what name, and where each is mounted."""

    parts: tuple[Part, ...]
    key: str
    steps: tuple[Message, ...]
    placed: tuple[Placed, ...]


class Layouts:
    """Makes the roots of tasks out of these trees."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self._parts: dict[int, Part] = {}
        self._stocks: dict[tuple[int, ...], Stock] = {}

    async def root(self, holder: Holder, namespace: Namespace, table: BindTable) -> Message:
        """Return the root that a task with this table gets, every step in full.

        `/proc` is the task's own, and its home is at `/home/<user>`, where the table has nothing else. ENOTSUP,
        naming the bind that cannot be realised.
        """
        parts = self._parts_of(table)
        steps: list[Placed] = [_placed(step) for part in parts for step in part.common]
        return await self._root(steps, parts, holder, namespace, table)

    async def stocked(self, holder: Holder, namespace: Namespace, table: BindTable) -> tuple[Message, Stock]:
        """Return the same root with what tasks alike have in common by its number in a stock, and that stock."""
        parts = self._parts_of(table)
        stock = self._stock_of(parts)
        root = await self._root(list(stock.placed), parts, holder, namespace, table)
        return {**root, "stock": stock.key}, stock

    async def _root(
        self, steps: list[Placed], parts: list[Part], holder: Holder, namespace: Namespace, table: BindTable
    ) -> Message:
        home = f"/home/{holder.user}"
        bound = set().union(*(part.paths for part in parts))
        etc = await namespace.devices.device("etc") if any(part.texts for part in parts) else None
        for part in parts:
            steps += [(depth, _given(step, holder)) for depth, step in part.others]
            for path, member in part.texts:
                steps.append(_placed({"kind": "file", "at": path, "text": await text_of(member, namespace)}))
        del etc  # only held, lest it was made anew for each text
        if "/proc" not in bound:
            steps.append(_placed({"kind": "proc", "at": "/proc", "guarded": holder.uid == 0}))
        if home not in bound and "/home" not in bound and holder.home.is_dir():
            steps.append(_placed({"kind": "bind", "at": home, "path": str(holder.home)}))
        ordered = [step for _, step in sorted(steps, key=itemgetter(0))]
        ordered += [{"kind": "mask", "at": path} for path in table.hidden_paths()]
        return {"steps": ordered, "grows": "/" not in bound, "view": view_path(holder, self.roots)}

    def _parts_of(self, table: BindTable) -> list[Part]:
        whole = table.root
        parts = [self._part("", whole)] if whole.members else []
        return parts + [self._part(name, place) for name, place in whole.children.items()]

    def _part(self, name: str, place: Place) -> Part:
        """Return what `place` at `name` of the root brings; without a name it is the root itself, and alone."""
        part = self._parts.pop(id(place), None)
        if part is None:
            tree = Place((), Map({name: place}), 0, 0) if name else Place(place.members, Map(), 0, 0)
            part = _make(place, BindTable(tree).items(), self.roots)
            if any(
                step.get("inode") == 0 for step in (*part.common, *(step for _, step in part.others))
            ):  # may come back
                return part
        self._parts[id(place)] = part
        if len(self._parts) > MAX_PARTS:
            del self._parts[next(iter(self._parts))]
        return part

    def _stock_of(self, parts: Iterable[Part]) -> Stock:
        alike = tuple(part for part in parts if part.common)
        key = tuple(map(id, alike))
        stock = self._stocks.pop(key, None)
        if stock is None:
            steps = tuple(step for part in alike for step in part.common)
            digest = hashlib.blake2b(json.dumps(steps).encode(), digest_size=16).hexdigest()
            placed = tuple((_depth(step), number) for number, step in enumerate(steps))
            stock = Stock(alike, digest, steps, placed)
        self._stocks[key] = stock
        if len(self._stocks) > MAX_STOCKS:
            del self._stocks[next(iter(self._stocks))]
        return stock


def _make(place: Place, items: Iterable[tuple[str, tuple[Member, ...]]], roots: Roots) -> Part:
    common: list[Message] = []
    others: list[tuple[int, Message]] = []
    texts: list[tuple[str, Member]] = []
    paths: set[str] = set()
    for path, members in items:
        paths.add(path)
        if len(members) == 1 and members[0].origin.device == "etc" and not members[0].dir:
            texts.append((path, members[0]))
            continue
        for step in steps_of(path, members, roots):
            if step["kind"] == "device" or ("inode" in step and "owners" not in step):
                common.append(step)
            else:
                others.append(_placed(step))
    return Part(place, tuple(common), tuple(others), tuple(texts), frozenset(paths))


def _given(step: Message, holder: Holder) -> Message:
    """Return a step that may be the holder's own: a device of the machine is its user's."""
    return {**step, "uid": holder.uid} if step["kind"] == "host device" else step


def _placed(step: Message) -> tuple[int, Message]:
    return _depth(step), step


def _depth(step: Message) -> int:
    return str(step["at"]).rstrip("/").count("/")
