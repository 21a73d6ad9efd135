"""RunService: one stream for each worker, on which it is given runs and says what becomes of them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine
from errno import EACCES, EINVAL, ETIMEDOUT
from time import time

from wanixfs.control.credentials import Certificate
from wanixfs.control.model import RunId, WorkerId, WorkerStatus
from wanixfs.control.plane import WORK, ControlPlane, Orders
from wanixfs.control.proto import convert
from wanixfs.control.proto import taskrun_v1_pb2 as pb
from wanixfs.control.proto import taskrun_v1_pb2_grpc as rpc
from wanixfs.control.security.access import Access
from wanixfs.control.service.bells import Bells
from wanixfs.control.service.guard import Context, answered, certificate

HELLO_SECONDS = 10.0
OUTBOX = 256
"""Messages to a worker that it has not taken yet; then what it says is not read either."""


class RunService(rpc.RunServiceServicer):
    def __init__(self, plane: ControlPlane, access: Access, bells: Bells) -> None:
        self._plane = plane
        self._access = access
        self._bells = bells
        self._current: dict[WorkerId, _Stream] = {}

    async def Connect(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.RunClientMessage], context: Context
    ) -> None:
        async with answered(context):
            pem = certificate(context)
            held = await self._access.worker(pem)
            hello = await _hello(request_iterator, held.worker_id)
            stream = _Stream(self._plane, held.worker_id)
            orders = await self._plane.hello(
                convert.worker(hello, held.worker_id), list(map(RunId, hello.live_run_ids))
            )
            stream.tell(pb.RunServerMessage(ack=pb.ServerAck(ack_type="hello", ref_id=held.worker_id)))
            stream.obey(orders)
            self._current[held.worker_id] = stream
            try:
                await _first_of(
                    stream.listen(request_iterator),
                    stream.write(context),
                    self._give(stream),
                    self._watch(pem, held),
                )
            finally:
                if self._current.get(held.worker_id) is stream:
                    del self._current[held.worker_id]

    async def StreamConnect(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.RunClientMessage], context: Context
    ) -> None:
        await self.Connect(request_iterator, context)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        async with answered(context):
            renewed = await self._access.renew(certificate(context), request.csr)
            return pb.RenewResponse(
                worker_cert=renewed.certificate, ca_cert=renewed.authority, expires_at_ms=renewed.expires_at_ms
            )

    async def _give(self, stream: "_Stream") -> None:
        """Claim runs for a worker as long as no newer stream of its does."""
        with self._bells.listening(WORK, f"worker/{stream.worker_id}") as changed:
            while self._current.get(stream.worker_id) is stream:
                changed.clear()
                await stream.has_room()
                stream.obey(await self._plane.claim(stream.worker_id))
                await changed.wait()
        await asyncio.Event().wait()

    async def _watch(self, pem: bytes, held: Certificate) -> None:
        """Raise EACCES as soon as a certificate is revoked or expires: TLS looks at it only once."""
        with self._bells.listening(f"certificates/{held.worker_id}") as changed:
            while True:
                changed.clear()
                await self._access.worker(pem)
                try:
                    await asyncio.wait_for(changed.wait(), max(0.0, held.expires_at_ms / 1_000 - time()))
                except TimeoutError:
                    pass


class _Stream:
    """One connection of a worker: what is to be told to it, and what it was told already."""

    def __init__(self, plane: ControlPlane, worker_id: WorkerId) -> None:
        self.worker_id = worker_id
        self._plane = plane
        self._outbox: asyncio.Queue[pb.RunServerMessage] = asyncio.Queue()
        self._told: set[RunId] = set()
        self._room = asyncio.Event()
        self._room.set()

    def tell(self, message: pb.RunServerMessage) -> None:
        self._outbox.put_nowait(message)
        if self._outbox.qsize() >= OUTBOX:
            self._room.clear()

    async def has_room(self) -> None:
        await self._room.wait()

    def obey(self, orders: Orders) -> None:
        """Tell the worker what to start, and once what to stop."""
        for assignment in orders.start:
            message = convert.assignment_to(assignment, secrets.token_urlsafe(16), int(time() * 1_000))
            self.tell(pb.RunServerMessage(assign_run=message))
        for run_id, reason in orders.stop:
            if run_id not in self._told:
                self._told.add(run_id)
                self.tell(pb.RunServerMessage(cancel_run=pb.CancelRun(run_id=run_id, reason=reason)))

    async def write(self, context: Context) -> None:
        while True:
            await context.write(await self._outbox.get())
            self._outbox.task_done()
            if self._outbox.qsize() < OUTBOX:
                self._room.set()

    async def listen(self, messages: AsyncIterator[pb.RunClientMessage]) -> None:
        """Take in what the worker says until it ends the stream; what is not acknowledged it will say again."""
        async for message in messages:
            await self.has_room()
            ack = await self._take(message)
            if ack is not None:
                self.tell(pb.RunServerMessage(ack=ack))
            if message.WhichOneof("message") == "goodbye":
                await self._outbox.join()
                return

    async def _take(self, message: pb.RunClientMessage) -> pb.ServerAck | None:
        match kind := message.WhichOneof("message"):
            case "heartbeat":
                beat = message.heartbeat
                status = convert.worker_status(beat.status) or WorkerStatus.IDLE
                await self._plane.heartbeat(self.worker_id, status, beat.max_concurrent_runs)
                return None
            case "status_update":
                said = message.status_update
                run_id, state = RunId(said.run_id), convert.run_status(said.status)
                error, backend = said.error_message, said.backend_used
                self.obey(await self._plane.report(self.worker_id, run_id, state, error=error, backend=backend))
                return pb.ServerAck(ack_type=kind, ref_id=run_id, status=said.status)
            case "output_chunk":
                chunk = convert.chunk(message.output_chunk)
                wanted = await self._plane.add_output(self.worker_id, chunk)
                return pb.ServerAck(ack_type=kind, ref_id=chunk.run_id, next_seq=wanted)
            case "event":
                event = convert.event(message.event)
                await self._plane.add_event(self.worker_id, event)
                return pb.ServerAck(ack_type=kind, ref_id=event.id)
            case "goodbye":
                await self._plane.forget(self.worker_id, "the worker has left")
                return pb.ServerAck(ack_type=kind, ref_id=self.worker_id)
            case _:
                raise OSError(EINVAL, f"not a message of a worker that has said hello: {kind}")


async def _hello(messages: AsyncIterator[pb.RunClientMessage], worker_id: WorkerId) -> pb.WorkerHello:
    """Return the first message. ETIMEDOUT: none came. EINVAL: no hello. EACCES: the certificate is another's."""
    try:
        first = await asyncio.wait_for(anext(messages), HELLO_SECONDS)
    except (TimeoutError, StopAsyncIteration):
        raise OSError(ETIMEDOUT, "a worker says hello first") from None
    if first.WhichOneof("message") != "hello":
        raise OSError(EINVAL, "a worker says hello first")
    if first.hello.info.worker_id != worker_id:
        raise OSError(EACCES, "the certificate is another worker's")
    return first.hello


async def _first_of(*parts: Coroutine[None, None, None]) -> None:
    """Run coroutines until the first ends; end the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in ended:
        task.result()
