"""What the 9P tests share: a session driven by hand, and files that wait and watch how they are used."""

import os
import socket
import stat as statmod
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import EAGAIN
from typing import Any

import trio
import trio.testing

from vfs.inline import park
from vfs.ninep.codec import decode, encode
from vfs.ninep.messages import NOFID, NOTAG
from vfs.ninep.operations import Attach
from vfs.ninep.server import Server
from vfs.ninep.session import Request, Session
from vfs.node import ROOT, Caller, Handle, Node, Stat, node_id
from vfs.waiting import Signal

ALICE = Caller(1000, 1000, frozenset({50}))
BOB = Caller(1001, 1001)


class Wire:
    """A session without a socket. `ask` is one request and its reply; requests that wait gather in `waiting`."""

    def __init__(self, root: Node, who: Caller = ROOT, **options: Any) -> None:
        self.waiting: list[Request] = []
        attach = options.pop("attach", attach_to(root, who))
        self.session = Session(attach, spawn=self.waiting.append, **options)

    def send(self, *frames: bytes) -> list[tuple[str, int, tuple[Any, ...]]]:
        """Give the session these frames, and return the replies that it has."""
        buffer = bytearray(b"".join(frames))
        at = 0
        replies = []
        while at < len(buffer):
            at = self.session.process(buffer, at, len(buffer))
            replies += self.replies()
        return replies

    def replies(self) -> list[tuple[str, int, tuple[Any, ...]]]:
        """Take the replies that lie ready."""
        data = b"".join(self.session.out)
        assert len(data) == self.session.out_size
        self.session.sent(len(data))
        replies = []
        while data:
            size = int.from_bytes(data[:4], "little")
            assert 7 <= size <= self.session.msize
            name, tag, values = decode(data[:size])
            replies.append((name, tag, tuple(bytes(v) if isinstance(v, memoryview) else v for v in values)))
            data = data[size:]
        return replies

    def ask(self, name: str, *values: Any, tag: int = 1) -> tuple[Any, ...]:
        """Return the values of the reply to one request; OSError where it is Rlerror."""
        [(answer, its_tag, got)] = self.send(encode(name, tag, *values))
        assert its_tag == tag
        if answer == "Rlerror":
            raise OSError(got[0], os.strerror(got[0]))
        assert answer == "R" + name[1:]
        return got

    def attach(self, fid: int = 0, *, msize: int = 65536) -> "Wire":
        """Negotiate and attach."""
        self.ask("Tversion", msize, "9P2000.L", tag=NOTAG)
        self.ask("Tattach", fid, NOFID, "", "/", 0)
        return self

    def open(self, fid: int, path: str, flags: int = os.O_RDONLY, root: int = 0) -> int:
        """Walk to `path` with a new fid, and open it."""
        names = tuple(part for part in path.split("/") if part)
        [qids] = self.ask("Twalk", root, fid, names)
        assert len(qids) == len(names), f"no {path}"
        self.ask("Tlopen", fid, flags)
        return fid

    def make(self, path: str, data: bytes = b"", mode: int = 0o644, gid: int = 0) -> None:
        """Make a file with this content below the root."""
        *above, name = path.split("/")
        self.ask("Twalk", 0, 4000, tuple(above))
        self.ask("Tlcreate", 4000, name, os.O_WRONLY | os.O_EXCL, mode, gid)
        if data:
            self.ask("Twrite", 4000, 0, data)
        self.ask("Tclunk", 4000)

    def read(self, fid: int, offset: int = 0, count: int = 8192) -> bytes:
        return self.ask("Tread", fid, offset, count)[0]

    def names(self, fid: int, count: int = 8192) -> list[str]:
        """Return the names of an open directory, read from the start."""
        names = []
        offset = 0
        while data := self.ask("Treaddir", fid, offset, count)[0]:
            while data:
                length = int.from_bytes(data[22:24], "little")
                offset = int.from_bytes(data[13:21], "little")
                names.append(os.fsdecode(data[24 : 24 + length]))
                data = data[24 + length :]
        return names

    async def run_waiting(self, nursery: trio.Nursery) -> None:
        """Give every request that waits its task, and return when all of them are blocked."""
        while self.waiting:
            nursery.start_soon(self.waiting.pop(0).run)
        await trio.testing.wait_all_tasks_blocked()


