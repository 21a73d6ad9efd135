"""`/api/events`: what happens, as it happens (server-sent events).

No gap and no duplicate: an event's id is its place in the chronicle, and who comes back names the last one seen.
"""

import json
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from starlette.requests import Request
from starlette.responses import Response

from tasks.service import TaskService
from tasks.sessions.chronicle import Chronicle
from tasks.sessions.model import Happening
from wanixfs.http.answers import Live, Piece

HEARTBEAT = 15.0
"""Seconds of silence after which a comment shows that the stream lives."""
RETRY_MS = 500


class Events:
    """Serves the happenings of a chronicle, and a bell for those of the tree's tasks (browsers open few streams)."""

    def __init__(self, chronicle: Chronicle, service: TaskService) -> None:
        self._chronicle = chronicle
        self._service = service

    async def __call__(self, request: Request) -> Response:
        """GET: events after `Last-Event-ID` (or `?since=SEQ`), from now on without.

        A `reset` comes first where the chronicle no longer has what follows that id: what one knows must be read anew.
        With `?tasks=1` a `tasks` event, without an id, says that something has happened to a task of the tree.
        """
        given = request.headers.get("last-event-id") or request.query_params.get("since")
        seq = int(given) if given and given.isascii() and given.isdigit() and len(given) < 19 else None
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        return Live(partial(self._tell, seq, request.query_params.get("tasks") == "1"), headers=headers)

    async def _tell(self, seq: int | None, tasks: bool, piece: Piece) -> None:
        turn = trio.Lock()

        async def whole(text: str) -> None:
            async with turn:
                await piece(text.encode("utf-8", "replace"))

        await whole(f"retry: {RETRY_MS}\n\n")
        async with trio.open_nursery() as nursery:
            if tasks:
                nursery.start_soon(self._ring, whole)
            await self._follow(seq, whole)

    async def _follow(self, seq: int | None, tell: Callable[[str], Awaitable[None]]) -> None:
        chronicle = self._chronicle
        if seq is None or not chronicle.oldest_seq() - 1 <= seq <= chronicle.last_seq:
            lost, seq = seq is not None, chronicle.last_seq
            what = "reset" if lost else "hello"
            await tell(f'event: {what}\nid: {seq}\ndata: {{"seq": {seq}}}\n\n')
        while True:
            rows = chronicle.since(seq)
            if rows:
                seq = rows[-1].seq
                await tell("".join(map(_event, rows)))
            elif seq < chronicle.last_seq:
                seq = chronicle.last_seq
            else:
                with trio.move_on_after(HEARTBEAT) as silence:
                    await chronicle.changed.wait()
                if silence.cancelled_caught:
                    await tell(": alive\n\n")

    async def _ring(self, tell: Callable[[str], Awaitable[None]]) -> None:
        while True:
            await self._service.changes.wait()
            await tell("event: tasks\ndata: {}\n\n")


def _event(row: Happening) -> str:
    return f"id: {row.seq}\ndata: {json.dumps(row.shown(), ensure_ascii=False)}\n\n"
