"""Who may ask: every request passes here first.

A browser must have come by the token (a cookie that no script reads and no other site sends), a program presents it.
Names other than our own are refused, so that no foreign name can be pointed at us, and whatever changes something must
come from our own page. Bodies are bounded; every answer says what a browser may do with it.
"""

import hashlib
import hmac
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wanixfs.http.answers import refusal

MAX_BODY = 4 << 20
COOKIE = "wanixfs"
COOKIE_SECONDS = 30 * 86400
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
PUBLIC = ("/healthz", "/static/")
"""What anyone may read: that we live, and the page's own files, which hold nothing."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""What an answer gets that does not say otherwise itself."""
LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>wanixfs</title>
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/static/page.css">
<form class="login" method="post" action="/login"><h1>wanixfs</h1>
<label>Token <input name="token" type="password" autofocus autocomplete="off" required></label><button>Open</button>
<p>The server printed a link with it when it started; it also stands in its state directory.</p></form></html>"""


class Guard:
    """Lets requests through to `app` that may pass. `names` are the hosts (without port) that we are."""

    def __init__(self, app: ASGIApp, *, token: str, names: Iterable[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = hmac.new(self._token, b"cookie", hashlib.sha256).hexdigest()
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        else:
            answer = await self._answer(scope, receive) or self._app
            await answer(scope, _bounded(receive), _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """Return what is to be said instead of letting the request through, None to let it."""
        headers = Headers(scope=scope)
        path, method = scope["path"], scope["method"]
        if host_name(headers.get("host", "")) not in self._names:
            return refusal(421, "EPERM", "this server does not go by that name")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY:
            return refusal(413, "E2BIG", f"a request body is at most {MAX_BODY} bytes")
        if path.startswith(PUBLIC) and method in SAFE:
            return None
        if method not in SAFE and not self._bears(headers) and not _own_page(headers):
            return refusal(403, "EPERM", "only this server's own page, or a bearer of the token, may change anything")
        if path == "/login" and method == "POST":
            return await self._log_in(scope, receive)
        if path == "/" and (token := parse_qs(scope["query_string"].decode("latin-1")).get("token")):
            return self._welcome(token[0])
        if self._bears(headers) or self._remembered(headers):
            return None
        if path == "/" and method in SAFE:
            return HTMLResponse(LOGIN, 401)
        return refusal(401, "EACCES", "present the token: Authorization: Bearer TOKEN")

    def _bears(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)

    def _remembered(self, headers: Headers) -> bool:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self._cookie.encode())

    async def _log_in(self, scope: Scope, receive: Receive) -> Response:
        body = b""
        bounded = _bounded(receive)
        while True:
            message = await bounded()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        return self._welcome(parse_qs(body.decode("latin-1")).get("token", [""])[0])

    def _welcome(self, token: str) -> Response:
        if not hmac.compare_digest(token.strip().encode(), self._token):
            return HTMLResponse(LOGIN, 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self._cookie, max_age=COOKIE_SECONDS, httponly=True, samesite="strict")
        return answer


def host_name(host: str) -> str:
    """Return the name in a Host header without its port, in lower case."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).strip("[]").lower()


def _own_page(headers: Headers) -> bool:
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") == "same-origin"
    return origin.partition("://")[2] == headers.get("host")


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


def _bounded(receive: Receive) -> Receive:
    """Pass a body on up to `MAX_BODY`; one that goes on beyond it unannounced ends as if the client left."""
    taken = 0

    async def receiving() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                return {"type": "http.disconnect"}
        return message

    return receiving
