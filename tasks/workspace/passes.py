"""Carries plans out until both folders are in step. This is what the program of a sync runs."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from errno import EACCES, EBUSY, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOTDIR, EPERM, ETXTBSY, EXDEV
from pathlib import Path
from typing import NamedTuple

from tasks.workspace.entries import Entry
from tasks.workspace.manifest import Conflict, Manifest, load, save
from tasks.workspace.plan import Pair, Plan, lineage, make_plan
from tasks.workspace.side import Changed, Side, same_content

MAX_PASSES = 4
"""Looks at the folders in one sync: more than one after conflicts, or where files changed meanwhile."""
TICK_NS = 10_000_000
"""Kernels before 6.13 may stamp two changes within this time alike: a file that young is copied when it is older."""

OWN_FAULT = frozenset({EACCES, EPERM, ENAMETOOLONG, ELOOP, EXDEV, EISDIR, ENOTDIR, ETXTBSY, EBUSY, EINVAL})
"""Errors that concern one path; any other (a full disk) ends the sync."""


class Progress(NamedTuple):
    """How far a sync is: `phase` is "look" (files seen) or "copy" (files done of `total`)."""

    phase: str
    files: int
    total: int


@dataclass
class Report:
    """What a sync did: paths that went to the session (`into`) and back (`out`), what could not be synced and why."""

    into: int = 0
    out: int = 0
    removed: int = 0
    unsettled: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def sync(left: Side, right: Side, record: Path, tell: Callable[[Progress], None]) -> Report:
    """Bring two folders in step, three ways against the manifest in the file `record`, which is then replaced.

    Killed at any point it has lost nothing, and the next goes on. OSError: a folder that cannot be read, a full disk;
    what was done until then is recorded.
    """
    started = time.monotonic()
    manifest = load(record)
    if [manifest.left, manifest.right] != [left.identity, right.identity]:
        manifest = Manifest(left.identity, right.identity, {}, manifest.conflicts)  # other folders: merge
    before = replace(manifest, base=dict(manifest.base))
    run = Sync(left, right, manifest, tell)
    try:
        for _ in range(MAX_PASSES):
            run.unsettled = 0
            if run.once():
                break
    finally:
        for side in (left, right):
            side.settle()
        run.forget_conflicts()
        if manifest != before:
            save(record, manifest)
    run.report.conflicts = manifest.conflicts
    run.report.unsettled = run.unsettled
    run.report.seconds = time.monotonic() - started
    return run.report


class Sync:
    """One sync under way: keeps the manifest true to what has been done."""

    def __init__(self, left: Side, right: Side, manifest: Manifest, tell: Callable[[Progress], None]) -> None:
        self.left = left
        self.right = right
        self.manifest = manifest
        self.report = Report()
        self.unsettled = 0
        self._tell = tell
        self._lefts: dict[str, Entry] = {}
        self._rights: dict[str, Entry] = {}

    def once(self) -> bool:
        """Look at both folders, and do what the plan says; returns whether they are in step now."""
        self._lefts, unknown = self.left.scan(lambda count: self._tell(Progress("look", count, 0)))
        seen = len(self._lefts)
        self._rights, unknown_right = self.right.scan(lambda count: self._tell(Progress("look", seen + count, 0)))
        unknown |= unknown_right
        base = self.manifest.base
        plan = make_plan(base, self._lefts, self._rights, set(unknown))
        self.report.problems = unknown | dict.fromkeys(plan.refused, "a symlink that leads out of the folder")
        for path in [path for path in base if path not in self._lefts and path not in self._rights]:
            if not any(above in unknown for above in lineage(path)):
                del base[path]
        base |= plan.kept
        asides = plan.aside + [path for path in plan.compare if not self._attempt(self._compare, path)]
        if asides:
            for path in asides:
                self._attempt(self._set_aside, path)
            return False
        return self._carry_out(plan)

    def _carry_out(self, plan: Plan) -> bool:
        in_the_way = set(plan.removals)
        free = [folder for folder in plan.folders if folder not in in_the_way]
        blocked = [folder for folder in plan.folders if folder in in_the_way]
        total = len(plan.folders) + len(plan.moves) + len(plan.removals) + len(plan.files)
        steps: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (self._make_folder, tuple(each)) for each in free
        ]
        steps += [(self._move, tuple(each)) for each in plan.moves]
        steps += [(self._remove, tuple(each)) for each in plan.removals]
        steps += [(self._make_folder, tuple(each)) for each in blocked]
        steps += [(self._copy, tuple(each)) for each in plan.files]
        for done, (step, arguments) in enumerate(steps):
            self._tell(Progress("copy", done, total))
            self._attempt(step, *arguments)
        for folder in reversed(plan.folders):  # last, and from the inside: a mode may close a directory
            self._attempt(self._set_mode, *folder)
        for path in plan.restored:
            self._note(path, path, "deleted on one side, changed on the other: kept")
        return not self.unsettled

    def _attempt(self, step: Callable[..., bool | None], *arguments: object) -> bool:
        """Take one step. A file that has changed meanwhile, or may not be touched, does not hold up the others."""
        try:
            return step(*arguments) is not False
        except (Changed, FileNotFoundError, FileExistsError):
            self.unsettled += 1
        except OSError as error:
            if error.errno not in OWN_FAULT:
                raise
            self.report.problems[str(arguments[0])] = error.strerror or str(error)
        return True

    def _sides(self, to_right: bool) -> tuple[Side, dict[str, Entry], Side, dict[str, Entry]]:
        """Return the source and its entries, and where it goes and its."""
        if to_right:
            return self.left, self._lefts, self.right, self._rights
        return self.right, self._rights, self.left, self._lefts

    def _in_step(self, path: str, to_right: bool, source: Entry, copy: Entry) -> None:
        self.manifest.base[path] = Pair(source, copy) if to_right else Pair(copy, source)

    def _count(self, to_right: bool) -> None:
        if to_right:
            self.report.into += 1
        else:
            self.report.out += 1

    def _compare(self, path: str) -> bool:
        """Take both sides for the same if they are; the left one's mode and time count."""
        left, right = self._lefts[path], self._rights[path]
        if left.kind == "f":
            with ExitStack() as stack:
                one, other = self.left.open(path, left), self.right.open(path, right)
                stack.callback(os.close, one)
                stack.callback(os.close, other)
                if not same_content(one, other, left.size):
                    return False
        if left.kind != "l" and (left.mode, left.mtime) != (right.mode, right.mtime):
            right = self.right.set_attributes(path, left, right)
        self._in_step(path, True, left, right)
        return True

    def _set_aside(self, path: str) -> None:
        """Give the session's version another name; the next look takes that for a new file of the session's."""
        folder, _, name = path.rpartition("/")
        stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        room = 240 - len(os.fsencode(suffix))
        stem = os.fsdecode(os.fsencode(stem)[: max(1, room - 40)])
        for number in range(1, 100):
            kept = f"{folder}/" * bool(folder) + f"{stem}.conflict-{stamp}-{number}{dot}{suffix}"
            if self.left.look(kept) is None and self.right.look(kept) is None:
                break
        self.right.rename(path, kept)
        for below in [each for each in self.manifest.base if each == path or each.startswith(path + "/")]:
            del self.manifest.base[below]
        self._note(path, kept, "changed on both sides")

    def _note(self, path: str, kept: str, why: str) -> None:
        self.manifest.conflicts = [each for each in self.manifest.conflicts if each.kept != kept]
        self.manifest.conflicts.append(Conflict(path, kept, round(time.time(), 3), why))

    def forget_conflicts(self) -> None:
        """Drop the conflicts whose kept file is gone: that is how one says that they are settled."""
        self.manifest.conflicts = [each for each in self.manifest.conflicts if self.right.look(each.kept) is not None]

    def _make_folder(self, path: str, to_right: bool) -> None:
        _, _, there, entries = self._sides(to_right)
        old = entries.get(path)
        if old is None or old.kind != "d":
            there.make_folder(path)
            entries[path] = Entry("d", 0o700)
            self._count(to_right)

    def _set_mode(self, path: str, to_right: bool) -> None:
        _, sources, there, _ = self._sides(to_right)
        now = there.look(path)
        if now is None or now.kind != "d":
            raise Changed
        if now != sources[path]:
            there.set_attributes(path, sources[path], now)
        self._in_step(path, to_right, sources[path], sources[path])

    def _move(self, old: str, path: str, to_right: bool) -> None:
        _, sources, there, entries = self._sides(to_right)
        source = sources[path]
        moved = there.move(old, path, entries[old])
        self.manifest.base.pop(old, None)
        if moved.mode != source.mode:
            moved = there.set_attributes(path, source, moved)
        self._in_step(path, to_right, source, moved)
        self._count(to_right)

    def _remove(self, path: str, to_right: bool) -> None:
        _, _, there, entries = self._sides(to_right)
        there.remove(path, entries.pop(path))
        self.manifest.base.pop(path, None)
        self.report.removed += 1

    def _copy(self, path: str, to_right: bool) -> None:
        here, sources, there, entries = self._sides(to_right)
        source, old = sources[path], entries.get(path)
        if source.kind == "l":
            copy = there.put_link(path, source, old)
        else:
            age = time.time_ns() - source.ctime
            if 0 <= age < TICK_NS:
                time.sleep((TICK_NS - age) / 1e9)
            with ExitStack() as stack:
                fd = here.open(path, source)
                stack.callback(os.close, fd)
                copy = self._copy_file(path, fd, source, there, old)
        self._in_step(path, to_right, source, copy)
        self._count(to_right)

    @staticmethod
    def _copy_file(path: str, fd: int, source: Entry, there: Side, old: Entry | None) -> Entry:
        if old is not None and old.kind == "f" and old.size == source.size:
            other = there.open(path, old)
            try:
                same = same_content(fd, other, source.size)
            finally:
                os.close(other)
            if same:
                return there.set_attributes(path, source, old)
        return there.put_file(path, fd, source, old)


__all__ = ["Progress", "Report", "Sync", "sync"]
