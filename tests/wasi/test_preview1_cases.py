"""The cases of `programs/preview1.c`, a program of WASI's own functions, on trees of the host and of the server."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from wasikit import Ended, node

from tests.filetree.programs import compiled, why_not
from vfs.node import ROOT, SetStat
from vfs.walk import walk

pytestmark = pytest.mark.skipif(bool(why_not("wasi")), reason=why_not("wasi"))

SOURCE = Path(__file__).parent / "programs/preview1.c"
CASES = re.findall(r"^CASE\((\w+)\)", SOURCE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """How the program ended in a folder of the host and in one that the server makes."""
    top = tmp_path_factory.mktemp("cases")
    program = compiled("wasi", top, SOURCE).read_bytes()
    found: dict[str, Ended] = {}

    async def main() -> None:
        async with node(top) as here:
            memory = await walk(here.root(), "/mem", ROOT)
            await memory.setstat(SetStat(mode=0o777), ROOT)
            for folder in ("/tmp", "/mem"):
                found[folder] = await here.run(program, folder)

    trio.run(main)
    yield found
    shutil.rmtree(top)


@pytest.mark.parametrize("folder", ["/tmp", "/mem"])
@pytest.mark.parametrize("case", CASES)
def test_case_of_preview1(ended: dict[str, Ended], folder: str, case: str) -> None:
    said = ended[folder].out.decode().splitlines()
    assert f"ok {case}" in said, [line for line in said if line.startswith(case)] or ended[folder]


def test_all_cases_were_run_and_the_program_says_so(ended: dict[str, Ended]) -> None:
    assert len(CASES) >= 35
    for found in ended.values():
        assert (found.code, found.error, found.err) == (0, "", b"")
        assert found.out.decode().splitlines() == [f"ok {case}" for case in CASES]
