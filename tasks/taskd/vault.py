"""Descriptors that must outlive the server: held by key until it comes back for them."""

import os
from collections.abc import Sequence
from errno import ENOSPC

MAX_KEYS = 1 << 18


class Vault:
    """Keys to groups of descriptors. A key with a grace is dropped after that many seconds without a server."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[list[int], float | None]] = {}

    def hold(self, key: str, fds: Sequence[int], grace: float | None) -> None:
        """Keep duplicates of `fds`, instead of what `key` held. ENOSPC."""
        if key not in self._held and len(self._held) >= MAX_KEYS:
            raise OSError(ENOSPC, "too many keys held")
        kept = [os.dup(fd) for fd in fds]
        self.drop(key)
        self._held[key] = (kept, grace)

    def take(self, key: str) -> list[int]:
        """Return the descriptors of `key`, still held; [] for nothing."""
        return self._held[key][0] if key in self._held else []

    def drop(self, key: str) -> None:
        """Close what `key` holds, if anything."""
        for fd in self._held.pop(key, ([], None))[0]:
            os.close(fd)

    def keys(self) -> list[str]:
        return list(self._held)

    def graces(self) -> set[float]:
        """Return the graces in use, in seconds."""
        return {grace for _, grace in self._held.values() if grace is not None}

    def drop_expired(self, absent: float) -> None:
        """Drop the keys whose grace is over after `absent` seconds without a server."""
        for key in [key for key, (_, grace) in self._held.items() if grace is not None and grace <= absent]:
            self.drop(key)
