"""Connections to 9P servers elsewhere: one for each address and tree, shared by all that use it."""

import trio

from vfs.inline import park
from vfs.ninep.client import Client, connect
from vfs.node import Caller, Node

LINGER_SECONDS = 30.0
"""How long a connection that nobody uses is kept for the next."""

_Key = tuple[str, str, int]


class Dialler:
    """Dials, and keeps what it dialled for as long as any node or open file of it is held.

    A connection that has died is dialled again at the next use.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._clients: dict[_Key, Client] = {}

    async def dial(self, address: str, aname: str, who: Caller) -> Node:
        """Return the root of the tree `aname` at `address`, attached as `who`. What connecting raises."""
        key = (address, aname, who.uid)
        client = self._clients.get(key)
        if client is not None and not client.lost:
            return await client.attach(aname, uid=who.uid)
        await park()
        root: Node = await self._nursery.start(self._hold, key)
        return root

    async def _hold(self, key: _Key, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED) -> None:
        address, aname, uid = key
        async with connect(address, aname=aname, uid=uid) as client:
            task_status.started(await client.attach(aname, uid=uid))
            del task_status  # it would hold the node
            self._clients[key] = client
            try:
                while not client.lost:
                    await client.wait_unused()
                    with trio.move_on_after(LINGER_SECONDS):
                        await client.wait_lost()
                    if client.unused:
                        break
            finally:
                if self._clients.get(key) is client:  # else another was dialled at the same time
                    del self._clients[key]
