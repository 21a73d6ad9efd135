"""A task's terminal from the side of who types: what stands behind `fd/0` of a task with a pty."""

import fcntl
import os
import select
import struct
import termios
from dataclasses import dataclass
from errno import EAGAIN, EPIPE

import trio

from vfs.inline import park
from vfs.node import WRITABLE, Handle


@dataclass(frozen=True, slots=True)
class Terminal:
    """The master side of a task's pty: a descriptor of ours that does not block."""

    fd: int
    shows = "terminal"

    def open(self) -> Handle:
        return TypistHandle(os.dup(self.fd))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size; its foreground processes get SIGWINCH."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def end_input(self) -> None:
        """Type the end-of-file key. EAGAIN if nobody reads what was typed before."""
        os.write(self.fd, termios.tcgetattr(self.fd)[6][termios.VEOF])

    def close(self) -> None:
        os.close(self.fd)


class TypistHandle(Handle):
    """Types what is written. A write waits while the terminal takes no more; EPIPE once nobody can read it."""

    __slots__ = ("_fd",)
    stream = True

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        while True:
            if self._hung_up():
                raise OSError(EPIPE, "nobody reads this terminal any more")
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                if nonblock:
                    raise OSError(EAGAIN, "the terminal takes no more") from None
            data = bytes(data)
            await park()
            waiting = os.dup(self._fd)  # of its own: trio lets one task wait for a descriptor
            try:
                await trio.lowlevel.wait_writable(waiting)
            finally:
                os.close(waiting)

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, 0)
        return bool(poll.poll(0))

    def poll(self) -> int:
        return WRITABLE

    def close(self) -> None:
        os.close(self._fd)
