"""The use cases of the control plane, free of transport, of storage and of the event loop: each is one transaction.

Who calls is known by then: a worker's id comes from its certificate, a client's name from its credentials.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from errno import EDQUOT, EEXIST, EINVAL, ENOENT
from time import time
from uuid import uuid4

from wanixfs.control import lifecycle
from wanixfs.control.model import (
    MAX_NAME,
    OutputChunk,
    Run,
    RunEvent,
    RunId,
    RunStatus,
    Task,
    TaskId,
    TaskSpec,
    TaskStatus,
    Worker,
    WorkerId,
    WorkerStatus,
    check_labels,
)
from wanixfs.control.store.base import Store, Transaction

MAX_AGENTS = 256
MAX_BACKENDS = 256
MAX_CONCURRENT_RUNS = 10_000
MAX_CHUNK = 1 << 20
MAX_ERROR = 4_096
MAX_LISTED = 1_000
WORK = "work"
"""The bell that rings when there may be something to claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plane holds itself and others to."""

    lease_ms: int = 45_000
    max_waiting: int = 10_000
    max_output_bytes: int = 64 << 20


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A run for a worker to start."""

    run: Run
    spec: TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker is to do: runs to start and, with the reason for each, runs to stop."""

    start: tuple[Assignment, ...] = ()
    stop: tuple[tuple[RunId, str], ...] = ()


def _now_ms() -> int:
    return int(time() * 1_000)


class ControlPlane:
    """Tasks in, orders to workers out. `ring` is called with the name of what changed, after it was kept: `task/ID`,
    `worker/ID` or WORK; it is a doorbell, the store says what is so."""

    def __init__(
        self,
        store: Store,
        *,
        limits: Limits = DEFAULT_LIMITS,
        now_ms: Callable[[], int] = _now_ms,
        new_id: Callable[[], str] = lambda: uuid4().hex,
        ring: Callable[[str], None] = lambda bell: None,
    ) -> None:
        self._store = store
        self._limits = limits
        self._now_ms = now_ms
        self._new_id = new_id
        self._ring = ring

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[tuple[Transaction, set[str]]]:
        """Open a transaction and a set of bells that ring once it is kept."""
        bells: set[str] = set()
        async with self._store.transaction() as transaction:
            yield transaction, bells
        for bell in sorted(bells):
            self._ring(bell)

    # What clients ask.

    async def submit(self, spec: TaskSpec) -> Task:
        """Make a task, or return the one that was made with this idempotency key.

        EINVAL: a bad spec. EEXIST: the key was used for another spec. EDQUOT: too many tasks wait.
        """
        spec.check()
        async with self._transaction() as (transaction, bells):
            if spec.idempotency_key and (made := await transaction.task_of_key(spec)):
                if made.spec != spec:
                    raise OSError(EEXIST, f"idempotency key {spec.idempotency_key!r} is another task's")
                return made
            if await transaction.waiting() >= self._limits.max_waiting:
                raise OSError(EDQUOT, f"{self._limits.max_waiting} tasks are waiting")
            task = Task(id=TaskId(self._new_id()), spec=spec, created_at_ms=self._now_ms())
            await transaction.put_task(task)
            bells.add(WORK)
            return task

    async def task(self, task_id: TaskId) -> Task:
        """Return a task. ENOENT: there is none."""
        async with self._transaction() as (transaction, _):
            return await _found(transaction, task_id)

    async def run(self, run_id: RunId) -> Run:
        """Return a run. ENOENT: there is none."""
        async with self._transaction() as (transaction, _):
            return await _run(transaction, run_id)

    async def tasks(self, *, status: TaskStatus | None = None, agent: str = "", limit: int = 100) -> list[Task]:
        """Return tasks, newest first."""
        async with self._transaction() as (transaction, _):
            return await transaction.tasks(status=status, agent=agent, limit=max(0, min(limit, MAX_LISTED)))

    async def cancel(self, task_id: TaskId, reason: str = "cancelled by request") -> Task:
        """Cancel a task for good and have its runs stopped. ENOENT, EBUSY: it is over."""
        async with self._transaction() as (transaction, bells):
            task = await _found(transaction, task_id)
            return await self._put(transaction, bells, lifecycle.cancel(task, self._now_ms(), reason), task)

    async def output(self, run_id: RunId, *, since: int = 0, limit: int = 256) -> list[OutputChunk]:
        """Return a run's output from chunk `since` on. ENOENT: there is no such run."""
        async with self._transaction() as (transaction, _):
            await _run(transaction, run_id)
            return await transaction.output(run_id, since=since, limit=max(0, min(limit, MAX_LISTED)))

    async def events(self, task_id: TaskId, *, since: int = 0, limit: int = 256) -> list[tuple[int, RunEvent]]:
        """Return a task's events after number `since`. ENOENT: there is no such task."""
        async with self._transaction() as (transaction, _):
            await _found(transaction, task_id)
            return await transaction.events(task_id, since=since, limit=max(0, min(limit, MAX_LISTED)))

    # What workers say.

    async def hello(self, worker: Worker, live: Sequence[RunId]) -> Orders:
        """Take in a worker that has connected and says which runs it has.

        A run it was given and never heard of is given again; one that it had begun and no longer has is lost; one that
        is over here is to be stopped there. EINVAL: what it says of itself is out of bounds.
        """
        _check_worker(worker)
        now_ms = self._now_ms()
        async with self._transaction() as (transaction, bells):
            known = await transaction.worker(worker.id)
            draining = known is not None and known.draining
            await transaction.put_worker(replace(worker, last_heartbeat_ms=now_ms, draining=draining))
            again: list[Assignment] = []
            due = await transaction.runs_of(worker.id)
            for run in due:
                if run.id in live:
                    continue
                task = await _found(transaction, run.task_id)
                if run.status == RunStatus.ASSIGNED and not run.stopping:
                    again.append(Assignment(run=run, spec=task.spec))
                else:
                    lost = lifecycle.lose(task, run.id, now_ms, "the worker no longer has this run")
                    await self._put(transaction, bells, lost, task)
            wanted = {run.id: run.stopping for run in due}
            stop = [(run_id, wanted.get(run_id, "the run is over")) for run_id in live]
            bells.add(WORK)
            return Orders(start=tuple(again), stop=tuple((run_id, why) for run_id, why in stop if why))

    async def heartbeat(self, worker_id: WorkerId, status: WorkerStatus, max_concurrent_runs: int) -> None:
        """Renew a worker's lease on its runs. ENOENT: it has not said hello. EINVAL: out of bounds."""
        if not 0 <= max_concurrent_runs <= MAX_CONCURRENT_RUNS:
            raise OSError(EINVAL, f"max_concurrent_runs is 0 to {MAX_CONCURRENT_RUNS}")
        async with self._transaction() as (transaction, bells):
            before = await _known(transaction, worker_id)
            after = replace(before, status=status, max_concurrent_runs=max_concurrent_runs)
            await transaction.put_worker(replace(after, last_heartbeat_ms=self._now_ms()))
            if after != before and after.takes_runs:
                bells.add(WORK)

    async def claim(self, worker_id: WorkerId) -> Orders:
        """Give a worker the runs it has room for, oldest tasks first, and repeat which of its runs are to stop."""
        now_ms = self._now_ms()
        async with self._transaction() as (transaction, bells):
            worker = await _known(transaction, worker_id)
            mine = await transaction.runs_of(worker_id)
            stop = tuple((run.id, run.stopping) for run in mine if run.stopping)
            room = worker.max_concurrent_runs - len(mine)
            start: list[Assignment] = []
            if not worker.takes_runs or room <= 0:
                return Orders(stop=stop)
            met = [needs for needs in await transaction.needs(now_ms) if needs.met_by(worker)]
            for task in await transaction.claimable(met, now_ms, room) if met else []:
                given = task
                for _ in range(min(len(lifecycle.open_lanes(task)), room - len(start))):
                    given = lifecycle.assign(given, RunId(self._new_id()), worker_id, now_ms)
                    start.append(Assignment(run=given.runs[-1], spec=given.spec))
                await self._put(transaction, bells, given, task)
            return Orders(start=tuple(start), stop=stop)

    async def report(
        self, worker_id: WorkerId, run_id: RunId, status: RunStatus, *, error: str = "", backend: str = ""
    ) -> Orders:
        """Take a worker's word about one of its runs; said twice or late it changes nothing.

        Return the order to stop a run that is over here and not there. ENOENT: no such run. EACCES: another worker's.
        """
        now_ms = self._now_ms()
        async with self._transaction() as (transaction, bells):
            before = await _run_of(transaction, run_id, worker_id)
            task = await _found(transaction, before.task_id)
            words = {"error": error[:MAX_ERROR], "backend": backend[:MAX_NAME]}
            task = await self._put(transaction, bells, lifecycle.report(task, run_id, status, now_ms, **words), task)
            run = task.run(run_id) or before
            if lifecycle.is_over(status):
                bells.add(WORK)
                return Orders()
            return _stop_if_over(run)

    async def add_output(self, worker_id: WorkerId, chunk: OutputChunk) -> int:
        """Keep a chunk of a run's output, once, and return the seq that is wanted next.

        Past the limit of a run's output chunks are counted, not kept. EINVAL: a gap, or too large. ENOENT, EACCES.
        """
        size = len(chunk.content.encode())
        if size > MAX_CHUNK:
            raise OSError(EINVAL, f"a chunk is at most {MAX_CHUNK} bytes")
        check_labels(chunk.metadata)
        async with self._transaction() as (transaction, bells):
            run = await _run_of(transaction, chunk.run_id, worker_id)
            if chunk.seq < run.next_seq or lifecycle.is_over(run.status):
                return run.next_seq
            if chunk.seq > run.next_seq:
                raise OSError(EINVAL, f"output {chunk.seq} of run {run.id} leaves a gap: {run.next_seq} is wanted")
            kept = not run.dropped_bytes and run.output_bytes + size <= self._limits.max_output_bytes
            if kept:
                await transaction.add_output(chunk)
            run = replace(
                run,
                next_seq=run.next_seq + 1,
                output_bytes=run.output_bytes + size * kept,
                dropped_bytes=run.dropped_bytes + size * (not kept),
            )
            await transaction.put_run(run)
            bells.add(f"task/{run.task_id}")
            return run.next_seq

    async def add_event(self, worker_id: WorkerId, event: RunEvent) -> None:
        """Keep an event of a run once. EINVAL: out of bounds. ENOENT, EACCES."""
        if not 1 <= len(event.id) <= MAX_NAME:
            raise OSError(EINVAL, f"an event's id has 1 to {MAX_NAME} characters")
        check_labels(event.metadata)
        async with self._transaction() as (transaction, bells):
            run = await _run_of(transaction, event.run_id, worker_id)
            if await transaction.add_event(replace(event, task_id=run.task_id)):
                bells.add(f"task/{run.task_id}")

    # What administrators and the clock do.

    async def workers(self) -> list[Worker]:
        async with self._transaction() as (transaction, _):
            return await transaction.workers()

    async def worker(self, worker_id: WorkerId) -> Worker:
        """Return a worker. ENOENT: there is none."""
        async with self._transaction() as (transaction, _):
            return await _known(transaction, worker_id)

    async def runs_of(self, worker_id: WorkerId) -> list[Run]:
        """Return the runs that a worker has now."""
        async with self._transaction() as (transaction, _):
            return await transaction.runs_of(worker_id)

    async def drain(self, worker_id: WorkerId, *, draining: bool = True) -> Worker:
        """Give a worker no more runs, or again some. ENOENT: there is none."""
        async with self._transaction() as (transaction, bells):
            worker = replace(await _known(transaction, worker_id), draining=draining)
            await transaction.put_worker(worker)
            bells.add(WORK)
            return worker

    async def forget(self, worker_id: WorkerId, reason: str) -> None:
        """End a worker's lease now (it is revoked, or silent): its runs are lost, and tried elsewhere."""
        async with self._transaction() as (transaction, bells):
            if worker := await transaction.worker(worker_id):
                await self._lose_runs(transaction, bells, worker, reason)

    async def reap(self) -> None:
        """Do what time asks for: end leases without a heartbeat, fail what is past its deadline, offer what waited
        for its next attempt. To be called every second or so, by any replica."""
        now_ms = self._now_ms()
        async with self._transaction() as (transaction, bells):
            for worker in await transaction.workers():
                if worker.last_heartbeat_ms + self._limits.lease_ms <= now_ms:
                    await self._lose_runs(transaction, bells, worker, "the worker was lost: no heartbeat")
            for task in await transaction.overdue(now_ms):
                await self._put(transaction, bells, lifecycle.expire(task, now_ms), task)
            if await transaction.needs(now_ms):
                bells.add(WORK)

    async def _lose_runs(self, transaction: Transaction, bells: set[str], worker: Worker, reason: str) -> None:
        if worker.status != WorkerStatus.ERROR:
            await transaction.put_worker(replace(worker, status=WorkerStatus.ERROR))
        for run in await transaction.runs_of(worker.id):
            task = await _found(transaction, run.task_id)
            await self._put(transaction, bells, lifecycle.lose(task, run.id, self._now_ms(), reason), task)
            bells.add(WORK)

    async def _put(self, transaction: Transaction, bells: set[str], task: Task, before: Task) -> Task:
        if task == before:
            return task
        await transaction.put_task(task, before)
        bells.add(f"task/{task.id}")
        stopping = (run.worker_id for run in lifecycle.changed_runs(task, before) if run.stopping)
        bells.update(f"worker/{worker_id}" for worker_id in stopping)
        return task


