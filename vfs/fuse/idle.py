"""Wait a moment for one descriptor before the trio loop gets its turn.

A turn of the loop costs some 12 us, three times what most requests cost, and with a single client every request is
followed by a wait. So the first 200 us are spent in select(2) if no other task can run, and end as soon as something
happens to a descriptor that the loop waits for. Trio has no public way to know either: this looks at its run queue
and its epoll. A trio that has none is only slower; nothing but a moment's delay depends on what they say.
"""

import select

import trio

MOMENT = 200e-6


class Idle:
    """Waits for `fd` to be readable. To be used by one task, in the loop that it was made in."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._watched: list[int] = []
        try:
            runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
            self._runnable = runner.runq
            watched = [fd, runner.io_manager._epoll.fileno()]
            select.select(watched, (), (), 0)
            self._watched = watched
        except (AttributeError, ValueError):  # another trio; a descriptor that is too large for select(2)
            pass

    async def readable(self) -> None:
        """Return when `fd` may be readable."""
        if self._watched and not self._runnable:
            ready, _, _ = select.select(self._watched, (), (), MOMENT)
            if ready == [self._fd]:
                return
        await trio.lowlevel.wait_readable(self._fd)
