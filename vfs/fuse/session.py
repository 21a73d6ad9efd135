"""The FUSE kernel protocol without a descriptor: a request's bytes go in, the reply's bytes come out.

It serves /dev/fuse and a virtqueue alike. A request that can be answered at once is, before `receive` returns; one
that has to wait goes on in a task of its own, with a cancel scope that FUSE_INTERRUPT cancels. None holds up another.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from errno import EAGAIN, EINTR, EINVAL, EIO, ENOSYS, ENOTSUP, EPROTO
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, NamedTuple, Protocol

import trio

from vfs.errors import errno_of
from vfs.fuse.changes import Changes
from vfs.fuse.journal import Agreed, Journal
from vfs.fuse.messages import (
    COPIED,
    ENTRY_EXPIRES,
    IN_BRIEF,
    IN_CALLER,
    IN_HEADER,
    INIT_OUT,
    INVAL_ENTRY,
    INVAL_INODE,
    MAJOR,
    MAX_IO,
    MINOR,
    MINOR_MIN,
    ON_HANDLE,
    OUT_HEADER,
    REQUESTS,
    ROOT_ID,
    UNANSWERED,
    Init,
    Layout,
    Notify,
    Op,
    decoder,
    encode,
)
from vfs.fuse.operations import Body, Operations
from vfs.inline import PENDING, Lane, resume
from vfs.locks import LockTable
from vfs.node import Caller, Node

WANTED = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.AUTO_INVAL_DATA
    | Init.DO_READDIRPLUS
    | Init.PARALLEL_DIROPS
    | Init.ABORT_ERROR
    | Init.MAX_PAGES
    | Init.HANDLE_KILLPRIV_V2
    | Init.EXT
    | Init.NO_EXPORT_SUPPORT
    | Init.HAS_RESEND
    | Init.EXPIRE_ONLY
)
MAX_BACKGROUND = 512
MAX_PAGES = MAX_IO // 4096
JOINED = 16 << 10
"""A reply's body up to so many bytes is joined to its header; a larger one is sent as it is, uncopied."""

MAX_CALLERS = 1024

Handler = Callable[..., Any]
"""Returns the body of the reply, or a coroutine that does."""
Decoder = Callable[[memoryview], tuple[Any, ...]]


class Request(NamedTuple):
    """How one kind of request is served: by what, which is a coroutine if it `waits`, of which decoded fields."""

    handler: Handler
    decode: Decoder
    waits: bool
    has_data: bool


_unpack_header = IN_BRIEF.unpack_from
_LEAST = IN_HEADER.size
_pack_header = OUT_HEADER.pack
_HEADER = OUT_HEADER.size


