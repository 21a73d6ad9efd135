"""The RPC of the sessions: JSON lines over a unix socket, or TCP with the server's token, for any number of clients.

    -> {"id": 1, "type": "prompt", "payload": {"taskId": "a", "message": "hello"}}
    <- {"id": 1, "ok": true, "result": {"turn": {...}}}
    <- {"id": 2, "ok": false, "error": {"code": "ENOENT", "message": "...", "retryable": false}}
    <- {"type": "event", "event": "output", "timestamp": 1.5, "taskId": "a", "payload": {"text": "hi"}, "seq": 7}

A `taskId` names a session, as this protocol's clients call it. A request of one client is carried out once, however
often it is sent: its id decides. Events are read from the chronicle at each client's own pace, from any number on.
"""

import hmac
import json
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from errno import EACCES, EAGAIN, EINVAL, ENOSPC, ETIMEDOUT, errorcode
from itertools import count
from typing import Any

import structlog
import trio

from tasks.sessions.model import Happening, Session
from tasks.sessions.options import options
from tasks.sessions.service import Sessions
from tasks.sessions.states import State
from vfs.errors import errno_of

log = structlog.get_logger("rpc")

MAX_LINE = 2 << 20
"""Bytes of one request at the most; a longer one ends its connection."""
MAX_PENDING = 64
"""Requests of one connection that are carried out at a time; further ones are read later."""
MAX_REPLIES = 1000
"""Replies that are remembered for requests that are sent again."""
MAX_PAGE = 500
CHUNK = 1 << 16
RETRYABLE = frozenset({EAGAIN, ETIMEDOUT, ENOSPC})
WORDS = {
    "model": "model",
    "thinkingLevel": "thinking",
    "workingFolder": "folder",
    **{name: name for name in ("agent", "run", "type", "net", "timeout", "parallel", "live")},
}
"""What `create_or_open_task` takes, and the option of `open` that each is."""

Payload = Mapping[str, Any]
Reply = dict[str, Any]


@dataclass(eq=False)
class Pending:
    """A request that is being carried out, or was: the reply is there once `done` is set."""

    done: trio.Event = field(default_factory=trio.Event)
    reply: Reply = field(default_factory=dict)