class Slow(Node):
    """A file whose readers wait for what `feed` gives, and whose writers wait for `room`.

    It holds its users to the contract of handles: nothing after close, and nothing under way at close.
    """

    def __init__(self, *, stubborn: bool = False) -> None:
        self.id = node_id("slow", id(self))
        self.open_handles = 0
        self.chunks: deque[bytes] = deque()
        self.taken: list[bytes] = []
        self.room = 0
        self.signal = Signal()
        self.stubborn = stubborn
        self.flushed = 0

    async def stat(self) -> Stat:
        return Stat(statmod.S_IFREG | 0o666, self.id)

    async def open(self, flags: int, who: Caller) -> "SlowHandle":
        return SlowHandle(self)

    def feed(self, *chunks: bytes, room: int = 0) -> None:
        self.chunks += chunks
        self.room += room
        self.signal.notify()


class SlowHandle(Handle):
    def __init__(self, node: Slow) -> None:
        self.node = node
        self.under_way = 0
        self.closed = False
        node.open_handles += 1

    async def _until(self, ready: Any, nonblock: bool) -> None:
        assert not self.closed, "used after close"
        self.under_way += 1
        try:
            while not ready():
                if nonblock:
                    raise OSError(EAGAIN, "nothing yet")
                if self.node.stubborn:  # like a system call in a thread: it ends when it ends
                    if await park():
                        continue  # time has passed: look again
                    with trio.CancelScope(shield=True):
                        await self.node.signal.wait()
                else:
                    await self.node.signal.wait()
        finally:
            self.under_way -= 1

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        await self._until(lambda: self.node.chunks, nonblock)
        return self.node.chunks.popleft()

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        kept = bytes(data)
        await self._until(lambda: self.node.room >= len(kept), nonblock)
        self.node.room -= len(kept)
        self.node.taken.append(kept)
        return len(kept)

    async def flush(self) -> None:
        assert not self.closed
        self.node.flushed += 1

    def close(self) -> None:
        assert not self.closed, "closed twice"
        assert not self.under_way, "closed under a call"
        self.closed = True
        self.node.open_handles -= 1


def attach_to(root: Node, who: Caller = ROOT) -> Attach:
    """Return an attach that gives everyone the same tree."""

    async def attach(uname: str, n_uname: int, aname: str, peer: object) -> tuple[Node, Caller]:
        return root, who

    return attach


@asynccontextmanager
async def running_server(**options: Any) -> AsyncIterator[Server]:
    """Run a server without listeners; on leaving, no connection of it is left."""
    server = Server(**options)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()
    assert not server._connections


def join(server: Server, root: Node, who: Caller = ROOT) -> trio.SocketStream:
    """Connect to `server` and return the client's end."""
    ours, theirs = socket.socketpair()
    server.adopt(theirs, attach_to(root, who))
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours))


class Raw:
    """A client that sends bytes as it is told and reads whole frames."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.send = stream.send_all
        self._held = b""

    async def next(self) -> tuple[str, int, tuple[Any, ...]]:
        """Return the next reply."""
        while len(self._held) < 4 or len(self._held) < int.from_bytes(self._held[:4], "little"):
            chunk = await self.stream.receive_some(65536)
            if not chunk:
                raise EOFError
            self._held += chunk
        size = int.from_bytes(self._held[:4], "little")
        frame, self._held = self._held[:size], self._held[size:]
        return decode(frame)

    async def ask(self, name: str, *values: Any, tag: int = 1) -> tuple[Any, ...]:
        await self.send(encode(name, tag, *values))
        answer, its_tag, got = await self.next()
        assert (answer, its_tag) == ("R" + name[1:], tag), (answer, got)
        return got

    async def attach(self, msize: int = 65536) -> "Raw":
        await self.ask("Tversion", msize, "9P2000.L", tag=NOTAG)
        await self.ask("Tattach", 0, NOFID, "", "/", 0)
        return self
