"""9P2000.L on sockets: one epoll for all connections, inside one trio task.

Requests are answered where they are read, so a connection needs no task of its own: it is a step, taken when its
socket is ready. Only requests that wait are trio tasks. Replies leave in one send per step; while some are unsent
nothing is received, so a client that does not read stops only itself.
"""

import select
import socket
from collections.abc import Iterable
from contextlib import closing
from errno import ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import Final

import structlog
import trio

from vfs.locks import LockTable
from vfs.ninep.codec import HEADER, ProtocolError
from vfs.ninep.messages import HEADER_SIZE, MAX_MSIZE
from vfs.ninep.operations import Attach
from vfs.ninep.peer import peer_of
from vfs.ninep.session import OUT_LIMIT, Request, Session
from vfs.waiting import Signal

MAX_CONNECTIONS: Final = 4096
_SMALL_BUFFER: Final = 8 << 10
_OWN_BUFFER: Final = 128 << 10
"""Frames up to this size are received into a buffer of the connection's own, larger ones into a borrowed one."""
_SPARE_BUFFERS: Final = 4
_IOV: Final = 512
_TURNS: Final = 16
"""Turns of one step, and of the epoll, before the others get theirs."""
_EVENTS: Final = 64
_NO_ROOM: Final = frozenset((EMFILE, ENFILE, ENOBUFS, ENOMEM))
_RETRY_SECONDS: Final = 1.0

log = structlog.get_logger("vfs.ninep")


class Connection:
    """One client: its socket, its receive buffer, its session."""

    __slots__ = ("_buffer", "_end", "_interest", "_own", "_server", "_socket", "_start", "_stopped", "_view", "session")

    def __init__(self, server: "Server", connected: socket.socket, attach: Attach) -> None:
        connected.setblocking(False)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server = server
        self._socket = connected
        self._own = self._buffer = bytearray(_SMALL_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._stopped = False
        self._interest = select.EPOLLIN
        self.session = Session(attach, spawn=self._spawn, locks=server.locks, peer=peer_of(connected))

    def step(self) -> None:
        """Receive, answer and send what the socket allows now."""
        session = self.session
        try:
            if session.out_size and not self._send():
                return
            if not self._stopped and not self._receive():
                return
            for _ in range(_TURNS):
                self._start = session.process(self._buffer, self._start, self._end)
                self._stopped = session.out_size >= OUT_LIMIT
                if not (self._send() and self._stopped):
                    break
            self._await(select.EPOLLOUT if session.out_size or self._stopped else select.EPOLLIN)
        except ProtocolError as error:
            log.warning("connection dropped", reason=str(error))
            self.close()
        except OSError:
            self.close()

    def _receive(self) -> bool:
        """Receive into the buffer; False if nothing came or the client is gone (then this is closed)."""
        self._make_room()
        try:
            count = self._socket.recv_into(self._view[self._end :])
        except (BlockingIOError, InterruptedError):
            return False
        if not count:
            self.close()
            return False
        self._end += count
        return True

    def _make_room(self) -> None:
        """Have room for the rest of the frame that has begun, or for any small ones."""
        held = self._end - self._start
        need = HEADER_SIZE
        if held >= HEADER_SIZE:  # then the session has checked its size
            need = HEADER.unpack_from(self._buffer, self._start)[0]
        if self._buffer is not self._own and not held:
            self._server.give_back(self._buffer)
            self._use(self._own)
        elif need > len(self._buffer):
            if need > _OWN_BUFFER:
                self._use(self._server.borrow())
            else:
                self._own = bytearray(need)
                self._use(self._own)
        elif self._start and (not held or self._start + need > len(self._buffer)):
            self._use(self._buffer)

    def _use(self, buffer: bytearray) -> None:
        """Go on with `buffer`, what is held moved to its beginning."""
        held = self._end - self._start
        view = memoryview(buffer)
        view[:held] = bytes(self._view[self._start : self._end])
        self._buffer, self._view = buffer, view
        self._start, self._end = 0, held

    def _send(self) -> bool:
        """Send what the socket takes; return whether nothing is left."""
        session = self.session
        while session.out_size:
            out = session.out
            try:
                if session.out_size < OUT_LIMIT:
                    count = self._socket.send(b"".join(out) if len(out) > 1 else out[0])
                else:
                    count = self._socket.sendmsg(out[:_IOV])
            except (BlockingIOError, InterruptedError):
                return False
            session.sent(count)
        return True

    def _await(self, interest: int) -> None:
        if interest != self._interest:
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
            if self._buffer is not self._own:
                self._server.give_back(self._buffer)
                self._buffer = self._own
            self.session.close()


class Server:
    """Serves trees to any number of connections while `run` runs.

    `locks` is shared by all of them, and by other protocols that serve the same trees.
    """

    def __init__(self, *, max_connections: int = MAX_CONNECTIONS, locks: LockTable | None = None) -> None:
        self.locks = locks or LockTable()
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

    def adopt(self, connected: socket.socket, attach: Attach) -> Connection:
        """Serve one connected stream socket (accepted elsewhere, half of a pair, a guest's vsock), now the server's."""
        connection = Connection(self, connected, attach)
        self.epoll.register(connected, select.EPOLLIN)
        self._connections[connected.fileno()] = connection
        return connection

    def borrow(self) -> bytearray:
        """Return a buffer for a frame of any size."""
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
