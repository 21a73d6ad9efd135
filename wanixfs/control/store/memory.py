"""The store of tests and of planes that need not remember: dictionaries, and a list of what to undo."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from wanixfs.control.credentials import Certificate, Token
from wanixfs.control.lifecycle import changed_runs, is_over, open_lanes
from wanixfs.control.model import (
    Needs,
    OutputChunk,
    Run,
    RunEvent,
    RunId,
    Task,
    TaskId,
    TaskSpec,
    TaskStatus,
    Worker,
    WorkerId,
)

_K = TypeVar("_K")
_V = TypeVar("_V")


class MemoryStore:
    """A store that ends with its process; its own transaction, since there is never more than one."""

    def __init__(self) -> None:
        self._tasks: dict[TaskId, Task] = {}
        self._keys: dict[tuple[str, str], TaskId] = {}
        self._runs: dict[RunId, Run] = {}
        self._open: dict[TaskId, Task] = {}
        self._live: dict[tuple[WorkerId, RunId], Run] = {}
        self._workers: dict[WorkerId, Worker] = {}
        self._output: dict[tuple[RunId, int], OutputChunk] = {}
        self._events: dict[tuple[RunId, str], tuple[int, RunEvent]] = {}
        self._tokens: dict[str, Token] = {}
        self._certificates: dict[str, Certificate] = {}
        self._undo: list[Callable[[], object]] = []

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["MemoryStore"]:
        try:
            yield self
        except BaseException:
            for undo in reversed(self._undo):
                undo()
            raise
        finally:
            self._undo.clear()

    async def close(self) -> None:
        pass

    def _set(self, table: dict[_K, _V], key: _K, value: _V | None) -> None:
        before = table.get(key)
        if before is None:
            self._undo.append(lambda: table.pop(key, None))
        else:
            self._undo.append(lambda: table.__setitem__(key, before))
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value

    async def task(self, task_id: TaskId) -> Task | None:
        return self._tasks.get(task_id)

    async def task_of_key(self, spec: TaskSpec) -> Task | None:
        task_id = self._keys.get((spec.created_by, spec.idempotency_key))
        return self._tasks[task_id] if task_id is not None else None

    async def tasks(self, *, status: TaskStatus | None = None, agent: str = "", limit: int = 100) -> list[Task]:
        found = (
            task
            for task in reversed(self._tasks.values())
            if status in (None, task.status) and agent in ("", task.spec.needs.agent)
        )
        return [task for task, _ in zip(found, range(limit), strict=False)]

    async def put_task(self, task: Task, before: Task | None = None) -> None:
        self._set(self._tasks, task.id, task)
        self._set(self._open, task.id, task if open_lanes(task) else None)
        if task.spec.idempotency_key:
            self._set(self._keys, (task.spec.created_by, task.spec.idempotency_key), task.id)
        for run in changed_runs(task, before):
            self._set(self._runs, run.id, run)
            self._set(self._live, (run.worker_id, run.id), None if is_over(run.status) else run)

    async def run(self, run_id: RunId) -> Run | None:
        return self._runs.get(run_id)

    async def put_run(self, run: Run) -> None:
        task = self._tasks[run.task_id]
        runs = tuple(run if each.id == run.id else each for each in task.runs)
        await self.put_task(replace(task, runs=runs), task)

    async def waiting(self) -> int:
        return len(self._open)

    async def needs(self, now_ms: int) -> list[Needs]:
        found: list[Needs] = []
        for task in self._open.values():
            if task.not_before_ms <= now_ms and task.spec.needs not in found:
                found.append(task.spec.needs)
        return found

    async def claimable(self, needs: Sequence[Needs], now_ms: int, limit: int) -> list[Task]:
        found = [task for task in self._open.values() if task.not_before_ms <= now_ms and task.spec.needs in needs]
        return sorted(found, key=lambda task: task.created_at_ms)[:limit]

    async def overdue(self, now_ms: int) -> list[Task]:
        return [
            task for task in self._tasks.values() if 0 < task.spec.deadline_ms <= now_ms and not is_over(task.status)
        ]

    async def runs_of(self, worker_id: WorkerId) -> list[Run]:
        return sorted(
            (run for (owner, _), run in self._live.items() if owner == worker_id), key=lambda run: run.issued_at_ms
        )

    async def worker(self, worker_id: WorkerId) -> Worker | None:
        return self._workers.get(worker_id)

    async def workers(self) -> list[Worker]:
        return sorted(self._workers.values(), key=lambda worker: worker.id)

    async def put_worker(self, worker: Worker) -> None:
        self._set(self._workers, worker.id, worker)

    async def add_output(self, chunk: OutputChunk) -> None:
        self._set(self._output, (chunk.run_id, chunk.seq), chunk)

    async def output(self, run_id: RunId, *, since: int = 0, limit: int = 256) -> list[OutputChunk]:
        found = (self._output.get((run_id, seq)) for seq in range(since, since + limit))
        return [chunk for chunk in found if chunk is not None]

    async def add_event(self, event: RunEvent) -> bool:
        key = event.run_id, event.id
        if key in self._events:
            return False
        self._set(self._events, key, (len(self._events) + 1, event))
        return True

    async def events(self, task_id: TaskId, *, since: int = 0, limit: int = 256) -> list[tuple[int, RunEvent]]:
        found = [kept for kept in self._events.values() if kept[1].task_id == task_id and kept[0] > since]
        return found[:limit]

    async def token(self, digest: str) -> Token | None:
        return self._tokens.get(digest)

    async def put_token(self, token: Token) -> None:
        self._set(self._tokens, token.digest, token)

    async def certificate(self, serial: str) -> Certificate | None:
        return self._certificates.get(serial)

    async def certificates(self, worker_id: WorkerId) -> list[Certificate]:
        return [each for each in self._certificates.values() if each.worker_id == worker_id]

    async def put_certificate(self, certificate: Certificate) -> None:
        self._set(self._certificates, certificate.serial, certificate)
