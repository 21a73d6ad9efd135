"""The server's end of the conversation with its supervisor."""

import math
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from errno import ECONNREFUSED, ECONNRESET, EIO, ENOENT
from pathlib import Path

import structlog
import trio

import tasks.taskd
from tasks.taskd.protocol import FDS_SPACE, MAX_PACKET, SOCKET, VERSION, Message, ancillary, pack, received_fds, unpack

PROGRAM = Path(tasks.taskd.__file__).with_name("__main__.py")


def ensure(state: Path) -> bool:
    """Start a supervisor for the state directory unless one runs; returns whether it had to be started.

    Blocks until it takes connections (some 50 ms); best called before the event loop, while this process is small.
    The caller holds the state directory's lock. EIO with the reason when it can't be started.
    """
    try:
        _connect(state).close()
    except OSError as error:
        if error.errno not in (ENOENT, ECONNREFUSED):
            raise
    else:
        return False
    command = [sys.executable, "-I", "-S", str(PROGRAM), str(state)]
    started = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False)
    if started.returncode:
        reason = started.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(EIO, f"the supervisor did not start: {reason or 'see its log'}")
    return True


def _connect(state: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{SOCKET}")  # the path itself may be longer than the kernel takes
    except OSError:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


log: Callable[..., object] = structlog.get_logger("taskd").warning

_Posted = tuple[str, list[int], dict[str, object]]


class _Reply:
    """What a request waits for."""

    __slots__ = ("arrived", "fds", "message")

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.message: Message = {}
        self.fds: list[int] = []


class Client:
    """A connection to a supervisor. Any number of requests may be in flight."""

    def __init__(self, sock: socket.socket, on_event: Callable[[Message], None]) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._on_event = on_event
        self._sending = trio.Lock()
        self._waiting: dict[int, _Reply] = {}
        self._count = 0
        self._lost = ""
        self._posting, self._posted = trio.open_memory_channel[_Posted](math.inf)
        self.pid = 0
        """The supervisor's pid."""
        self.held: frozenset[str] = frozenset()
        """The keys under which it held descriptors when the connection was made."""

    async def request(self, op: str, fds: Sequence[int] = (), /, **fields: object) -> tuple[Message, list[int]]:
        """Send a request and return its reply and the descriptors that came with it, now the caller's.

        Raises the supervisor's OSError, or ECONNRESET when it is gone. The caller's `fds` must stay open until this
        returns. A cancelled request may still take effect.
        """
        self._check()
        self._count += 1
        number = self._count
        packet, fds, memory = pack({"id": number, "op": op, **fields}, fds)
        reply = self._waiting[number] = _Reply()
        try:
            try:
                async with self._sending:
                    await self._sock.sendmsg([packet], ancillary(fds))
            except (BrokenPipeError, ConnectionError):
                pass  # the reader sees it too and answers everybody
            finally:
                if memory >= 0:
                    os.close(memory)
            await reply.arrived.wait()
        finally:
            self._waiting.pop(number, None)
        self._check(reply)
        if "errno" in reply.message:
            raise OSError(reply.message["errno"], reply.message.get("error"))
        result = reply.message["ok"]
        assert isinstance(result, dict)
        return result, reply.fds

    async def call(self, op: str, fds: Sequence[int] = (), /, **fields: object) -> Message:
        """Send a request whose reply brings no descriptors."""
        result, received = await self.request(op, fds, **fields)
        _close(received)
        return result

    def post(self, op: str, fds: Sequence[int] = (), /, **fields: object) -> None:
        """Send a request whose reply does not matter, some time soon, after those posted before. Does not wait.

        Duplicates `fds`. Nothing happens once the supervisor is lost.
        """
        self._posting.send_nowait((op, [os.dup(fd) for fd in fds], fields))

    async def _post(self) -> None:
        async for op, fds, fields in self._posted:
            try:
                await self.call(op, fds, **fields)
            except OSError as error:
                if error.errno != ECONNRESET:
                    log("supervisor refused", op=op, error=str(error), **fields)
            finally:
                _close(fds)

    def _check(self, reply: _Reply | None = None) -> None:
        if self._lost and not (reply and reply.message):
            raise OSError(ECONNRESET, self._lost)

    async def _read(self) -> str:
        """Take replies and events until the connection ends; returns why it did."""
        while True:
            try:
                packet, extra, _, _ = await self._sock.recvmsg(MAX_PACKET, FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
            except ConnectionError:
                return "supervisor lost"
            if not packet:
                return "supervisor lost"
            message, fds = unpack(packet, received_fds(extra))
            if message.get("event") == "replaced":
                return "another server has taken over"
            if "event" in message:
                self._on_event(message)
                continue
            reply = self._waiting.get(message["id"]) if isinstance(message["id"], int) else None
            if reply is None:
                _close(fds)  # nobody waits for it any more
                continue
            reply.message, reply.fds = message, list(fds)
            reply.arrived.set()

    async def _serve(self, on_lost: Callable[[str], None]) -> None:
        lost = await self._read()
        self._lost = lost
        for reply in self._waiting.values():
            reply.arrived.set()
        on_lost(lost)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


@asynccontextmanager
async def connect(
    state: Path, *, on_event: Callable[[Message], None], on_lost: Callable[[str], None]
) -> AsyncIterator[Client]:
    """Connect to the state directory's supervisor. Leaving the block only disconnects: its tasks go on.

    `on_event` gets every event, in order, from the event loop; `on_lost`, at most once, why the connection ended.
    ENOENT or ECONNREFUSED where none runs; EPROTO if it is another version's.
    """
    client = Client(_connect(state), on_event)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._serve, on_lost)
            nursery.start_soon(client._post)
            hello = await client.call("hello", version=VERSION)
            assert isinstance(hello["pid"], int) and isinstance(hello["held"], list)
            client.pid = hello["pid"]
            client.held = frozenset(hello["held"])
            yield client
            nursery.cancel_scope.cancel()
    finally:
        client._sock.close()
