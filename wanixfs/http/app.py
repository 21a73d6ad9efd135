"""The routes: everything HTTP serves, in one table."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from tasks.service import TaskService
from tasks.sessions.service import Sessions
from vfs.node import Node
from wanixfs.http.answers import failed, refusal
from wanixfs.http.events import Events
from wanixfs.http.files import Files
from wanixfs.http.guard import POLICY, Guard
from wanixfs.http.metrics import Metrics
from wanixfs.http.programs import Programs
from wanixfs.http.sessions import SessionsApi

PAGE = Path(__file__).parent / "page"


def application(*, sessions: Sessions, service: TaskService, root: Node, token: str, names: Iterable[str]) -> ASGIApp:
    """Return everything served over HTTP. `root` is the administrator's tree; `names` are the hosts that we are."""
    api, programs, files = SessionsApi(sessions), Programs(service, sessions, root), Files(root)
    html = (PAGE / "index.html").read_text()
    policy = {"content-security-policy": POLICY.replace("script-src 'self'", f"script-src 'self' {_import_map(html)}")}

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=policy)

    async def alive(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    def states() -> Counter[str]:
        return Counter(record.state.value for record in sessions.records())

    routes = [
        Route("/", page),
        Route("/healthz", alive),
        Route("/metrics", Metrics(service, states).__call__),
        Route("/fs", files.__call__, methods=["GET"]),
        Route("/fs/{path:path}", files.__call__, methods=["GET"]),
        Route("/api/events", Events(sessions.chronicle, service).__call__),
        Route("/api/sessions", api.index),
        Route("/api/sessions", api.open, methods=["POST"]),
        Route("/api/sessions/{id}", api.one),
        Route("/api/sessions/{id}", api.remove, methods=["DELETE"]),
        Route("/api/sessions/{id}/task", api.prompt, methods=["POST"]),
        Route("/api/sessions/{id}/switch", api.switch, methods=["POST"]),
        Route("/api/sessions/{id}/stop", api.stop, methods=["POST"]),
        Route("/api/sessions/{id}/archive", api.archive, methods=["POST"]),
        Route("/api/sessions/{id}/sync", api.sync, methods=["POST"]),
        Route("/api/tasks/{id}", api.task),
        Route("/api/tasks/{id}/cancel", api.cancel, methods=["POST"]),
        Route("/api/history", api.history),
        Route("/api/history/{id}", api.task),
        Route("/api/programs", programs.index),
        Route("/api/programs", programs.new, methods=["POST"]),
        Route("/api/programs/{id}", programs.one),
        Route("/api/programs/{id}/input", programs.type, methods=["POST"]),
        Route("/api/programs/{id}/size", programs.resize, methods=["PUT"]),
        Route("/api/programs/{id}/kill", programs.kill, methods=["POST"]),
        Mount("/static", StaticFiles(directory=PAGE)),
    ]
    handlers = {OSError: failed, HTTPException: _refused}
    app = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]
    return Guard(app, token=token, names=names)


async def _refused(request: Request, problem: HTTPException) -> Response:
    answer = refusal(problem.status_code, "ENOENT" if problem.status_code == 404 else "EINVAL", problem.detail)
    answer.headers.update(problem.headers or {})
    return answer


def _import_map(html: str) -> str:
    """Return the policy's word for the page's one inline script, the import map (it cannot be a file of its own)."""
    found = re.search(r'<script type="importmap">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
