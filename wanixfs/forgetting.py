"""Make the kernel forget tasks that are gone.

It keeps every name it has looked up, and we keep a node for each, until one
of both says otherwise. The kernel does so only when memory is short.
"""

from dataclasses import dataclass
from math import inf

import trio

from tasks.task import Task
from vfs.fuse.devfuse import Mount
from vfs.node import ROOT, Node, node_id
from vfs.walk import walk
from wanixfs.house import House

GATHERING = 0.1
"""Seconds for which removed tasks are gathered: to tell takes a thread."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A removed task: the roots of the views that could name it, and its names below their `/task`."""

    roots: list[Node]
    number: str
    alias: str


class Forgetting:
    """Takes note of removed tasks; `run` tells the kernel, in its own time."""

    def __init__(self, house: House, mount: Mount) -> None:
        self._house = house
        self._mount = mount
        self._views = node_id(house.views.admin.namespace.root.id, ".views")
        self._send, self._receive = trio.open_memory_channel[Gone](inf)

    def removed(self, task: Task) -> None:
        """Note a task that is being removed. Every view that could name it has its own name for it."""
        roots = [self._house.views.admin.namespace.root]
        ancestor = task.parent
        while ancestor is not None:
            roots.append(ancestor.namespace.root)
            ancestor = ancestor.parent
        self._send.send_nowait(Gone(roots, str(task.id), task.alias))

    async def run(self) -> None:
        """Tell the kernel until cancelled: of all that are gone by then, at once."""
        async for gone in self._receive:
            await trio.sleep(GATHERING)
            names = await self._names(gone)
            while self._receive.statistics().current_buffer_used:
                names += await self._names(self._receive.receive_nowait())
            await self._mount.stale_entries(names)

    async def _names(self, gone: Gone) -> list[tuple[int, str]]:
        """Return every name of a task that the kernel may hold, with the id of its directory."""
        names = [(self._views, gone.number)]
        for root in gone.roots:
            try:
                folder = await walk(root, "/task", ROOT, checked=False)
            except OSError:
                continue
            names += [(folder.id, name) for name in (gone.number, gone.alias) if name]
        return names
