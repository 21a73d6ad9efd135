"""Who waits for a change in this process hears a bell, many rings perhaps as one; what is so, the store says."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Bells:
    """Bells by name."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Event]] = {}

    def ring(self, name: str) -> None:
        for heard in self._listeners.get(name, ()):
            heard.set()

    @contextmanager
    def listening(self, *names: str) -> Iterator[asyncio.Event]:
        """Give an event that any of these bells sets; who waits on it clears it before looking."""
        heard = asyncio.Event()
        for name in names:
            self._listeners.setdefault(name, set()).add(heard)
        try:
            yield heard
        finally:
            for name in names:
                self._listeners[name].discard(heard)
                if not self._listeners[name]:
                    del self._listeners[name]
