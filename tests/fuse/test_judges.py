"""Foreign programs as judges: what they print on a mounted tree must be what they print on tmpfs."""

import subprocess
import sys
from pathlib import Path

import pytest
from fusemount import served, shell

from vfs.host import HostTree
from vfs.memory import MemoryTree

pytestmark = pytest.mark.root

JUDGES = sorted(path for path in Path(__file__).with_name("judges").iterdir() if path.suffix in (".sh", ".py"))


def judge_at(judge: Path, where: Path) -> str:
    """Run a judge with `where` as its directory, and return what it printed, with that name taken out."""
    program = f"bash {judge}" if judge.suffix == ".sh" else f"{sys.executable} {judge}"
    return shell(f"PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8 {program}", where, check=False).replace(str(where), "HERE")


@pytest.fixture(scope="module")
def tmpfs(tmp_path_factory):
    where = tmp_path_factory.mktemp("judges")
    subprocess.run(["mount", "-t", "tmpfs", "none", where], check=True)
    yield where
    subprocess.run(["umount", "-l", where], check=True)


@pytest.fixture(scope="module")
def expected(tmpfs):
    """What each judge prints on tmpfs, found once."""
    found = {}
    for judge in JUDGES:
        (tmpfs / "on").mkdir()
        found[judge] = judge_at(judge, tmpfs / "on")
        subprocess.run(["rm", "-rf", tmpfs / "on"], check=True)
    return found


@pytest.fixture(scope="module", params=["memory", "host", "host copied"])
def mount(request, tmp_path_factory):
    base = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    host = base / "host"
    host.mkdir()
    # The host tree is a tmpfs too, so that differences are ours.
    subprocess.run(["mount", "-t", "tmpfs", "none", host], check=True)

    def root():
        return HostTree(host, label="judges").root if "host" in request.param else MemoryTree(label="judges").root

    try:
        with served(base / "m", root, stack_depth=0 if "copied" in request.param else 1) as here:
            yield here
    finally:
        subprocess.run(["umount", "-l", host], check=True)


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.stem)
def test_a_program_sees_what_it_sees_on_tmpfs(mount, expected, judge: Path):
    where = mount.path / judge.stem
    mount.sh(f"mkdir {where}")
    assert judge_at(judge, where) == expected[judge]
    assert mount.waiting == 0
