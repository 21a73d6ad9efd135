"""Rebuild the tasks of an earlier server from the journal, then ask the drivers and the vault what became of them.

A task that was running and whose supervisor no longer knows it is `exited`
with that as its reason: never stuck.
"""

import json
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from tasks.drivers.base import Exit
from tasks.fds import STDIN, Gone, Held, Inherited, Spooled, Stdin
from tasks.model import Spec, State, Times
from tasks.service import TaskService
from tasks.store import Record
from tasks.task import Task
from tasks.terminal import Terminal

log = structlog.get_logger("tasks")

LOST = "supervisor lost"


def replay(service: TaskService) -> None:
    """Fill an empty service from its journal. Rows that cannot be read are logged and passed over."""
    for row in service.journal.replay():
        try:
            _apply(service, row)
        except (KeyError, ValueError, TypeError) as error:
            log.error("journal row passed over", seq=row.seq, kind=row.kind, error=repr(error))


def _apply(service: TaskService, row: Record) -> None:
    data = json.loads(row.data)
    state = json.loads(row.state) if row.state else {}
    if row.kind == "allocated":
        parent = service.tasks.get(int(data["parent"] or 0))
        made = Task(row.task, parent, Spec.from_json(state["spec"]), service.fork(parent), row.at)
        made.namespace_script = parent.namespace_script if parent else ""  # as it was then: rows come in order
        service.restore(made)
        return
    task = service.tasks.get(row.task)
    if task is None:
        return
    task.changed_ns = int(row.at * 1e9)
    if "spec" in state:
        task.spec = Spec.from_json(state["spec"])
    if "alias" in state:
        service.name(task, state["alias"])
    if "ns" in state:
        task.namespace_script = state["ns"]
    for number, shows in state.get("fds", state.get("fd", {})).items():
        if shows.startswith("spool "):
            service.spool(task, int(number))
        else:
            task.fds.entries[int(number)] = Gone(shows)
    for number, start in state.get("dropped", {}).items():
        service.spool(task, int(number)).start = start
    match row.kind:
        case "configured":
            task.touched = True
            if data.get("what") == "start":
                task.state = State.WAITING
        case "started":
            task.kind, task.main_pid, task.state = state["type"], state["pid"], State.RUNNING
            task.times = replace(task.times, started=row.at)
        case "refused":
            task.error = data["error"]
        case "paused":
            task.state = State.STOPPED
        case "resumed":
            task.state = State.RUNNING
        case "adopted":
            service.adopt(task, service.tasks.get(int(data["parent"] or 0)))
        case "exited":
            task.state, task.reason = State.EXITED, data["reason"]
            task.times = replace(task.times, exited=row.at)
            usage = (data["user_usec"], data["system_usec"], data["peak_bytes"])
            task.exit = Exit(data["code"], data["reason"], *usage)


async def reconcile(
    service: TaskService, apply_script: Callable[[Task, str], Awaitable[None]], *, now: float | None = None
) -> None:
    """Bring a replayed service in line with what still runs. Call once, before serving.

    `apply_script` rebuilds a task's namespace from its script.
    """
    found: set[int] = set()
    open_tasks = [task for task in service.tasks.values() if not task.ended]
    for task in open_tasks:
        if task.namespace_script:
            await apply_script(task, task.namespace_script)
    for name, driver in service.drivers.items():
        asked = [task for task in open_tasks if task.kind in ("", name)]
        known = await driver.recover([str(task.id) for task in asked])
        for task in asked:
            if str(task.id) in known:
                found.add(task.id)
                await _found(service, task, name, known[str(task.id)])
    for task in open_tasks:
        if task.state.live and task.id not in found:
            service.end(task, Exit(128 + signal.SIGKILL, LOST))
        elif task.state.configurable:
            await _reopen(service, task)
    for task in service.tasks.values():
        for entry in task.fds.entries.values() if task.has_fds else ():
            if isinstance(entry, Spooled):
                entry.spool.measure()
                entry.spool.eof = entry.spool.eof or task.ended
    service.schedule(time.time() if now is None else now)


async def _found(service: TaskService, task: Task, kind: str, exit: Exit | None) -> None:
    """The driver knows this task: it runs, or it ended while no server was there."""
    if not task.state.live:
        task.kind, task.state = kind, State.RUNNING
        task.times = Times(task.times.created, task.times.started or task.times.created)
    for number in (1, 2):
        if not isinstance(task.fds.entries.get(number), Gone):
            service.spool(task, number).measure()
    if exit is not None:
        service.end(task, exit)
        return
    if task.fds.shows(STDIN) == Terminal.shows:
        await service.take_terminal(task, service.drivers[kind])
    elif kept := await service.vault.take(f"task/{task.id}/stdin"):
        task.fds.adopt_stdin(kept[0])
    if task.spec.restarts:
        await _reopen(service, task)
    if task.spec.timeout is not None and task.times.started is not None:
        service.arm_timeout(task, max(0.001, task.times.started + task.spec.timeout - time.time()))


async def _reopen(service: TaskService, task: Task) -> None:
    """Take back the descriptors that were set up for a task that has not started, or may start again."""
    if not task.has_fds:
        return
    for number, entry in list(task.fds.entries.items()):
        if entry.shows == Inherited.shows:
            task.fds.entries[number] = Inherited()
        elif isinstance(entry, Gone) and entry not in (Gone(), Gone(Stdin.shows), Gone(Terminal.shows)):
            kept = await service.vault.take(f"task/{task.id}/fd/{number}")
            if kept:
                task.fds.entries[number] = Held(kept[0], entry.shows)
            else:
                task.error = f"descriptor {number} was lost with the server: {entry.shows}"
