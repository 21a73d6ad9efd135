"""What a user sees of a failure: one line on stderr and an exit status, never a traceback (unless asked)."""

import os
from errno import ECONNREFUSED, ENOENT

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
BROKEN_PIPE = 141
"""128 + SIGPIPE: whoever read our output has gone."""


class Failure(Exception):
    """A failure with its one line for the user and its exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class OutputGone(Exception):
    """Nobody reads our output any more: end without a word, as SIGPIPE would."""


def no_server(address: str, error: OSError) -> Failure:
    """Return what to say when nobody answers at `address`: the one command that helps."""
    if error.errno in (ENOENT, ECONNREFUSED):
        return Failure(f"no server at {address}; start one with: wanixfs serve")
    return Failure(f"cannot connect to {address}: {describe(error)}")


def describe(error: BaseException) -> str:
    """Return one line for `error`."""
    if isinstance(error, OSError) and error.errno:
        text = error.strerror or os.strerror(error.errno)
        return f"{os.fsdecode(error.filename)}: {text}" if error.filename is not None else text
    return " ".join(str(error).split()) or type(error).__name__


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors inside an exception group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in leaves(member)]
    return [error]


def cause(error: BaseException) -> BaseException:
    """Return the one error to report of a group: an interrupt before a failure with its own words before any other."""
    return min(leaves(error), key=lambda leaf: (not isinstance(leaf, KeyboardInterrupt), not isinstance(leaf, Failure)))
