"""Connections to 9P servers elsewhere, kept as long as this server: one for each address and tree."""

import trio

from vfs.inline import park
from vfs.ninep.client import Client, connect
from vfs.node import Caller, Node

DIAL_SECONDS = 10.0


class Dialler:
    """Dials, and keeps what it dialled. A connection that has died is dialled again at the next use."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._clients: dict[tuple[str, str, int], Client] = {}

    async def dial(self, address: str, aname: str, who: Caller) -> Node:
        """Return the root of the tree `aname` at `address`, attached as `who`. What connecting raises."""
        key = (address, aname, who.uid)
        client = self._clients.get(key)
        if client is None:
            await park()
            with trio.fail_after(DIAL_SECONDS):
                client = await self._nursery.start(self._hold, key)
        return client.root

    async def _hold(
        self, key: tuple[str, str, int], task_status: trio.TaskStatus[Client] = trio.TASK_STATUS_IGNORED
    ) -> None:
        address, aname, uid = key
        async with connect(address, aname=aname, uid=uid) as client:
            self._clients[key] = client
            task_status.started(client)
            try:
                await client.wait_lost()
            finally:
                if self._clients.get(key) is client:  # else another was dialled at the same time
                    del self._clients[key]
