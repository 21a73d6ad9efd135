"""Serves a device to whichever machine connects to its socket, one at a time.

All of a machine's requests run in one trio task per queue, as those of a mount do (`vfs.fuse.devfuse`). What breaks the
protocol, and a fault of ours, ends that connection and nothing else: the machine's device then answers no more.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTO
from typing import Any

import structlog
import trio

from vfs.fuse.idle import Idle
from vfs.virtio.backend import Backend, Device
from vfs.virtio.messages import HEADER, MAX_PAYLOAD, MAX_REGIONS, NEED_REPLY, REPLY, U64, VERSION
from vfs.virtio.ring import Queue

TURN = 64
"""How often a queue is served before other tasks get a turn."""
BREATH = 0.1
"""Seconds before accepting again where the system lacks descriptors or memory."""

log: Callable[..., Any] = structlog.get_logger("vfs").warning


@contextmanager
def listening(path: str | os.PathLike[str], *, mode: int = 0o600, backlog: int = 1) -> Iterator[trio.socket.SocketType]:
    """Listen on a unix socket at `path`, made with `mode`, and remove it at the end. EADDRINUSE if one is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        os.fchmod(sock.fileno(), mode)  # before there is a name
        sock.bind(os.fspath(path))
        try:
            sock.listen(backlog)
            yield trio.socket.from_stdlib_socket(sock)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


async def serve(listener: trio.socket.SocketType, device: Device) -> None:
    """Serve `device` to one machine after another until cancelled. A second one waits until the first has gone."""
    while True:
        try:
            sock, _ = await listener.accept()
        except OSError as error:
            if error.errno not in (EMFILE, ENFILE, ENOMEM, ENOBUFS):
                raise
            log("cannot accept a machine", error=str(error))
            await trio.sleep(BREATH)
            continue
        with sock:
            await _Connection(sock, device).run()


class _Connection:
    """One machine that is being served."""

    def __init__(self, sock: trio.socket.SocketType, device: Device) -> None:
        self._sock = sock
        self._device = device
        self._backend = Backend(device, self._started)
        self._turns: dict[int, trio.CancelScope] = {}
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Serve until the machine hangs up, or until it has broken the rules."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self._guarded(self._control)
                self._nursery.cancel_scope.cancel()
        finally:
            self._backend.close()

    async def _guarded(self, part: Callable[..., Any], *arguments: object) -> None:
        """Run a part of the service; what it raises ends the whole of it."""
        try:
            await part(*arguments)
        except Exception as error:
            if not isinstance(error, ConnectionError):
                log("virtio device given up", error=str(error), exc_info=not isinstance(error, OSError))
            self._nursery.cancel_scope.cancel()

    # Requests of the machine

    async def _control(self) -> None:
        while True:
            header, fds = await self._receive(HEADER.size)
            try:
                if not header:
                    return
                request, flags, size = HEADER.unpack(header)
                if size > MAX_PAYLOAD:
                    raise OSError(EPROTO, "a vhost-user request that is too long")
                payload = await self._exactly(size)
                await self._answer(request, flags, payload, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    async def _answer(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        try:
            body = self._backend.receive(request, payload, fds)
            status = 0
        except OSError as error:
            if not flags & NEED_REPLY:
                raise
            log("vhost-user request refused", request=request, error=str(error))
            body, status = None, 1
        if body is None and flags & NEED_REPLY:
            body = U64.pack(status)
        if body is not None:
            reply = HEADER.pack(request, VERSION | REPLY, len(body)) + body
            while reply:
                reply = reply[await self._sock.send(reply) :]

    async def _receive(self, size: int) -> tuple[bytes, list[int]]:
        """Return a header and the descriptors that came with it; b"" at the end."""
        space = socket.CMSG_SPACE(MAX_REGIONS * 4)
        data, messages, flags, _ = await self._sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        fds = [
            int.from_bytes(raw[at : at + 4], "little")
            for level, kind, raw in messages
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            for at in range(0, len(raw) - 3, 4)
        ]
        try:
            if flags & socket.MSG_CTRUNC:
                raise OSError(EPROTO, "too many descriptors")
            return data + await self._exactly(size - len(data)) if data else b"", fds
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._sock.recv(size - len(data))
            if not more:
                raise ConnectionResetError("the machine hung up within a request")
            data += more
        return data

    # Requests of the guest

    def _started(self, queue: Queue) -> None:
        if (before := self._turns.pop(queue.index, None)) is not None:
            before.cancel()
        scope = self._turns[queue.index] = trio.CancelScope()
        self._nursery.start_soon(self._guarded, self._serve, queue, scope, os.dup(queue.kick))

    async def _serve(self, queue: Queue, scope: trio.CancelScope, kick: int) -> None:
        try:
            with scope:
                idle = Idle(kick)
                while True:
                    for _ in range(TURN):
                        more = self._device.serve(queue)
                        queue.tell()
                        if more or queue.listen():
                            continue
                        await idle.readable()
                        try:
                            os.eventfd_read(kick)
                        except BlockingIOError:
                            pass  # woken for nothing
                    await trio.lowlevel.checkpoint()
        finally:
            os.close(kick)
