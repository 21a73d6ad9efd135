"""9P2000.L on sockets: one epoll for all connections, inside one trio task.

Requests are answered where they are read, so a connection needs no task of its own: it is a step, taken when its
socket is ready. Only requests that wait are trio tasks. Replies leave in one send per step; while some are unsent
nothing is received, so a client that does not read stops only itself.
"""

import os
import select
import socket
from collections.abc import Iterable
from contextlib import closing, suppress
from errno import ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import Final

import structlog
import trio

from vfs.locks import LockTable
from vfs.ninep.codec import HEADER, ProtocolError
from vfs.ninep.listing import Listings
from vfs.ninep.messages import HEADER_SIZE, MAX_MSIZE
from vfs.ninep.operations import Attach
from vfs.ninep.peer import peer_of
from vfs.ninep.session import OUT_LIMIT, Request, Session
from vfs.waiting import Signal

MAX_CONNECTIONS: Final = 4096
_BUFFER: Final = 128 << 10
_SPARE_BUFFERS: Final = 16
_WORTH_SENDMSG: Final = 2 << 10
"""Mean size of the pieces of the output from which they are sent uncopied."""
_IOV: Final = 512
_TURNS: Final = 16
"""Turns of one step, and of the epoll, before the others get theirs."""
_EVENTS: Final = 64
_NO_ROOM: Final = frozenset((EMFILE, ENFILE, ENOBUFS, ENOMEM))
_RETRY_SECONDS: Final = 1.0

log = structlog.get_logger("vfs.ninep")


class Connection:
    """One client: its socket, its session, and what has come of a frame that is not complete.

    Frames are received into a buffer that all connections share, for nothing stays in it between two steps: only
    what is left over moves to a buffer of the connection's own, until that is used up.
    """

    __slots__ = (
        "_buffer",
        "_end",
        "_interest",
        "_limit",
        "_passed",
        "_server",
        "_socket",
        "_start",
        "_stopped",
        "_view",
        "session",
    )

    def __init__(self, server: "Server", connected: socket.socket, attach: Attach, *, pass_files: bool) -> None:
        connected.setblocking(False)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server = server
        self._socket = connected
        self._buffer, self._view = server.buffer, server.view
        self._start = self._end = 0
        self._limit = _BUFFER
        self._stopped = False
        self._interest = select.EPOLLIN
        self.session = Session(
            attach, spawn=self._spawn, locks=server.locks, listings=server.listings, peer=peer_of(connected)
        )
        self._passed: list[int] = []
        if pass_files:
            self.session.operations.passed = self._passed

    def step(self) -> None:
        """Receive, answer and send what the socket allows now."""
        session = self.session
        try:
            if session.out_size and not self._send():
                return
            if self._stopped or self._receive():
                for _ in range(_TURNS):
                    self._start = session.process(self._buffer, self._start, self._end)
                    self._stopped = session.out_size >= OUT_LIMIT
                    if not (session.out_size and self._send() and self._stopped):
                        break
                self._keep_rest()
            interest = select.EPOLLOUT if session.out_size or self._stopped else select.EPOLLIN
            if interest != self._interest:
                self._await(interest)
        except ProtocolError as error:
            log.warning("connection dropped", reason=str(error))
            with suppress(OSError):
                self._send()  # the answers to what came before
            self.close()
        except OSError:
            self.close()

    def _receive(self) -> bool:
        """Receive what there is room for; return whether anything came. ConnectionResetError when the client left."""
        try:
            count = self._socket.recv_into(self._view[self._end : self._limit])
        except (BlockingIOError, InterruptedError):
            return False
        if not count:
            raise ConnectionResetError
        self._end += count
        return True

    def _keep_rest(self) -> None:
        """Leave the shared buffer, and have room for the rest of a frame that has begun."""
        shared = self._server.buffer
        held = self._end - self._start
        if not held:
            if self._buffer is not shared:
                self._server.give_back(self._buffer)
                self._buffer, self._view = shared, self._server.view
            self._start = self._end = 0
            self._limit = _BUFFER
            return
        rest = self._view[self._start : self._end]
        if self._buffer is shared:
            self._buffer = self._server.borrow()
            self._view = memoryview(self._buffer)
            self._view[:held] = rest
        elif self._start:
            self._view[:held] = bytes(rest)
        self._start, self._end = 0, held
        if held < HEADER_SIZE:
            self._limit = _BUFFER
        else:  # one frame that has begun, whose size the session has checked; or whole ones, which are handled first
            self._limit = max(held, HEADER.unpack_from(self._buffer)[0])

    def _send(self) -> bool:
        """Send what the socket takes; return whether nothing is left."""
        session = self.session
        out = session.out
        try:
            while session.out_size:
                if self._passed:
                    count = self._pass()
                elif len(out) == 1:
                    count = self._socket.send(out[0])
                elif session.out_size < len(out) * _WORTH_SENDMSG:
                    count = self._socket.send(b"".join(out))
                else:
                    count = self._socket.sendmsg(out[:_IOV])
                session.sent(count)
        except (BlockingIOError, InterruptedError):
            return False
        return True

    def _pass(self) -> int:
        """Send output with descriptors beside its first byte: of the one reply that the client waits for."""
        count = socket.send_fds(self._socket, self.session.out[:_IOV], self._passed)
        while self._passed:
            os.close(self._passed.pop())
        return count

    def _await(self, interest: int) -> None:
        self._server.epoll.modify(self._socket, interest)
        self._interest = interest

    def _spawn(self, request: Request) -> None:
        self._server.nursery.start_soon(self._finish, request)

    async def _finish(self, request: Request) -> None:
        await request.run()
        if self._socket.fileno() < 0:
            return
        try:
            if not self._send():
                self._await(select.EPOLLOUT)
        except OSError:
            self.close()

    def close(self) -> None:
        """Drop the client: everything it has open is released, everything it waits for is cancelled. Idempotent."""
        if self._socket.fileno() >= 0:
            self._server.forget(self._socket)
            self._socket.close()
            self.session.close()


