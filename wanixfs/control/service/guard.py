"""What every call passes through: who calls, and how a refusal is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import EACCES, EALREADY, EBUSY, EDQUOT, EEXIST, EINVAL, ENOENT, ETIMEDOUT
from typing import Any

import grpc
import structlog

from wanixfs.control.credentials import Role
from wanixfs.control.security.access import Access
from wanixfs.control.security.tokens import BearerToken

log = structlog.get_logger("control")

STATUS_OF = {
    EINVAL: grpc.StatusCode.INVALID_ARGUMENT,
    ENOENT: grpc.StatusCode.NOT_FOUND,
    EACCES: grpc.StatusCode.PERMISSION_DENIED,
    EBUSY: grpc.StatusCode.FAILED_PRECONDITION,
    EALREADY: grpc.StatusCode.ALREADY_EXISTS,
    EEXIST: grpc.StatusCode.ALREADY_EXISTS,
    EDQUOT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ETIMEDOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def answered(context: Context) -> AsyncIterator[None]:
    """Tell the caller of an OSError by its status and its words; of anything else only that it happened."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except OSError as error:
        status = STATUS_OF.get(error.errno or 0, grpc.StatusCode.INTERNAL)
        await context.abort(status, error.strerror or "")
    except Exception:
        log.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")


async def client(access: Access, context: Context, asked: Role) -> str:
    """Return the name of the client whose bearer token (RFC 6750 2.1) comes with a call. EACCES: it may not do this."""
    given = dict(context.invocation_metadata() or ()).get("authorization", "")
    scheme, _, text = (given if isinstance(given, str) else "").partition(" ")
    try:
        token = BearerToken.read(text if scheme.lower() == "bearer" else "")
    except OSError as error:
        raise OSError(EACCES, f"this needs a token: {error.strerror}") from None
    return await access.client(token.secret, asked)


def certificate(context: Context) -> bytes:
    """Return the certificate, PEM, that the peer proved to hold. EACCES: none."""
    found = context.auth_context().get("x509_pem_cert")
    if not found:
        raise OSError(EACCES, "this needs a certificate")
    return bytes(next(iter(found)))
