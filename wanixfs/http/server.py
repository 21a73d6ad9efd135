"""Serves an ASGI application on a socket for as long as the block runs."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.trio import serve
from starlette.types import ASGIApp
from structlog import get_logger

log = get_logger("wanixfs.http")

GRACE = 0.5
"""Seconds that answers under way get when the server ends; streams never end by themselves."""
IDLE = 75.0
"""Seconds for which a connection without a request is kept."""


class Log(Logger):
    """What the HTTP server has to say goes where all else goes; of single requests it says nothing."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.access_logger = None

    async def info(self, message: str, *args: Any, **kwargs: Any) -> None:
        return

    async def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        log.warning(message % args if args else message)

    async def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        log.error(message % args if args else message)

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        log.exception(message % args if args else message)


@asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[str]:
    """Serve `app` on a listening socket (which is taken over) until the block ends; yield its URL."""
    host, port = listener.getsockname()[:2]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = GRACE
    config.keep_alive_timeout = IDLE
    config.include_server_header = False
    config.logger_class = Log
    closing = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(cast(Any, app), config, shutdown_trigger=closing.wait, task_status=task_status, mode="asgi")

        await nursery.start(run)
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            closing.set()