class Send(Protocol):
    """Takes the one reply to a request, in one or two parts. Never raises, never waits."""

    def __call__(self, *parts: bytes | memoryview) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """What a session needs of the connection it is served over.

    `spawn(function, *arguments)` starts a trio task. `notify(frame)` sends the kernel a message unasked.
    `backing_open(fd)` registers a file for passthrough and returns its id, `backing_close(id)` ends that.
    """

    spawn: Callable[..., object]
    notify: Callable[[bytes], None] | None = None
    backing_open: Callable[[int], int] | None = None
    backing_close: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that has a task of its own; `file` is the fh it is about, or 0."""

    scope: trio.CancelScope
    opcode: int
    file: int


class Session:
    """One connection to a kernel. `attach` it to a transport, then `receive` each request; `close` at the end.

    `root` is the tree. `views(id)` gives the trees that are reached as `.views/<id>`, by root and by name only.
    `journal` lets another process go on after this one (see `vfs.fuse.journal`); one that an earlier session has
    filled makes this session that one's heir, who gets no INIT, as does `agreed` alone. `locks` makes file locks those
    of a table shared with other protocols; without it they are the kernel's own, which outlive this session.
    `changes` is told which directories to watch. `stack_depth` is how many filesystems a passthrough file's may be
    stacked of (1: a plain one, 2: an overlay, 0: no passthrough). A request that waits longer than `patience` seconds
    is answered EINTR.
    """

    def __init__(
        self,
        root: Node,
        *,
        views: Callable[[str], Node] | None = None,
        journal: Journal | None = None,
        agreed: Agreed | None = None,
        locks: LockTable | None = None,
        changes: Changes | None = None,
        stack_depth: int = 1,
        max_nodes: int = 4_000_000,
        max_files: int = 1_000_000,
        max_waiting: int = 65_536,
        patience: float = math.inf,
    ) -> None:
        self._root_id = root.id
        self._wanted = WANTED | (Init.POSIX_LOCKS | Init.FLOCK_LOCKS if locks is not None else 0)
        self._stack_depth = stack_depth
        self._max_waiting = max_waiting
        self._patience = patience
        self._waiting: dict[int, Waiting] = {}
        self._lane = Lane()
        self._callers: dict[bytes, Caller] = {}
        self._transport: Transport | None = None
        self._operations = Operations(
            root,
            views=views,
            journal=journal,
            locks=locks,
            changes=changes,
            max_nodes=max_nodes,
            max_files=max_files,
            interrupt=self._interrupt_file,
        )
        self._requests: dict[int, Request] = {}
        self._serve(Op.INIT, self._init)
        self.heir = False
        """Whether this session goes on with what an earlier one began."""
        known = agreed or (journal.agreed if journal else None)
        if known is not None:
            self.heir = True
            self._operations.agreed = known
            self._serve_all()

    @property
    def agreed(self) -> Agreed | None:
        """What INIT agreed on, or None before it."""
        return self._operations.agreed

    def attach(self, transport: Transport) -> None:
        """Use `transport` from now on. An heir then asks for the requests that were not answered, once more.

        A request may so run twice if the server died between doing and answering it.
        """
        self._transport = transport
        operations = self._operations
        operations.backing_open = transport.backing_open
        operations.backing_close = transport.backing_close
        if transport.notify is not None:
            operations.notify = partial(self._notify, transport.notify)
            if self.heir and operations.agreed and operations.agreed.flags & Init.HAS_RESEND:
                operations.notify(Notify.RESEND, b"")

    def close(self) -> None:
        """End every call that waits and close every file."""
        for waiting in self._waiting.values():
            waiting.scope.cancel()
        self._operations.close()

    def host_file(self, fh: int) -> int:
        """Return the descriptor of the host file that is open as `fh`, whose data needs no server, or -1."""
        file = self._operations.files.get(fh)
        return -1 if file is None or file.handle.direct else file.handle.fileno()

    def receive(self, frame: memoryview, send: Send) -> bool:
        """Take one whole request and answer it by `send`, now or later, or never if it wants no answer.

        Whatever the bytes are, nothing is raised. Returns whether `frame` is still in use: then it must not be
        written to again.
        """
        size = len(frame)
        if size < _LEAST:
            return False  # no number to answer to
        length, opcode, unique, nodeid, caller = _unpack_header(frame)
        handler, decode, waits, has_data = self._requests.get(opcode, UNSERVED)
        try:
            if length != size or (self._waiting and unique in self._waiting):
                raise OSError(EINVAL, "wrong length, or a number that is in use")
            who = self._callers.get(caller) or self._caller(caller)
            fields = decode(frame)
            body = handler(nodeid, who, *fields)
            if waits:
                body = self._lane.start(body)
                if body is PENDING:
                    self._wait(unique, opcode, fields, self._lane.waiting, send)
                    return has_data and size > COPIED
            if body is not None:
                reply(send, unique, body)
        except Exception as error:
            if opcode not in UNANSWERED:
                refuse(send, unique, error)
        return False

    def _caller(self, key: bytes) -> Caller:
        """Return who asks, one object for many requests. Supplementary groups are the kernel's business."""
        if len(self._callers) >= MAX_CALLERS:
            self._callers.clear()
        uid, gid, pid = IN_CALLER.unpack(key)
        who = self._callers[key] = Caller(uid, gid, frozenset(), pid)
        return who

    def _wait(
        self, unique: int, opcode: int, fields: tuple[Any, ...], call: Generator[Any, Any, Body], send: Send
    ) -> None:
        if self._transport is None or len(self._waiting) >= self._max_waiting:
            call.close()
            raise OSError(EAGAIN, "too many requests wait")
        scope = trio.CancelScope(deadline=trio.current_time() + self._patience)
        waiting = self._waiting[unique] = Waiting(scope, opcode, fields[0] if opcode in ON_HANDLE else 0)
        self._transport.spawn(self._finish, unique, waiting, call, send)

    async def _finish(self, unique: int, waiting: Waiting, call: Generator[Any, Any, Body], send: Send) -> None:
        """See a request that waits to its end.

        An interrupted one is answered EINTR. If all is ended from outside there is no answer: the kernel keeps the
        request for the next server, or has given it up itself.
        """
        try:
            with waiting.scope:
                body = await resume(call)
            if waiting.scope.cancelled_caught:
                raise OSError(EINTR, "interrupted")
            if body is not None:
                reply(send, unique, body)
        except Exception as error:
            if waiting.opcode not in UNANSWERED:
                refuse(send, unique, error)
        finally:
            del self._waiting[unique]

    # The requests that are about the connection itself

    def _serve_all(self) -> None:
        silent = self._transport is not None and self._transport.notify is None
        for opcode in REQUESTS:
            if silent and opcode == Op.POLL:
                continue  # who polls would wait for a notice: unserved, every file counts as ready
            name = opcode.name.lower()
            self._serve(opcode, getattr(self._operations, name, None) or getattr(self, f"_{name}"))

    def _serve(self, opcode: Op, handler: Handler) -> None:
        layout = REQUESTS[opcode]
        self._requests[int(opcode)] = Request(handler, decoder(layout), iscoroutinefunction(handler), layout.data)

    def _init(self, nodeid: int, who: Caller, major: int, minor: int, readahead: int, flags: int, more: bytes) -> Body:
        if major > MAJOR:
            return INIT_OUT.pack(MAJOR, *bytes(11))  # the kernel asks again with ours
        if major < MAJOR or minor < MINOR_MIN:
            raise OSError(EPROTO, f"FUSE {major}.{minor} is too old")
        if flags & Init.EXT and len(more) >= 4:
            flags |= int.from_bytes(more[:4], "little") << 32
        wanted = self._wanted
        if self._stack_depth and self._transport is not None and self._transport.backing_open is not None:
            wanted |= Init.PASSTHROUGH
        flags &= wanted
        for waiting in self._waiting.values():
            waiting.scope.cancel()
        self._operations.agree(Agreed(min(minor, MINOR), flags))
        self._serve_all()
        return INIT_OUT.pack(
            MAJOR,
            min(minor, MINOR),
            readahead,
            flags & 0xFFFF_FFFF,
            MAX_BACKGROUND,
            MAX_BACKGROUND * 3 // 4,
            MAX_IO,
            1,
            MAX_PAGES,
            0,
            flags >> 32,
            self._stack_depth if flags & Init.PASSTHROUGH else 0,
        )

    def _destroy(self, nodeid: int, who: Caller) -> Body:
        self._operations.close()
        return b""

    def _interrupt(self, nodeid: int, who: Caller, unique: int) -> Body:
        waiting = self._waiting.get(unique)
        if waiting is not None:
            waiting.scope.cancel()
        return None

    def _interrupt_file(self, fh: int) -> None:
        for waiting in self._waiting.values():
            if waiting.file == fh:
                waiting.scope.cancel()

    # What the kernel is told unasked

    @staticmethod
    def _notify(notify: Callable[[bytes], None], code: int, body: bytes) -> None:
        notify(message(code, body))

    def stale_node(self, id: int) -> bytes:
        """Return the message that makes the kernel drop what it caches of a node: attributes and pages.

        Send it from a thread other than the one that answers requests: the kernel may wait for an answer first.
        """
        return message(Notify.INVAL_INODE, INVAL_INODE.pack(self._nodeid(id), 0, 0))

    def stale_entry(self, parent: int, name: str) -> bytes:
        """Return the message that makes the kernel look `name` up again; send it as `stale_node` says."""
        raw = encode(name)
        return message(Notify.INVAL_ENTRY, INVAL_ENTRY.pack(self._nodeid(parent), len(raw), 0) + raw + b"\0")

    @staticmethod
    def expired_entry(nodeid: int, name: str) -> bytes:
        """Return the message that makes the kernel ask before it uses `name` in `nodeid` again; send it likewise."""
        raw = encode(name)
        return message(Notify.INVAL_ENTRY, INVAL_ENTRY.pack(nodeid, len(raw), ENTRY_EXPIRES) + raw + b"\0")

    def _nodeid(self, id: int) -> int:
        return ROOT_ID if id == self._root_id else id


def reply(send: Send, unique: int, body: bytes | memoryview) -> None:
    """Send what a request gave."""
    size = len(body)
    if size <= JOINED:
        send(_pack_header(_HEADER + size, 0, unique) + body)
    else:
        send(_pack_header(_HEADER + size, 0, unique), body)


def refuse(send: Send, unique: int, error: Exception) -> None:
    """Send the errno of what went wrong."""
    number = errno_of(error, "fuse")
    if number == ENOSYS and not isinstance(error, Unserved):
        number = ENOTSUP  # the kernel takes ENOSYS to mean: never, for no file of this mount
    if not 0 < number < 512:
        number = EIO
    send(_pack_header(_HEADER, -number, unique))


def message(code: int, body: bytes) -> bytes:
    """Pack what the kernel is told unasked."""
    return _pack_header(_HEADER + len(body), code, 0) + body


class Unserved(OSError):
    """A request of a kind that is not served at all."""


def _unserved(nodeid: int, who: Caller) -> Body:
    raise Unserved(ENOSYS, "not served")


UNSERVED = Request(_unserved, decoder(Layout()), False, False)
