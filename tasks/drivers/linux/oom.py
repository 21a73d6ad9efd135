"""Tells at once when a group's processes are killed for want of memory: the main one may go on for long."""

import os
import select
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import trio

KILL_SECONDS = 1.0
"""How long after the kernel's notice a kill may be counted; version 1 gives notice first."""
LOOK_SECONDS = 0.005


class OomNotice:
    """Wakes when the memory cgroup `directory` has run out of memory; the caller closes it.

    Version 1 signals an eventfd (cgroup-v1/memory.rst, 10), version 2 makes `memory.events` poll as changed.
    """

    def __init__(self, directory: str, *, unified: bool) -> None:
        with ExitStack() as opened:
            self._file = os.open(
                f"{directory}/memory.{'events' if unified else 'oom_control'}", os.O_RDONLY | os.O_CLOEXEC
            )
            opened.callback(os.close, self._file)
            if unified:
                changed = select.epoll()
                opened.callback(changed.close)
                changed.register(self._file, select.EPOLLPRI)
                self._wake = changed.fileno()
                os.pread(self._file, 4096, 0)
            else:
                self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                opened.callback(os.close, self._wake)
                Path(directory, "cgroup.event_control").write_text(f"{self._wake} {self._file}")
            self._unified = unified
            self._opened = opened.pop_all()

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self._wake)
        if self._unified:
            os.pread(self._file, 4096, 0)
        else:
            os.eventfd_read(self._wake)

    def close(self) -> None:
        self._opened.close()


class OomWatch:
    """Calls `tell` with the number of kills so far (`count`) each time that it has grown. Stopped by `finish`."""

    def __init__(self, notice: OomNotice, count: Callable[[], int], tell: Callable[[int], None]) -> None:
        self._notice = notice
        self._count = count
        self._tell = tell
        self._told = 0
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        with closing(self._notice), self._scope, suppress(OSError):  # the group may go
            while True:
                await trio.lowlevel.checkpoint()
                self._look()
                await self._notice.wait()
                with trio.move_on_after(KILL_SECONDS):
                    while self._count() == self._told:
                        await trio.sleep(LOOK_SECONDS)

    def finish(self) -> None:
        """Tell what is still untold, and stop."""
        self._look()
        self._scope.cancel()

    def _look(self) -> None:
        kills = self._count()
        if kills > self._told:
            self._told = kills
            self._tell(kills)
