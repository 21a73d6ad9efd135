"""A 9P2000.L client: `async with connect(address) as client:` and then `client.root` is a node like any other.

    async with connect("unix!/run/wanixfs/9p.sock") as client:
        node = await walk(client.root, "task/new", client.who)
        handle = await node.open(os.O_RDONLY, client.who)

Requests are pipelined: any number of tasks may use one client. Cancelling a task flushes its request on the server.
A connection that dies fails everything that waits and everything after it with ECONNRESET; nothing hangs on it.
"""

import os
import secrets
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from errno import EAGAIN, ECONNRESET, EINVAL, EIO, EMFILE, EMSGSIZE, EPROTO, ETIMEDOUT
from typing import Any, Final, NoReturn

import outcome
import trio

from vfs.inline import park
from vfs.ninep.address import Address, dial, parse
from vfs.ninep.codec import HEADER, ProtocolError, Values, decode_body, pieces
from vfs.ninep.messages import (
    HEADER_SIZE,
    MAX_MSIZE,
    MIN_MSIZE,
    NOFID,
    NOTAG,
    NUMBER,
    READ_OVERHEAD,
    VERSION,
)
from vfs.ninep.remote import RemoteNode
from vfs.node import Caller, node_id
from vfs.waiting import Signal

HANDSHAKE_SECONDS: Final = 10.0
FLUSH_SECONDS: Final = 5.0
"""How long a cancelled request waits for its Rflush; a server that takes longer is taken for dead."""
_CHUNK: Final = 256 << 10
_UNSENT: Final = 4 << 20
"""Bytes of requests that may lie unsent before further ones wait."""
_RLERROR: Final = NUMBER["Rlerror"]
_TVERSION: Final = NUMBER["Tversion"]
_TFLUSH: Final = NUMBER["Tflush"]
_TCLUNK: Final = NUMBER["Tclunk"]
_LAST_OF_FID: Final = (_TCLUNK, NUMBER["Tremove"])
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class _Call:
    """One request under way: the task that waits for it (if one does) and, once it is flushed, the Tflush for it."""

    __slots__ = ("fid", "flush", "flushed", "number", "raise_cancel", "reply", "tag", "task")

    def __init__(self, number: int, tag: int, fid: int | None) -> None:
        self.number = number
        self.tag = tag
        self.fid = fid  # free again once this is answered
        self.task: trio.lowlevel.Task | None = None
        self.reply: outcome.Outcome[Values] | None = None
        self.flush: _Call | None = None
        self.flushed: _Call | None = None
        self.raise_cancel: Callable[[], NoReturn] | None = None


@asynccontextmanager
async def connect(
    where: str | Address | trio.abc.Stream,
    *,
    aname: str = "/",
    uname: str = "",
    uid: int | None = None,
    msize: int = MAX_MSIZE,
    identity: str = "",
) -> AsyncIterator["Client"]:
    """Connect and attach; on exit the connection is closed, which releases everything on the server.

    `where`: an address (`vfs.ninep.address.parse`) or a connected byte stream, which is the client's from then on.
    `uid` (default: this process') is the user the tree is attached as. `identity` names the remote tree for ever:
    two clients with the same one give the same file the same id (default: the address and `aname`; a new one for a
    stream). OSError of the connection and of the attach (EACCES, EPERM, ENOENT); ETIMEDOUT, EPROTO for a peer that
    does not speak 9P2000.L.
    """
    with trio.move_on_after(HANDSHAKE_SECONDS) as deadline:
        if isinstance(where, str):
            where = parse(where)
        stream = await dial(where) if isinstance(where, Address) else where
    if deadline.cancelled_caught:
        raise OSError(ETIMEDOUT, f"no connection to {where} within {HANDSHAKE_SECONDS:.0f} s")
    if not identity:
        identity = f"{where}\0{aname}" if isinstance(where, Address) else secrets.token_hex(8)
    client = Client(stream, identity, Caller(os.geteuid() if uid is None else uid, os.getegid()))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(client._run)
        try:
            with trio.move_on_after(HANDSHAKE_SECONDS) as deadline:
                await client._negotiate(msize)
                client.root = await client.attach(aname, uname=uname)
            if deadline.cancelled_caught:
                raise OSError(ETIMEDOUT, f"connected, but no 9P answer within {HANDSHAKE_SECONDS:.0f} s")
            yield client
        except Exception as error:
            failure = error  # raised below, bare: not in the group that leaving a nursery makes of it
        finally:
            client._fail("the connection was closed")
    if failure is not None:
        raise failure


