"""Make the kernel forget tasks that are gone.

It keeps every name it has looked up, and we keep a node for each, until one
of both says otherwise. The kernel does so only when memory is short.
"""

from math import inf

import trio

from tasks.task import Task
from vfs.fuse.devfuse import Mount
from vfs.node import ROOT, Node, node_id
from vfs.walk import walk
from wanixfs.house import House


class Forgetting:
    """Takes note of removed tasks; `run` tells the kernel, in its own time."""

    def __init__(self, house: House, mount: Mount) -> None:
        self._house = house
        self._mount = mount
        self._views = node_id(house.views.admin.namespace.root.id, ".views")
        self._send, self._receive = trio.open_memory_channel[tuple[list[Node], str, str]](inf)

    def removed(self, task: Task) -> None:
        """Note a task that is being removed. Every view that could name it has its own name for it."""
        roots = [self._house.views.admin.namespace.root]
        ancestor = task.parent
        while ancestor is not None:
            roots.append(ancestor.namespace.root)
            ancestor = ancestor.parent
        self._send.send_nowait((roots, str(task.id), task.alias))

    async def run(self) -> None:
        """Tell the kernel until cancelled."""
        async for roots, number, alias in self._receive:
            await self._mount.stale_entry(self._views, number)
            for root in roots:
                try:
                    folder = await walk(root, "/task", ROOT, checked=False)
                except OSError:
                    continue
                for name in filter(None, (number, alias)):
                    await self._mount.stale_entry(folder.id, name)
