"""One 9P2000.L connection as its server sees it, without a socket: bytes in, replies out.

Most requests are answered where they are parsed. One that has to wait becomes a
`Request`, which is handed to the driver (`spawn`) to be finished in a task of its own; it
keeps its tag until it is answered. The rules of tags:

- Tflush of a request that is not waiting gets Rflush at once. One that waits is cancelled; if it was done all
  the same its reply is sent, else none; then Rflush. Nothing is ever sent for that tag after Rflush.
- A tag that is in use is a ProtocolError, which ends the connection: any answer would be taken for the other's.
- A frame of impossible size is a ProtocolError; a well-framed message that is malformed is answered EPROTO.
- At most MAX_WAITING requests, and MAX_WAITING_BYTES of their frames and promised payloads, wait at a time; EAGAIN.
- Tversion ends all that waits, unanswered, and releases every fid.

Replies gather in `out`, which the driver sends in order and empties; while much is unsent, `process` stops.
"""

import struct
from collections.abc import Callable, Coroutine, Generator
from errno import EAGAIN, EINTR, EIO, EMSGSIZE, EOPNOTSUPP, EPROTO
from typing import Any, Final, NamedTuple

import trio

from vfs.errors import errno_of
from vfs.inline import Lane, resume
from vfs.locks import LockTable
from vfs.ninep.codec import HEADER, LAYOUTS, Buffer, ProtocolError, Values, decode_body, pieces
from vfs.ninep.fids import Fid
from vfs.ninep.listing import Listings
from vfs.ninep.messages import (
    HEADER_SIZE,
    MAX_MSIZE,
    MESSAGES,
    MIN_MSIZE,
    NUMBER,
    READ_OVERHEAD,
    VERSION,
)
from vfs.ninep.operations import Attach, Operations
from vfs.ninep.peer import PeerCred

MAX_WAITING: Final = 4096
MAX_WAITING_BYTES: Final = 64 << 20
OUT_LIMIT: Final = 64 << 10
"""Unsent bytes at which `process` stops until the driver has sent them."""

_TVERSION: Final = NUMBER["Tversion"]
_TFLUSH: Final = NUMBER["Tflush"]
_TREAD: Final = NUMBER["Tread"]
_TREMOVE: Final = NUMBER["Tremove"]
_RLERROR: Final = NUMBER["Rlerror"]
_RFLUSH: Final = NUMBER["Rflush"]
_RVERSION: Final = NUMBER["Rversion"]
_ERROR: Final = struct.Struct("<IBHI")

Answer = Coroutine[Any, Any, Values]
Rest = Generator[Any, Any, Values]
"""What is left of a request that has to wait."""
Frame = tuple[list[bytes], int]
"""One reply: its pieces and its size."""


class _Route(NamedTuple):
    """How one request is handled; the sizes are those of whole frames, where every field is of fixed size."""

    handler: Callable[..., Answer]
    request_size: int
    unpack: Callable[[Buffer, int], Values] | None
    reply_size: int
    pack: Callable[..., bytes] | None


class Request:
    """A request that had to wait. The driver awaits `run` in a task of its own, then sends what is in `out`."""

    __slots__ = ("_fid", "_rest", "_scope", "_session", "_tags", "cost", "muted", "number")

    def __init__(self, session: "Session", tag: int, number: int, rest: Rest, fid: Fid | None, cost: int) -> None:
        self._session = session
        self._tags = [tag]  # its own, then those of the Tflushes that wait for its end
        self._rest = rest
        self._fid = fid
        self._scope = trio.CancelScope()
        self.number = number
        self.cost = cost
        self.muted = False
        if fid is not None:
            fid.waiters.add(self)

    def abort(self) -> None:
        """Cancel it; it is answered EINTR unless it is flushed or done all the same."""
        self._scope.cancel()

    def flush(self, tag: int) -> None:
        """Cancel it, and answer Rflush to `tag` when it has ended."""
        self._tags.append(tag)
        self._scope.cancel()

    async def run(self) -> None:
        """Finish it and answer. Never raises but Cancelled."""
        session = self._session
        tag, *_ = self._tags
        frame: Frame = [], 0
        try:
            with self._scope:
                frame = await session.answer(tag, self.number, self._rest)
            if self._scope.cancelled_caught and len(self._tags) == 1:
                frame = session.error(tag, EINTR)
        finally:
            if self._fid is not None:
                self._fid.leave(self)
            session.finished(self, self._tags, frame)


