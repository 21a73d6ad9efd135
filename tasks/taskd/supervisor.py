"""The supervisor: parent of every process of every task, and what of them outlives the server.

One thread, one loop. A task goes through: started (its status pipe still
open), running, ending (its main process is gone, the rest is being killed),
ended. The answer to `start` and the event `exited` are sent in that order,
and `exited` only after the last of its output was reported.
"""

import fcntl
import heapq
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import termios
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from errno import EBUSY, EEXIST, EINVAL, EIO, ENODEV, ENOSPC, ENOSYS, EPROTO, ESRCH, ETIMEDOUT
from functools import partial
from typing import Any

from tasks.taskd import launch, protocol, relay, syscalls
from tasks.taskd.channel import Channel, PacketChannel
from tasks.taskd.processes import descendants, members
from tasks.taskd.protocol import Message, integer, text
from tasks.taskd.root import Plan
from tasks.taskd.spool import Spool
from tasks.taskd.stocks import KEEP_SECONDS, Stocks
from tasks.taskd.vault import Vault
from tasks.taskd.zygote import Zygote, Zygotes

START_DEADLINE = 30.0
OUTPUT_INTERVAL = 0.005
MAX_TASKS = 1 << 17

UNHEEDED = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)
SWEEP_INTERVAL = 0.01
DRAINS_AT_END = 1024

Reply = tuple[Message, Sequence[int]]
Request = tuple[Channel, object]
"""Who asked, and the number of the request."""


class Task:
    """One task as the supervisor knows it."""

    __slots__ = (
        "ending",
        "exit",
        "failed",
        "id",
        "init",
        "isolated",
        "main",
        "relay",
        "request",
        "spools",
        "status",
        "sweep",
        "terminal",
    )

    def __init__(self, id: str) -> None:
        self.id = id
        self.main = 0
        self.init = 0
        self.relay = 0
        self.status = -1
        self.request: Request | None = None
        self.failed: OSError | None = None
        self.ending: Message | None = None  # how the main process ended
        self.exit: Message | None = None  # the same, once all of the task is gone
        self.spools: list[Spool] = []
        self.terminal = -1
        self.sweep = -1
        self.isolated = False

    @property
    def over(self) -> bool:
        return self.main == 0


