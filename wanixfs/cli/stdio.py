"""Our own standard streams and terminal, used so that nothing here ever blocks the event loop."""

import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from errno import EAGAIN, EPERM

import trio

from wanixfs.cli.failure import OutputGone

STDIN, STDOUT, STDERR = 0, 1, 2
CHUNK = 1 << 16


async def write_fd(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` in a thread: a slow reader of ours must not hold up anything else. OutputGone."""
    view = memoryview(data)
    while view:
        try:
            done = await trio.to_thread.run_sync(os.write, fd, view, abandon_on_cancel=True)
        except BrokenPipeError:
            raise OutputGone from None
        view = view[done:]


async def chunks(fd: int) -> AsyncIterator[bytes]:
    """Yield what `fd` gives until its end; a closed descriptor is at its end."""
    while True:
        try:
            await trio.lowlevel.wait_readable(fd)
        except OSError as error:
            if error.errno != EPERM:  # epoll's word for a regular file, which is always ready
                return
            await trio.lowlevel.checkpoint()
        try:
            data = os.read(fd, CHUNK)
        except OSError as error:
            if error.errno == EAGAIN:
                continue
            return  # EIO: the terminal has gone
        if not data:
            return
        yield data


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Hand every key to the task, and give the terminal back as it was."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is the task's
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def terminal_size() -> str:
    """Return the terminal's size as the `pty` verb takes it."""
    try:
        size = os.get_terminal_size(STDIN)
    except OSError:
        return "24x80"
    return f"{size.lines or 24}x{size.columns or 80}"


def printable(text: str) -> str:
    """Return `text` with everything escaped that could steer a terminal: names and commands are strangers' words."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def show(text: str) -> None:
    """Print one line; a name that is not UTF-8 goes out as the bytes it is. OutputGone."""
    shown = printable(text) if sys.stdout.isatty() else text
    try:
        sys.stdout.buffer.write(os.fsencode(shown + "\n"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise OutputGone from None
