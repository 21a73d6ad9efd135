"""What the task service needs from outside, as small protocols that the composition root fulfils."""

from collections.abc import Sequence
from typing import Protocol

from vfs.node import Caller, Node


class Vault(Protocol):
    """Keeps descriptors for a server that may be killed. The supervisor process is the usual one."""

    def hold(self, key: str, fds: Sequence[int]) -> None:
        """Keep duplicates of `fds` under `key` (replacing what was there). Does not wait; the caller's stay its own."""

    def drop(self, key: str) -> None:
        """Close what is kept under `key`, if anything. Does not wait."""

    async def take(self, key: str) -> list[int]:
        """Return fresh duplicates of what is kept under `key`; [] for nothing."""
        ...


class NoVault:
    """A `Vault` for servers whose descriptors need not outlive them."""

    def hold(self, key: str, fds: Sequence[int]) -> None:
        return

    def drop(self, key: str) -> None:
        return

    async def take(self, key: str) -> list[int]:
        return []


class Dialer(Protocol):
    """Connects to 9P servers elsewhere."""

    async def __call__(self, address: str, aname: str, who: Caller) -> Node:
        """Return the root of the tree that `address` serves."""
        ...
