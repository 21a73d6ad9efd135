"""A task that tries what it is told to, from inside: each attempt in a process of its own, with the errno it met."""

import errno
import json
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from serving import SECONDS, Served

PYTHON = "/usr/bin/python3"
SECRET = "nobody else may read this"
CLEAR = "0"
"""What `Prisoner.attempt` returns for an attempt that nothing refused."""

# It holds no descriptor but its streams. An attempt is the body of a function; what it returns is shown.
INMATE = """
import ctypes, errno, fcntl, json, os, signal, socket, stat, struct, sys, textwrap
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    kinds = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *kinds)
    if result < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return result
def read(path):
    with open(path, "rb") as file:
        return file.read(4096).decode(errors="replace")
def write(path, text):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
def attempt(body):
    scope = dict(globals())
    try:
        exec("def body():\\n" + textwrap.indent(body, "    "), scope)
        return [0, scope["body"]()]
    except OSError as error:
        return [error.errno, str(error)]
    except BaseException as error:
        return [-1, repr(error)]
print("{}", flush=True)
for line in sys.stdin:
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(theirs, (json.dumps(attempt(json.loads(line))) + "\\n").encode())
        os._exit(0)
    os.close(theirs)
    with open(ours) as report:
        said = report.read() or "[-1, \\"it was killed\\"]\\n"
    os.waitpid(pid, 0)
    sys.stdout.write(said)
    sys.stdout.flush()
"""


@dataclass(frozen=True)
class Cell:
    """A task's directory in the administrator's mount."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    def ctl(self, *lines: str, file: str = "ctl") -> None:
        """Write control lines; raises what refuses them."""
        for line in lines:
            fd = os.open(self.path / file, os.O_WRONLY)
            try:
                os.write(fd, f"{line}\n".encode())
            finally:
                os.close(fd)

    def read(self, file: str) -> str:
        return (self.path / file).read_text().strip()

    def main_pid(self) -> int:
        """Return the host's pid of the main process: the one whose root is this task's."""
        marker = f"CELL={self.path}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (process / "environ").read_bytes().split(b"\0"):
                    return int(process.name)
            except OSError:
                continue
        raise AssertionError(f"no process of task {self.id}")

    def end(self) -> None:
        """Kill it and wait for its end, if it runs."""
        try:
            self.ctl("kill 9")
        except OSError:
            return
        self.read("wait")


def new_cell(mount: Path, *lines: str) -> Cell:
    """Make a task of the administrator's."""
    cell = Cell(mount / "task" / (mount / "task/new").read_text().strip())
    cell.ctl(f"CELL={cell.path}", file="env")
    cell.ctl(*lines)
    return cell


class Prisoner:
    """A running task that makes attempts."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        (cell.path / "args").write_bytes(b"\0".join((PYTHON.encode(), b"-Ic", INMATE.encode(), b"")))
        cell.ctl("start")
        self._out = os.open(cell.path / "fd/1", os.O_RDONLY | os.O_NONBLOCK)
        self._said = b""
        assert self._line() == {}
        self._in: IO[bytes] = open(cell.path / "fd/0", "wb", buffering=0)

    def _line(self) -> Any:
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        while b"\n" not in self._said:
            assert poll.poll(SECONDS * 1000), "the prisoner does not answer"
            try:
                piece = os.read(self._out, 65536)
            except BlockingIOError:  # news of the task, but not of its output
                continue
            assert piece, f"the prisoner is gone: {self.cell.read('reason')}: {(self.cell.path / 'fd/2').read_text()}"
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return json.loads(line)

    def try_(self, body: str) -> tuple[int, Any]:
        """Let it run the body of a function; return (0, what it returned) or the errno of the OSError it met."""
        self._in.write(json.dumps(body).encode() + b"\n")
        number, shown = self._line()
        assert number >= 0, f"{body}\n{shown}"
        return number, shown

    def attempt(self, body: str) -> str:
        """Return the name of the errno that an attempt met, CLEAR if it met none."""
        number, _ = self.try_(body)
        return errno.errorcode[number] if number else CLEAR

    def sees(self, body: str) -> Any:
        """Return what a body that must meet no error returns."""
        number, shown = self.try_(body)
        assert number == 0, shown
        return shown

    def release(self) -> None:
        self._in.close()
        os.close(self._out)
        self.cell.end()


@dataclass(frozen=True)
class Prison:
    """Where the prisoners are, and what is outside."""

    served: Served
    mount: Path
    sibling: Cell
    sibling_pid: int
    bound: Path
    """A directory of the host that every prisoner has at /bound."""
