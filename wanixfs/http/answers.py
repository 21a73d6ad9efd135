"""How results and errors become HTTP: the one mapping from errno to status, and JSON in and out."""

import errno
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from vfs.errors import errno_of

Piece = Callable[[bytes], Awaitable[None]]
"""Sends the next bytes of a body."""

STATUS = {
    errno.ENOENT: 404,
    errno.ENOTDIR: 404,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EINVAL: 400,
    errno.ELOOP: 400,
    errno.EISDIR: 400,
    errno.ENAMETOOLONG: 414,
    errno.E2BIG: 413,
    errno.EBUSY: 409,
    errno.EEXIST: 409,
    errno.ESRCH: 409,
    errno.EPIPE: 409,
    errno.ENOTSUP: 501,
    errno.ENXIO: 501,
    errno.EAGAIN: 503,
    errno.ETIMEDOUT: 504,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
}
"""The HTTP status of an error number; 500 for the others."""


def refusal(status: int, code: str, message: str) -> JSONResponse:
    """Return an error as every client gets it."""
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def failed(request: Request, problem: Exception) -> Response:
    """Return the answer to a request that raised; only what is no OSError is logged."""
    number = errno_of(problem, f"{request.method} {request.url.path}")
    detail = problem.strerror if isinstance(problem, OSError) else None
    return refusal(STATUS.get(number, 500), errno.errorcode.get(number, "EIO"), detail or os.strerror(number))


async def fields(request: Request, **types: type | tuple[type, ...]) -> dict[str, Any]:
    """Return the JSON object of a request's body. EINVAL for any other, an unknown name or a wrong type.

    `types` are the names allowed and what their values must be; an empty body is an empty object.
    """
    body = await request.body()
    try:
        given = json.loads(body) if body else {}
    except ValueError:
        raise OSError(errno.EINVAL, "the body is not JSON") from None
    if not isinstance(given, dict):
        raise OSError(errno.EINVAL, "the body is not a JSON object")
    for name, value in given.items():
        if name not in types:
            raise OSError(errno.EINVAL, f"unknown field {name[:64]!r}; known: {', '.join(types)}")
        if not isinstance(value, types[name]) or (isinstance(value, bool) and types[name] is not bool):
            raise OSError(errno.EINVAL, f"{name}: a wrong type of value")
    return given


class Live(Response):
    """An answer whose body is sent while it comes to be; `produce(send)` is cancelled when the client leaves.

    `close` is called once, however it ends. After an error the connection is cut short, so that nobody takes what came
    for all of it.
    """

    def __init__(
        self,
        produce: Callable[[Piece], Awaitable[None]],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        *,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.status_code = status
        self.background = None
        self.init_headers(headers)
        self._produce = produce
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def piece(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_gone)
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                try:
                    if scope["method"] != "HEAD":
                        await self._produce(piece)
                except OSError as problem:
                    errno_of(RuntimeError(str(problem)), f"{scope['method']} {scope['path']}")
                else:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                nursery.cancel_scope.cancel()
        finally:
            self._close()