class Session:
    """One connection's protocol state. `process` eats bytes, `out` holds the replies, `close` ends it.

    `spawn` starts `request.run()` in a task; it is called from `process` only. `locks` and `listings` are shared by
    all connections of a server.
    """

    def __init__(
        self,
        attach: Attach,
        *,
        spawn: Callable[[Request], None],
        locks: LockTable | None = None,
        listings: Listings | None = None,
        peer: PeerCred | None = None,
        max_msize: int = MAX_MSIZE,
    ) -> None:
        self.operations = Operations(attach, locks or LockTable(), listings or Listings(), peer)
        self.msize = self._max_msize = max_msize
        self.out: list[bytes | memoryview] = []
        self.out_size = 0
        self.waiting: dict[int, Request] = {}
        self._waiting_bytes = 0
        self._spawn = spawn
        self._lane = Lane()
        self._routes = {
            number: self._route(number, message.name[1:])
            for number, message in MESSAGES.items()
            if message.name[0] == "T" and number not in (_TVERSION, _TFLUSH)
        }

    def _route(self, number: int, name: str) -> "_Route":
        request, reply = LAYOUTS[number].whole, LAYOUTS[number + 1].whole
        return _Route(
            getattr(self.operations, name),
            request.size if request else 0,
            struct.Struct("<" + request.format[4:]).unpack_from if request else None,
            reply.size if reply else 0,
            reply.pack if reply else None,
        )

    def process(self, buffer: bytearray, at: int, end: int) -> int:
        """Handle the complete frames of `buffer[at:end]` and return where the first unhandled one starts.

        Frames are left where they complete but much is unsent. ProtocolError ends the connection.
        """
        header, routes, waiting, out, start = HEADER.unpack_from, self._routes, self.waiting, self.out, self._lane.start
        while end - at >= HEADER_SIZE and self.out_size < OUT_LIMIT:
            size, number, tag = header(buffer, at)
            if not HEADER_SIZE <= size <= self.msize:
                raise ProtocolError(f"frame of {size} bytes")
            stop = at + size
            if stop > end:
                break
            if tag in waiting:
                raise ProtocolError(f"tag {tag} is in use")
            try:
                route = routes.get(number)
                if route is None:
                    self._control(number, tag, buffer, at + HEADER_SIZE, stop)
                else:
                    handler, request_size, unpack, reply_size, pack = route
                    if size == request_size:
                        values = unpack(buffer, at + HEADER_SIZE)  # type: ignore[misc]
                    else:
                        values = decode_body(number, buffer, at + HEADER_SIZE, stop)
                    result = start(handler(*values))
                    if result.__class__ is not tuple:  # PENDING
                        self._wait(tag, number, self._lane.waiting, values, size)
                    elif pack is not None:
                        out.append(pack(reply_size, number + 1, tag, *result))
                        self.out_size += reply_size
                    else:
                        self.put(self.encode(tag, number, result))
            except ProtocolError:
                self.put(self.error(tag, EPROTO))
            except Exception as error:  # the request boundary
                self.put(self.error(tag, errno_of(error, MESSAGES[number].name if number in MESSAGES else "")))
            at = stop
        return at

    def _control(self, number: int, tag: int, buffer: bytearray, body: int, stop: int) -> None:
        """Handle what concerns the connection itself, and what is no request."""
        if number == _TVERSION:
            self._version(tag, *decode_body(number, buffer, body, stop))
        elif number == _TFLUSH:
            self._flush(tag, *decode_body(number, buffer, body, stop))
        else:
            raise OSError(EOPNOTSUPP, "no such request")

    # Replies

    def encode(self, tag: int, number: int, values: Values) -> Frame:
        """Return the reply to request `number`, or an Rlerror where msize cannot hold it."""
        frame, size = pieces(number + 1, tag, values)
        if size > self.msize:
            return self.error(tag, EMSGSIZE)
        return frame, size

    def error(self, tag: int, errno: int) -> Frame:
        """Return an Rlerror; what is no errno (a resolver's error code, say) becomes EIO."""
        errno = errno if 0 < errno < 4096 else EIO
        return [_ERROR.pack(_ERROR.size, _RLERROR, tag, errno)], _ERROR.size

    async def answer(self, tag: int, number: int, rest: Rest) -> Frame:
        """Finish a request that waited and return its reply."""
        try:
            return self.encode(tag, number, await resume(rest))
        except Exception as error:  # the request boundary
            return self.error(tag, errno_of(error, MESSAGES[number].name))

    def put(self, frame: Frame) -> None:
        pieces, size = frame
        self.out += pieces
        self.out_size += size

    def sent(self, count: int) -> None:
        """Take the first `count` bytes off `out`."""
        self.out_size -= count
        if not self.out_size:
            self.out.clear()
            return
        done = 0
        for piece in self.out:
            if count < len(piece):
                break
            count -= len(piece)
            done += 1
        del self.out[:done]
        if count:
            self.out[0] = memoryview(self.out[0])[count:]

    # Requests that wait

    def _wait(self, tag: int, number: int, rest: Rest, values: Values, size: int) -> None:
        cost = size + min(values[2], self.msize) if number == _TREAD else size
        if len(self.waiting) >= MAX_WAITING or self._waiting_bytes + cost > MAX_WAITING_BYTES:
            rest.close()
            raise OSError(EAGAIN, "too many requests wait")
        fid = None if number == _TREMOVE else self.operations.fids.get(values[0])  # Tremove ends all others on its fid
        request = Request(self, tag, number, rest, fid, cost)
        self.waiting[tag] = request
        self._waiting_bytes += cost
        self._spawn(request)

    def _flush(self, tag: int, oldtag: int) -> None:
        request = self.waiting.get(oldtag)
        if request is None:
            self.put(pieces(_RFLUSH, tag, ()))
        else:
            self.waiting[tag] = request
            request.flush(tag)

    def finished(self, request: Request, tags: list[int], frame: Frame) -> None:
        """Free a request's tags and answer it (`frame`, nothing if it was flushed) and its Tflushes."""
        if request.muted:
            return
        self._waiting_bytes -= request.cost
        self.put(frame)
        for index, tag in enumerate(tags):
            del self.waiting[tag]
            if index:
                self.put(pieces(_RFLUSH, tag, ()))

    def _version(self, tag: int, msize: int, version: str) -> None:
        self._end_all()
        known = version == VERSION or version.startswith(VERSION + ".")
        if not known or msize < MIN_MSIZE:
            self.operations.reset(READ_OVERHEAD)
            self.put(pieces(_RVERSION, tag, (min(msize, self._max_msize), "unknown")))
            return
        self.msize = min(msize, self._max_msize)
        self.operations.reset(self.msize)
        self.put(pieces(_RVERSION, tag, (self.msize, VERSION)))

    def _end_all(self) -> None:
        ended = list(self.waiting.values())
        self.waiting.clear()
        self._waiting_bytes = 0
        for request in ended:
            request.muted = True
            request.abort()

    def close(self) -> None:
        """End the connection: cancel what waits, release every fid and lock. Idempotent."""
        self._end_all()
        self.operations.reset(READ_OVERHEAD)
        self.out.clear()
        self.out_size = 0
