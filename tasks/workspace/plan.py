"""What a sync has to do: a pure function of both folders and of what they were when they were last in step.

The left folder is the host's, the right one the session's. A path changed on one side only goes to the other. Changed
on both, the left one keeps its name and the right one is set aside under another, from which it goes to both: nothing
is lost. A deletion yields to a change on the other side.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from tasks.workspace.entries import Entry, leads_out


class Pair(NamedTuple):
    """A path in step: what it is on either side."""

    left: Entry
    right: Entry


Tree = Mapping[str, Entry]
Base = Mapping[str, Pair]


class Choice(Enum):
    """What becomes of one path."""

    KEEP = auto()
    TO_RIGHT = auto()
    TO_LEFT = auto()
    COMPARE = auto()
    ASIDE = auto()


class Transfer(NamedTuple):
    """One path that becomes, on the side it goes to, what it is on the other."""

    path: str
    to_right: bool


class Move(NamedTuple):
    """A file renamed on one side, to be renamed on the other."""

    old: str
    path: str
    to_right: bool


@dataclass
class Plan:
    """What to do, in the order of its fields; a path stands in one of them.

    `kept`: in step already. `compare`: changed on both sides to what may be the same. `aside`: conflicts. `restored`:
    deleted on one side, but kept for the other's change (also among the rest). `refused`: links that lead out.
    """

    kept: dict[str, Pair] = field(default_factory=dict)
    compare: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    removals: list[Transfer] = field(default_factory=list)
    folders: list[Transfer] = field(default_factory=list)
    files: list[Transfer] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def choose(base: Pair | None, left: Entry | None, right: Entry | None) -> Choice:
    """Decide about one path that is, or was, on at least one side."""
    if left is None and right is None:
        return Choice.KEEP
    if base is not None:
        if left == base.left:
            return Choice.KEEP if right == base.right else Choice.TO_LEFT
        if right == base.right:
            return Choice.TO_RIGHT
    if left is None:
        return Choice.TO_LEFT
    if right is None:
        return Choice.TO_RIGHT
    if left.kind != right.kind or (left.kind == "l" and left != right) or left.size != right.size:
        return Choice.ASIDE
    return Choice.COMPARE


def make_plan(base: Base, left: Tree, right: Tree, unknown: set[str]) -> Plan:
    """Return what brings both folders in step. Paths that are, or lie below, something `unknown` are left alone."""
    plan = Plan()
    needed: dict[str, bool] = {}  # folders that must be, and whether the left side has them (for what lies in them)
    transfers: list[Transfer] = []
    for path in sorted({*base, *left, *right}, reverse=True):  # what lies in a folder comes before it
        if unknown and any(above in unknown for above in lineage(path)):
            continue
        then, one, other = base.get(path), left.get(path), right.get(path)
        choice = choose(then, one, other)
        if path in needed:
            choice, restored = _with_content(choice, one, other, from_left=needed[path])
            if restored:
                plan.restored.append(path)
        elif then is not None and choice in (Choice.TO_LEFT, Choice.TO_RIGHT):
            gone, lives = (one, other) if choice is Choice.TO_LEFT else (other, one)
            if gone is None and lives is not None:
                plan.restored.append(path)
        stays = other if choice is Choice.TO_LEFT else one
        if choice is Choice.TO_LEFT and other is not None and other.kind == "l" and leads_out(path, other.target):
            plan.refused.append(path)
            continue
        if stays is not None and "/" in path:
            needed[path.rpartition("/")[0]] = choice is not Choice.TO_LEFT
        match choice:
            case Choice.KEEP:
                if one is not None and other is not None:
                    plan.kept[path] = Pair(one, other)
            case Choice.COMPARE:
                plan.compare.append(path)
            case Choice.ASIDE:
                plan.aside.append(path)
            case _:
                transfers.append(Transfer(path, choice is Choice.TO_RIGHT))
    _sort_out(plan, transfers, base, left, right)
    return plan


def _with_content(choice: Choice, left: Entry | None, right: Entry | None, *, from_left: bool) -> tuple[Choice, bool]:
    """Correct the choice for a directory that holds what stays; returns also whether that undid a deletion."""
    result = {Choice.TO_LEFT: right, Choice.TO_RIGHT: left}.get(choice, left)
    if result is None:
        return (Choice.TO_RIGHT if from_left else Choice.TO_LEFT), True
    if result.kind != "d":
        return Choice.ASIDE, False
    return choice, False


def _sort_out(plan: Plan, transfers: list[Transfer], base: Base, left: Tree, right: Tree) -> None:
    """Sort transfers into removals (deepest first), folders (highest first), moves and files."""
    removed = {(transfer.path, transfer.to_right) for transfer in transfers if not _source(transfer, left, right)}
    origins = {
        (was.ino, was.size, was.mtime, to_right): path
        for path, to_right in removed
        if (pair := base.get(path)) and (was := pair.left if to_right else pair.right).kind == "f"
    }
    for transfer in transfers:
        path, to_right = transfer
        entry = _source(transfer, left, right)
        there = (right if to_right else left).get(path)
        if entry is None:
            if there is not None:
                plan.removals.append(transfer)
            continue
        if there is not None and there.kind != entry.kind:
            plan.removals.append(transfer)
        if entry.kind == "d":
            plan.folders.append(transfer)
            continue
        old = origins.pop((entry.ino, entry.size, entry.mtime, to_right), None) if there is None else None
        if old is not None:
            plan.moves.append(Move(old, path, to_right))
        else:
            plan.files.append(transfer)
    moved = {(move.old, move.to_right) for move in plan.moves}
    plan.removals = [transfer for transfer in plan.removals if tuple(transfer) not in moved]
    plan.folders.reverse()
    plan.files.reverse()


def _source(transfer: Transfer, left: Tree, right: Tree) -> Entry | None:
    return (left if transfer.to_right else right).get(transfer.path)


def lineage(path: str) -> Iterator[str]:
    """Give a path and every folder above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]
