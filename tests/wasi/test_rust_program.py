"""A program of Rust's standard library says the same as a WASI task and on the bare host."""

import subprocess
from pathlib import Path

import pytest
import trio
from wasikit import node

from tests.filetree.programs import compiled_rust, why_no_rust

SOURCE = Path(__file__).parent / "programs/std.rs"


@pytest.mark.skipif(bool(why_no_rust()), reason=why_no_rust())
def test_rust_program_says_what_it_says_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    native = subprocess.run([compiled_rust("linux", tmp_path, SOURCE), tmp_path / "native"], capture_output=True)
    program = compiled_rust("wasi", tmp_path, SOURCE).read_bytes()

    async def main() -> None:
        async with node(tmp_path) as here:
            ended = await here.run(program, "/tmp")
            assert (ended.code, ended.err) == (native.returncode, native.stderr) == (7, b"")
            assert ended.out.decode().splitlines() == native.stdout.decode().splitlines()

    trio.run(main)
