"""`/api/events`: what happens, as it happens (server-sent events).

No gap and no duplicate: an event's id is its place in the chronicle, and who comes back names the last one seen.
"""

import json
from functools import partial

import trio
from starlette.requests import Request
from starlette.responses import Response

from tasks.sessions.chronicle import Chronicle
from tasks.sessions.model import Happening
from wanixfs.http.answers import Live, Piece

HEARTBEAT = 15.0
"""Seconds of silence after which a comment shows that the stream lives."""
RETRY_MS = 500


class Events:
    """Serves the happenings of a chronicle."""

    def __init__(self, chronicle: Chronicle) -> None:
        self._chronicle = chronicle

    async def __call__(self, request: Request) -> Response:
        """GET: events after `Last-Event-ID` (or `?since=SEQ`), from now on without.

        A `reset` comes first where the journal no longer has what follows that id: what one knows must be read anew.
        """
        given = request.headers.get("last-event-id") or request.query_params.get("since")
        seq = int(given) if given and given.isascii() and given.isdigit() and len(given) < 19 else None
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        return Live(partial(self._tell, seq), headers=headers)

    async def _tell(self, seq: int | None, piece: Piece) -> None:
        chronicle = self._chronicle
        await piece(f"retry: {RETRY_MS}\n\n".encode())
        if seq is None or not chronicle.oldest_seq() - 1 <= seq <= chronicle.last_seq:
            lost, seq = seq is not None, chronicle.last_seq
            what = "reset" if lost else "hello"
            await piece(f'event: {what}\nid: {seq}\ndata: {{"seq": {seq}}}\n\n'.encode())
        while True:
            rows = chronicle.since(seq)
            if rows:
                seq = rows[-1].seq
                await piece("".join(map(_event, rows)).encode("utf-8", "replace"))
            elif seq < chronicle.last_seq:
                seq = chronicle.last_seq
            else:
                with trio.move_on_after(HEARTBEAT) as silence:
                    await chronicle.changed.wait()
                if silence.cancelled_caught:
                    await piece(b": alive\n\n")


def _event(row: Happening) -> str:
    return f"id: {row.seq}\ndata: {json.dumps(row.shown(), ensure_ascii=False)}\n\n"
