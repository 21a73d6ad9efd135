"""vsock: a guest's sockets (vsock(7)) as unix sockets of the host, by the convention of Firecracker's hybrid vsock.

Source: VIRTIO 1.2, section 5.10, and Firecracker's docs/vsock.md. To reach port P of the guest, connect to the device's
unix socket, send `CONNECT P\\n` and read `OK <host port>\\n`; nothing comes where nobody listens. A guest that connects
to port P of the host (CID 2) is led to the unix socket `<path>_P`. Either side may shut down its half alone.

Every byte that a guest may send ahead is one there is room for: it is told of BUFFER bytes and has to keep to them.
"""

import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from errno import EINVAL, EPROTO
from functools import partial
from struct import Struct

import trio

from vfs.virtio.memory import room, scatter
from vfs.virtio.ring import MAX_CHAIN, Chain, Queue
from vfs.virtio.service import listening, log, serve
from vfs.waiting import Signal

HEADER = Struct("<QQIIIHHIII")  # cids: from, to; ports: from, to; length type operation flags buffer forwarded
HOST = 2
STREAM = 1
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
NO_RECEIVE, NO_SEND = 1, 2
"""Flags of SHUTDOWN: what its sender will do no more."""
RECEIVE, TRANSMIT = 0, 1
"""The guest's queues; the third, for events, is not used."""

BUFFER = 256 << 10
"""Bytes of a connection that wait for the host to take them, at the most."""
MAX_CONNECTIONS = 1024
MAX_OWED = 1024
"""Headers that wait for a buffer of the guest; with so many, no more of its packets are taken."""
TURN = 64
"""Packets that are handled, or buffers filled, before others get a turn."""
MAX_HELLO = 32
"""Bytes of a request to connect."""
MAX_BACKLOG = 128
FIRST_PORT = 1 << 30
ANSWER_SECONDS = 10.0
"""How long the guest has to accept or refuse a connection, and who connects from the host to say where to."""
CLOSE_SECONDS = 8.0
"""How long the guest has to agree that a connection is over, as long as Linux gives us."""

_MASK = 0xFFFF_FFFF


class Connection:
    """One connection: `host` and `guest` are its ports, `sock` is the unix socket of the host's side."""

    def __init__(self, host: int, guest: int, sock: socket.socket) -> None:
        self.host = host
        self.guest = guest
        self.sock = sock
        self.scope = trio.CancelScope()
        self.up = trio.Event()
        self.reading = trio.CancelScope()
        self.room = self.taken = self.sent = 0
        """The guest's buffer, how much has left it, and how much was sent to it in all, modulo 2**32."""
        self.credit = Signal()
        self.asked = False
        self.out = bytearray()
        self.more = Signal()
        self.passed = self.told = 0
        """How much the host has taken in all, and what the guest knows of it."""
        self.done = 0
        """The guest's SHUTDOWN flags."""

    @property
    def free(self) -> int:
        """How many bytes the guest has room for; what it says may make no sense."""
        ahead = self.sent - self.taken & _MASK
        return max(0, self.room - ahead)