class Supervisor:
    """Serves one server at a time; the newest connection wins."""

    operations: "Mapping[str, Operation]"
    """What it can be asked to do, by name."""

    def __init__(self) -> None:
        self._around = launch.Surroundings()
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], object]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._tasks: dict[str, Task] = {}
        self._mains: dict[int, Task] = {}
        self._inits: dict[int, Task] = {}
        self._relays: dict[int, Task] = {}
        self._grafts: dict[int, tuple[Request, int]] = {}
        self._changed: dict[Spool, Task] = {}
        self._output_due = 0.0
        self._output_timer = False
        self._vault = Vault()
        self._stocks = Stocks()
        self._stocks_timer = False
        self._zygotes = Zygotes()
        self._warming: dict[Zygote, list[Request]] = {}
        self._server: Channel | None = None
        self._listening = False
        self._absent_since = time.monotonic()
        self._quitting: Request | None = None
        self._done = False
        self._adopt_children()
        wake, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in UNHEEDED:  # caught, not ignored: exec gives the tasks the default back
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        self._watch(wake, lambda _: self._reap(wake))

    def _adopt_children(self) -> None:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    # The loop

    def listen(self, sock: socket.socket) -> None:
        """Take servers from a listening SEQPACKET socket: root's or our own user's."""

        def accept(_: int) -> None:
            peer, _address = sock.accept()
            uid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid not in (0, os.geteuid()):
                peer.close()
                return
            self.connect(PacketChannel(peer))

        self._watch(sock.fileno(), accept)

    def connect(self, channel: Channel) -> None:
        """Make `channel` the server's; an older one is told and closed."""
        if self._server:
            self._server.send({"event": "replaced"})
            self._disconnect()
        self._server = channel
        self._listening = True
        self._watch(channel.fileno(), lambda events: self._converse(channel, events))

    def run(self) -> None:
        """Serve until `quit`."""
        while not self._done:
            pause = -1.0
            if self._timers:
                pause = max(0.0, self._timers[0][0] - time.monotonic())
            for fd, events in self._epoll.poll(pause):
                handle = self._ready.get(fd)
                if handle:  # an earlier handler may have closed it
                    self._guard(handle, events)
            while self._timers and self._timers[0][0] <= time.monotonic():
                self._guard(heapq.heappop(self._timers)[2])
            self._guard(self._report_output)

    def _guard(self, act: Callable[..., object], *args: object) -> None:
        try:
            act(*args)
        except Exception:  # the supervisor outlives its own mistakes: everybody's tasks hang on it
            traceback.print_exc(file=sys.stderr)

    def _watch(self, fd: int, handle: Callable[[int], object], events: int = select.EPOLLIN) -> None:
        self._ready[fd] = handle
        self._epoll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._ready.pop(fd, None):
            self._epoll.unregister(fd)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_count, act))

    # The conversation

    def _converse(self, channel: Channel, events: int) -> None:
        channel.flush()
        try:
            if channel.clear and events & ~select.EPOLLOUT:
                channel.receive(lambda message, fds: self._serve(channel, message, fds))
        except EOFError:
            self._disconnect()
            return
        except OSError as error:
            channel.send({"id": None, "errno": error.errno or EPROTO, "error": str(error.strerror)})
        self._rearm()

    def _rearm(self) -> None:
        """Read requests only while replies are being taken."""
        if self._server and self._server.clear is not self._listening:
            self._listening = self._server.clear
            self._epoll.modify(self._server.fileno(), select.EPOLLIN if self._listening else select.EPOLLOUT)

    def _disconnect(self) -> None:
        server, self._server = self._server, None
        if not server:
            return
        self._unwatch(server.fileno())
        server.close()
        self._absent_since = time.monotonic()
        self._changed.clear()
        for grace in self._vault.graces():
            self._after(grace, self._drop_expired)

    def _drop_expired(self) -> None:
        if not self._server:
            self._vault.drop_expired(time.monotonic() - self._absent_since)

    def _serve(self, channel: Channel, message: Message, fds: Sequence[int]) -> None:
        number = message.get("id")
        try:
            operation = self.operations.get(text(message, "op", 32))
            if operation is None:
                raise OSError(ENOSYS, "no such operation")
            reply = operation(self, message, fds, (channel, number))
        except OSError as error:
            self._refuse(channel, number, error)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._refuse(channel, number, OSError(EIO, "the supervisor failed; see its log"))
        else:
            if reply and number is not None:
                channel.send({"id": number, "ok": reply[0]}, reply[1])

    def _refuse(self, channel: Channel, number: object, error: OSError) -> None:
        channel.send({"id": number, "errno": error.errno or EIO, "error": error.strerror or str(error)})

    def _tell(self, event: Message) -> None:
        if self._server:
            self._server.send(event)
            self._rearm()

    def _answer(self, request: Request | None, outcome: Message | OSError) -> None:
        """Answer a request that had to wait, if who asked is still there."""
        if not request or request[0] is not self._server or request[1] is None:
            return
        if isinstance(outcome, OSError):
            self._refuse(*request, outcome)
        else:
            request[0].send({"id": request[1], "ok": outcome})
        self._rearm()

    # Operations: each returns its reply, or None to answer later

    def _hello(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        if integer(message, "version", 0, 1 << 31) != protocol.VERSION:
            raise OSError(EPROTO, f"this supervisor speaks version {protocol.VERSION}")
        return {"version": protocol.VERSION, "pid": os.getpid(), "held": self._vault.keys()}, ()

    def _list(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        return {
            task.id: {
                "pid": task.main,
                "exit": task.exit,
                "spools": {number: spool.state() for spool in task.spools for number in spool.numbers},
            }
            for task in self._tasks.values()
            if not task.request
        }, ()

    def _start(self, message: Message, fds: Sequence[int], request: Request) -> None:
        spec = launch.Spec(message, fds, self._stocks)
        self._expire_stocks_later()
        if self._quitting:
            raise OSError(EBUSY, "shutting down")
        if spec.task in self._tasks:
            raise OSError(EEXIST, "a task of this id is known")
        if len(self._tasks) >= MAX_TASKS:
            raise OSError(ENOSPC, "too many tasks")
        task = Task(spec.task)
        given = dict(spec.fds)
        for fd in given.values():
            _share_pipe(fd)
        ours: list[int] = []  # the child's ends, closed once it has them
        terminal = -1
        try:
            if spec.pty:
                task.terminal, terminal = os.openpty()
                ours.append(terminal)
                os.set_blocking(task.terminal, False)
                if os.geteuid() == 0:
                    os.fchown(terminal, spec.uid, spec.gid)
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", *spec.pty, 0, 0))
                for number in range(3):
                    given.setdefault(number, terminal)
            self._open_spools(spec, task, given, ours)
            if spec.sweep >= 0:
                task.sweep = os.dup(spec.sweep)
            if spec.allow:
                around, join = self._around, spec.join
                task.relay, spec.relay = relay.start(
                    spec.allow, spec.uid, spec.gid, join=join, cgroup=spec.cgroup, alive=around.alive, null=around.null
                )
                self._relays[task.relay] = task
                ours.append(spec.relay)
            if "warm" in message:
                program = tuple(protocol.texts(message, "warm", launch.MAX_PATH))
                task.main, task.status = self._zygotes.spawn(program, message, fds, given, terminal)
            else:
                task.main, task.init, task.status = launch.spawn(spec, given, terminal, self._around)
        except OSError:
            self._close(task)
            if task.relay:
                _signal(task.relay, signal.SIGKILL)
            raise
        finally:
            for fd in ours:
                os.close(fd)
        task.request = request
        task.isolated = task.init > 0
        self._tasks[task.id] = self._mains[task.main] = task
        if task.init:
            self._inits[task.init] = task
        self._watch(task.status, lambda _: self._launched(task))
        self._after(START_DEADLINE, lambda: self._overdue(task))
        for spool in task.spools:
            if spool.source >= 0:
                self._watch(spool.source, partial(self._pour, task, spool))

    def _expire_stocks_later(self) -> None:
        if not self._stocks_timer:
            self._stocks_timer = True
            self._after(KEEP_SECONDS, self._expire_stocks)

    def _expire_stocks(self) -> None:
        self._stocks_timer = False
        if self._stocks.expire():
            self._expire_stocks_later()

    def _open_spools(self, spec: launch.Spec, task: Task, given: dict[int, int], ours: list[int]) -> None:
        """Make a pipe for each file that output goes to; numbers with the same file share it."""
        shared: dict[int, list[int]] = {}
        for number, file in spec.spools.items():
            shared.setdefault(file, []).append(number)
        for file, numbers in shared.items():
            kept = os.dup(file)
            if spec.pty and min(numbers) <= 2:
                source = task.terminal if 1 in numbers else -1
                task.spools.append(Spool(numbers, source, kept, spec.spool_limit, terminal=True))
                continue
            source, write_end = os.pipe()
            _share(write_end)
            ours.append(write_end)
            os.set_blocking(source, False)
            task.spools.append(Spool(numbers, source, kept, spec.spool_limit))
            for number in numbers:
                given[number] = write_end

    def _warm(self, message: Message, fds: Sequence[int], request: Request) -> Reply | None:
        """Start a program that tasks can be forked from, and answer when it is ready."""
        program = tuple(protocol.texts(message, "program", launch.MAX_PATH))
        if not program:
            raise OSError(EINVAL, "no program")
        zygote = self._zygotes.get(program)
        if zygote.ready:
            return {}, ()
        self._warming.setdefault(zygote, []).append(request)
        if len(self._warming[zygote]) == 1:
            self._watch(zygote.fileno(), lambda _: self._warmed(zygote))
            self._after(START_DEADLINE, lambda: self._warmed(zygote, late=True))
        return None

    def _warmed(self, zygote: Zygote, *, late: bool = False) -> None:
        if zygote not in self._warming:
            return
        self._unwatch(zygote.fileno())
        outcome: Message | OSError = {}
        try:
            if late:
                raise OSError(ETIMEDOUT, "the program did not become warm")
            zygote.greet()
        except OSError as error:
            outcome = error
            zygote.end()
        for request in self._warming.pop(zygote):
            self._answer(request, outcome)

    def _graft(self, message: Message, fds: Sequence[int], request: Request) -> None:
        task = self._task(message)
        if task.over:
            raise OSError(ESRCH, "the task has ended")
        if not task.isolated:
            raise OSError(EINVAL, "the task has no root of its own")
        child, status = launch.graft(Plan(protocol.table(message, "root")), task.main, self._around)
        self._grafts[child] = (request, status)
        self._after(START_DEADLINE, lambda: _signal(child, signal.SIGKILL) if child in self._grafts else None)

    def _grafted(self, request: Request, status: int, code: int) -> None:
        with open(status, "rb") as pipe:
            report = pipe.read()
        if report:
            self._answer(request, launch.failure(report))
        elif code:
            self._answer(request, OSError(ETIMEDOUT, "the binds could not be changed in time"))
        else:
            self._answer(request, {})

    def _kill(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        task = self._task(message)
        number = integer(message, "signal", 0, 64)
        if task.over:
            raise OSError(ESRCH, "the task has ended")
        if number == signal.SIGKILL:
            _signal(task.init or task.main, number)  # the rest follows when the main process has ended
        elif number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in (task.main, *self._others(task)):
                _signal(pid, number)
        else:
            os.kill(task.main, number)
        return {}, ()

    def _pids(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        task = self._task(message)
        return {"pids": [] if task.over else [task.main, *self._others(task)]}, ()

    def _terminal(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        task = self._task(message)
        if task.terminal < 0:
            raise OSError(ENODEV, "the task has no terminal")
        return {}, [task.terminal]

    def _forget(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        task = self._task(message)
        if not task.exit:
            raise OSError(EBUSY, "the task has not ended")
        self._remove(task)
        return {}, ()

    def _hold(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        grace = integer(message, "grace_ms", 0, 86_400_000) / 1000 if "grace_ms" in message else None
        if not fds:
            raise OSError(EINVAL, "no descriptors to hold")
        self._vault.hold(text(message, "key", 256), fds, grace)
        return {}, ()

    def _take(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        return {}, self._vault.take(text(message, "key", 256))

    def _drop(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        self._vault.drop(text(message, "key", 256))
        return {}, ()

    def _quit(self, message: Message, fds: Sequence[int], request: Request) -> None:
        self._quitting = request
        for task in list(self._tasks.values()):
            if not task.over:
                _signal(task.init or task.main, signal.SIGKILL)
        self._quit_if_idle()

    def _quit_if_idle(self) -> None:
        if self._quitting and not self._mains and not self._inits and all(t.exit for t in self._tasks.values()):
            self._zygotes.end()
            self._answer(self._quitting, {})
            self._done = True

    def _task(self, message: Message) -> Task:
        task = self._tasks.get(text(message, "task", 64))
        if task is None or task.request:
            raise OSError(ESRCH, "no such task")
        return task

    # A task's life

    def _launched(self, task: Task) -> None:
        """The status pipe has spoken: exec succeeded, or the child says why not."""
        try:
            report = os.read(task.status, 4096)
        except BlockingIOError:
            return
        self._unwatch(task.status)
        os.close(task.status)
        task.status = -1
        if report:
            task.failed = task.failed or launch.failure(report)
        elif not task.failed:
            request, task.request = task.request, None
            self._answer(request, {"pid": task.main})

    def _overdue(self, task: Task) -> None:
        if task.status >= 0:
            task.failed = OSError(ETIMEDOUT, "the program could not be started in time")
            _signal(task.init or task.main, signal.SIGKILL)

    def _reap(self, wake: int) -> None:
        os.read(wake, 4096)
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self._mains:
                self._main_ended(self._mains.pop(pid), status, usage)
            elif pid in self._grafts:
                self._grafted(*self._grafts.pop(pid), os.waitstatus_to_exitcode(status))
            elif pid in self._inits:
                task = self._inits.pop(pid)
                task.init = 0
                self._finish(task)
            elif pid in self._relays:
                task = self._relays.pop(pid)
                task.relay = 0
                self._finish(task)
            elif zygote := self._zygotes.by_pid(pid):
                zygote.pid = 0  # there is nothing to kill any more
                self._warmed(zygote)
                self._zygotes.ended(zygote)

    def _main_ended(self, task: Task, status: int, usage: resource.struct_rusage) -> None:
        if task.status >= 0:
            self._launched(task)
        code = os.waitstatus_to_exitcode(status)
        if task.request and not task.failed:  # killed between fork and exec
            task.failed = OSError(EIO, f"ended before it could be started ({code})")
        task.main = 0
        task.ending = {
            "code": code if code >= 0 else 128 - code,
            "reason": "exited" if code >= 0 else f"signal {-code}",
            "user_usec": int(usage.ru_utime * 1e6),
            "system_usec": int(usage.ru_stime * 1e6),
            "peak_bytes": usage.ru_maxrss * 1024,
        }
        if task.init:
            _signal(task.init, signal.SIGKILL)
        if task.relay:
            _signal(-task.relay, signal.SIGTERM)  # its process group: what the task has said is still carried over
        self._finish(task)

    def _finish(self, task: Task) -> None:
        """Report the end once nothing of the task is left; else kill what is and look again."""
        if task.main or task.init or task.relay or task.exit or task.id not in self._tasks:
            return
        left = self._others(task)
        if left:
            for pid in left:
                _signal(pid, signal.SIGKILL)
            self._after(SWEEP_INTERVAL, lambda: self._finish(task))
            return
        for spool in task.spools:
            for _ in range(DRAINS_AT_END):  # someone else's process may hold the pipe and go on writing
                if not self._drain(task, spool):
                    break
            if spool.terminal:
                self._shut(spool)
        task.exit = task.ending
        self._close_handles(task)
        if task.failed:
            request, task.request = task.request, None
            self._remove(task)
            self._answer(request, task.failed)
        else:
            last = self._take_changed({spool for spool in task.spools if spool in self._changed})
            self._tell({"event": "exited", "task": task.id, "exit": task.exit, "spools": last})
        self._quit_if_idle()

    def _others(self, task: Task) -> list[int]:
        """Return the pids of the task's processes other than its main one (and its namespace's init)."""
        if task.init:
            return [pid for pid in descendants([task.main, task.init]) if pid != task.main]
        if task.sweep >= 0:
            try:
                return [pid for pid in members(task.sweep) if pid != task.main]
            except OSError:  # the cgroup was removed, so it was empty
                return []
        if task.main:
            return descendants([task.main])
        if task.isolated:
            return []
        # Every living main process is a subreaper, so what hangs below us directly was left by one that ended.
        known = (
            self._mains.keys() | self._inits.keys() | self._relays.keys() | self._grafts.keys() | self._zygotes.pids()
        )
        return descendants([os.getpid()], without=known)

    def _remove(self, task: Task) -> None:
        del self._tasks[task.id]
        self._close(task)

    def _close(self, task: Task) -> None:
        for spool in task.spools:
            self._shut(spool)
            self._changed.pop(spool, None)
        self._close_handles(task)

    def _close_handles(self, task: Task) -> None:
        for fd in (task.terminal, task.sweep):
            if fd >= 0:
                os.close(fd)
        task.terminal = task.sweep = -1

    def _shut(self, spool: Spool) -> None:
        self._unwatch(spool.source)
        spool.close()

    # Output

    def _pour(self, task: Task, spool: Spool, _: int) -> None:
        self._drain(task, spool)

    def _drain(self, task: Task, spool: Spool) -> bool:
        if spool.eof:
            return False
        more = spool.drain()
        self._changed[spool] = task
        if spool.eof:
            self._shut(spool)
        return more

    def _report_output(self) -> None:
        """Tell how far the spools have come: at once after a quiet time, else a few hundred times a second at most."""
        if not self._server or not self._server.clear:
            return
        changed = {spool for spool, task in self._changed.items() if not task.request}  # not before the start is
        if not changed:
            return
        time_now = time.monotonic()
        if time_now < self._output_due:
            if not self._output_timer:
                self._output_timer = True
                self._after(self._output_due - time_now, self._output_timeout)
            return
        self._output_due = time_now + OUTPUT_INTERVAL
        self._tell({"event": "output", "spools": self._take_changed(changed)})

    def _take_changed(self, spools: Iterable[Spool]) -> list[object]:
        """Return how far these changed spools have come, once."""
        changed = [(spool, self._changed.pop(spool)) for spool in spools]
        return [[task.id, number, *spool.state()] for spool, task in changed for number in spool.numbers]

    def _output_timeout(self) -> None:
        self._output_timer = False


def _share_pipe(fd: int) -> None:
    """Let a task of another user open /dev/stdin and the like anew where it is an anonymous pipe; nobody else can."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode) and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
        _share(fd)


def _share(pipe: int) -> None:
    try:
        os.fchmod(pipe, 0o666)
    except PermissionError:
        pass  # a pipe of someone else's, shared by them as they like


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # gone, or not ours to signal any more


Operation = Callable[[Any, Message, Sequence[int], Request], Reply | None]
"""Its first argument is the supervisor."""

OPERATIONS: dict[str, Operation] = {
    "hello": Supervisor._hello,
    "list": Supervisor._list,
    "start": Supervisor._start,
    "warm": Supervisor._warm,
    "graft": Supervisor._graft,
    "kill": Supervisor._kill,
    "pids": Supervisor._pids,
    "terminal": Supervisor._terminal,
    "forget": Supervisor._forget,
    "hold": Supervisor._hold,
    "take": Supervisor._take,
    "drop": Supervisor._drop,
    "quit": Supervisor._quit,
}
Supervisor.operations = OPERATIONS
