"""`/api/programs`: the tasks of the tree as programs to watch and to type to. Each act is a write to a task's file."""

import os
from errno import EINVAL, ENOENT
from typing import Any

from immutables import Map
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tasks.service import TaskService
from tasks.sessions.home import WORK
from tasks.sessions.service import Sessions
from tasks.task import Task
from vfs.node import ROOT, Node
from vfs.walk import open_path
from vfs.words import quote
from wanixfs.http.answers import fields

MAX_SCREEN = 1000


class Programs:
    """Programs of one node: `service` has the records, the tree below `root` the files."""

    def __init__(self, service: TaskService, sessions: Sessions, root: Node) -> None:
        self._service = service
        self._sessions = sessions
        self._root = root

    async def index(self, request: Request) -> Response:
        """GET: every task that the node knows."""
        return JSONResponse([shown(task) for task in list(self._service.tasks.values())])

    async def one(self, request: Request) -> Response:
        """GET: one task."""
        return JSONResponse(shown(self._task(request)))

    async def new(self, request: Request) -> Response:
        """POST {argv, pty: [rows, columns], session}: start a program. In a session it runs as its user, and sees what
        its agent sees while that runs."""
        given = await fields(request, argv=list, pty=list, session=str)
        argv = given.get("argv", [])
        if not argv or not all(isinstance(word, str) for word in argv):
            raise OSError(EINVAL, "argv: a list of at least one word is needed")
        rows, columns = _screen(given["pty"]) if "pty" in given else (0, 0)
        task = self._in_session(given["session"]) if "session" in given else self._service.create(None)
        try:
            await self._write(task, "ctl", "cmd " + " ".join(map(quote, argv)))
            if rows:
                await self._write(task, "ctl", f"pty {rows}x{columns}")
            await self._write(task, "ctl", "start")
        except OSError:
            await self._service.remove(task)
            raise
        return JSONResponse(shown(task), 201)

    async def type(self, request: Request) -> Response:
        """POST bytes: write them to the task's standard input or terminal."""
        await self._write(self._task(request), "fd/0", await request.body())
        return Response(status_code=204)

    async def resize(self, request: Request) -> Response:
        """PUT {rows, columns}: the size of the task's terminal."""
        given = await fields(request, rows=int, columns=int)
        rows, columns = _screen([given.get("rows"), given.get("columns")])
        await self._write(self._task(request), "ctl", f"pty {rows}x{columns}")
        return Response(status_code=204)

    async def kill(self, request: Request) -> Response:
        """POST {signal}: signal the task, TERM by default."""
        given = await fields(request, signal=(str, int))
        await self._write(self._task(request), "ctl", f"kill {quote(str(given.get('signal', 'TERM')))}")
        return Response(status_code=204)

    def _in_session(self, name: str) -> Task:
        session = self._sessions.get(name)
        agent = self._service.tasks.get(session.task)
        if agent is not None and agent.state.live:
            task = self._service.create(agent)
        else:
            task = self._service.create(None, user=session.user)
            self._service.configure(task, "cwd", cwd=f"{self._service.homes.inside(session.user)}/{WORK}")
        self._service.configure(task, "labels", labels=Map(session=name))
        return task

    def _task(self, request: Request) -> Task:
        return self._find(request.path_params["id"])

    def _find(self, name: str) -> Task:
        task = self._service.find(name, None) if name.isdigit() else None
        if task is None:
            raise OSError(ENOENT, f"no such task: {name[:32]!r}")
        return task

    async def _write(self, task: Task, name: str, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else os.fsencode(text + "\n")
        _, handle = await open_path(self._root, f"/task/{task.id}/{name}", os.O_WRONLY, ROOT)
        try:
            done = 0
            while done < len(data):
                done += await handle.write(data[done:], done)
            await handle.flush()
        finally:
            handle.close()


def shown(task: Task) -> dict[str, Any]:
    """Return what the page is told of a task; times in Unix seconds."""
    return {
        "id": str(task.id),
        "parent": str(task.parent.id) if task.parent else None,
        "alias": task.alias or None,
        "type": task.kind or task.spec.type,
        "user": task.spec.user.name,
        "argv": list(task.spec.argv),
        "status": task.state.shown,
        "exitcode": task.exit.code if task.exit else None,
        "reason": task.reason or None,
        "pty": list(task.spec.pty) if task.spec.pty else None,
        "labels": dict(task.spec.labels),
        "created": task.times.created,
        "started": task.times.started,
        "exited": task.times.exited,
    }


def _screen(size: list[Any]) -> tuple[int, int]:
    if len(size) != 2 or not all(isinstance(each, int) and 0 < each <= MAX_SCREEN for each in size):
        raise OSError(EINVAL, f"a terminal has 1 to {MAX_SCREEN} rows and columns")
    return size[0], size[1]
