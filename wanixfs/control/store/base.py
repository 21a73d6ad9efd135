"""The contract of stores. Every use case is one transaction: all of it is kept, or nothing."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from wanixfs.control.credentials import Certificate, Token
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


class Transaction(Protocol):
    """What one use case reads and writes. Its body awaits nothing but these methods.

    A task that was read is locked until the end where several replicas share a store, so what is derived from it and
    put back was true throughout.
    """

    async def task(self, task_id: TaskId) -> Task | None: ...

    async def task_of_key(self, spec: TaskSpec) -> Task | None:
        """Return the task that its creator made with the spec's idempotency key."""

    async def tasks(self, *, status: TaskStatus | None = None, agent: str = "", limit: int = 100) -> list[Task]:
        """Return tasks, newest first."""

    async def put_task(self, task: Task, before: Task | None = None) -> None:
        """Add a task, or replace what was read as `before`; its runs are only ever added or replaced."""

    async def run(self, run_id: RunId) -> Run | None: ...

    async def put_run(self, run: Run) -> None:
        """Replace a run of a task that is kept, where the task's status does not hang on it."""

    async def waiting(self) -> int:
        """Return how many tasks want a run."""

    async def needs(self, now_ms: int) -> list[Needs]:
        """Return the distinct needs of the tasks that want a run now."""

    async def claimable(self, needs: Sequence[Needs], now_ms: int, limit: int) -> list[Task]:
        """Return tasks that want a run now and have one of these needs, oldest first, none that another replica has."""

    async def overdue(self, now_ms: int) -> list[Task]:
        """Return the tasks that are not over at their deadline."""

    async def runs_of(self, worker_id: WorkerId) -> list[Run]:
        """Return the runs of a worker that are not over, oldest first."""

    async def worker(self, worker_id: WorkerId) -> Worker | None: ...

    async def workers(self) -> list[Worker]: ...

    async def put_worker(self, worker: Worker) -> None: ...

    async def add_output(self, chunk: OutputChunk) -> None: ...

    async def output(self, run_id: RunId, *, since: int = 0, limit: int = 256) -> list[OutputChunk]:
        """Return chunks from seq `since` on, in order."""

    async def add_event(self, event: RunEvent) -> bool:
        """Keep an event; False if the run has one of that id."""

    async def events(self, task_id: TaskId, *, since: int = 0, limit: int = 256) -> list[tuple[int, RunEvent]]:
        """Return a task's events after number `since`, each with its number, in the order in which they were kept."""

    async def token(self, digest: str) -> Token | None: ...

    async def put_token(self, token: Token) -> None: ...

    async def certificate(self, serial: str) -> Certificate | None: ...

    async def certificates(self, worker_id: WorkerId) -> list[Certificate]: ...

    async def put_certificate(self, certificate: Certificate) -> None: ...


class Store(Protocol):
    """A place that transactions work on."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction: kept when its block ends, undone when it raises."""

    async def close(self) -> None: ...
