"""The one mapping from an exception to the errno that a client sees."""

import traceback
from collections.abc import Callable
from errno import EINVAL, EIO, ENOMEM
from typing import Any

import structlog

log: Callable[..., Any] = structlog.get_logger("vfs").error


def errno_of(error: BaseException, where: str = "") -> int:
    """Return the errno for `error`: an OSError's own, ENOMEM, EINVAL for a number that no system call takes.

    Anything else is a fault of ours: EIO, and the traceback is logged with `where`, which names the request. Never
    raises.
    """
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, MemoryError):
        return ENOMEM
    if isinstance(error, OverflowError):
        return EINVAL
    log("request failed", where=where, error=repr(error), traceback="".join(traceback.format_exception(error)))
    return EIO
