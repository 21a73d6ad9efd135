"""The server's end of the conversation with its supervisor."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from errno import ECONNRESET, EIO
from pathlib import Path

import structlog
import trio

import tasks.taskd
from tasks.taskd.channel import Channel, PacketChannel
from tasks.taskd.protocol import MAX_MESSAGE, SOCKET, VERSION, Message, integer, table, text

PROGRAM = Path(tasks.taskd.__file__).with_name("__main__.py")


def ensure(state: Path) -> bool:
    """Start a supervisor for the state directory unless one runs; returns whether it had to be started.

    Blocks until it takes connections (some 50 ms); best called before the event loop, while this process is small.
    The caller holds the state directory's lock. EIO with the reason when it can't be started.
    """
    try:
        dial(state).close()
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    else:
        return False
    command = [sys.executable, "-I", "-S", str(PROGRAM), str(state)]
    started = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False)
    if started.returncode:
        reason = started.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(EIO, f"the supervisor did not start: {reason or 'see its log'}")
    return True


def dial(state: Path) -> socket.socket:
    """Connect to the socket of a state directory's supervisor. ENOENT or ECONNREFUSED where none runs."""
    directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{SOCKET}")  # the path itself may be longer than the kernel takes
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


log: Callable[..., object] = structlog.get_logger("taskd").warning


class _Reply:
    """What a request waits for."""

    __slots__ = ("arrived", "fds", "message")

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.message: Message = {}
        self.fds: list[int] = []


class Client:
    """A connection to a supervisor. Any number of requests may be in flight; they are carried out in order."""

    def __init__(self, channel: Channel, on_event: Callable[[Message], None], count: int = 0) -> None:
        self._channel = channel
        self._on_event = on_event
        self._waiting: dict[int, _Reply] = {}
        self._count = count
        self._full = trio.Event()
        self._lost = ""
        self.pid = 0
        """The supervisor's pid."""
        self.held: frozenset[str] = frozenset()
        """The keys under which it held descriptors when the connection was made."""

    def post(self, op: str, fds: Sequence[int] = (), /, **fields: object) -> None:
        """Send a request that is not answered. Does not wait; nothing happens once the supervisor is lost."""
        if not self._lost:
            self._send({"op": op, **fields}, fds)

    async def request(self, op: str, fds: Sequence[int] = (), /, **fields: object) -> tuple[Message, list[int]]:
        """Send a request and return its reply and the descriptors that came with it, now the caller's.

        Raises the supervisor's OSError, or ECONNRESET when it is gone. A cancelled request still takes effect.
        """
        if self._lost:
            raise OSError(ECONNRESET, self._lost)
        self._count += 1
        number = self._count
        self._send({"id": number, "op": op, **fields}, fds)
        reply = self._waiting[number] = _Reply()
        try:
            await reply.arrived.wait()
        finally:
            del self._waiting[number]
        message = reply.message
        if not message:
            raise OSError(ECONNRESET, self._lost)
        if "errno" in message:
            raise OSError(integer(message, "errno", 1, 4095), text(message, "error", MAX_MESSAGE))
        return table(message, "ok"), reply.fds

    async def call(self, op: str, fds: Sequence[int] = (), /, **fields: object) -> Message:
        """Send a request whose reply brings no descriptors."""
        result, received = await self.request(op, fds, **fields)
        for fd in received:
            os.close(fd)
        return result

    def _send(self, message: Message, fds: Sequence[int]) -> None:
        self._channel.send(message, fds)
        if not self._channel.clear:
            self._full.set()

    async def _write(self) -> None:
        while True:
            await self._full.wait()
            self._full = trio.Event()
            while not self._channel.clear:
                await trio.lowlevel.wait_writable(self._channel.fileno())
                self._channel.flush()

    def _end(self, why: str) -> None:
        """Nothing more will come: whoever waits for a reply gets ECONNRESET."""
        self._lost = self._lost or why
        for reply in self._waiting.values():
            reply.arrived.set()

    async def _read(self, on_lost: Callable[[str], None]) -> None:
        """Take replies and events until the connection ends, then end everybody's wait."""
        try:
            while not self._lost:
                await trio.lowlevel.wait_readable(self._channel.fileno())
                while not self._lost and self._received():
                    pass
        except EOFError:
            self._lost = "supervisor lost"
        for reply in self._waiting.values():
            reply.arrived.set()
        on_lost(self._lost)

    def _received(self) -> bool:
        try:
            return self._channel.receive(self._take)
        except OSError as error:
            log("supervisor misunderstood", error=str(error))
            return True

    def _take(self, message: Message, fds: Sequence[int]) -> None:
        if message.get("event") == "replaced":
            self._lost = "another server has taken over"
        elif "event" in message:
            self._on_event(message)
        elif message.get("id") is None:
            log("supervisor refused", error=message.get("error"))
        elif reply := self._waiting.get(integer(message, "id", 0, self._count)):
            reply.message, reply.fds = message, [os.dup(fd) for fd in fds]
            reply.arrived.set()


@asynccontextmanager
async def conversation(
    channel: Channel, *, on_event: Callable[[Message], None], on_lost: Callable[[str], None], count: int = 0
) -> AsyncIterator[Client]:
    """Talk to a supervisor over a channel, which is closed afterwards. Requests are numbered from `count` up.

    `on_event` gets every event, in order, from the event loop; `on_lost`, at most once, why the conversation ended.
    """
    client = Client(channel, on_event, count)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._read, on_lost)
            nursery.start_soon(client._write)
            yield client
            nursery.cancel_scope.cancel()
    finally:
        client._end("disconnected")
        channel.close()


@asynccontextmanager
async def connect(
    state: Path, *, on_event: Callable[[Message], None], on_lost: Callable[[str], None]
) -> AsyncIterator[Client]:
    """Connect to the state directory's supervisor (see `conversation`). Leaving the block leaves its tasks running.

    ENOENT or ECONNREFUSED where none runs; EPROTO if it is another version's.
    """
    async with conversation(PacketChannel(dial(state)), on_event=on_event, on_lost=on_lost) as client:
        hello = await client.call("hello", version=VERSION)
        assert isinstance(hello["pid"], int) and isinstance(hello["held"], list)
        client.pid = hello["pid"]
        client.held = frozenset(hello["held"])
        yield client
