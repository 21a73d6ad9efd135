"""The port for those who have a token and no certificate yet: `GET /v1/ca`, `POST /v1/enroll`, over TLS."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from errno import EACCES, EALREADY, EINVAL
from typing import Any, cast

from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from wanixfs.control.security.access import Access
from wanixfs.control.security.authority import MAX_REQUEST, KeyPair
from wanixfs.control.security.tokens import BearerToken

MAX_BODY = MAX_REQUEST + 4_096
STATUS_OF = {EINVAL: 400, EACCES: 401, EALREADY: 409}


def application(access: Access) -> Starlette:
    async def authority(request: Request) -> Response:
        return PlainTextResponse(access.authority, media_type="application/x-pem-file")

    async def enroll(request: Request) -> Response:
        try:
            token, csr = _asked(await _body(request))
            enrolled = await access.enroll(_secret(token), csr.encode())
        except OSError as error:
            return JSONResponse({"error": error.strerror}, STATUS_OF.get(error.errno or 0, 500))
        return JSONResponse(
            {
                "worker_id": enrolled.worker_id,
                "worker_cert": enrolled.certificate.decode(),
                "ca_cert": enrolled.authority.decode(),
                "expires_at": enrolled.expires_at_ms,
            }
        )

    return Starlette(routes=[Route("/v1/ca", authority), Route("/v1/enroll", enroll, methods=["POST"])])


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise OSError(EINVAL, f"a request is at most {MAX_BODY} bytes")
    return bytes(body)


def _asked(body: bytes) -> tuple[str, str]:
    try:
        match json.loads(body):
            case {"bootstrap_token": str(token), "csr": str(csr)}:
                return token, csr
    except (ValueError, RecursionError):
        pass
    raise OSError(EINVAL, "a request is JSON: bootstrap_token, csr")


def _secret(token: str) -> str:
    """Return a token's secret; what is no token enrolls nobody, like one that is unknown."""
    try:
        return BearerToken.read(token).secret
    except OSError as error:
        raise OSError(EACCES, error.strerror) from None


@asynccontextmanager
async def enrolling(access: Access, own: KeyPair, *, host: str, port: int) -> AsyncIterator[int]:
    """Serve enrollment as long as the block lasts, and give its port. OSError: it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    stopped = asyncio.Event()
    with (
        socket.create_server((host, port), family=family) as listener,
        _as_file(own.certificate) as certificate,
        _as_file(own.key) as key,
    ):
        config = Config()
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        config.certfile, config.keyfile = certificate, key
        config.include_server_header = False
        config.errorlog = None
        served = asyncio.create_task(serve(cast(Any, application(access)), config, shutdown_trigger=stopped.wait))
        try:
            yield int(listener.getsockname()[1])
        finally:
            stopped.set()
            await served


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give the path of a file with this content: Python's TLS takes no other, and a key is not for a disk."""
    with open(os.memfd_create("pem"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
