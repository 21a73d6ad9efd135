"""Makes the views of a node, and the namespace that belongs to each."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

from ns.namespace import Namespace
from ns.table import BindTable, Member, Origin
from tasks.task import Task
from tasks.view import DeviceMap, View, view_name
from vfs.node import Caller, Node


class Views:
    """The administrator's view and, on demand, one for each task and for each other user of the machine.

    `devices` may be filled after this is made. `admin_uid` is the uid that is the administrator.
    """

    def __init__(self, devices: DeviceMap, *, admin_uid: int) -> None:
        self._devices = devices
        self._admin_uid = admin_uid
        self._views: WeakValueDictionary[str, View] = WeakValueDictionary()
        self._admin = View(self, devices, None, name="admin", caller=Caller(0, 0))
        self._admin.namespace = Namespace(self._admin, label="admin")

    @property
    def admin(self) -> View:
        return self._admin

    def fork(self, parent: Task | None) -> Callable[[Task], Namespace]:
        """Fix the namespace of a parent as it is now; what is returned builds a child's copy of it, later.

        A task finds its user's home at `/home/<user>` in it.
        """
        return partial(self._build, self._admin.namespace.table if parent is None else parent.namespace.table)

    def _build(self, table: BindTable, task: Task) -> Namespace:
        user = task.spec.user
        if not os.path.isabs(user.home) and not table.members("/home"):
            table = table.bind(f"/home/{user.name}", [Member(Origin("home", user.home))])
        return Namespace(self.of(task), label=view_name(task), table=table)

    def of(self, task: Task) -> View:
        """Return the view of a task."""
        return self._known(view_name(task), lambda name: View(self, self._devices, task, name=name))

    def _known(self, name: str, make: Callable[[str], View]) -> View:
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = make(name)
        return view

    def acting(self, view: View, who: Caller) -> View:
        """Return the view with whose authority `who` acts through `view`.

        The administrator's tree may be used by others where modes let them; they act as themselves.
        """
        if not view.admin or who.uid in (0, self._admin_uid):
            return view
        return self._known(f"user/{who.uid}", lambda name: self._of_user(name, replace(who, pid=0)))

    def _of_user(self, name: str, who: Caller) -> View:
        view = View(self, self._devices, None, name=name, caller=who)
        view.namespace = Namespace(view, label=name, table=self._admin.namespace.table)
        return view

    def inner_root(self, task: Task) -> Node:
        """Return a task's namespace as it stands in `/task/<id>/ns/root`: live, but with no such directory inside."""
        view = self._known(
            f"{view_name(task)}/inner", lambda name: View(self, self._devices, task, name=name, inner=True)
        )
        if not view.has_namespace or not view.namespace.shares_with(task.namespace):
            view.namespace = task.namespace.share(view, label=view.name)
        return view.namespace.root
