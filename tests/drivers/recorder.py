"""A listener that tests can wait on, and drivers set up for one test."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tasks.drivers.base import Exit, Launch
from tasks.drivers.linux.driver import LinuxDriver, opened

ROOT = os.geteuid() == 0
UID, GID = (65534, 65534) if ROOT else (os.geteuid(), os.getegid())
DEADLINE = 60.0


class Recorder:
    """Keeps what a driver reports; `until` waits for it."""

    def __init__(self) -> None:
        self.exits: dict[str, Exit] = {}
        self.spools: dict[tuple[str, int], tuple[int, int, bool]] = {}
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.lost_because: list[str] = []
        self.order: list[str] = []
        self._changed = trio.Event()

    def _note(self, what: str) -> None:
        self.order.append(what)
        self._changed.set()
        self._changed = trio.Event()

    def exited(self, task: str, exit: Exit) -> None:
        assert task not in self.exits, "an end is reported once"
        self.exits[task] = exit
        self._note(f"exited {task}")

    def output(self, task: str, fd: int, end: int, start: int, eof: bool) -> None:
        self.spools[task, fd] = (end, start, eof)
        self._note(f"output {task}")

    def event(self, task: str, kind: str, detail: Mapping[str, object]) -> None:
        self.events.append((task, kind, dict(detail)))
        self._note(f"event {task}")

    def lost(self, reason: str) -> None:
        self.lost_because.append(reason)
        self._note("lost")

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    async def exit_of(self, task: str) -> Exit:
        await self.until(lambda: task in self.exits)
        return self.exits[task]


def launch(id: str, *argv: str, state: Path, **options: object) -> Launch:
    """Return a launch of `argv` in the host's own root, as an ordinary user."""
    defaults: dict[str, object] = {
        "env": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
        "cwd": "/",
        "uid": UID,
        "gid": GID,
        "user": "somebody",
        "home": state,
        "net": "host",
    }
    return Launch(id=id, argv=argv, **(defaults | options))  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that a foreign process does and that leaves no event."""
    while not holds():
        await trio.sleep(0.002)


@asynccontextmanager
async def linux_driver(state: Path, **options: object) -> AsyncIterator[tuple[LinuxDriver, Recorder]]:
    """A Linux driver with a supervisor of its own, both gone afterwards."""
    recorder = Recorder()
    with trio.fail_after(DEADLINE):
        async with opened(state, recorder, **options) as driver:  # type: ignore[arg-type]
            try:
                yield driver, recorder
            finally:
                with trio.move_on_after(10, shield=True):
                    if not recorder.lost_because:
                        await driver.quit()
