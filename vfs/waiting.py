"""Signal: how a reader that must wait is woken at once, without polling."""

from collections.abc import Callable

from trio.lowlevel import ParkingLot

from vfs.inline import park


class Signal:
    """Says "something changed" to everyone who waits; carries no value and forgets.

    Wake-ups may be spurious, so a waiter loops: `while not done(): await signal.wait()`.
    """

    __slots__ = ("_lot", "_watchers")

    def __init__(self) -> None:
        self._lot: ParkingLot | None = None
        self._watchers: list[Callable[[], None]] = []

    async def wait(self) -> None:
        """Return after a later `notify`, or at once when the caller had to leave the inline path first."""
        if await park():
            return
        if self._lot is None:
            self._lot = ParkingLot()
        await self._lot.park()

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake()` at the next `notify`, once."""
        self._watchers.append(wake)

    def notify(self) -> None:
        """Wake every waiter and watcher. Never waits."""
        if self._lot is not None:
            self._lot.unpark_all()
        if self._watchers:
            watchers, self._watchers = self._watchers, []
            for wake in watchers:
                wake()
