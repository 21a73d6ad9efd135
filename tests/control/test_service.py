"""The services over TLS: what a client and a worker see, and every refusal that needs a network."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from peers import SECONDS, Client, Stream, channel, client, enrolled, on_plane, worker

from wanixfs.control.credentials import Role
from wanixfs.control.model import WorkerId
from wanixfs.control.plane import MAX_CHUNK
from wanixfs.control.proto import taskrun_v1_pb2 as pb
from wanixfs.control.security.authority import Authority, KeyPair, new_key, request
from wanixfs.control.service.server import MAX_MESSAGE, Serving

Code = grpc.StatusCode


async def refused(call: Awaitable[object]) -> grpc.StatusCode | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


async def taken(stream: Stream, name: str = "w1") -> str:
    """Say hello and return the run that is given at once."""
    await stream.hello(name)
    await stream.hear("ack")
    return (await stream.hear("assign_run")).assign_run.run_id


def test_a_task_runs_on_a_worker_and_its_output_comes_back() -> None:
    async def body(serving: Serving) -> None:
        async with client(serving) as me, worker(serving, "w1") as stream:
            task = await me.create(input_json='{"n": 1}', labels={"k": "v"})
            assert (task.status, task.created_by) == (pb.TASK_STATUS_PENDING, "me")
            await stream.hello("w1")
            await stream.hear("ack")
            given = (await stream.hear("assign_run")).assign_run
            assert (given.task_id, given.agent_name, given.input_json) == (task.id, "echo", '{"n": 1}')
            assert given.nonce and given.issued_at_ms and dict(given.labels) == {"k": "v"}
            await stream.report(given.run_id, pb.RUN_STATUS_RUNNING)
            assert (await stream.hear("ack")).ack.status == pb.RUN_STATUS_RUNNING
            for seq, text in enumerate(["a", "b", "c"]):
                await stream.put(given.run_id, seq, text)
                assert (await stream.hear("ack")).ack.next_seq == seq + 1
            await stream.report(given.run_id, pb.RUN_STATUS_COMPLETED)
            done = await me.end_of(task.id)
            assert (done.status, done.runs[0].worker_id) == (pb.TASK_STATUS_COMPLETED, "w1")
            assert [each.content for each in await me.output(given.run_id)] == ["a", "b", "c"]
            assert [each.content for each in await me.output(given.run_id, since=2)] == ["c"]

    on_plane(body)


def test_a_connected_worker_is_given_a_task_as_soon_as_it_is_made() -> None:
    async def body(serving: Serving) -> None:
        async with client(serving) as me, worker(serving, "w1") as stream:
            await stream.hello("w1")
            await stream.hear("ack")
            task = await me.create()
            assert (await stream.hear("assign_run")).assign_run.task_id == task.id

    on_plane(body)


def test_a_cancel_reaches_the_worker_and_a_late_completion_changes_nothing() -> None:
    async def body(serving: Serving) -> None:
        async with client(serving) as me, worker(serving, "w1") as stream:
            task = await me.create()
            run_id = await taken(stream)
            await me.cancel(task.id)
            order = (await stream.hear("cancel_run")).cancel_run
            assert (order.run_id, order.reason) == (run_id, "cancelled by me")
            await stream.report(run_id, pb.RUN_STATUS_COMPLETED)
            done = await me.end_of(task.id)
            assert (done.status, done.runs[0].status) == (pb.TASK_STATUS_CANCELLED, pb.RUN_STATUS_CANCELLED)
            assert await refused(me.cancel(task.id)) == Code.FAILED_PRECONDITION

    on_plane(body)


def test_a_worker_that_comes_back_goes_on_with_its_run() -> None:
    async def body(serving: Serving) -> None:
        pair = await enrolled(serving, "w1")
        async with client(serving) as me:
            task = await me.create()
            async with worker(serving, "w1", pair) as stream:
                run_id = await taken(stream)
                await stream.report(run_id, pb.RUN_STATUS_RUNNING)
                await stream.hear("ack")
                await stream.put(run_id, 0, "a")
                await stream.hear("ack")
                stream.cut()
            async with worker(serving, "w1", pair) as stream:
                await stream.hello("w1", run_id)
                await stream.hear("ack")
                await stream.put(run_id, 0, "a")
                assert (await stream.hear("ack")).ack.next_seq == 1
                await stream.put(run_id, 1, "b")
                await stream.report(run_id, pb.RUN_STATUS_COMPLETED)
                assert (await me.end_of(task.id)).status == pb.TASK_STATUS_COMPLETED
            assert [each.content for each in await me.output(run_id)] == ["a", "b"]

    on_plane(body)


def test_a_worker_that_says_goodbye_gives_its_runs_back() -> None:
    async def body(serving: Serving) -> None:
        async with client(serving) as me:
            task = await me.create()
            async with worker(serving, "w1") as stream:
                await taken(stream)
                await stream.say(goodbye=pb.WorkerGoodbye())
                assert (await stream.hear("ack")).ack.ack_type == "goodbye"
                assert await stream.refusal() == Code.OK
            async with worker(serving, "w2") as stream:
                run_id = await taken(stream, "w2")
                await stream.report(run_id, pb.RUN_STATUS_COMPLETED)
                done = await me.end_of(task.id)
            assert [run.status for run in done.runs] == [pb.RUN_STATUS_FAILED, pb.RUN_STATUS_COMPLETED]

    on_plane(body)


def test_many_tasks_on_two_workers_each_end_once() -> None:
    async def play(stream: Stream, name: str, done: list[str]) -> None:
        await stream.hello(name, most=5)
        while True:
            message = await stream.hear_any()
            if message.WhichOneof("message") == "assign_run":
                await stream.put(message.assign_run.run_id, 0, name)
                await stream.report(message.assign_run.run_id, pb.RUN_STATUS_COMPLETED)
                done.append(message.assign_run.task_id)

    async def body(serving: Serving) -> None:
        done: list[str] = []
        async with client(serving) as me, worker(serving, "w1") as one, worker(serving, "w2") as two:
            playing = [asyncio.create_task(play(one, "w1", done)), asyncio.create_task(play(two, "w2", done))]
            try:
                made = [(await me.create()).id for _ in range(60)]
                ends = await asyncio.gather(*map(me.end_of, made))
            finally:
                for each in playing:
                    each.cancel()
                await asyncio.gather(*playing, return_exceptions=True)
            assert {end.status for end in ends} == {pb.TASK_STATUS_COMPLETED}
            assert sorted(done) == sorted(made)
            for end in ends:
                (run,) = end.runs
                assert [each.content for each in await me.output(run.run_id)] == [run.worker_id]

    on_plane(body)


def test_workers_are_listed_with_what_they_can_do() -> None:
    async def body(serving: Serving) -> None:
        async with client(serving, Role.ADMIN) as me, worker(serving, "w1") as stream:
            await me.create()
            await taken(stream)
            listed = await me.workers.ListWorkers(pb.ListWorkersRequest(agent_name="echo"), metadata=me.metadata)
            assert [(each.worker_id, each.active_runs) for each in listed.workers] == [("w1", 1)]
            none = await me.workers.ListWorkers(pb.ListWorkersRequest(agent_name="other"), metadata=me.metadata)
            assert not none.workers
            drained = await me.workers.DrainWorker(pb.DrainWorkerRequest(worker_id="w1"), metadata=me.metadata)
            assert drained.status == pb.WORKER_STATUS_DRAINING
            asked = pb.GetWorkerRequest(worker_id="none")
            assert await refused(me.workers.GetWorker(asked, metadata=me.metadata)) == Code.NOT_FOUND

    on_plane(body)


def test_a_client_without_a_token_or_the_role_is_refused() -> None:
    async def body(serving: Serving) -> None:
        async with client(serving, Role.READ) as reader:
            assert await refused(reader.create()) == Code.PERMISSION_DENIED
            assert await refused(reader.task("none")) == Code.NOT_FOUND
            drain = pb.DrainWorkerRequest(worker_id="w1")
            assert await refused(reader.workers.DrainWorker(drain, metadata=reader.metadata)) == Code.PERMISSION_DENIED
        async with channel(serving.ports.clients, serving.access.authority) as opened:
            for metadata in ((), (("authorization", "Bearer x"),), (("authorization", "Basic " + "a" * 43),)):
                assert await refused(Client(opened, metadata).create()) == Code.PERMISSION_DENIED

    on_plane(body)


def test_bad_requests_are_told_by_their_status() -> None:
    async def body(serving: Serving) -> None:
        async with client(serving) as me:
            assert await refused(me.create("")) == Code.INVALID_ARGUMENT
            assert await refused(me.create(input_json="{")) == Code.INVALID_ARGUMENT
            assert await refused(me.create(input_json="x" * (MAX_MESSAGE + 1))) == Code.RESOURCE_EXHAUSTED
            first = await me.create(idempotency_key="k")
            assert (await me.create(idempotency_key="k")).id == first.id
            assert await refused(me.create("other", idempotency_key="k")) == Code.ALREADY_EXISTS
            listing = pb.ListTasksRequest(status_filter=99)  # type: ignore[arg-type]
            assert await refused(me.tasks.ListTasks(listing, metadata=me.metadata)) == Code.INVALID_ARGUMENT

    on_plane(body)


def of_foreign(serving: Serving, ours: Authority) -> KeyPair:
    key = new_key()
    return KeyPair(key, Authority.made().worker(WorkerId("w1"), request(key, "w1"), timedelta(days=1)))


def expired(serving: Serving, ours: Authority) -> KeyPair:
    key, before = new_key(), datetime.now(UTC) - timedelta(days=2)
    return KeyPair(key, ours.worker(WorkerId("w1"), request(key, "w1"), timedelta(days=1), now=before))


def of_the_server(serving: Serving, ours: Authority) -> KeyPair:
    return ours.server("127.0.0.1")


def unknown(serving: Serving, ours: Authority) -> KeyPair:
    key = new_key()
    return KeyPair(key, ours.worker(WorkerId("w1"), request(key, "w1"), timedelta(days=1)))


@pytest.mark.parametrize(
    ("make", "codes"),
    [
        (None, {Code.UNAVAILABLE}),
        (of_foreign, {Code.UNAVAILABLE}),
        (expired, {Code.UNAVAILABLE}),
        (of_the_server, {Code.UNAVAILABLE, Code.PERMISSION_DENIED}),
        (unknown, {Code.PERMISSION_DENIED}),
    ],
    ids=["none", "foreign", "expired", "server", "unknown"],
)
def test_a_worker_without_a_certificate_of_ours_gets_no_stream(make: object, codes: set[grpc.StatusCode]) -> None:
    ours = Authority.made()

    async def body(serving: Serving) -> None:
        pair = make(serving, ours) if callable(make) else None
        async with channel(serving.ports.workers, serving.access.authority, pair) as opened:
            stream = Stream(opened)
            try:
                await stream.hello("w1")
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass
            assert await stream.refusal() in codes
        assert await serving.plane.workers() == []

    on_plane(body, authority=ours)


def test_a_worker_pins_its_planes_authority() -> None:
    async def body(serving: Serving) -> None:
        async with channel(serving.ports.clients, Authority.made().pair.certificate) as opened:
            assert await refused(Client(opened).create()) == Code.UNAVAILABLE

    on_plane(body)


def test_a_worker_cannot_take_anothers_name_nor_speak_first_of_something_else() -> None:
    async def body(serving: Serving) -> None:
        pair = await enrolled(serving, "w1")
        async with worker(serving, "w1", pair) as stream:
            await stream.hello("w2")
            assert await stream.refusal() == Code.PERMISSION_DENIED
        async with worker(serving, "w1", pair) as stream:
            await stream.put("r", 0, "x")
            assert await stream.refusal() == Code.INVALID_ARGUMENT
        assert await serving.plane.workers() == []

    on_plane(body)


def test_revocation_ends_a_live_stream_and_tries_its_runs_elsewhere() -> None:
    async def body(serving: Serving) -> None:
        pair = await enrolled(serving, "w1")
        async with (
            client(serving, Role.ADMIN) as me,
            worker(serving, "w1", pair) as stream,
            worker(serving, "w2") as other,
        ):
            task = await me.create()
            await taken(stream)
            assert (await me.revoke("w1")).certificates == 1
            assert await asyncio.wait_for(stream.refusal(), SECONDS) == Code.PERMISSION_DENIED
            run_id = await taken(other, "w2")
            await other.report(run_id, pb.RUN_STATUS_COMPLETED)
            assert (await me.end_of(task.id)).status == pb.TASK_STATUS_COMPLETED
        async with worker(serving, "w1", pair) as again:
            await again.hello("w1")
            assert await again.refusal() == Code.PERMISSION_DENIED

    on_plane(body)


@pytest.mark.parametrize(
    ("seq", "content", "code"),
    [
        (1, "a", Code.INVALID_ARGUMENT),
        (2**64 - 1, "a", Code.INVALID_ARGUMENT),
        (0, "x" * (MAX_CHUNK + 1), Code.INVALID_ARGUMENT),
        (0, "x" * (MAX_MESSAGE + 1), Code.RESOURCE_EXHAUSTED),
    ],
    ids=["gap", "far", "large", "oversized"],
)
def test_a_worker_that_lies_about_its_output_loses_its_stream(seq: int, content: str, code: grpc.StatusCode) -> None:
    async def body(serving: Serving) -> None:
        async with client(serving) as me, worker(serving, "w1") as stream:
            await me.create()
            run_id = await taken(stream)
            await stream.put(run_id, seq, content)
            assert await stream.refusal() == code
        assert await serving.plane.output((await serving.plane.runs_of(WorkerId("w1")))[0].id) == []

    on_plane(body)


def test_a_worker_cannot_speak_of_anothers_run() -> None:
    async def body(serving: Serving) -> None:
        async with client(serving) as me, worker(serving, "w1") as stream, worker(serving, "w2") as thief:
            task = await me.create()
            run_id = await taken(stream)
            await thief.hello("w2")
            await thief.hear("ack")
            await thief.report(run_id, pb.RUN_STATUS_COMPLETED)
            assert await thief.refusal() == Code.PERMISSION_DENIED
            assert (await me.task(task.id)).runs[0].status == pb.RUN_STATUS_ASSIGNED

    on_plane(body)
