"""The supervisor as the keeper of descriptors: fulfils `tasks.ports.Vault`."""

from collections.abc import Sequence

from tasks.drivers.linux.client import Client


class SupervisorVault:
    """Keeps descriptors in the supervisor, where they outlive this process."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys: set[str] = set()

    def hold(self, key: str, fds: Sequence[int], *, grace: float | None = None) -> None:
        """Keep duplicates of `fds`, instead of what was kept under `key`.

        With a grace, only for so many seconds while no server is connected.
        """
        self.drop(key)
        self._keys.add(key)
        self._client.post("hold", fds, key=key, **({} if grace is None else {"grace_ms": int(grace * 1000)}))

    def drop(self, key: str) -> None:
        """Keep nothing under `key` any more."""
        if key in self._keys:
            self._keys.remove(key)
            self._client.post("drop", key=key)

    async def take(self, key: str) -> list[int]:
        """Return duplicates of what is kept under `key`, [] for nothing."""
        try:
            _, fds = await self._client.request("take", key=key)
        except FileNotFoundError:
            return []
        self._keys.add(key)
        return fds