class Vsock:
    """The device of the guest with the context id `cid`; `path` is its unix socket on the host."""

    queues = 3
    features = 0

    def __init__(self, cid: int, path: str, nursery: trio.Nursery) -> None:
        self.config = cid.to_bytes(8, "little")
        self._cid = cid
        self._path = path
        self._nursery = nursery
        self._connections: dict[tuple[int, int], Connection] = {}
        self._hellos = 0
        self._port = FIRST_PORT
        self._owed: deque[bytes] = deque()
        self._buffers = Signal()
        self._receive: Queue | None = None
        self._fault: OSError | None = None
        self._held_up: Queue | None = None
        """The guest's packets, while none are taken because too many headers are owed."""

    # As a device

    def reset(self) -> None:
        self._receive = self._held_up = self._fault = None
        self._owed.clear()
        for connection in [*self._connections.values()]:
            self._end(connection)

    def serve(self, queue: Queue) -> bool:
        more = self._fault is None and self._serve(queue)
        if self._fault is not None:
            raise self._fault
        return more

    def _serve(self, queue: Queue) -> bool:
        if queue.index == TRANSMIT:
            return self._take(queue)
        if queue.index != RECEIVE:
            return False
        self._receive = queue
        if queue.look():
            self._pay()
            self._buffers.notify()
        if self._held_up is None:
            return False
        more = self._take(self._held_up)
        queue.look()
        return more

    # Packets of the guest

    def _take(self, queue: Queue) -> bool:
        self._held_up = None
        try:
            for _ in range(TURN):
                if len(self._owed) >= MAX_OWED:
                    self._held_up = queue
                    return False
                chain = queue.pop()
                if chain is None:
                    return False
                header = b"".join(room(chain.readable, 0, HEADER.size))
                if len(header) < HEADER.size:
                    raise OSError(EPROTO, "a packet without a header")
                self._packet(header, chain.readable)
                queue.push(chain, 0)
            return True
        finally:
            queue.tell()

    def _packet(self, header: bytes, buffers: Sequence[memoryview]) -> None:
        source, target, guest, host, length, kind, operation, flags, size, taken = HEADER.unpack(header)
        if source != self._cid or target != HOST:
            return
        connection = self._connections.get((host, guest))
        if kind != STREAM:
            self._refuse(host, guest, kind)
        elif operation == REQUEST and connection is None:
            self._accept(host, guest, size, taken)
        elif operation == RST:
            if connection is not None:
                self._end(connection)
        elif connection is None:
            self._refuse(host, guest)
        else:
            connection.room, connection.taken = size, taken
            connection.asked = False
            connection.credit.notify()
            self._operate(connection, operation, flags, room(buffers, HEADER.size, length) if length else (), length)

    def _operate(
        self, connection: Connection, operation: int, flags: int, data: Sequence[memoryview], length: int
    ) -> None:
        if operation == RESPONSE and not connection.up.is_set():
            connection.up.set()
            try:
                connection.sock.send(b"OK %d\n" % connection.host)  # before what the guest may send at once
            except OSError:
                self._break(connection)
        elif not connection.up.is_set():
            self._break(connection)
        elif operation == RW:
            self._deliver(connection, data, length)
        elif operation == SHUTDOWN:
            connection.done |= flags & (NO_RECEIVE | NO_SEND)
            if connection.done & NO_RECEIVE:
                connection.reading.cancel()
            self._delivered(connection)
        elif operation == CREDIT_REQUEST:
            self._send(connection, CREDIT_UPDATE)
        elif operation != CREDIT_UPDATE:
            self._break(connection)

    def _deliver(self, connection: Connection, data: Sequence[memoryview], length: int) -> None:
        """Pass on what the guest sends; what the host does not take at once is kept."""
        if connection.done & NO_SEND or sum(map(len, data)) != length or len(connection.out) + length > BUFFER:
            self._break(connection)
            return
        sent = 0
        if length and not connection.out:
            try:
                sent = connection.sock.sendmsg(data)
            except BlockingIOError:
                pass
            except OSError:  # nobody reads any more
                self._break(connection)
                return
            connection.passed += sent
        if sent < length:
            connection.out += b"".join(room(data, sent, length))
            connection.more.notify()
        self._delivered(connection)

    def _delivered(self, connection: Connection) -> None:
        """Do what is due after the host has taken something: tell the guest, or end what the guest has ended."""
        if connection.passed - connection.told >= BUFFER // 2:
            self._send(connection, CREDIT_UPDATE)
        if not connection.out and connection.done & NO_SEND:
            if connection.done & NO_RECEIVE:
                self._break(connection)  # which is how to agree
            else:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_WR)

    # Packets for the guest

    def _header(self, host: int, guest: int, operation: int, *fields: int, kind: int = STREAM) -> bytes:
        length, flags, size, passed = fields or (0, 0, 0, 0)
        return HEADER.pack(HOST, self._cid, host, guest, length, kind, operation, flags, size, passed & _MASK)

    def _of(self, connection: Connection, operation: int, *, length: int = 0, flags: int = 0) -> bytes:
        connection.told = connection.passed
        return self._header(connection.host, connection.guest, operation, length, flags, BUFFER, connection.passed)

    def _send(self, connection: Connection, operation: int, flags: int = 0) -> None:
        self._owed.append(self._of(connection, operation, flags=flags))
        self._pay()

    def _refuse(self, host: int, guest: int, kind: int = STREAM) -> None:
        self._owed.append(self._header(host, guest, RST, kind=kind))
        self._pay()

    def _pay(self) -> bool:
        """Send the headers that are owed, as far as there are buffers; tells whether all are sent."""
        queue = self._receive
        while self._owed:
            if queue is None or (chain := self._buffer(queue)) is None:
                return False
            queue.push(chain, scatter([self._owed.popleft()], chain.writable))
            queue.tell()
        return True

    def _buffer(self, queue: Queue) -> Chain | None:
        """Take a buffer for a packet, if there is one. A broken ring is used no more, and all ends at the next kick."""
        try:
            chain = queue.pop()
            if chain is not None and sum(map(len, chain.writable)) <= HEADER.size:
                raise OSError(EPROTO, "a buffer too small for a packet")
        except OSError as error:
            self._fault = error
            queue.stop()
            return None
        return chain

    def _pull(self, connection: Connection, queue: Queue) -> int:
        """Read from the host straight into buffers of the guest, a header for each; 0 at the end.

        BlockingIOError where there is nothing, OSError where there is no connection any more.
        """
        chains: list[Chain] = []
        places: list[list[memoryview]] = []
        free = connection.free
        while free and len(chains) < TURN and (chain := self._buffer(queue)) is not None:
            parts = room(chain.writable, HEADER.size, free)
            chains.append(chain)
            places.append(parts)
            free -= sum(map(len, parts))
        if not chains:
            raise BlockingIOError
        got = rest = 0
        try:
            got = rest = os.readv(connection.sock.fileno(), [part for parts in places for part in parts][:MAX_CHAIN])
        finally:
            used = 0
            for chain, parts in zip(chains, places, strict=True):
                if rest <= 0:
                    break
                length = min(rest, sum(map(len, parts)))
                rest -= length
                connection.sent = connection.sent + length & _MASK
                scatter([self._of(connection, RW, length=length)], chain.writable)
                queue.push(chain, HEADER.size + length)
                used += 1
            for _ in chains[used:]:
                queue.unpop()
            queue.tell()
        return got

    # Connections

    def _accept(self, host: int, guest: int, size: int, taken: int) -> None:
        """Lead a guest to the unix socket of the port that it asks for."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            if len(self._connections) >= MAX_CONNECTIONS:
                raise ConnectionRefusedError
            sock.connect(f"{self._path}_{host}")
        except OSError:
            sock.close()
            self._refuse(host, guest)
            return
        connection = self._connections[host, guest] = Connection(host, guest, sock)
        connection.room, connection.taken = size, taken
        connection.up.set()
        self._send(connection, RESPONSE)
        self._nursery.start_soon(self._run, connection)

    async def greet(self, stream: trio.SocketStream) -> None:
        """Let a connection from the host say where it wants to, and lead it there."""
        guest = None
        with stream.socket as sock:
            if self._hellos + len(self._connections) < MAX_CONNECTIONS:
                self._hellos += 1
                try:
                    with trio.move_on_after(ANSWER_SECONDS):
                        guest = await _hello(sock)
                except (OSError, ValueError):
                    pass
                finally:
                    self._hellos -= 1
            if guest is None or self._receive is None or not self._receive.running:
                return  # no guest yet: who wants it tries again
            own = socket.socket(fileno=sock.detach())
        own.setblocking(False)
        host = self._free_port(guest)
        connection = self._connections[host, guest] = Connection(host, guest, own)
        self._send(connection, REQUEST)
        await self._run(connection)

    def _free_port(self, guest: int) -> int:
        while True:
            self._port = max(FIRST_PORT, self._port + 1 & _MASK)
            if (self._port, guest) not in self._connections:
                return self._port

    async def _run(self, connection: Connection) -> None:
        """Carry a connection until it has ended. A fault of ours ends it, and no other."""
        with connection.sock, connection.scope:
            try:
                with trio.move_on_after(ANSWER_SECONDS):
                    await connection.up.wait()
                if not connection.up.is_set():
                    self._break(connection)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._outward, connection)
                    await self._inward(connection)
                    await trio.sleep_forever()  # until the guest, or `_outward`, ends it
            except Exception as error:
                log("vsock connection given up", error=repr(error), exc_info=True)
                self._break(connection)

    async def _inward(self, connection: Connection) -> None:
        """Pass on what comes from the host until it sends no more, or the guest takes no more."""
        with connection.reading:
            while True:
                await trio.lowlevel.wait_readable(connection.sock)
                while not connection.free:
                    if not connection.asked:
                        connection.asked = True
                        self._send(connection, CREDIT_REQUEST)
                    await connection.credit.wait()
                while not (self._pay() and self._receive is not None and self._receive.look()):
                    await self._buffers.wait()
                try:
                    if not self._pull(connection, self._receive):
                        break
                except BlockingIOError:
                    continue
                except OSError:
                    self._break(connection)
                    return
        if connection.reading.cancelled_caught:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RD)
        elif _hung_up(connection.sock):
            self._send(connection, SHUTDOWN, NO_SEND | NO_RECEIVE)
            await trio.sleep(CLOSE_SECONDS)
            self._break(connection)
        else:
            self._send(connection, SHUTDOWN, NO_SEND)

    async def _outward(self, connection: Connection) -> None:
        """Pass on what the host did not take at once."""
        while True:
            while not connection.out:
                await connection.more.wait()
            await trio.lowlevel.wait_writable(connection.sock)
            try:
                sent = connection.sock.send(connection.out)
            except BlockingIOError:
                continue
            except OSError:
                self._break(connection)
                return
            del connection.out[:sent]
            connection.passed += sent
            self._delivered(connection)

    def _break(self, connection: Connection) -> None:
        """End a connection and say so to the guest."""
        if self._end(connection):
            self._refuse(connection.host, connection.guest)

    def _end(self, connection: Connection) -> bool:
        """End a connection; tells whether it had not ended before. Its task closes the socket."""
        connection.scope.cancel()
        return self._connections.pop((connection.host, connection.guest), None) is not None


def _hung_up(sock: socket.socket) -> bool:
    """Tell whether the other side has closed its socket, rather than only its sending half."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


