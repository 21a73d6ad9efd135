"""The record of one task: its description, its state, and who waits for it."""

from collections.abc import Callable
from dataclasses import replace
from errno import EBUSY
from typing import Any

from ns.namespace import Namespace
from tasks.drivers.base import Exit
from tasks.fds import FdTable
from tasks.model import Spec, State, Times
from tasks.transitions import Event, next_state
from vfs.waiting import Signal


class Task:
    """One task. Ten thousand idle ones must cost little, so what is seldom needed is made on first use."""

    __slots__ = (
        "__weakref__",
        "_fds",
        "_namespace",
        "_signal",
        "alias",
        "cancel_timeout",
        "changed_ns",
        "children",
        "error",
        "exit",
        "fork",
        "id",
        "kind",
        "main_pid",
        "namespace_script",
        "parent",
        "reason",
        "spec",
        "state",
        "times",
        "told",
        "touched",
    )

    def __init__(
        self, id: int, parent: "Task | None", spec: Spec, fork: "Callable[[Task], Namespace]", now: float
    ) -> None:
        self.id = id
        self.parent = parent
        self.spec = spec
        self.fork = fork
        self.state = State.ALLOCATED
        self.times = Times(now)
        self.changed_ns = int(now * 1e9)
        self.children: dict[int, Task] = {}
        self.alias = ""
        self.error = ""
        self.reason = ""
        self.exit: Exit | None = None
        self.kind = ""
        self.main_pid = 0
        self.namespace_script = ""
        self.touched = False
        self.told = False
        self.cancel_timeout: Callable[[], Any] | None = None
        self._namespace: Namespace | None = None
        self._fds: FdTable | None = None
        self._signal: Signal | None = None

    @property
    def uid(self) -> int:
        return self.spec.user.uid

    @property
    def gid(self) -> int:
        return self.spec.user.gid

    @property
    def namespace(self) -> Namespace:
        """This task's own namespace: its parent's as it was when this task was made, until changed."""
        if self._namespace is None:
            self._namespace = self.fork(self)
        return self._namespace

    @namespace.setter
    def namespace(self, namespace: Namespace) -> None:
        self._namespace = namespace

    @property
    def fds(self) -> FdTable:
        if self._fds is None:
            self._fds = FdTable()
        return self._fds

    @property
    def has_fds(self) -> bool:
        return self._fds is not None

    @property
    def signal(self) -> Signal:
        """Notified at every change of state."""
        if self._signal is None:
            self._signal = Signal()
        return self._signal

    def notify(self) -> None:
        if self._signal is not None:
            self._signal.notify()

    @property
    def ended(self) -> bool:
        return self.state is State.EXITED

    def become(self, event: Event) -> None:
        """Take the step that the table has for `event`. EBUSY or ESRCH, and no change, where it has none."""
        self.state = next_state(self.state, event)
        self.notify()

    def configure(self, **fields: Any) -> None:
        """Change the description of a task that is not started. EBUSY if it is."""
        self.check_configurable()
        self.spec = replace(self.spec, **fields)
        self.touched = True

    def check_configurable(self) -> None:
        if not self.state.configurable:
            raise OSError(EBUSY, f"the task is {self.state.shown}")

    def within(self, ancestor: "Task | None") -> bool:
        """Tell whether this task is `ancestor` or below it (None: the administrator, above all)."""
        task: Task | None = self
        while task is not None:
            if task is ancestor:
                return True
            task = task.parent
        return ancestor is None
