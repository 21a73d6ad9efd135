"""One program that works on files says the same on the host, as a Linux task, as a WASI task and over 9P."""

import difflib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

sys.path.append(str(Path(__file__).parent.parent / "wasi"))

from wasikit import Node, node

from tests.filetree.programs import COMMANDS, compiled, why_not
from tests.serving import serving
from vfs.node import ROOT, SetStat
from vfs.walk import walk

pytestmark = pytest.mark.skipif(any(map(why_not, COMMANDS)), reason=" and ".join(filter(None, map(why_not, COMMANDS))))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("filetree")
    yield {kind: compiled(kind, folder) for kind in COMMANDS}
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def native(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the program prints on the bare host."""
    folder = tmp_path_factory.mktemp("native")
    said = subprocess.run([programs["linux"], folder], capture_output=True, check=True).stdout.decode().splitlines()
    shutil.rmtree(folder)
    assert len(said) > 110
    return said


def difference(native: list[str], said: str) -> str:
    return "\n".join(difflib.unified_diff(native, said.splitlines(), "host", "here", n=0, lineterm=""))


def test_wasi_task_says_on_host_and_memory_trees_what_the_host_says(
    tmp_path: Path, programs: dict[str, Path], native: list[str]
) -> None:
    async def said(here: Node, folder: str) -> str:
        ended = await here.run(programs["wasi"].read_bytes(), folder)
        assert (ended.code, ended.err) == (0, b""), ended
        return ended.out.decode()

    async def main() -> None:
        async with node(tmp_path) as here:
            assert difference(native, await said(here, "/tmp")) == ""
            memory = await walk(here.root(), "/mem", ROOT)
            await memory.setstat(SetStat(mode=0o777), ROOT)
            assert difference(native, await said(here, "/mem")) == ""

    trio.run(main)


@pytest.mark.root
@pytest.mark.parametrize("kind", COMMANDS)
def test_task_says_on_its_own_tree_and_on_another_servers_over_9p_what_the_host_says(
    tmp_path: Path, programs: dict[str, Path], native: list[str], kind: str
) -> None:
    tmp_path.chmod(0o755)
    for name in ("near", "far"):
        (tmp_path / name).mkdir(mode=0o755)
    with serving(tmp_path / "far", mount=False) as far, serving(tmp_path / "near") as near:
        assert near.mount is not None
        shutil.copy(programs[kind], near.state / "tmp")
        for served in (near, far):
            (served.state / "tmp/work").mkdir()
            (served.state / "tmp/work").chmod(0o777)
        for folder, user in (
            ("/tmp/work", ""),
            ("/far/tmp/work", "user root\n"),
        ):  # who dialled owns what is made there
            task = near.mount / "task" / (near.mount / "task/new").read_text().strip()
            (task / "ns/ctl").write_text(f"mount -c {far.address} /far\n")
            (task / "ctl").write_text(f"{user}cmd /tmp/{programs[kind].name} {folder}\nstart\n")
            assert (task / "wait").read_text() == "0\n", (folder, (task / "fd/2").read_text())
            assert (task / "type").read_text() == f"{kind}\n"
            assert difference(native, (task / "fd/1").read_text()) == "", folder
