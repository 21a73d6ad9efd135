"""A C program that works on files says the same as a WASI task, as a Linux task and on the bare host."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from wasikit import Node, node

from tests.serving import serving
from vfs.node import ROOT, SetStat
from vfs.walk import walk

pytest.importorskip("ziglang", reason="no C compiler for WASI: pip install ziglang")

SOURCE = Path(__file__).with_name("filetree.c")
TARGETS = {"wasi": "wasm32-wasi", "linux": f"{os.uname().machine}-linux-musl"}
SECONDS = 600
"""The first compilation builds the C library too."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Compile the program for both. The compiler's cache stays where it always is, for the next time."""
    folder = tmp_path_factory.mktemp("c")
    found = {}
    for kind, target in TARGETS.items():
        found[kind] = folder / f"filetree.{kind}"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-O1", "-s"]
        environment = {**os.environ, "TMPDIR": str(folder)}
        options = {"env": environment, "check": True, "timeout": SECONDS, "capture_output": True}
        subprocess.run([*command, "-o", found[kind], SOURCE], **options)  # type: ignore[call-overload]
    yield found
    shutil.rmtree(folder)


def test_wasi_task_prints_what_the_program_prints_on_the_host(tmp_path: Path, programs: dict[str, Path]) -> None:
    (tmp_path / "native").mkdir()
    native = subprocess.run([programs["linux"], tmp_path / "native"], capture_output=True, check=True).stdout.decode()
    assert native.count("\n") > 50

    async def main() -> None:
        async with node(tmp_path) as here:
            assert await printed(here, programs["wasi"], "/tmp") == native.splitlines()
            memory = await walk(here.root(), "/mem", ROOT)
            await memory.setstat(SetStat(mode=0o777), ROOT)
            assert await printed(here, programs["wasi"], "/mem") == native.splitlines()

    trio.run(main)


async def printed(here: Node, program: Path, folder: str) -> list[str]:
    ended = await here.run(program.read_bytes(), folder)
    assert (ended.code, ended.err) == (0, b""), ended
    return ended.out.decode().splitlines()


@pytest.mark.root
def test_linux_and_wasi_tasks_in_one_namespace_print_the_same(tmp_path: Path, programs: dict[str, Path]) -> None:
    tmp_path.chmod(0o755)
    with serving(tmp_path, mount=True) as served:
        outputs = []
        for kind in ("linux", "wasi"):
            program = served.state / "tmp" / f"filetree.{kind}"
            shutil.copy(programs[kind], program)
            program.chmod(0o755)
            folder = served.state / "tmp" / f"of-{kind}"
            folder.mkdir()
            folder.chmod(0o777)
            outputs.append(served.out("run", f"/tmp/{program.name}", f"/tmp/{folder.name}"))
        assert outputs[0].count("\n") > 50
        assert outputs[0] == outputs[1]
