"""A view: what one task (or the administrator) sees, and with what authority it acts.

Identity is the root one came in by. Every tree that is served belongs to a
view; its nodes are the view's own, so what `/task/self` means or who the
parent of a new task is never depends on a process id.
"""

from collections.abc import Callable
from errno import ENOENT, EPERM
from typing import Protocol
from weakref import WeakValueDictionary

from ns.namespace import Namespace
from tasks.task import Task
from vfs.files import Synthetic
from vfs.node import ROOT, Caller, Node, node_id


class DeviceTable(Protocol):
    """Makes the devices (`#task`, `#cap`, ...) that a view's namespace can name."""

    async def device(self, view: "View", name: str) -> Node:
        """Return the root of device `name` for `view`. ENOENT."""
        ...


class View:
    """The administrator's view (`task` None) or a task's. Also the `Devices` of that view's namespace."""

    __slots__ = ("__weakref__", "_cache", "_devices", "_namespace", "task")

    def __init__(self, devices: DeviceTable, task: Task | None, namespace: Callable[[], Namespace]) -> None:
        self.task = task
        self._devices = devices
        self._namespace = namespace
        self._cache: WeakValueDictionary[str, Node] = WeakValueDictionary()

    @property
    def admin(self) -> bool:
        return self.task is None

    @property
    def name(self) -> str:
        """Name the view for ever: node ids derive from it."""
        return f"task/{self.task.id}" if self.task else "admin"

    @property
    def caller(self) -> Caller:
        """On whose authority the view's control writes open files."""
        return Caller(self.task.uid, self.task.gid) if self.task else ROOT

    @property
    def namespace(self) -> Namespace:
        return self._namespace()

    async def device(self, name: str) -> Node:
        return await self._devices.device(self, name)

    def sees(self, task: Task) -> bool:
        """Tell whether `task` shows up here: this view's own task and all below it."""
        return task.within(self.task)

    def require_admin(self, what: str) -> None:
        """Raise EPERM unless this is the administrator's view."""
        if not self.admin:
            raise OSError(EPERM, f"only the administrator may {what}")

    def node(self, path: str, make: Callable[[], Synthetic]) -> Node:
        """Return the node that stands at `path` in this view, made at most once while anyone holds it."""
        found = self._cache.get(path)
        if found is None:
            made = make()
            made.id = node_id(self.name, path)
            self._cache[path] = found = made
        return found


def no_device(name: str) -> OSError:
    """Return the error for a device that is not here."""
    return OSError(ENOENT, f"no such device: #{name}")
