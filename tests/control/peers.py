"""Clients and workers of a served control plane, as tests play them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from wanixfs.control.credentials import Role
from wanixfs.control.proto import taskrun_v1_pb2 as pb
from wanixfs.control.proto import taskrun_v1_pb2_grpc as rpc
from wanixfs.control.security.authority import Authority, KeyPair, new_key, request
from wanixfs.control.service.server import Serving, served
from wanixfs.control.store import MemoryStore, Store

SECONDS = 20.0
"""How long what must happen may take."""


def on_plane(
    body: Callable[[Serving], Awaitable[None]],
    *,
    make_store: Callable[[], Store] = MemoryStore,
    authority: Authority | None = None,
) -> None:
    """Serve a control plane and play against it; a play that hangs fails."""

    async def main() -> None:
        store = make_store()
        try:
            async with asyncio.timeout(3 * SECONDS), served(store, authority or Authority.made()) as serving:
                await body(serving)
        finally:
            await store.close()

    asyncio.run(main())


async def enrolled(serving: Serving, name: str) -> KeyPair:
    token = await serving.access.issue(Role.ENROLL, name)
    key = new_key()
    return KeyPair(key, (await serving.access.enroll(token.secret, request(key, name))).certificate)


@asynccontextmanager
async def channel(port: int, authority: bytes, pair: KeyPair | None = None) -> AsyncIterator[grpc.aio.Channel]:
    own = (pair.key, pair.certificate) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(authority, *own)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", 64 << 20)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as opened:
        yield opened


@asynccontextmanager
async def client(serving: Serving, role: Role = Role.SUBMIT) -> AsyncIterator["Client"]:
    token = await serving.access.issue(role, "me")
    async with channel(serving.ports.clients, serving.access.authority) as opened:
        yield Client(opened, (("authorization", f"Bearer {token}"),))


class Client:
    def __init__(self, opened: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.tasks = rpc.TaskServiceStub(opened)
        self.workers = rpc.WorkerServiceStub(opened)
        self.access = rpc.AccessServiceStub(opened)
        self.metadata = metadata

    async def create(self, agent: str = "echo", **words: object) -> pb.Task:
        asked = pb.CreateTaskRequest(agent_name=agent, **words)  # type: ignore[arg-type]
        return await self.tasks.CreateTask(asked, metadata=self.metadata, timeout=SECONDS)

    async def task(self, task_id: str) -> pb.Task:
        return await self.tasks.GetTask(pb.GetTaskRequest(id=task_id), metadata=self.metadata, timeout=SECONDS)

    async def cancel(self, task_id: str) -> pb.Task:
        return await self.tasks.CancelTask(pb.CancelTaskRequest(id=task_id), metadata=self.metadata, timeout=SECONDS)

    async def revoke(self, name: str) -> pb.RevokeWorkerResponse:
        asked = pb.RevokeWorkerRequest(worker_id=name)
        return await self.access.RevokeWorker(asked, metadata=self.metadata, timeout=SECONDS)

    async def end_of(self, task_id: str) -> pb.Task:
        """Watch a task until it is over, and return it."""
        asked = pb.WatchTaskRequest(id=task_id)
        watch = self.tasks.WatchTask(asked, metadata=self.metadata, timeout=SECONDS)
        return [shown async for shown in watch][-1]

    async def output(self, run_id: str, since: int = 0) -> list[pb.RunOutputChunk]:
        asked = pb.StreamOutputRequest(run_id=run_id, since_seq=since)
        return [each async for each in self.tasks.StreamOutput(asked, metadata=self.metadata, timeout=SECONDS)]


class Stream:
    """A worker's stream, message by message."""

    def __init__(self, opened: grpc.aio.Channel) -> None:
        self._call = rpc.RunServiceStub(opened).Connect(timeout=2 * SECONDS)

    async def say(self, **message: object) -> None:
        await self._call.write(pb.RunClientMessage(**message))  # type: ignore[arg-type]

    async def hear(self, kind: str) -> pb.RunServerMessage:
        """Return the next message, which is of this kind; a refusal is raised."""
        message = await self.hear_any()
        assert message.WhichOneof("message") == kind, message
        return message

    async def hear_any(self) -> pb.RunServerMessage:
        message = await self._call.read()
        assert isinstance(message, pb.RunServerMessage), await self._call.code()
        return message

    async def hello(self, name: str, *live: str, agents: tuple[str, ...] = ("echo",), most: int = 10) -> None:
        info = pb.WorkerInfo(worker_id=name, agents=[pb.AgentSpec(name=agent) for agent in agents])
        await self.say(hello=pb.WorkerHello(info=info, live_run_ids=live, max_concurrent_runs=most))

    async def report(self, run_id: str, status: "pb.RunStatus.ValueType") -> None:
        await self.say(status_update=pb.RunStatusUpdate(run_id=run_id, status=status))

    async def put(self, run_id: str, seq: int, content: str) -> None:
        await self.say(output_chunk=pb.RunOutputChunk(run_id=run_id, seq=seq, content=content))

    async def refusal(self) -> grpc.StatusCode:
        """Return with what status the plane ends the stream."""
        return await self._call.code()

    def cut(self) -> None:
        self._call.cancel()


@asynccontextmanager
async def worker(serving: Serving, name: str, pair: KeyPair | None = None) -> AsyncIterator[Stream]:
    """Open a worker's stream, of a worker that is enrolled for it unless it comes with its certificate."""
    own = pair or await enrolled(serving, name)
    async with channel(serving.ports.workers, serving.access.authority, own) as opened:
        yield Stream(opened)
