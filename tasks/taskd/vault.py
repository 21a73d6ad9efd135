"""Descriptors that must outlive the server: held by key until it comes back for them."""

import os
from collections.abc import Sequence
from errno import EEXIST, ENOENT, ENOSPC

MAX_KEYS = 65536


class Vault:
    """Keys to groups of descriptors. A key with a grace is dropped after that many seconds without a server."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[list[int], float | None]] = {}

    def hold(self, key: str, fds: Sequence[int], grace: float | None) -> None:
        """Keep duplicates of `fds`. EEXIST, ENOSPC."""
        if key in self._held:
            raise OSError(EEXIST, f"already held: {key}")
        if len(self._held) >= MAX_KEYS:
            raise OSError(ENOSPC, "too many keys held")
        self._held[key] = ([os.dup(fd) for fd in fds], grace)

    def take(self, key: str) -> list[int]:
        """Return the descriptors of `key`, still held. ENOENT."""
        try:
            return self._held[key][0]
        except KeyError:
            raise OSError(ENOENT, f"not held: {key}") from None

    def drop(self, key: str) -> None:
        """Close what `key` holds. ENOENT."""
        for fd in self.take(key):
            os.close(fd)
        del self._held[key]

    def keys(self) -> list[str]:
        return list(self._held)

    def graces(self) -> set[float]:
        """Return the graces in use, in seconds."""
        return {grace for _, grace in self._held.values() if grace is not None}

    def drop_expired(self, absent: float) -> None:
        """Drop the keys whose grace is over after `absent` seconds without a server."""
        for key in [key for key, (_, grace) in self._held.items() if grace is not None and grace <= absent]:
            self.drop(key)
