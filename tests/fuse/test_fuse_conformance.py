"""Memory and host trees over a real FUSE mount, held against what a filesystem promises to another process."""

import subprocess
import sys
from pathlib import Path

import pytest
from fusemount import served

from vfs.host import HostTree
from vfs.memory import MemoryTree

PROBE = "import sys; from vfs.conformance import check_mount; check_mount(sys.argv[1]).check()"


def probe(path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.root
def test_a_mounted_memory_tree_keeps_every_promise(tmp_path):
    with served(tmp_path / "mnt", MemoryTree(label="mounted").root) as here:
        probe(here.path)


@pytest.mark.root
def test_a_mounted_host_tree_keeps_every_promise(tmp_path):
    (tmp_path / "tree").mkdir()
    with served(tmp_path / "mnt", HostTree(tmp_path / "tree", label="mounted").root) as here:
        probe(here.path)
    assert not list((tmp_path / "tree").iterdir())
