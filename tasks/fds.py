"""A task's descriptor table: where each number will point, or points, and the pipe that is its stdin.

Kernel descriptors throughout: what a task reads and writes goes from kernel
to kernel, not through this program.
"""

import os
import stat as statmod
from collections.abc import Callable
from dataclasses import dataclass
from errno import EACCES, EPIPE

from tasks.spool import Spool
from tasks.terminal import Terminal
from vfs.files import Synthetic
from vfs.node import Caller, Handle
from vfs.pipes import Pipe

MAX_FD = 255
"""The highest descriptor number that can be set up for a task."""
STDIN = 0


@dataclass(frozen=True, slots=True)
class Spooled:
    """Output kept for readers: the default of 1 and 2."""

    spool: Spool

    @property
    def shows(self) -> str:
        lost = f" dropped_bytes {self.spool.start}" if self.spool.start else ""
        return f"spool {self.spool.end} bytes{lost}"

    def close(self) -> None:
        """A spool stays readable."""


@dataclass(frozen=True, slots=True)
class Stdin:
    """The pipe behind `fd/0`. `write` is held so that it stays open between writers, until `close`."""

    pipe: Pipe
    write: int
    shows = "stdin"

    def close(self) -> None:
        os.close(self.write)
        self.pipe.close()


@dataclass(frozen=True, slots=True)
class Held:
    """A descriptor of ours that the task gets at start."""

    fd: int
    shows: str

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Inherited:
    """The parent's descriptor of the same number, taken at start."""

    shows = "inherit"

    def close(self) -> None:
        """Nothing is held yet."""


@dataclass(frozen=True, slots=True)
class Gone:
    """No longer ours: closed, or the task's alone since it started."""

    shows: str = "closed"

    def close(self) -> None:
        """Nothing is held any more."""


Entry = Spooled | Stdin | Terminal | Held | Inherited | Gone


class FdTable:
    """Number -> entry. 0 (stdin), 1 and 2 (spools) appear when first used."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}

    def numbers(self) -> list[int]:
        return sorted({0, 1, 2} | set(self.entries))

    @property
    def held(self) -> int:
        """How many descriptors are kept for the task's start."""
        return sum(isinstance(entry, Held) for entry in self.entries.values())

    def shows(self, number: int) -> str:
        """Return where a descriptor points, in words."""
        entry = self.entries.get(number)
        if entry is not None:
            return entry.shows
        return "stdin" if number == STDIN else "spool 0 bytes" if number < 3 else "closed"

    def set(self, number: int, entry: Entry) -> None:
        """Replace an entry, closing what it held."""
        old = self.entries.get(number)
        self.entries[number] = entry
        if old is not None:
            old.close()

    def stdin(self) -> Stdin | Terminal | None:
        """Return what is behind fd/0: a pipe, made on first use, or a terminal; None if closed or elsewhere."""
        if STDIN not in self.entries:
            pipe = Pipe()
            self.entries[STDIN] = Stdin(pipe, pipe.take_writer())
        entry = self.entries[STDIN]
        return entry if isinstance(entry, Stdin | Terminal) else None

    def adopt_stdin(self, write: int) -> None:
        """Take back the write end of a running task's stdin, kept over a restart; it is ours from now on."""
        pipe = Pipe.from_fds(
            os.open(f"/proc/self/fd/{write}", os.O_PATH | os.O_CLOEXEC),
            os.open(f"/proc/self/fd/{write}", os.O_PATH | os.O_CLOEXEC),
        )
        self.entries[STDIN] = Stdin(pipe, write)

    def hand_over(self) -> None:
        """The task has its descriptors: close ours, keep what they were and stdin's write end."""
        for number, entry in self.entries.items():
            if isinstance(entry, Held | Inherited):
                self.entries[number] = Gone(entry.shows)
                entry.close()

    def close(self) -> None:
        """Close every descriptor that is still ours (spools stay readable)."""
        for number, entry in self.entries.items():
            if isinstance(entry, Stdin | Terminal | Held | Inherited):
                self.entries[number] = Gone(entry.shows)
                entry.close()


class StdinFile(Synthetic):
    """`fd/0`: what is written goes into the task's stdin, waiting while that is full. EPIPE once it is closed."""

    __slots__ = ("stdin",)
    unshared = True

    def __init__(self, stdin: Callable[[], Stdin | Terminal | None]) -> None:
        super().__init__(statmod.S_IFREG | 0o200)
        self.stdin = stdin

    async def open(self, flags: int, who: Caller) -> Handle:
        if flags & os.O_ACCMODE != os.O_WRONLY:
            raise OSError(EACCES, "stdin can only be written")
        stdin = self.stdin()
        if stdin is None:
            raise OSError(EPIPE, "stdin is closed or points elsewhere")
        return stdin.open() if isinstance(stdin, Terminal) else await stdin.pipe.writer.open(flags, who)
