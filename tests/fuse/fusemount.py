"""A tree served at a real mount point by a trio loop in a thread; its clients are other processes."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import trio

from vfs.fuse.devfuse import Mount, mounted
from vfs.node import Node

T = TypeVar("T")
PATIENCE = 20.0


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Return when `condition()` holds; for what a foreign process or the kernel does without telling."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {PATIENCE} s")
        threading.Event().wait(0.005)


class Served:
    """A mount that is being served: `path`, its `mount`, and a way into the loop that serves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mount: Mount
        self.token: trio.lowlevel.TrioToken
        self.stop: trio.Event

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a plain function in the server's loop."""
        return trio.from_thread.run_sync(function, *arguments, trio_token=self.token)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a coroutine function in the server's loop."""
        return trio.from_thread.run(function, *arguments, trio_token=self.token)

    @property
    def waiting(self) -> int:
        """How many requests wait in the server."""
        return self.call(lambda: len(self.mount.session._waiting))

    def until_waiting(self, count: int) -> None:
        until(lambda: self.waiting == count, f"{count} waiting requests")

    def sh(self, script: str, *, check: bool = True, timeout: float = 60) -> str:
        """Run a shell script with the mount as its directory and return what it printed."""
        return shell(script, self.path, check=check, timeout=timeout)

    def popen(self, script: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a shell script with the mount as its directory."""
        return subprocess.Popen(argv(script, self.path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def argv(script: str, where: Path) -> list[str]:
    # The shell changes directory, not the fork: a forking thread holds the interpreter that has to answer.
    return ["bash", "-c", f'cd "$1" || exit 99\n{script}', "bash", str(where)]


def shell(script: str, where: Path, *, check: bool = True, timeout: float = 60) -> str:
    done = subprocess.run(
        argv(script, where), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False
    )
    text = done.stdout.decode("utf-8", "surrogateescape")
    if check:
        assert done.returncode == 0, text
    return text


def finish(process: subprocess.Popen[bytes], timeout: float = PATIENCE) -> tuple[int, bytes]:
    """Return a client's exit code and output; one that does not end is killed, and that is a failure."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
        raise
    return process.returncode, output


@contextlib.contextmanager
def served(path: Path, root: Node | Callable[[], Node], **options: Any) -> Iterator[Served]:
    """Serve `root` (or what it returns, called in the loop) at `path` until the block ends."""
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    here = Served(path)
    ready = threading.Event()
    failed: list[BaseException] = []

    async def main() -> None:
        here.token = trio.lowlevel.current_trio_token()
        here.stop = trio.Event()
        async with mounted(path, root if isinstance(root, Node) else root(), **options) as here.mount:
            ready.set()
            await here.stop.wait()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        if failed:
            raise failed[0]
        yield here
    finally:
        with contextlib.suppress(trio.RunFinishedError):
            here.call(here.stop.set)
        thread.join(PATIENCE)
        if thread.is_alive():
            subprocess.run(["umount", "-l", path], check=False)
            raise AssertionError("the server did not end")
        assert not is_mounted(path)
    if failed:
        raise failed[0]


def is_mounted(path: Path) -> bool:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return os.path.abspath(path) in points