class Rpc:
    """Serves the sessions. `token` is what a TCP client has to name."""

    def __init__(self, sessions: Sessions, token: str) -> None:
        self.sessions = sessions
        self.token = token
        self.numbers = count(1)
        self.known: OrderedDict[tuple[str, str], Pending] = OrderedDict()

    async def serve(
        self, listeners: list[trio.SocketListener], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve connections until cancelled."""
        await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await Connection(self, stream).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has gone
        except Exception as error:  # the boundary: one client's trouble ends no other's connection
            errno_of(error, "rpc connection")

    def remember(self, key: tuple[str, str]) -> tuple[Pending, bool]:
        """Return what is known of a request, and whether it is new."""
        found = self.known.get(key)
        if found is not None:
            return found, False
        pending = self.known[key] = Pending()
        if len(self.known) > MAX_REPLIES:
            self.known.popitem(last=False)
        return pending, True


class Connection:
    """One client. Its `active` session is where a prompt without `taskId` goes."""

    def __init__(self, rpc: Rpc, stream: trio.SocketStream) -> None:
        self._rpc = rpc
        self._sessions = rpc.sessions
        self._stream = stream
        self._sending = trio.Lock()
        self._slots = trio.Semaphore(MAX_PENDING)
        self._client = f"#{next(rpc.numbers)}"
        self._trusted = stream.socket.family == socket.AF_UNIX  # a unix socket's mode has decided
        self._active = self._sessions.active
        self._events: trio.CancelScope | None = None
        self._nursery: trio.Nursery

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            buffer = bytearray()
            while data := await self._stream.receive_some(CHUNK):
                buffer += data
                while (end := buffer.find(b"\n")) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    if line.strip():
                        await self._slots.acquire()
                        self._nursery.start_soon(self._request, line)
                if len(buffer) > MAX_LINE:
                    await self._send(refusal(None, OSError(EINVAL, f"a request is at most {MAX_LINE} bytes")))
                    break
            self._nursery.cancel_scope.cancel()

    async def _send(self, message: Mapping[str, Any]) -> None:
        async with self._sending:
            await self._stream.send_all(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    async def _request(self, line: bytes) -> None:
        try:
            await self._send(await self._answer(line))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._nursery.cancel_scope.cancel()
        finally:
            self._slots.release()

    async def _answer(self, line: bytes) -> Reply:
        try:
            request = json.loads(line)
            id, kind, payload = request["id"], request["type"], request.get("payload") or {}
            if not isinstance(id, str | int) or len(str(id)) > 128 or not isinstance(payload, dict):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            return refusal(None, OSError(EINVAL, "a request is one object: id, type, payload"))
        pending, new = self._rpc.remember((self._client, str(id)))
        if new:
            pending.reply = await self._carry_out(id, kind, payload)
            pending.done.set()
        else:
            await pending.done.wait()
        return pending.reply

    async def _carry_out(self, id: str | int, kind: object, payload: Payload) -> Reply:
        handler = HANDLERS.get(kind) if isinstance(kind, str) else None
        try:
            if handler is None:
                raise OSError(EINVAL, f"no such request: {str(kind)[:64]!r} (one of {', '.join(HANDLERS)})")
            if not self._trusted and kind != "hello":
                raise OSError(EACCES, "say hello with the token first")
            return {"id": id, "ok": True, "result": await handler(self, str(id), payload)}
        except Exception as error:
            return refusal(id, error)

    # Requests

    async def hello(self, id: str, payload: Payload) -> Reply:
        """Name the client, so that its request ids mean the same over all its connections; and the token, on TCP."""
        if not self._trusted:
            given = text(payload, "token")
            if not self._rpc.token or not hmac.compare_digest(given.encode(), self._rpc.token.encode()):
                raise OSError(EACCES, "not the token of this server")
            self._trusted = True
        if client := text(payload, "client", ""):
            self._client = client[:128]
        return {"client": self._client, "activeTaskId": self._active or None, "seq": self._sessions.chronicle.last_seq}

    async def create_or_open_task(self, id: str, payload: Payload) -> Reply:
        words = [word for name, option in WORDS.items() if name in payload for word in (option, text(payload, name))]
        return {"task": shown(await self._sessions.open(text(payload, "taskId"), **options(words)))}

    async def switch_task(self, id: str, payload: Payload) -> Reply:
        session = self._sessions.get(text(payload, "taskId"))
        self._active = session.id
        return {"task": shown(await self._sessions.switch(session.id))}

    async def prompt(self, id: str, payload: Payload) -> Reply:
        key = "" if self._client.startswith("#") else f"{self._client}/{id}"
        name = text(payload, "taskId", self._active)
        if not name:
            raise OSError(EINVAL, "no task is active: name one, or switch to one")
        return {"turn": self._sessions.prompt(name, text(payload, "message"), key=key).shown()}

    async def get_state(self, id: str, payload: Payload) -> Reply:
        """Everything, or one task; one that does not exist is `missing`."""
        if "taskId" not in payload:
            tasks = [shown(record) for record in self._sessions.records()]
            return {"activeTaskId": self._active or None, "tasks": tasks, "seq": self._sessions.chronicle.last_seq}
        name = text(payload, "taskId")
        try:
            state = self._sessions.state(name)
        except FileNotFoundError:
            return {"task": {"taskId": name, "state": State.MISSING}}
        extra = {name: state[name] for name in ("turns", "conflicts", "seq")}
        return {"task": shown(self._sessions.get(name)) | extra}

    async def stop_task(self, id: str, payload: Payload) -> Reply:
        return {"task": shown(self._sessions.stop(text(payload, "taskId")))}

    async def archive_task(self, id: str, payload: Payload) -> Reply:
        return {"task": shown(self._sessions.archive(text(payload, "taskId")))}

    async def remove_task(self, id: str, payload: Payload) -> Reply:
        await self._sessions.remove(text(payload, "taskId"))
        return {}

    async def cancel(self, id: str, payload: Payload) -> Reply:
        return {"turn": self._sessions.cancel(whole(payload, "turn")).shown()}

    async def history(self, id: str, payload: Payload) -> Reply:
        """The newest turns, or those below the number `before`."""
        before = whole(payload, "before") if "before" in payload else None
        limit = min(whole(payload, "limit", 100), MAX_PAGE)
        name = text(payload, "taskId", "") or None
        return {"turns": [turn.shown() for turn in self._sessions.turns(name, before=before, limit=limit)]}

    async def subscribe(self, id: str, payload: Payload) -> Reply:
        """Send events from now on, or those after the number `since` first; of one task, or of all.

        Where some of those are no longer kept, the first event is `reset`.
        """
        chronicle = self._sessions.chronicle
        seq = whole(payload, "since", chronicle.last_seq)
        await self.unsubscribe(id, payload)
        self._events = trio.CancelScope()
        self._nursery.start_soon(self._tell, self._events, seq, text(payload, "taskId", "") or None)
        return {"since": seq, "oldest": chronicle.oldest_seq()}

    async def unsubscribe(self, id: str, payload: Payload) -> Reply:
        if self._events is not None:
            self._events.cancel()
        return {}

    async def _tell(self, scope: trio.CancelScope, seq: int, session: str | None) -> None:
        chronicle = self._sessions.chronicle
        with scope:
            while True:
                oldest = chronicle.oldest_seq()
                if seq + 1 < oldest and session is None:
                    reset = {"type": "event", "event": "reset", "payload": {"oldest": oldest}, "seq": oldest - 1}
                    await self._send(reset)
                    seq = oldest - 1
                rows = chronicle.since(seq, session)
                for row in rows:
                    await self._send(event(row))
                    seq = row.seq
                if not rows:
                    await chronicle.changed.wait()


HANDLERS: Mapping[str, Callable[[Connection, str, Payload], Awaitable[Reply]]] = {
    "hello": Connection.hello,
    "create_or_open_task": Connection.create_or_open_task,
    "switch_task": Connection.switch_task,
    "prompt": Connection.prompt,
    "get_state": Connection.get_state,
    "stop_task": Connection.stop_task,
    "archive_task": Connection.archive_task,
    "remove_task": Connection.remove_task,
    "cancel": Connection.cancel,
    "history": Connection.history,
    "subscribe": Connection.subscribe,
    "unsubscribe": Connection.unsubscribe,
}


def shown(record: Session) -> Reply:
    """Return a session as this protocol's clients know it."""
    return {
        "taskId": record.id,
        "state": record.state,
        "error": record.error,
        "model": record.spec.model,
        "thinkingLevel": record.spec.thinking,
        "workingFolder": record.spec.folder or None,
        "user": record.user.name,
        "createdAt": record.created,
        "usedAt": record.used,
    }


def event(row: Happening) -> Reply:
    """Return a happening as an event."""
    payload = json.loads(row.data)
    if row.turn:
        payload["turn"] = str(row.turn)
    return {
        "type": "event",
        "event": row.kind,
        "timestamp": round(row.at, 6),
        "taskId": row.session,
        "payload": payload,
        "seq": row.seq,
    }


def refusal(id: str | int | None, error: BaseException) -> Reply:
    """Return the reply that says why a request was not carried out."""
    number = errno_of(error, "rpc request")
    words = (error.strerror if isinstance(error, OSError) else None) or "internal error"
    code = errorcode.get(number, "EIO")
    return {"id": id, "ok": False, "error": {"code": code, "message": words, "retryable": number in RETRYABLE}}


def text(payload: Payload, name: str, default: str | None = None) -> str:
    """Return a text, or a number as text, of a payload. EINVAL where there is none."""
    value = payload.get(name, default)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or not isinstance(value, str | int | float):
        raise OSError(EINVAL, f"{name}: a text is needed")
    return str(value)


def whole(payload: Payload, name: str, default: int | None = None) -> int:
    """Return a whole number of a payload, also one given as text. EINVAL."""
    word = text(payload, name, None if default is None else str(default))
    if not (word.isascii() and word.isdigit() and len(word) < 19):
        raise OSError(EINVAL, f"{name}: a whole number is needed")
    return int(word)
