"""A control plane's ports: workers with certificates, clients with tokens, and those who are to become workers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from errno import EADDRINUSE

import grpc
import structlog

from wanixfs.control.plane import DEFAULT_LIMITS, ControlPlane, Limits
from wanixfs.control.proto import taskrun_v1_pb2_grpc as rpc
from wanixfs.control.security.access import Access
from wanixfs.control.security.authority import Authority
from wanixfs.control.service.access import AccessService
from wanixfs.control.service.bells import Bells
from wanixfs.control.service.enrollment import enrolling
from wanixfs.control.service.runs import RunService
from wanixfs.control.service.tasks import TaskService, WorkerService
from wanixfs.control.store.base import Store

log = structlog.get_logger("control")

MAX_MESSAGE = 4 << 20
REAP_SECONDS = 1.0
GRACE_SECONDS = 2.0
OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", 16 << 10),
    # A peer that was stopped, or whose network is gone, is noticed by the ping's own timeout, not TCP's.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports of a control plane; 0 is any that is free."""

    workers: int = 0
    clients: int = 0
    enrollment: int = 0


ANY_PORTS = Ports()


@dataclass(frozen=True, slots=True)
class Serving:
    """A control plane that is being served, and the ports it was given."""

    plane: ControlPlane
    access: Access
    ports: Ports


@asynccontextmanager
async def served(
    store: Store,
    authority: Authority,
    *,
    host: str = "127.0.0.1",
    ports: Ports = ANY_PORTS,
    limits: Limits = DEFAULT_LIMITS,
    certificate_life: timedelta = timedelta(days=1),
) -> AsyncIterator[Serving]:
    """Serve a control plane as long as the block lasts. OSError: a port is taken."""
    bells = Bells()
    plane = ControlPlane(store, limits=limits, ring=bells.ring)
    access = Access(store, authority, certificate_life=certificate_life)
    own = authority.server(host)
    pairs = [(own.key, own.certificate)]
    workers, clients = grpc.aio.server(options=OPTIONS), grpc.aio.server(options=OPTIONS)
    rpc.add_RunServiceServicer_to_server(RunService(plane, access, bells), workers)
    rpc.add_TaskServiceServicer_to_server(TaskService(plane, access, bells), clients)
    rpc.add_WorkerServiceServicer_to_server(WorkerService(plane, access), clients)
    rpc.add_AccessServiceServicer_to_server(AccessService(plane, access, bells), clients)
    mutual = grpc.ssl_server_credentials(pairs, root_certificates=access.authority, require_client_auth=True)
    try:
        worker_port = _bound(workers, host, ports.workers, mutual)
        client_port = _bound(clients, host, ports.clients, grpc.ssl_server_credentials(pairs))
        await workers.start()
        await clients.start()
        reaper = asyncio.create_task(_reap(plane))
        try:
            async with enrolling(access, own, host=host, port=ports.enrollment) as enroll_port:
                given = Ports(workers=worker_port, clients=client_port, enrollment=enroll_port)
                yield Serving(plane, access, given)
        finally:
            reaper.cancel()
    finally:
        await asyncio.gather(workers.stop(GRACE_SECONDS), clients.stop(GRACE_SECONDS))


def _bound(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(EADDRINUSE, f"cannot listen at {address}: {error}") from None


async def _reap(plane: ControlPlane) -> None:
    """Let time act on the plane. A failure is logged and tried again: without it no lease would ever end."""
    while True:
        try:
            await plane.reap()
        except Exception:
            log.exception("what time asks for could not be done")
        await asyncio.sleep(REAP_SECONDS)