def _check_worker(worker: Worker) -> None:
    words = [worker.id, worker.hostname, worker.version]
    backends = [backend for agent in worker.agents for backend in agent.backends]
    words += [agent.name for agent in worker.agents]
    words += [word for backend in backends for word in (backend.provider, backend.model_name)]
    if any(len(word) > MAX_NAME for word in words) or not all(agent.name for agent in worker.agents):
        raise OSError(EINVAL, f"names of workers, agents and models have 1 to {MAX_NAME} characters")
    if len(worker.agents) > MAX_AGENTS or len(backends) > MAX_BACKENDS:
        raise OSError(EINVAL, f"a worker has at most {MAX_AGENTS} agents and {MAX_BACKENDS} backends")
    if not 0 <= worker.max_concurrent_runs <= MAX_CONCURRENT_RUNS:
        raise OSError(EINVAL, f"max_concurrent_runs is 0 to {MAX_CONCURRENT_RUNS}")
    for labels in (worker.labels, *(agent.labels for agent in worker.agents), *(each.metadata for each in backends)):
        check_labels(labels)


def _stop_if_over(run: Run) -> Orders:
    why = run.stopping or ("the run is over" if lifecycle.is_over(run.status) else "")
    return Orders(stop=((run.id, why),) if why else ())


async def _found(transaction: Transaction, task_id: TaskId) -> Task:
    task = await transaction.task(task_id)
    if task is None:
        raise OSError(ENOENT, f"no task {task_id}")
    return task


async def _run(transaction: Transaction, run_id: RunId) -> Run:
    run = await transaction.run(run_id)
    if run is None:
        raise OSError(ENOENT, f"no run {run_id}")
    return run


async def _run_of(transaction: Transaction, run_id: RunId, worker_id: WorkerId) -> Run:
    return lifecycle.owned(await _run(transaction, run_id), worker_id)


async def _known(transaction: Transaction, worker_id: WorkerId) -> Worker:
    worker = await transaction.worker(worker_id)
    if worker is None:
        raise OSError(ENOENT, f"no worker {worker_id}")
    return worker
