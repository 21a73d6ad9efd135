"""What a workspace was when its folders were last in step, kept by the server where its session cannot reach it."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from tasks.workspace.entries import Entry
from tasks.workspace.plan import Pair

VERSION = 1


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path changed on both sides: `kept` is where the session's version went, or the path itself where it was
    deleted on one side and lives on."""

    path: str
    kept: str
    at: float
    why: str


@dataclass(slots=True)
class Manifest:
    """The paths in step, the conflicts nobody has cleared away, and which directories (device, inode) were meant."""

    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    base: dict[str, Pair] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)


def load(path: Path) -> Manifest:
    """Return the manifest in the file `path`; an empty one where there is none that can be read.

    Without one a sync deletes nothing: it merges.
    """
    conflicts = load_conflicts(path)
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return Manifest(conflicts=conflicts)
    if data.get("version") != VERSION:
        return Manifest(conflicts=conflicts)
    base = {name: Pair(Entry(*left), Entry(*right)) for name, (left, right) in data["base"].items()}
    return Manifest(data["left"], data["right"], base, conflicts)


def load_conflicts(path: Path) -> list[Conflict]:
    """Return only the conflicts of the manifest `path`: they stand in a file of their own, being asked for often."""
    try:
        return [Conflict(*each) for each in json.loads(_conflicts(path).read_bytes())]
    except (FileNotFoundError, ValueError):
        return []


def save(path: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step, on disk when this returns."""
    _replace(_conflicts(path), [(each.path, each.kept, each.at, each.why) for each in manifest.conflicts])
    data = {"version": VERSION, "left": manifest.left, "right": manifest.right, "base": manifest.base}
    _replace(path, data)


def forget(path: Path) -> None:
    """Remove the manifest and what lies beside it."""
    for file in (path, _conflicts(path), lock(path)):
        file.unlink(missing_ok=True)


def lock(path: Path) -> Path:
    """Return the file that a sync locks."""
    return path.with_suffix(".lock")


def _conflicts(path: Path) -> Path:
    return path.with_suffix(".conflicts")


def _replace(path: Path, data: object) -> None:
    temp = path.with_name(path.name + ".new")
    with temp.open("w") as file:
        file.write(json.dumps(data))
        file.flush()
        os.fsync(file.fileno())
    temp.replace(path)
