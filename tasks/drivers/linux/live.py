"""A running task's mounts follow its namespace."""

from collections.abc import Callable
from errno import ESRCH

import structlog
import trio

from ns.namespace import Change, Namespace
from ns.table import BindTable
from tasks.drivers.linux.client import Client
from tasks.drivers.linux.layouts import Layouts
from tasks.drivers.linux.roots import Difference, Holder, difference, view_path
from tasks.taskd.protocol import Message

log: Callable[..., object] = structlog.get_logger("linux").error


class LiveRoot:
    """Keeps one task's root in step with its namespace (an `ns.namespace.Realiser`), until the task has ended."""

    def __init__(self, client: Client, holder: Holder, namespace: Namespace, layouts: Layouts) -> None:
        self._client = client
        self._holder = holder
        self._namespace = namespace
        self._layouts = layouts
        self._late: Difference | None = None

    async def apply(self, change: Change) -> None:
        """Mount and unmount what the kernel can by itself; all of it, or what was done is taken back."""
        step = await self._difference(change.before, change.after)
        try:
            await self._graft(step.drop, step.steps, step.grows)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._try(await self._difference(change.after, change.before))
            raise
        self._late = step

    async def revert(self, change: Change) -> None:
        self._late = None
        step = await self._difference(change.after, change.before)
        await self._graft(step.drop, step.steps + step.late, step.grows)

    async def settle(self, change: Change) -> None:
        """Mount what the server's own tree shows, now that it does."""
        step, self._late = self._late, None
        if step and step.late:
            with trio.CancelScope(shield=True):
                await self._try(Difference([], step.late, [], step.grows))

    async def _try(self, step: Difference) -> None:
        try:
            await self._graft(step.drop, step.steps + step.late, step.grows)
        except OSError as error:
            log("a task does not see its namespace", task=self._holder.task, error=str(error))

    async def _difference(self, before: BindTable, after: BindTable) -> Difference:
        return difference(await self._root(before), await self._root(after))

    async def _root(self, table: BindTable) -> Message:
        return await self._layouts.root(self._holder, self._namespace, table)

    async def _graft(self, drop: list[str], steps: list[Message], grows: bool) -> None:
        if not (drop or steps):
            return
        try:
            view = view_path(self._holder, self._layouts.roots)
            root = {"drop": drop, "steps": steps, "grows": grows, "view": view}
            await self._client.call("graft", task=self._holder.task, root=root)
        except OSError as error:
            if error.errno != ESRCH:
                raise
