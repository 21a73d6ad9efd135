"""What a workspace was when its folders were last in step, kept by the server where its session cannot reach it."""

import json
import os
from collections.abc import Sequence
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
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return Manifest()
    if data.get("version") != VERSION:
        return Manifest()
    base = {name: Pair(Entry(*left), Entry(*right)) for name, (left, right) in data["base"].items()}
    return Manifest(data["left"], data["right"], base, [Conflict(*each) for each in data["conflicts"]])


def save(path: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step, on disk when this returns."""
    conflicts: Sequence[Sequence[object]] = [(c.path, c.kept, c.at, c.why) for c in manifest.conflicts]
    data = {
        "version": VERSION,
        "left": manifest.left,
        "right": manifest.right,
        "base": manifest.base,
        "conflicts": conflicts,
    }
    temp = path.with_suffix(".new")
    with temp.open("w") as file:
        file.write(json.dumps(data))
        file.flush()
        os.fsync(file.fileno())
    temp.replace(path)
