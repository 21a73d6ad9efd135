"""A view: what one task (or the administrator) sees, and with what authority it acts.

Identity is the root one came in by. Every tree that is served belongs to a
view; its nodes are the view's own, so what `/task/self` means or who the
parent of a new task is never depends on a process id.
"""

from collections.abc import Callable, Mapping
from errno import ENOENT, EPERM
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ns.namespace import Namespace
from ns.table import Origin
from tasks.task import Task
from vfs.files import Synthetic
from vfs.node import Caller, Node, node_id

if TYPE_CHECKING:
    from tasks.views import Views

PER_VIEW = frozenset({"task", "cap", "home", "sessions"})
"""Devices that, bound as a whole, show each view something of its own; what is inside them is the binder's."""
ADMIN_ONLY = frozenset({"host", "9p"})
"""Devices that only the administrator may name; a task reaches of them what was bound for it."""

DeviceMap = Mapping[str, "Callable[[View], Node]"]
"""What makes each device's root for a view."""


class View:
    """A task's view, or one without a task: the administrator's, or another user's of this machine.

    It is also the `Devices` of its namespace. `inner` marks the view behind a task's `ns/root`.
    """

    __slots__ = (
        "__weakref__",
        "_cache",
        "_caller",
        "_devices",
        "_kept",
        "_namespace",
        "inner",
        "name",
        "task",
        "views",
    )

    def __init__(
        self,
        views: "Views",
        devices: DeviceMap,
        task: Task | None,
        *,
        name: str,
        caller: Caller | None = None,
        inner: bool = False,
    ) -> None:
        self.views = views
        self.task = task
        self.name = name
        self.inner = inner
        self._devices = devices
        self._caller = caller
        self._namespace: Namespace | None = None
        self._cache: WeakValueDictionary[str, Node] | None = None
        self._kept: list[Node] = []

    @property
    def admin(self) -> bool:
        return self.task is None and self.caller.uid == 0

    @property
    def owner(self) -> tuple[int, int] | None:
        return None if self.task is None else (self.task.uid, self.task.gid)

    @property
    def caller(self) -> Caller:
        """On whose authority the view's control writes open files."""
        if self.task is not None:
            return Caller(self.task.uid, self.task.gid)
        assert self._caller is not None
        return self._caller

    @property
    def namespace(self) -> Namespace:
        if self._namespace is None:
            assert self.task is not None
            return self.task.namespace
        return self._namespace

    @namespace.setter
    def namespace(self, namespace: Namespace) -> None:
        self._namespace = namespace

    @property
    def has_namespace(self) -> bool:
        """Whether the view has one of its own, rather than its task's."""
        return self._namespace is not None

    def acting(self, who: Caller) -> "View":
        """Return the view with whose authority `who` acts when it writes through this one."""
        return self.views.acting(self, who)

    # As `ns.namespace.Devices`

    def allowed(self, name: str) -> bool:
        return self.admin or name not in ADMIN_ONLY

    def per_view(self, origin: Origin) -> bool:
        return origin.device == "etc" or (origin.device in PER_VIEW and not origin.path)

    async def device(self, name: str) -> Node:
        make = self._devices.get(name)
        if make is None:
            raise OSError(ENOENT, f"no such device: #{name}")
        return make(self)

    # What is seen

    def sees(self, task: Task) -> bool:
        """Tell whether `task` shows up here: this view's own task and all below it; to a user, that user's."""
        if self.task is None:
            return self.admin or task.uid == self.caller.uid
        return task.within(self.task)

    def require_admin(self, what: str) -> None:
        """Raise EPERM unless this is the administrator's view."""
        if not self.admin:
            raise OSError(EPERM, f"only the administrator may {what}")

    def node(self, path: str, make: Callable[[], Synthetic]) -> Node:
        """Return the node that stands at `path` in this view, made at most once while anyone holds it."""
        if self._cache is None:
            self._cache = WeakValueDictionary()
        found = self._cache.get(path)
        if found is None:
            made = make()
            made.id = node_id(self.name, path)
            self._cache[path] = found = made
            if self.task is None and "/" not in path:  # a device of one of the few views that all else goes through
                self._kept.append(found)
        return found


def view_name(task: Task) -> str:
    """Return the name of a task's view."""
    return f"task/{task.id}"
