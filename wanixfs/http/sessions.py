"""`/api/sessions`, `/api/tasks`, `/api/history`: sessions and their prompts.

What works and what is over is one record, read where it is kept: there is no second place that could be stale.
"""

import json
from collections.abc import Iterable
from dataclasses import fields as dataclass_fields
from errno import EINVAL, ENOENT
from hashlib import blake2b
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tasks.sessions.model import Spec, Turn
from tasks.sessions.service import Sessions
from tasks.sessions.states import UNKNOWN
from wanixfs.http.answers import fields

MAX_PAGE = 500
_NUMBER = (int, float, type(None))
_TYPES: dict[str, type | tuple[type, ...]] = {
    "agent": list,
    "run": list,
    "binds": list,
    "live": bool,
    "timeout": _NUMBER,
    "parallel": int,
    "env": dict,
}
OPTIONS = {field.name: _TYPES.get(field.name, str) for field in dataclass_fields(Spec)}
"""What a session may be opened with, and the JSON type of each."""


class SessionsApi:
    """Answers for the sessions of one node."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def index(self, request: Request) -> Response:
        """GET: all sessions. `X-Seq` is the place in the events from which one has to go on to miss nothing."""
        sessions = self._sessions
        body = {"active": sessions.active or None, "sessions": [record.shown() for record in sessions.records()]}
        return _tagged(request, body, seq=sessions.chronicle.last_seq)

    async def one(self, request: Request) -> Response:
        """GET: a session, its prompts (`tasks`: the newest ones, oldest first) and its conflicts."""
        name = request.path_params["id"]
        state = self._sessions.state(name)
        waiting = {turn["id"] for turn in state["turns"]}
        kept = [turn.shown() for turn in self._sessions.turns(name, limit=_limit(request))]
        del state["turns"], state["seq"]
        older = [turn for turn in self._sessions.chronicle.open_turns(name) if str(turn.id) in waiting]
        known = {turn["id"] for turn in kept}
        kept += [turn.shown() for turn in reversed(older) if str(turn.id) not in known]
        return _tagged(request, {**state, "tasks": kept[::-1]}, seq=self._sessions.chronicle.last_seq)

    async def open(self, request: Request) -> Response:
        """POST {id, ...}: make a session, or take one up, and answer when it can work."""
        given = await fields(request, id=str, **OPTIONS)
        if "id" not in given:
            raise OSError(EINVAL, "id: a session needs a name")
        name = given.pop("id")
        new = all(record.id != name for record in self._sessions.records())
        for option in ("agent", "run", "binds"):
            if option in given:
                given[option] = _words(option, given[option])
        if not all(isinstance(value, str) for value in given.get("env", {}).values()):
            raise OSError(EINVAL, "env: a value that is not text")
        session = await self._sessions.open(name, **given)
        return JSONResponse(session.shown(), 201 if new else 200)

    async def prompt(self, request: Request) -> Response:
        """POST {message, key}: take a prompt. It is kept when this answers; with the same key again it is the same."""
        given = await fields(request, message=str, key=str)
        turn = self._sessions.prompt(request.path_params["id"], given.get("message", ""), key=given.get("key", ""))
        return JSONResponse(turn.shown(), 201)

    async def switch(self, request: Request) -> Response:
        """POST: make it the active session, and answer when it can work."""
        return JSONResponse((await self._sessions.switch(request.path_params["id"])).shown())

    async def stop(self, request: Request) -> Response:
        """POST: end its agent, and every prompt that is not over."""
        return JSONResponse(self._sessions.stop(request.path_params["id"]).shown())

    async def archive(self, request: Request) -> Response:
        """POST: stop it, and keep it as it is until it is opened again."""
        return JSONResponse(self._sessions.archive(request.path_params["id"]).shown())

    async def sync(self, request: Request) -> Response:
        """POST: bring its folder and its work directory in step, and answer when they are."""
        await self._sessions.sync(request.path_params["id"])
        return JSONResponse(self._sessions.state(request.path_params["id"])["conflicts"])

    async def remove(self, request: Request) -> Response:
        """DELETE: take it away with its home and its history."""
        await self._sessions.remove(request.path_params["id"])
        return Response(status_code=204)

    async def task(self, request: Request) -> Response:
        """GET: one prompt, waiting, at work or over: the same record. 404 and `unknown` for what never was."""
        turn = self._turn(request)
        if turn is None:
            return JSONResponse({"id": request.path_params["id"], "state": UNKNOWN}, 404)
        return _tagged(request, turn.shown(), seq=self._sessions.chronicle.last_seq)

    async def cancel(self, request: Request) -> Response:
        """POST: end a prompt as soon as its agent lets go of it."""
        turn = self._turn(request)
        if turn is None:
            raise OSError(ENOENT, "no such task")
        return JSONResponse(self._sessions.cancel(turn.id).shown())

    async def history(self, request: Request) -> Response:
        """GET ?session=ID&before=TASK&limit=N: prompts that are over, newest first."""
        query = request.query_params
        before = query.get("before")
        if before is not None and _id(before) is None:
            raise OSError(EINVAL, "before: not the id of a task")
        turns = self._sessions.turns(
            query.get("session"), before=_id(before) if before else None, limit=_limit(request)
        )
        body = [turn.shown() for turn in turns if turn.state.ended]
        return _tagged(request, body, seq=self._sessions.chronicle.last_seq)

    def _turn(self, request: Request) -> Turn | None:
        number = _id(request.path_params["id"])
        try:
            return self._sessions.turn(number) if number is not None else None
        except FileNotFoundError:
            return None


def _tagged(request: Request, body: Any, *, seq: int) -> Response:
    """Return JSON with its ETag, or 304 to who has it already."""
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    tag = f'"{blake2b(data, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "x-seq": str(seq), "cache-control": "private, no-cache"}
    known: Iterable[str] = (each.strip() for each in request.headers.get("if-none-match", "").split(","))
    if tag in {each.removeprefix("W/") for each in known}:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="application/json", headers=headers)


def _words(name: str, value: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(word, str) for word in value):
        raise OSError(EINVAL, f"{name}: a word that is not text")
    return tuple(value)


def _id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _limit(request: Request) -> int:
    limit = _id(request.query_params.get("limit", "100"))
    if limit is None or not 0 < limit <= MAX_PAGE:
        raise OSError(EINVAL, f"limit: 1 to {MAX_PAGE}")
    return limit