class Client:
    """A connection to a 9P2000.L server, made by `connect`. `root` is what was attached, `who` as whom."""

    root: RemoteNode

    def __init__(self, stream: trio.abc.Stream, identity: str, who: Caller) -> None:
        self.identity = identity
        self.who = who
        self.payload = 0
        self._msize = MAX_MSIZE
        self._stream = stream
        self._io = trio.CancelScope(shield=True)  # a cancelled user still needs it, to flush what it waited for
        self._nursery: trio.Nursery
        self._failure = ""
        self._lost = trio.Event()
        self._calls: dict[int, _Call] = {}
        self._tags: list[int] = []
        self._next_tag = 0
        self._fids: list[int] = []
        self._next_fid = 0
        self._freed = Signal()
        self._dropped: deque[int] = deque()
        self._sweeping = False
        self._token = trio.lowlevel.current_trio_token()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._filled = Signal()
        self._drained = Signal()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return bool(self._failure)

    async def wait_lost(self) -> str:
        """Return why the connection is gone, once it is."""
        await self._lost.wait()
        return self._failure

    @property
    def unused(self) -> bool:
        """Whether nothing is left that was reached through this connection, but `root` itself."""
        return self._next_fid - len(self._fids) <= 1

    async def wait_unused(self) -> None:
        """Return once `unused` holds or the connection is gone."""
        while not (self.unused or self._failure):
            await self._freed.wait()

    async def attach(self, aname: str, *, uname: str = "", uid: int | None = None) -> RemoteNode:
        """Return the root of a further tree over the same connection."""
        fid = self.new_fid()
        try:
            raw = (await self.rpc("Tattach", fid, NOFID, uname, aname, self.who.uid if uid is None else uid))[0]
        except BaseException:
            self.free_fid(fid)
            raise
        return RemoteNode(self, fid, raw)

    async def _negotiate(self, msize: int) -> None:
        self._msize = msize
        offered, version = await self.rpc("Tversion", msize, VERSION)
        if version != VERSION or not MIN_MSIZE <= offered <= msize:
            raise OSError(EPROTO, f"the peer offers {version!r}, msize {offered}")
        self._msize = offered
        self.payload = offered - READ_OVERHEAD

    def id_of(self, path: int) -> int:
        """Return the node id of the remote file with this qid.path."""
        return node_id("9p", self.identity, path)

    # Fids

    def new_fid(self) -> int:
        """Return a number that names nothing on the server. EMFILE."""
        if self._fids:
            return self._fids.pop()
        if self._next_fid >= NOFID:
            raise OSError(EMFILE, "too many fids")
        self._next_fid += 1
        return self._next_fid - 1

    def free_fid(self, fid: int) -> None:
        """Take back a number of `new_fid` that names nothing (any more)."""
        self._fids.append(fid)
        self._freed.notify()

    def drop(self, fid: int) -> None:
        """Let go of a fid; it is clunked soon, in the event loop. For finalizers, in whatever thread they run."""
        self._dropped.append(fid)
        if not self._sweeping:
            self._sweeping = True
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._clunk_dropped)

    def clunk(self, fid: int) -> None:
        """Clunk a fid now, without waiting for the answer."""
        self._dropped.append(fid)
        self._clunk_dropped()

    def _clunk_dropped(self) -> None:
        self._sweeping = False
        while self._dropped and not self._failure and (self._tags or self._next_tag < NOTAG):
            self._post(_TCLUNK, (self._dropped.popleft(),))

    # Requests

    async def rpc(self, name: str, *values: Any, nonblock: bool = False) -> Values:
        """Send the request called `name` and return its reply's fields.

        OSError as the server answered; ECONNRESET if the connection is gone; EAGAIN with `nonblock` if the server
        would have had to wait. A cancelled request is flushed first: where this raises, it has not happened (unless
        the connection broke), and where it has happened, this returns.
        """
        await park()
        await trio.lowlevel.checkpoint_if_cancelled()  # or a cancelled task goes on for as long as its requests succeed
        while self._unsent_bytes > _UNSENT and not self._failure:
            await self._drained.wait()
        if self._failure:
            raise OSError(ECONNRESET, self._failure)
        self._clunk_dropped()
        call = self._post(NUMBER[name], values)
        call.task = trio.lowlevel.current_task()
        if nonblock:
            self._flush(call)

        def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            if call.number == _TVERSION:  # nothing can be flushed before there is a version
                call.task = None
                return trio.lowlevel.Abort.SUCCEEDED
            call.raise_cancel = raise_cancel
            if call.flush is None:
                self._flush(call)
            return trio.lowlevel.Abort.FAILED  # the task wakes when the flush is answered

        reply: Values = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply

    def _flush(self, call: _Call) -> None:
        call.flush = flush = self._post(_TFLUSH, (call.tag,))
        flush.flushed = call
        self._nursery.start_soon(self._expect, flush)

    async def _expect(self, flush: _Call) -> None:
        """Give the connection up if a flush is not answered in time."""
        await trio.sleep(FLUSH_SECONDS)
        if self._calls.get(flush.tag) is flush:
            self._fail("the server does not answer a flush")

    def _post(self, number: int, values: Values) -> _Call:
        """Queue a request. EAGAIN if all tags are in use, EINVAL or EMSGSIZE for values that fit no message."""
        if number == _TVERSION:
            tag = NOTAG
        elif self._tags:
            tag = self._tags.pop()
        elif self._next_tag < NOTAG:
            tag = self._next_tag
            self._next_tag += 1
        else:
            raise OSError(EAGAIN, "too many requests under way")
        try:
            frame, size = pieces(number, tag, values)
            if size > self._msize:
                raise OSError(EMSGSIZE, "longer than a message may be")
        except (OSError, struct.error) as error:
            self._free_tag(tag)
            raise error if isinstance(error, OSError) else OSError(EINVAL, "does not fit a message") from error
        call = self._calls[tag] = _Call(number, tag, values[0] if number in _LAST_OF_FID else None)
        self._unsent += frame
        self._unsent_bytes += size
        self._filled.notify()
        return call

    def _free_tag(self, tag: int) -> None:
        if tag != NOTAG:
            self._tags.append(tag)

    # Replies

    def _answer(self, number: int, tag: int, body: bytes) -> None:
        call = self._calls.get(tag)
        if call is None or call.reply is not None or number not in (call.number + 1, _RLERROR):
            raise ProtocolError(f"unexpected message {number}, tag {tag}")
        values = decode_body(number, body, 0, len(body))
        if number == _RLERROR:
            call.reply = outcome.Error(OSError(values[0] or EIO, os.strerror(values[0] or EIO)))
        else:
            call.reply = outcome.Value(values)
        if call.flushed is not None:
            self._finish(call.flushed)
            self._finish(call)
        elif call.flush is None:
            self._finish(call)

    def _finish(self, call: _Call) -> None:
        """Free what the call held and wake its task: it is answered, or flushed for good."""
        del self._calls[call.tag]
        self._free_tag(call.tag)
        if call.fid is not None and call.reply is not None:
            self.free_fid(call.fid)
        self._wake(call, OSError(EAGAIN, "the server would have to wait"))

    def _wake(self, call: _Call, unanswered: OSError) -> None:
        """Let the task of a call go on: with the reply, else cancelled if it was to be, else with this error."""
        if call.task is None:
            return
        if call.reply is None:
            call.reply = outcome.capture(call.raise_cancel) if call.raise_cancel else outcome.Error(unanswered)
        trio.lowlevel.reschedule(call.task, call.reply)

    def _fail(self, why: str) -> None:
        """Give the connection up: everything under way and everything later raises ECONNRESET."""
        if self._failure:
            return
        self._failure = why
        self._lost.set()
        self._io.cancel()
        self._drained.notify()
        self._freed.notify()
        for call in self._calls.values():
            self._wake(call, OSError(ECONNRESET, why))
        self._calls.clear()

    # The stream

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._io:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._send)
                    self._nursery.start_soon(self._receive)
                    task_status.started()
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _send(self) -> None:
        try:
            while True:
                while not self._unsent:
                    await self._filled.wait()
                batch, self._unsent = self._unsent, []
                self._unsent_bytes = 0
                self._drained.notify()
                await self._stream.send_all(b"".join(batch))
        except _BROKEN:
            self._fail("the server is gone")

    async def _receive(self) -> None:
        held = bytearray()
        why = "the server is gone"
        try:
            while chunk := await self._stream.receive_some(_CHUNK):
                held += chunk
                at = 0
                while len(held) - at >= HEADER_SIZE:
                    size, number, tag = HEADER.unpack_from(held, at)
                    if not HEADER_SIZE <= size <= self._msize:
                        raise ProtocolError(f"frame of {size} bytes")
                    if len(held) - at < size:
                        break
                    self._answer(number, tag, bytes(held[at + HEADER_SIZE : at + size]))
                    at += size
                del held[:at]
        except _BROKEN:
            pass
        except ProtocolError as error:
            why = f"the server broke the protocol: {error}"
        self._fail(why)