async def _hello(sock: trio.socket.SocketType) -> int:
    """Read `CONNECT <port>` and its newline, and no byte more. ValueError for anything else."""
    line = b""
    while not line.endswith(b"\n"):
        seen = await sock.recv(MAX_HELLO - len(line), socket.MSG_PEEK)
        if not seen:
            raise ValueError("not a request to connect")
        end = seen.find(b"\n") + 1
        line += await sock.recv(end or len(seen))
    word, port = line.split()
    number = int(port)
    if word != b"CONNECT" or not port.isdigit() or number > _MASK:
        raise ValueError("not a request to connect")
    return number


async def serve_vsock(
    path: str | os.PathLike[str],
    uds: str | os.PathLike[str],
    cid: int,
    *,
    mode: int = 0o600,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a guest's sockets until cancelled, to the machine that connects to the unix socket `path`.

    `uds` is the unix socket by which the host reaches the guest, and the beginning of those by which the guest
    reaches the host; `cid` is the guest's context id, 3 or more (EINVAL). Both sockets are made with `mode`, listened
    on from `task_status.started()` on, and removed at the end. All connections end with the machine.
    """
    if not HOST < cid < _MASK:
        raise OSError(EINVAL, "a guest's context id is 3 or more")
    with listening(path, mode=mode) as machines, listening(uds, mode=mode, backlog=MAX_BACKLOG) as hosts:
        async with trio.open_nursery() as nursery:
            device = Vsock(cid, os.fspath(uds), nursery)
            nursery.start_soon(partial(trio.serve_listeners, device.greet, [trio.SocketListener(hosts)]))
            task_status.started()
            await serve(machines, device)
