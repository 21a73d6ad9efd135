"""The suite that every store passes."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from errno import EINVAL
from pathlib import Path

import pytest

from wanixfs.control import lifecycle
from wanixfs.control.model import (
    Agent,
    FanOut,
    ModelBackend,
    Needs,
    OutputChunk,
    RunEvent,
    RunEventType,
    RunId,
    RunStatus,
    Task,
    TaskId,
    TaskSpec,
    TaskStatus,
    Worker,
    WorkerId,
    WorkerStatus,
)
from wanixfs.control.store import MemoryStore, SQLiteStore, Store

Opener = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return MemoryStore if request.param == "memory" else lambda: SQLiteStore(tmp_path / "plane.db")


def with_store(opened: Opener, body: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        store = opened()
        try:
            await body(store)
        finally:
            await store.close()

    asyncio.run(main())


def task(name: str, *, agent: str = "echo", at: int = 0, **spec: object) -> Task:
    asked = TaskSpec(needs=Needs(agent=agent), **spec)  # type: ignore[arg-type]
    return Task(id=TaskId(name), spec=asked, created_at_ms=at)


def chunk(seq: int) -> OutputChunk:
    return OutputChunk(run_id=RunId("r"), seq=seq, content=f"{seq} \N{SNOWMAN}", metadata={"k": "v"}, timestamp_ms=seq)


def test_a_task_comes_back_as_it_was_put(opened: Opener) -> None:
    full = task("t", labels={"a": "b"}, fan_out=FanOut(runs=3, wanted=2), deadline_ms=9, idempotency_key="k")
    full = lifecycle.assign(lifecycle.assign(full, RunId("r2"), WorkerId("w"), 4), RunId("r1"), WorkerId("w"), 4)
    ended = lifecycle.lose(lifecycle.report(full, RunId("r2"), RunStatus.RUNNING, 5), RunId("r2"), 6, "lost")

    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_task(full)
        async with store.transaction() as tx:
            assert await tx.task(TaskId("t")) == full
            await tx.put_task(ended, full)
        async with store.transaction() as tx:
            assert await tx.task(TaskId("t")) == ended
            assert await tx.run(RunId("r2")) == ended.runs[0] != full.runs[0]
            assert await tx.task_of_key(full.spec) == ended
            assert await tx.task_of_key(replace(full.spec, created_by="other")) is None
            assert await tx.task(TaskId("none")) is None is await tx.run(RunId("none"))

    with_store(opened, body)


def test_a_transaction_that_raises_has_changed_nothing(opened: Opener) -> None:
    first = task("t", idempotency_key="k")

    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_task(first)
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as tx:
                given = lifecycle.assign(first, RunId("r"), WorkerId("w"), 1)
                await tx.put_task(given, first)
                await tx.put_run(replace(given.runs[0], next_seq=1))
                await tx.put_task(task("other"))
                await tx.put_worker(Worker(id=WorkerId("w")))
                await tx.add_output(chunk(0))
                raise ZeroDivisionError
        async with store.transaction() as tx:
            assert await tx.tasks() == [first]
            assert await tx.workers() == [] == await tx.runs_of(WorkerId("w")) == await tx.output(RunId("r"))
            assert await tx.run(RunId("r")) is None
            assert (await tx.waiting(), await tx.needs(0)) == (1, [Needs(agent="echo")])

    with_store(opened, body)


def test_only_tasks_that_want_a_run_now_are_claimable_oldest_first(opened: Opener) -> None:
    echo, labelled = Needs(agent="echo"), Needs(agent="echo", labels={"gpu": "1", "arch": "x"})

    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            for number, name in enumerate(["one", "two", "three"]):
                await tx.put_task(task(name, at=number))
            await tx.put_task(replace(task("later", at=3), not_before_ms=100))
            await tx.put_task(Task(id=TaskId("gpu"), spec=TaskSpec(needs=labelled), created_at_ms=4))
            await tx.put_task(lifecycle.cancel(task("over", at=5), 5, ""))
            await tx.put_task(lifecycle.assign(task("taken", at=6), RunId("r"), WorkerId("w"), 6))
        async with store.transaction() as tx:
            assert [each.id for each in await tx.claimable([echo], 50, 2)] == ["one", "two"]
            assert [each.id for each in await tx.claimable([echo], 100, 9)] == ["one", "two", "three", "later"]
            turned = replace(labelled, labels={"arch": "x", "gpu": "1"})
            assert [each.id for each in await tx.claimable([turned], 50, 9)] == ["gpu"]
            assert await tx.claimable([], 50, 9) == []
            assert len(await tx.needs(50)) == 2 and labelled in await tx.needs(50)
            assert await tx.waiting() == 5

    with_store(opened, body)


def test_tasks_are_listed_newest_first_by_status_and_agent(opened: Opener) -> None:
    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            for number, agent in enumerate(["echo", "shell", "echo"]):
                await tx.put_task(task(str(number), agent=agent, at=number))
            await tx.put_task(lifecycle.cancel(task("3", at=3), 5, ""))
        async with store.transaction() as tx:
            assert [each.id for each in await tx.tasks()] == ["3", "2", "1", "0"]
            assert [each.id for each in await tx.tasks(limit=2)] == ["3", "2"]
            assert [each.id for each in await tx.tasks(agent="shell")] == ["1"]
            assert [each.id for each in await tx.tasks(status=TaskStatus.PENDING, agent="echo")] == ["2", "0"]

    with_store(opened, body)


def test_overdue_are_those_past_their_deadline_and_not_over(opened: Opener) -> None:
    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_task(task("none"))
            await tx.put_task(task("soon", deadline_ms=10))
            await tx.put_task(task("late", deadline_ms=11))
            await tx.put_task(lifecycle.cancel(task("over", deadline_ms=5), 5, ""))
        async with store.transaction() as tx:
            assert [each.id for each in await tx.overdue(10)] == ["soon"]

    with_store(opened, body)


def test_runs_of_a_worker_are_those_that_are_not_over(opened: Opener) -> None:
    first = task("t", fan_out=FanOut(runs=2, wanted=2))
    for name in ("r1", "r2"):
        first = lifecycle.assign(first, RunId(name), WorkerId("w"), 1)

    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_task(first)
            assert await tx.runs_of(WorkerId("w")) == list(first.runs)
            await tx.put_task(lifecycle.report(first, RunId("r1"), RunStatus.FAILED, 2), first)
        async with store.transaction() as tx:
            assert [run.id for run in await tx.runs_of(WorkerId("w"))] == ["r2"]
            assert await tx.runs_of(WorkerId("other")) == []

    with_store(opened, body)


def test_a_worker_comes_back_as_it_was_put(opened: Opener) -> None:
    backend = ModelBackend(
        provider="p", model_name="m", context_window=9, supports_streaming=True, modalities=("text",), tools=("a", "b")
    )
    agents = (Agent(name="echo", labels={"x": "y"}, backends=(backend,)), Agent(name="bare"))
    worker = Worker(
        id=WorkerId("w"), hostname="h", version="1", agents=agents, labels={"k": "v"}, status=WorkerStatus.BUSY
    )
    after = replace(worker, draining=True, last_heartbeat_ms=7, max_concurrent_runs=3)

    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_worker(worker)
            assert await tx.worker(WorkerId("w")) == worker
            await tx.put_worker(after)
            await tx.put_worker(Worker(id=WorkerId("a")))
        async with store.transaction() as tx:
            assert await tx.workers() == [Worker(id=WorkerId("a")), after]
            assert await tx.worker(WorkerId("none")) is None

    with_store(opened, body)


def test_output_is_read_from_any_chunk_on(opened: Opener) -> None:
    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            for seq in range(5):
                await tx.add_output(chunk(seq))
        async with store.transaction() as tx:
            assert await tx.output(RunId("r")) == [chunk(seq) for seq in range(5)]
            assert await tx.output(RunId("r"), since=3) == [chunk(3), chunk(4)]
            assert await tx.output(RunId("r"), since=1, limit=1) == [chunk(1)]
            assert await tx.output(RunId("other")) == []

    with_store(opened, body)


def test_an_event_of_a_run_is_kept_once(opened: Opener) -> None:
    def event(name: str, run: str = "r", of: str = "t") -> RunEvent:
        kind = RunEventType.TOOL_REQUESTED
        return RunEvent(
            id=name, run_id=RunId(run), task_id=TaskId(of), type=kind, timestamp_ms=3, metadata={"tool": "x"}
        )

    async def body(store: Store) -> None:
        async with store.transaction() as tx:
            kept = [await tx.add_event(each) for each in (event("a"), event("b"), event("a"), event("a", "r2", "t2"))]
            assert kept == [True, True, False, True]
        async with store.transaction() as tx:
            found = await tx.events(TaskId("t"))
            assert [each for _, each in found] == [event("a"), event("b")]
            assert await tx.events(TaskId("t"), since=found[0][0]) == found[1:]
            assert await tx.events(TaskId("t"), limit=1) == found[:1]

    with_store(opened, body)


def test_what_was_kept_in_a_file_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"

    async def put(store: Store) -> None:
        async with store.transaction() as tx:
            await tx.put_task(task("t"))

    async def look(store: Store) -> None:
        async with store.transaction() as tx:
            assert await tx.tasks() == [task("t")]

    with_store(lambda: SQLiteStore(path), put)
    with_store(lambda: SQLiteStore(path), look)


def test_a_file_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "plane.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(OSError) as refused:
        SQLiteStore(path)
    assert refused.value.errno == EINVAL
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