class Server:
    """Serves trees to any number of connections while `run` runs.

    `locks` is shared by all of them, and by other protocols that serve the same trees.
    """

    def __init__(self, *, max_connections: int = MAX_CONNECTIONS, locks: LockTable | None = None) -> None:
        self.locks = locks or LockTable()
        self.listings = Listings()
        self.buffer = bytearray(_BUFFER)
        self.view = memoryview(self.buffer)
        self.epoll = select.epoll()
        self.nursery: trio.Nursery
        self._connections: dict[int, Connection] = {}
        self._max_connections = max_connections
        self._left = Signal()
        self._spare: list[bytearray] = []

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then every connection is closed. Started when `listen` and `adopt` may be called."""
        with closing(self.epoll):
            try:
                async with trio.open_nursery() as self.nursery:
                    task_status.started()
                    await self._step_connections()
            finally:
                for connection in list(self._connections.values()):
                    connection.close()

    async def _step_connections(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.epoll.fileno())
            for _ in range(_TURNS):
                ready = self.epoll.poll(0, _EVENTS)
                if not ready:
                    break
                for fd, _ in ready:
                    if fd in self._connections:  # else closed by the step of another
                        self._connections[fd].step()

    def listen(self, listener: socket.socket, attach: Attach) -> None:
        """Accept connections from a listening socket, which is the server's from now on."""
        self.nursery.start_soon(self._accept, listener, attach)

    async def _accept(self, listener: socket.socket, attach: Attach) -> None:
        listener.setblocking(False)
        with listener:
            while True:
                await trio.lowlevel.wait_readable(listener)
                while len(self._connections) >= self._max_connections:
                    await self._left.wait()
                try:
                    connected, _ = listener.accept()
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    if error.errno == ECONNABORTED:
                        continue
                    if error.errno not in _NO_ROOM:
                        raise
                    log.error("cannot accept", error=str(error))
                    with trio.move_on_after(_RETRY_SECONDS):
                        await self._left.wait()
                    continue
                self.adopt(connected, attach)

    def adopt(self, connected: socket.socket, attach: Attach, *, pass_files: bool = False) -> Connection:
        """Serve one connected stream socket (accepted elsewhere, half of a pair, a guest's vsock), now the server's.

        With `pass_files` (on a unix socket) the reply to an open of a host's file has its descriptor beside it, for a
        client that waits for every reply: data then needs no server.
        """
        connection = Connection(self, connected, attach, pass_files=pass_files)
        self.epoll.register(connected, select.EPOLLIN)
        self._connections[connected.fileno()] = connection
        return connection

    def borrow(self) -> bytearray:
        """Return a buffer for a frame of any size (the kernel gives it memory only as far as it is used)."""
        return self._spare.pop() if self._spare else bytearray(MAX_MSIZE)

    def give_back(self, buffer: bytearray) -> None:
        if len(self._spare) < _SPARE_BUFFERS:
            self._spare.append(buffer)

    def forget(self, connected: socket.socket) -> None:
        """Serve a connection no more (`Connection.close`)."""
        self.epoll.unregister(connected)
        del self._connections[connected.fileno()]
        self._left.notify()


async def serve(
    listeners: Iterable[socket.socket],
    attach: Attach,
    *,
    max_connections: int = MAX_CONNECTIONS,
    locks: LockTable | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve what `attach` gives on listening sockets (see `vfs.ninep.address.listen`) until cancelled."""
    server = Server(max_connections=max_connections, locks=locks)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        for listener in listeners:
            server.listen(listener, attach)
        task_status.started(server)
