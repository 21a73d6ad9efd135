"""The session's own check would be worthless if it could not see what it looks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MARK, left_behind, mounts_below, processes_of


def test_a_process_that_is_left_is_seen_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert [line for line in processes_of(os.environ[MARK]) if line.startswith(f"{child.pid} ")]
    finally:
        child.communicate(b"\n")
    assert not [line for line in processes_of(os.environ[MARK]) if line.startswith(f"{child.pid} ")]


def test_a_file_that_is_left_is_seen() -> None:
    stray = Path(os.environ["TMPDIR"]) / "stray"
    stray.touch()
    try:
        assert f"file {stray}" in left_behind(os.environ[MARK])
    finally:
        stray.unlink()


@pytest.mark.root
def test_mounts_that_are_left_are_listed_innermost_first(tmp_path: Path) -> None:
    inner = tmp_path / "inner"

    def listed() -> list[str]:
        """Return those below here: a server of other tests may still be mounted elsewhere."""
        return [point for point in mounts_below(os.environ[MARK]) if point.startswith(str(tmp_path))]

    try:
        for point in (tmp_path, inner):
            point.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
        assert listed() == [str(inner), str(tmp_path)]
    finally:
        for point in (inner, tmp_path):
            subprocess.run(["umount", point], check=True)
    assert listed() == []
