"""Programs that start slowly, kept warm: they fork themselves to become a task.

A warm program is started once, as a child of the supervisor, with one end of
a SEQPACKET socket as descriptor 3. It sends {"ready": true}; from then on it
answers each message, a `start` request whose descriptors are beside it, by
{"pid": N} or {"errno": E, "error": TEXT}, where N has been forked with
CLONE_PARENT: it is the supervisor's child like every other main process. The
child closes the descriptor `report` when the task runs, or writes there why not.
"""

import os
import signal
import socket
from collections.abc import Sequence
from errno import EAGAIN, EIO

from tasks.taskd.protocol import FDS_SPACE, MAX_PACKET, Message, ancillary, decode, integer, pack, received_fds, text

SOCKET_NUMBER = 3
DEADLINE = 10.0
"""Seconds for one fork; the supervisor waits for it."""


class Zygote:
    """One warm program, started but not ready yet. OSError where it can't be."""

    def __init__(self, program: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            given = os.dup(theirs.fileno()) if theirs.fileno() == SOCKET_NUMBER else -1
            source = given if given >= 0 else theirs.fileno()
            actions = [(os.POSIX_SPAWN_DUP2, source, SOCKET_NUMBER)]
            try:
                self.pid = os.posix_spawn(
                    program[0],
                    list(program),
                    {},
                    file_actions=actions,
                    setsid=True,
                    setsigdef=[signal.SIGPIPE],
                    setsigmask=(),
                )
            except OSError:
                self._socket.close()
                raise
            finally:
                if given >= 0:
                    os.close(given)
        self._socket.settimeout(DEADLINE)
        self.ready = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def greet(self) -> None:
        """Receive what it says when it is ready. EIO if that is something else."""
        if self._receive() != {"ready": True}:
            raise OSError(EIO, "the warm program says something else than that it is ready")
        self.ready = True

    def fork(self, message: Message, fds: Sequence[int]) -> int:
        """Let it become a task; return the pid. Its OSError, or EIO if it does not answer; it is of no use then."""
        packet, sent, memory = pack(message, fds)
        try:
            self._socket.sendmsg([packet], ancillary(sent))
        except OSError as error:
            self.ready = False
            raise OSError(EIO, "the warm program is gone") from error
        finally:
            if memory >= 0:
                os.close(memory)
        reply = self._receive()
        if "errno" in reply:
            raise OSError(integer(reply, "errno", 1, 4095), text(reply, "error", 4096, ""))
        return integer(reply, "pid", 1, 1 << 31)

    def _receive(self) -> Message:
        try:
            packet, extra, _, _ = self._socket.recvmsg(MAX_PACKET, FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            packet, extra = b"", []
            reason = str(error)
        else:
            reason = "it has ended"
        for fd in received_fds(extra):
            os.close(fd)
        if not packet:
            self.ready = False
            raise OSError(EIO, f"the warm program does not answer: {reason}")
        return decode(packet)

    def end(self) -> None:
        """Kill it, unless it has ended; it is to be reaped."""
        self.ready = False
        self._socket.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    @property
    def over(self) -> bool:
        return self._socket.fileno() < 0


def request(
    message: Message, fds: Sequence[int], given: dict[int, int], terminal: int, report: int
) -> tuple[Message, list[int]]:
    """Return a `start` request as its warm program gets it: with the task's descriptors all made."""
    sent = list(fds)

    def index(fd: int) -> int:
        sent.append(fd)
        return len(sent) - 1

    changed: Message = {**message, "fds": {str(number): index(fd) for number, fd in given.items()}, "spools": {}}
    changed["pty"] = None
    changed["report"] = index(report)
    if terminal >= 0:
        changed["terminal"] = index(terminal)
    return changed, sent


class Zygotes:
    """The warm programs of a supervisor, by their command lines."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Zygote] = {}

    def get(self, program: tuple[str, ...]) -> Zygote:
        """Return a warm program, which may not be ready yet, started if need be."""
        zygote = self._known.get(program)
        if zygote is None or zygote.over:
            zygote = self._known[program] = Zygote(program)
        return zygote

    def pids(self) -> set[int]:
        return {zygote.pid for zygote in self._known.values() if zygote.pid}

    def spawn(
        self, program: tuple[str, ...], message: Message, fds: Sequence[int], given: dict[int, int], terminal: int
    ) -> tuple[int, int]:
        """Start a task; return (pid, status pipe) as `launch.spawn` does. EAGAIN unless the program is warm."""
        zygote = self._known.get(program)
        if zygote is None or not zygote.ready:
            raise OSError(EAGAIN, "the program is not warm")
        status, report = os.pipe()
        try:
            os.set_blocking(status, False)
            pid = zygote.fork(*request(message, fds, given, terminal, report))
        except OSError:
            os.close(status)
            if not zygote.ready:
                zygote.end()
            raise
        finally:
            os.close(report)
        return pid, status

    def by_pid(self, pid: int) -> Zygote | None:
        return next((zygote for zygote in self._known.values() if zygote.pid == pid), None)

    def ended(self, ended: Zygote) -> None:
        """Forget a warm program that was reaped, and whose `pid` is therefore 0."""
        ended.end()
        self._known = {program: zygote for program, zygote in self._known.items() if zygote is not ended}

    def end(self) -> None:
        """End all of them and wait until they are gone."""
        for zygote in self._known.values():
            zygote.end()
            if zygote.pid:
                os.waitpid(zygote.pid, 0)
        self._known.clear()
