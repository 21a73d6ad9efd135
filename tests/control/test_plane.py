"""The use cases, on every store, with a clock that the tests turn."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from errno import EACCES, EBUSY, EDQUOT, EEXIST, EINVAL, ENOENT
from itertools import count

import pytest

from wanixfs.control.model import (
    MAX_INPUT,
    Agent,
    FanOut,
    ModelBackend,
    Needs,
    OutputChunk,
    Retry,
    RunEvent,
    RunEventType,
    RunId,
    RunStatus,
    TaskId,
    TaskSpec,
    Worker,
    WorkerId,
    WorkerStatus,
)
from wanixfs.control.plane import MAX_CHUNK, WORK, Assignment, ControlPlane, Limits
from wanixfs.control.store import MemoryStore, SQLiteStore, Store

W1, W2 = WorkerId("w1"), WorkerId("w2")
ECHO = TaskSpec(needs=Needs(agent="echo"))
LIMITS = Limits(lease_ms=45_000, max_waiting=5, max_output_bytes=10)


class Bench:
    """A plane on a store, its clock, and the bells that it rang."""

    def __init__(self, store: Store) -> None:
        self.now_ms, self.bells = 1_000, list[str]()
        names = map(str, count(1))
        self.plane = ControlPlane(
            store, limits=LIMITS, now_ms=lambda: self.now_ms, new_id=names.__next__, ring=self.bells.append
        )

    async def worker(self, worker_id: WorkerId = W1, *agents: str, **words: object) -> None:
        offered = tuple(Agent(name=name) for name in agents or ("echo",))
        await self.plane.hello(Worker(id=worker_id, agents=offered, **words), [])  # type: ignore[arg-type]

    async def claimed(self, worker_id: WorkerId = W1) -> list[str]:
        return [given.run.id for given in (await self.plane.claim(worker_id)).start]

    async def one_run(self, spec: TaskSpec = ECHO) -> tuple[TaskId, RunId]:
        """Make a task and have W1 take it."""
        await self.worker()
        task = await self.plane.submit(spec)
        (run_id,) = await self.claimed()
        return task.id, RunId(run_id)


Play = Callable[[Callable[[Bench], Awaitable[None]]], None]


@pytest.fixture(params=[MemoryStore, lambda: SQLiteStore(":memory:")], ids=["memory", "sqlite"])
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    def run(body: Callable[[Bench], Awaitable[None]]) -> None:
        async def main() -> None:
            store = request.param()
            try:
                await body(Bench(store))
            finally:
                await store.close()

        asyncio.run(main())

    yield run


async def refused(call: Awaitable[object]) -> int | None:
    try:
        await call
    except OSError as error:
        return error.errno
    return None


def test_a_task_goes_to_a_worker_and_completes(play: Play) -> None:
    async def body(bench: Bench) -> None:
        task_id, run_id = await bench.one_run()
        assert bench.bells[-1] == f"task/{task_id}"
        assert await bench.claimed() == []
        await bench.plane.report(W1, run_id, RunStatus.RUNNING)
        await bench.plane.report(W1, run_id, RunStatus.COMPLETED, backend="m")
        task = await bench.plane.task(task_id)
        assert (task.status, task.runs[0].worker_id, task.runs[0].backend_used) == ("COMPLETED", W1, "m")
        assert await bench.plane.runs_of(W1) == []

    play(body)


def test_a_task_waits_for_a_worker_that_meets_its_needs(play: Play) -> None:
    model = Agent(name="chat", backends=(ModelBackend(provider="p", model_name="m"),))

    async def body(bench: Bench) -> None:
        asked = [
            Needs(agent="chat", model="m"),
            Needs(agent="chat", provider="q"),
            Needs(agent="chat", labels={"gpu": "1"}),
            Needs(agent="other"),
        ]
        for needs in asked:
            await bench.plane.submit(TaskSpec(needs=needs))
        await bench.plane.hello(Worker(id=W1, agents=(model,)), [])
        assert [given.spec.needs for given in (await bench.plane.claim(W1)).start] == asked[:1]
        await bench.plane.hello(Worker(id=W2, agents=(model,), labels={"gpu": "1", "os": "x"}), [])
        assert [given.spec.needs for given in (await bench.plane.claim(W2)).start] == asked[2:3]

    play(body)


def test_a_worker_is_given_no_more_than_it_has_room_for(play: Play) -> None:
    async def body(bench: Bench) -> None:
        for _ in range(3):
            await bench.plane.submit(ECHO)
        await bench.worker(max_concurrent_runs=2)
        first, _second = await bench.claimed()
        assert await bench.claimed() == []
        bench.bells.clear()
        await bench.plane.report(W1, RunId(first), RunStatus.COMPLETED)
        assert WORK in bench.bells and len(await bench.claimed()) == 1

    play(body)


def test_an_idempotency_key_makes_one_task(play: Play) -> None:
    async def body(bench: Bench) -> None:
        keyed = replace(ECHO, created_by="me", idempotency_key="k")
        first = await bench.plane.submit(keyed)
        assert await bench.plane.submit(keyed) == first
        assert await refused(bench.plane.submit(replace(keyed, input_json="[]"))) == EEXIST
        assert (await bench.plane.submit(replace(keyed, created_by="you"))).id != first.id

    play(body)


def test_waiting_tasks_are_bounded(play: Play) -> None:
    async def body(bench: Bench) -> None:
        for _ in range(LIMITS.max_waiting):
            await bench.plane.submit(ECHO)
        assert await refused(bench.plane.submit(ECHO)) == EDQUOT
        await bench.worker()
        await bench.plane.claim(W1)
        await bench.plane.submit(ECHO)

    play(body)


@pytest.mark.parametrize(
    "spec",
    [
        TaskSpec(needs=Needs(agent="")),
        TaskSpec(needs=Needs(agent="x" * 257)),
        replace(ECHO, input_json="{"),
        replace(ECHO, input_json="[" * 100_000),
        replace(ECHO, input_json='"' + "x" * MAX_INPUT + '"'),
        replace(ECHO, labels={str(n): "" for n in range(65)}),
        replace(ECHO, labels={"": "x"}),
        replace(ECHO, fan_out=FanOut(runs=2, wanted=3)),
        replace(ECHO, fan_out=FanOut(runs=257, wanted=1)),
        replace(ECHO, retry=Retry(max_attempts=0)),
        replace(ECHO, retry=Retry(backoff_ms=-1)),
        replace(ECHO, deadline_ms=-1),
    ],
)
def test_a_bad_task_is_refused(play: Play, spec: TaskSpec) -> None:
    async def body(bench: Bench) -> None:
        assert await refused(bench.plane.submit(spec)) == EINVAL
        assert await bench.plane.tasks() == []

    play(body)


def test_a_cancel_reaches_the_worker_and_stays(play: Play) -> None:
    async def body(bench: Bench) -> None:
        task_id, run_id = await bench.one_run()
        assert (await bench.plane.cancel(task_id, "enough")).status == "CANCELLED"
        assert f"worker/{W1}" in bench.bells
        assert (await bench.plane.claim(W1)).stop == ((run_id, "enough"),)
        assert (await bench.plane.report(W1, run_id, RunStatus.RUNNING)).stop == ((run_id, "enough"),)
        assert (await bench.plane.report(W1, run_id, RunStatus.COMPLETED)).stop == ()
        task = await bench.plane.task(task_id)
        assert (task.status, task.runs[0].status) == ("CANCELLED", "CANCELLED")
        assert await refused(bench.plane.cancel(task_id)) == EBUSY
        assert (await bench.plane.claim(W1)).stop == ()

    play(body)


def test_a_task_that_is_cancelled_while_it_waits_is_never_given_out(play: Play) -> None:
    async def body(bench: Bench) -> None:
        await bench.plane.cancel((await bench.plane.submit(ECHO)).id)
        await bench.worker()
        assert await bench.claimed() == []

    play(body)


def test_a_silent_workers_runs_are_tried_elsewhere_after_a_while(play: Play) -> None:
    async def body(bench: Bench) -> None:
        task_id, run_id = await bench.one_run()
        bench.now_ms += 30_000
        await bench.plane.heartbeat(W1, WorkerStatus.BUSY, 10)
        await bench.worker(W2)
        bench.now_ms += 44_999
        await bench.plane.heartbeat(W2, WorkerStatus.IDLE, 10)
        await bench.plane.reap()
        assert (await bench.plane.task(task_id)).runs[0].status == "ASSIGNED"
        bench.now_ms += 1
        await bench.plane.reap()
        run = (await bench.plane.task(task_id)).runs[0]
        assert (run.status, run.lost) == ("FAILED", True)
        assert [worker.status for worker in await bench.plane.workers()] == ["ERROR", "IDLE"]
        assert await bench.claimed(W2) == []
        bench.now_ms += 1_000
        bench.bells.clear()
        await bench.plane.reap()
        assert bench.bells == [WORK]
        (again,) = await bench.claimed(W2)
        late = await bench.plane.report(W1, run_id, RunStatus.RUNNING)
        assert late.stop == ((run_id, "the run is over"),)
        await bench.plane.report(W1, run_id, RunStatus.COMPLETED)
        assert (await bench.plane.task(task_id)).status == "RUNNING"
        await bench.plane.report(W2, RunId(again), RunStatus.COMPLETED)
        assert [run.status for run in (await bench.plane.task(task_id)).runs] == ["FAILED", "COMPLETED"]

    play(body)


def test_hello_resumes_what_lives_repeats_what_never_came_and_stops_what_is_over(play: Play) -> None:
    async def body(bench: Bench) -> None:
        await bench.worker()
        for _ in range(4):
            await bench.plane.submit(ECHO)
        lives, unheard, gone, over = map(RunId, await bench.claimed())
        for run_id in (lives, gone, over):
            await bench.plane.report(W1, run_id, RunStatus.RUNNING)
        by_run = {run.id: run.task_id for run in await bench.plane.runs_of(W1)}
        await bench.plane.cancel(by_run[over], "enough")
        orders = await bench.plane.hello(
            Worker(id=W1, agents=(Agent(name="echo"),)), [lives, over, RunId("never known")]
        )
        assert [given.run.id for given in orders.start] == [unheard]
        assert orders.stop == ((over, "enough"), (RunId("never known"), "the run is over"))
        assert [run.id for run in await bench.plane.runs_of(W1)] == [lives, unheard, over]
        assert (await bench.plane.task(by_run[gone])).runs[0].lost

    play(body)


def test_a_draining_worker_keeps_its_runs_and_is_given_none(play: Play) -> None:
    async def body(bench: Bench) -> None:
        _, run_id = await bench.one_run()
        await bench.plane.drain(W1)
        await bench.plane.submit(ECHO)
        assert await bench.claimed() == []
        # It connects again: the administrator's word stands.
        await bench.plane.hello(Worker(id=W1, agents=(Agent(name="echo"),)), [run_id])
        await bench.plane.heartbeat(W1, WorkerStatus.IDLE, 10)
        assert await bench.claimed() == []
        assert [run.id for run in await bench.plane.runs_of(W1)] == [run_id]
        await bench.plane.drain(W1, draining=False)
        assert len(await bench.claimed()) == 1
        assert await refused(bench.plane.drain(WorkerId("none"))) == ENOENT

    play(body)


def test_a_deadline_ends_a_task_that_waits_and_one_that_runs(play: Play) -> None:
    async def body(bench: Bench) -> None:
        task_id, run_id = await bench.one_run(replace(ECHO, deadline_ms=2_000))
        waits = await bench.plane.submit(TaskSpec(needs=Needs(agent="nobody"), deadline_ms=2_000))
        bench.now_ms = 2_000
        await bench.plane.reap()
        for each in (task_id, waits.id):
            task = await bench.plane.task(each)
            assert (task.status, task.error_message) == ("FAILED", "deadline exceeded")
        assert (await bench.plane.claim(W1)).stop == ((run_id, "deadline exceeded"),)

    play(body)


def test_fan_out_gives_each_lane_a_run_and_stops_the_rest_when_done(play: Play) -> None:
    async def body(bench: Bench) -> None:
        task = await bench.plane.submit(replace(ECHO, fan_out=FanOut(runs=3, wanted=2)))
        await bench.worker(max_concurrent_runs=2)
        await bench.worker(W2)
        first, second = await bench.claimed()
        (third,) = await bench.claimed(W2)
        await bench.plane.report(W1, RunId(first), RunStatus.COMPLETED)
        await bench.plane.report(W2, RunId(third), RunStatus.COMPLETED)
        assert (await bench.plane.task(task.id)).status == "COMPLETED"
        assert (await bench.plane.claim(W1)).stop == ((RunId(second), "the task is COMPLETED"),)

    play(body)


def chunk(run_id: RunId, seq: int, content: str = "ab") -> OutputChunk:
    return OutputChunk(run_id=run_id, seq=seq, content=content)


def test_output_is_kept_once_and_in_order(play: Play) -> None:
    async def body(bench: Bench) -> None:
        _, run_id = await bench.one_run()
        for seq, wanted in [(0, 1), (1, 2), (0, 2), (1, 2), (2, 3)]:
            assert await bench.plane.add_output(W1, chunk(run_id, seq, str(seq))) == wanted
        assert [each.content for each in await bench.plane.output(run_id)] == ["0", "1", "2"]
        assert [each.seq for each in await bench.plane.output(run_id, since=2)] == [2]

    play(body)


def test_a_worker_that_lies_about_seq_or_size_is_refused(play: Play) -> None:
    async def body(bench: Bench) -> None:
        _, run_id = await bench.one_run()
        assert await refused(bench.plane.add_output(W1, chunk(run_id, 1))) == EINVAL
        assert await refused(bench.plane.add_output(W1, chunk(run_id, 0, "x" * (MAX_CHUNK + 1)))) == EINVAL
        assert await bench.plane.output(run_id) == []
        assert await refused(bench.plane.output(RunId("none"))) == ENOENT

    play(body)


def test_output_past_its_limit_is_counted_and_not_kept(play: Play) -> None:
    async def body(bench: Bench) -> None:
        task_id, run_id = await bench.one_run()
        for seq in range(4):
            await bench.plane.add_output(W1, chunk(run_id, seq, "1234"))
        run = (await bench.plane.task(task_id)).runs[0]
        assert (run.next_seq, run.output_bytes, run.dropped_bytes) == (4, 8, 8)
        assert len(await bench.plane.output(run_id)) == 2

    play(body)


def test_output_of_a_run_that_is_over_is_not_kept(play: Play) -> None:
    async def body(bench: Bench) -> None:
        _, run_id = await bench.one_run()
        await bench.plane.report(W1, run_id, RunStatus.COMPLETED)
        assert await bench.plane.add_output(W1, chunk(run_id, 0)) == 0
        assert await bench.plane.output(run_id) == []

    play(body)


def test_an_event_is_kept_once(play: Play) -> None:
    async def body(bench: Bench) -> None:
        task_id, run_id = await bench.one_run()
        event = RunEvent(
            id="e", run_id=run_id, task_id=TaskId("a lie"), type=RunEventType.TOOL_REQUESTED, timestamp_ms=1
        )
        await bench.plane.add_event(W1, event)
        await bench.plane.add_event(W1, event)
        assert [each for _, each in await bench.plane.events(task_id)] == [replace(event, task_id=task_id)]
        assert await refused(bench.plane.add_event(W1, replace(event, id=""))) == EINVAL

    play(body)


def test_a_worker_speaks_of_its_own_runs_only(play: Play) -> None:
    async def body(bench: Bench) -> None:
        task_id, run_id = await bench.one_run()
        await bench.worker(W2)
        event = RunEvent(id="e", run_id=run_id, task_id=task_id, type=RunEventType.TOOL_REQUESTED, timestamp_ms=1)
        assert await refused(bench.plane.report(W2, run_id, RunStatus.COMPLETED)) == EACCES
        assert await refused(bench.plane.add_output(W2, chunk(run_id, 0))) == EACCES
        assert await refused(bench.plane.add_event(W2, event)) == EACCES
        assert await refused(bench.plane.report(W2, RunId("none"), RunStatus.COMPLETED)) == ENOENT
        assert await refused(bench.plane.heartbeat(WorkerId("none"), WorkerStatus.IDLE, 1)) == ENOENT
        assert (await bench.plane.task(task_id)).runs[0].status == "ASSIGNED"

    play(body)


@pytest.mark.parametrize(
    "worker",
    [
        Worker(id=W1, hostname="x" * 257),
        Worker(id=W1, agents=(Agent(name=""),)),
        Worker(id=W1, agents=tuple(Agent(name=str(n)) for n in range(257))),
        Worker(id=W1, max_concurrent_runs=10_001),
        Worker(id=W1, labels={"k": "x" * 257}),
    ],
)
def test_a_worker_out_of_bounds_is_refused(play: Play, worker: Worker) -> None:
    async def body(bench: Bench) -> None:
        assert await refused(bench.plane.hello(worker, [])) == EINVAL
        assert await bench.plane.workers() == []

    play(body)


def test_an_assignment_carries_what_was_asked(play: Play) -> None:
    async def body(bench: Bench) -> None:
        spec = replace(ECHO, input_json='{"a": 1}', labels={"k": "v"})
        await bench.worker()
        task = await bench.plane.submit(spec)
        (given,) = (await bench.plane.claim(W1)).start
        assert given == Assignment(run=(await bench.plane.task(task.id)).runs[0], spec=spec)

    play(body)
