"""How a task and its runs change: tables, and pure functions from a task to the task after.

A terminal status never changes.
"""

from dataclasses import replace
from errno import EACCES, EBUSY

from wanixfs.control.model import Run, RunId, RunStatus, Task, TaskStatus, WorkerId

RUN_NEXT: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.PENDING: frozenset({RunStatus.ASSIGNED, RunStatus.CANCELLED}),
    RunStatus.ASSIGNED: frozenset({RunStatus.RUNNING, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.RUNNING: frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.COMPLETED: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.CANCELLED: frozenset(),
}

TASK_NEXT: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.PENDING: frozenset({TaskStatus.RUNNING, TaskStatus.FAILED, TaskStatus.CANCELLED}),
    TaskStatus.RUNNING: frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED}),
    TaskStatus.COMPLETED: frozenset(),
    TaskStatus.FAILED: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}

MAX_BACKOFF_MS = 3_600_000


def is_over(status: RunStatus | TaskStatus) -> bool:
    """Tell whether a status is terminal."""
    return not (RUN_NEXT[status] if isinstance(status, RunStatus) else TASK_NEXT[status])


def live_runs(task: Task) -> tuple[Run, ...]:
    """Return the runs that may still be doing something."""
    return tuple(run for run in task.runs if not is_over(run.status))


def changed_runs(task: Task, before: Task | None) -> list[Run]:
    """Return the runs of a task that it did not have before, or not so."""
    known = {run.id: run for run in before.runs} if before else {}
    return [run for run in task.runs if known.get(run.id) != run]


def open_lanes(task: Task) -> tuple[int, ...]:
    """Return the lanes that want a run, lowest first."""
    if is_over(task.status):
        return ()
    return tuple(lane for lane, runs in enumerate(_lanes(task)) if not runs or _fails_for_now(task, runs))


def _lanes(task: Task) -> list[list[Run]]:
    lanes: list[list[Run]] = [[] for _ in range(task.spec.fan_out.runs)]
    for run in task.runs:
        lanes[run.lane].append(run)
    return lanes


def _has_failed(runs: list[Run]) -> bool:
    return bool(runs) and runs[-1].status in (RunStatus.FAILED, RunStatus.CANCELLED)


def _is_tried_again(task: Task, runs: list[Run]) -> bool:
    return len(runs) < task.spec.retry.max_attempts and (runs[-1].lost or task.spec.retry.on_failure)


def _fails_for_now(task: Task, runs: list[Run]) -> bool:
    return _has_failed(runs) and _is_tried_again(task, runs)


def assign(task: Task, run_id: RunId, worker_id: WorkerId, now_ms: int) -> Task:
    """Give the first open lane to a worker. EBUSY: there is none."""
    lanes = open_lanes(task)
    if not lanes:
        raise OSError(EBUSY, f"task {task.id} wants no run")
    run = Run(id=run_id, task_id=task.id, worker_id=worker_id, lane=lanes[0], issued_at_ms=now_ms)
    return replace(task, status=TaskStatus.RUNNING, runs=(*task.runs, run))


def owned(run: Run, worker_id: WorkerId) -> Run:
    """Return a run if a worker may speak of it. EACCES: it is another worker's."""
    if run.worker_id != worker_id:
        raise OSError(EACCES, f"run {run.id} is not this worker's")
    return run


def report(task: Task, run_id: RunId, status: RunStatus, now_ms: int, *, error: str = "", backend: str = "") -> Task:
    """Take a worker's word about a run: what comes late, twice or out of order changes nothing.

    A run that was told to stop ends CANCELLED, whatever the worker makes of it.
    """
    run = task.run(run_id)
    if run is None or status not in RUN_NEXT[run.status]:
        return task
    if run.stopping and is_over(status):
        status, error = RunStatus.CANCELLED, run.stopping
    started = run.started_at_ms or now_ms
    run = replace(run, status=status, started_at_ms=started, backend_used=backend or run.backend_used)
    if is_over(status):
        run = replace(run, finished_at_ms=now_ms, error_message=error)
    return _settled(task, run, now_ms)


def lose(task: Task, run_id: RunId, now_ms: int, reason: str) -> Task:
    """End a run whose worker is gone; its lane may be tried again."""
    run = task.run(run_id)
    if run is None or is_over(run.status):
        return task
    if run.stopping:
        return report(task, run_id, RunStatus.CANCELLED, now_ms)
    ended = replace(run, status=RunStatus.FAILED, lost=True, finished_at_ms=now_ms, error_message=reason)
    return _settled(task, ended, now_ms)


def cancel(task: Task, now_ms: int, reason: str) -> Task:
    """Cancel a task at once and ask its runs to stop. EBUSY: it is over."""
    if is_over(task.status):
        raise OSError(EBUSY, f"task {task.id} is {task.status}")
    return _ended(task, TaskStatus.CANCELLED, now_ms, reason)


def expire(task: Task, now_ms: int) -> Task:
    """Fail a task that is past its deadline and ask its runs to stop."""
    if is_over(task.status) or not 0 < task.spec.deadline_ms <= now_ms:
        return task
    return _ended(task, TaskStatus.FAILED, now_ms, "deadline exceeded")


def _settled(task: Task, changed: Run, now_ms: int) -> Task:
    """Put a changed run into its task and derive the task's status from all of its runs."""
    task = replace(task, runs=tuple(changed if run.id == changed.id else run for run in task.runs))
    if is_over(task.status) or not is_over(changed.status):
        return task
    fan_out, lanes = task.spec.fan_out, _lanes(task)
    if sum(run.status == RunStatus.COMPLETED for run in task.runs) >= fan_out.wanted:
        return _ended(task, TaskStatus.COMPLETED, now_ms, "")
    spent = sum(_has_failed(runs) and not _is_tried_again(task, runs) for runs in lanes)
    if fan_out.runs - spent < fan_out.wanted:
        return _ended(task, TaskStatus.FAILED, now_ms, changed.error_message)
    lane = lanes[changed.lane]
    if not _fails_for_now(task, lane):
        return task
    wait_ms = min(task.spec.retry.backoff_ms << min(len(lane) - 1, 32), MAX_BACKOFF_MS)
    return replace(task, not_before_ms=now_ms + wait_ms)


def _ended(task: Task, status: TaskStatus, now_ms: int, reason: str) -> Task:
    runs = tuple(
        run if is_over(run.status) or run.stopping else replace(run, stopping=reason or f"the task is {status}")
        for run in task.runs
    )
    return replace(task, status=status, error_message=reason, finished_at_ms=now_ms, runs=runs)
