"""Real programs: interpreters that others compiled for WASI, on our files."""

import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from difflib import unified_diff
from pathlib import Path

import pytest
import trio
from wasikit import Node, node

from vfs.node import ROOT
from vfs.walk import open_path

PROGRAMS = Path(__file__).parents[2] / ".venv/wasi-programs"
"""Where scripts/test puts them."""
WALK = Path(__file__).parent / "programs/walk.py"
pytestmark = pytest.mark.skipif(not PROGRAMS.exists(), reason=f"no {PROGRAMS}: scripts/test fetches them")

Body = Callable[[Node], Awaitable[None]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is compiled, which takes seconds."""
    return tmp_path_factory.mktemp("cache")


def run(tmp_path: Path, cache: Path, body: Body) -> None:
    """Run `body` on a node whose compiled modules are those of the tests before."""

    async def main() -> None:
        async with node(tmp_path) as here:
            try:
                await body(here)
            finally:
                shutil.copytree(kept, cache, dirs_exist_ok=True)

    kept = tmp_path / "state/wasm"
    (tmp_path / "state").mkdir(mode=0o711)
    shutil.copytree(cache, kept)
    trio.run(main)


async def start(here: Node, program: str, *words: str, **settings: str) -> str:
    path = here.tmp / program
    if not path.exists():
        shutil.copy(PROGRAMS / program, path)
        path.chmod(0o644)
    settings_of = (f"{verb} {value}" for verb, value in settings.items())
    return str(await here.new(f"cmd /tmp/{program} {' '.join(words)}", *settings_of, "start"))


class Console:
    """What is typed into a task and what it prints."""

    def __init__(self, here: Node, task: str) -> None:
        self._here = here
        self._task = task
        self._seen = 0

    async def type(self, text: str) -> None:
        await self._here.echo(text, f"/task/{self._task}/fd/0")

    async def prints(self, text: str) -> None:
        """Wait for what is printed next and expect this."""
        _, handle = await open_path(self._here.root(), f"/task/{self._task}/fd/1", os.O_RDONLY, ROOT)
        found = b""
        while len(found) < len(text.encode()):
            found += bytes(await handle.read(4096, self._seen + len(found)))
        handle.close()
        self._seen += len(found)
        assert found.decode() == text


def test_python_is_talked_to_through_its_descriptors(tmp_path: Path, cache: Path) -> None:
    async def body(here: Node) -> None:
        here.put("data", b"from the host\n")
        task = await start(here, "python-3.11.3.wasm", "-q", "-u", "-i")
        console = Console(here, task)
        await console.type("print(6 * 7)")
        await console.prints("42\n")
        await console.type("import os, sys")
        await console.type("sorted(os.listdir('/'))")
        await console.prints("['cap', 'dev', 'home', 'mem', 'task', 'tmp']\n")
        await console.type("open('/tmp/data').read()")
        await console.prints("'from the host\\n'\n")
        await console.type("1 / 0")
        await console.type("open('/task/self/type').read(), sys.platform")
        await console.prints("('wasi\\n', 'wasi')\n")
        await console.type("sys.exit(9)")
        ended = await here.end(task)
        assert ended.code == 9 and b"ZeroDivisionError" in ended.err

    run(tmp_path, cache, body)


def test_python_script_sees_and_leaves_the_tree_that_it_leaves_on_the_host(tmp_path: Path, cache: Path) -> None:
    async def body(here: Node) -> None:
        native = tmp_path / "native"
        native.mkdir()
        expected = subprocess.run([sys.executable, WALK, native], capture_output=True, check=True).stdout.decode()
        script = here.put("walk.py", WALK.read_bytes())
        ended = await here.end(await start(here, "python-3.11.3.wasm", script, "/tmp"))
        assert (ended.code, ended.err) == (0, b"")
        assert "\n".join(unified_diff(expected.splitlines(), ended.out.decode().splitlines(), n=0, lineterm="")) == ""
        compared = subprocess.run(["diff", "-r", "-q", native / "tree", here.tmp / "tree"], capture_output=True)
        differing = {line.split()[1].rpartition("/")[2] for line in compared.stdout.decode().splitlines()}
        assert differing <= {"all.zip", "base.db"}  # those tell the time, or the version of what wrote them

    run(tmp_path, cache, body)


DRIVE = """
import time
with open('/task/new') as new:
    child = new.read().strip()
def tell(name, text):
    with open(f'/task/{child}/{name}', 'w') as file:
        file.write(text)
def ask(name):
    with open(f'/task/{child}/{name}') as file:
        return file.read()
tell('ctl', 'cmd /tmp/python-3.11.3.wasm -c "import os, sys; print(os.environ[\\'WHO\\'], input()); sys.exit(5)"\\n')
tell('env', 'WHO=parent\\n')
tell('ctl', 'start\\n')
tell('fd/0', 'typed\\n')
print(ask('wait').strip(), ask('fd/1').strip(), ask('status').strip(), ask('type').strip(), ask('parent').strip())
try:
    tell('ctl', 'start\\n')
except OSError as error:
    print(error.strerror)
"""


def test_python_makes_feeds_and_waits_for_another_task(tmp_path: Path, cache: Path) -> None:
    async def body(here: Node) -> None:
        script = here.put("drive.py", DRIVE.encode())
        task = await start(here, "python-3.11.3.wasm", script)
        ended = await here.end(task)
        assert ended.out.decode().splitlines() == [f"5 parent typed exited wasi {task}", "Resource busy"], ended

    run(tmp_path, cache, body)


def test_python_is_stopped_and_bounded_like_every_task(tmp_path: Path, cache: Path) -> None:
    async def body(here: Node) -> None:
        script = here.put("spin.py", b"print('spins', flush=True)\nwhile True: pass\n")
        task = await start(here, "python-3.11.3.wasm", script)
        await Console(here, task).prints("spins\n")
        await here.echo("kill 15", f"/task/{task}/ctl")
        assert (await here.end(task)).code == 143
        script = here.put("grow.py", b"try: bytearray(200 << 20)\nexcept MemoryError: print('refused')\n")
        assert (await here.end(await start(here, "python-3.11.3.wasm", script, memlimit="100M"))).out == b"refused\n"
        deep = here.put("deep.py", b"def f(n): return f(n + 1)\ntry: f(0)\nexcept RecursionError: print('too deep')\n")
        assert (await here.end(await start(here, "python-3.11.3.wasm", deep))).out == b"too deep\n"

    run(tmp_path, cache, body)


@pytest.mark.long
def test_php_and_ruby_read_and_write_files(tmp_path: Path, cache: Path) -> None:
    async def body(here: Node) -> None:
        here.put(
            "a.php",
            b"<?php mkdir('/tmp/php'); file_put_contents('/tmp/php/x', 'by php'); print_r(scandir('/tmp/php'));",
        )
        ended = await here.end(await start(here, "php-cgi-8.2.0.wasm", "-q", "/tmp/a.php"))
        assert ended.code == 0 and "[2] => x" in ended.out.decode(), ended
        assert (here.tmp / "php/x").read_text() == "by php"
        here.put("a.rb", b"Dir.mkdir('/tmp/rb'); File.write('/tmp/rb/x', 'by ruby'); puts Dir.children('/tmp/rb')")
        ended = await here.end(await start(here, "ruby-3.2.0.wasm", "--disable-gems", "/tmp/a.rb"))
        assert (ended.code, ended.out) == (0, b"x\n"), ended
        assert (here.tmp / "rb/x").read_text() == "by ruby"

    run(tmp_path, cache, body)
