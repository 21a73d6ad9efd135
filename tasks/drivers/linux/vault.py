"""The supervisor as the keeper of descriptors: fulfils `tasks.ports.Vault`."""

from collections.abc import Sequence

from tasks.drivers.linux.client import Client


class SupervisorVault:
    """Keeps descriptors in the supervisor, where they outlive this process."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def hold(self, key: str, fds: Sequence[int], *, grace: float | None = None) -> None:
        """Keep duplicates of `fds`; with a grace, only for so many seconds while no server is connected."""
        self.drop(key)
        self._client.post("hold", fds, key=key, **({} if grace is None else {"grace_ms": int(grace * 1000)}))

    def drop(self, key: str) -> None:
        self._client.post("drop", key=key)

    async def take(self, key: str) -> list[int]:
        try:
            _, fds = await self._client.request("take", key=key)
        except FileNotFoundError:
            return []
        return fds
