"""The process of one WASI task: from the fork of the zygote to its exit code.

Everything that needs privileges or the file system happens first; then the
process gives up both and looks at the module's code only afterwards. `start`
is answered before anything of the module runs: its start section is the task's.
"""

import fcntl
import gc
import os
import resource
import select
import signal
import socket
import termios
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EINVAL, EIO, ENOMEM, ESTALE
from typing import NoReturn

import wasmtime

from tasks.drivers.wasi.client import Client
from tasks.drivers.wasi.engine import new_engine
from tasks.drivers.wasi.names import ERROR, ROOT
from tasks.drivers.wasi.preview1 import PREOPENED, Preview1
from tasks.taskd import privilege, syscalls
from tasks.taskd.processes import join
from tasks.taskd.protocol import Message, integer, table, text, texts

TRAPPED = 128 + signal.SIGABRT
MAX_TABLE = 10_000_000
MAX_TRAP = 64 << 10
MAX_REASON = 500
MAX_NUMBER = (1 << 31) - 1
MAX_ARGUMENT = 128 << 10
MAX_ID = (1 << 32) - 2
PAGE = 64 << 10


@dataclass(frozen=True)
class Surroundings:
    """What is the same for every task and made before the first: see `surroundings`."""

    engine: wasmtime.Engine
    world: Preview1
    linker: wasmtime.Linker
    supervisor: int
    """A pidfd of the process to die with."""
    empty: int
    """An empty directory for a root."""


def surroundings(supervisor: int, empty: int) -> Surroundings:
    engine = new_engine()
    world = Preview1()
    return Surroundings(engine, world, world.define(engine), supervisor, empty)


def run(message: Message, fds: Sequence[int], around: Surroundings) -> NoReturn:
    """Be the task that `message` describes; its descriptors are named by their indices in `fds`."""
    report = fds[integer(message, "report", 0, len(fds) - 1)]
    try:
        gc.disable()  # it would touch, and so copy, every object there is
        above = max(2, *map(int, table(message, "fds"))) + 1  # out of the way of the task's own numbers
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, above)
        task = _prepare(message, fds, around, above, report)
    except BaseException as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        number = (isinstance(error, OSError) and error.errno) or EIO
        os.write(report, number.to_bytes(4, "little") + str(reason).encode("utf-8", "replace")[:MAX_REASON])
        os._exit(125)
    os.close(report)
    os._exit(task.run())


def _prepare(message: Message, fds: Sequence[int], around: Surroundings, above: int, report: int) -> "Task":
    """Return the task, ready to run. `above` is the least number that is not the task's."""

    def sent(table: Message, key: str) -> int:
        return fds[integer(table, key, 0, len(fds) - 1)]

    numbered = table(message, "fds")
    given = {int(number): sent(numbered, number) for number in numbered}
    if PREOPENED in given:
        raise OSError(EINVAL, f"descriptor {PREOPENED} of a WASI task is its root")
    missing = {0, 1, 2} - given.keys()
    os.setsid()
    join(texts(message, "join", 4096))
    if nice := integer(message, "nice", -20, 19, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if "terminal" in message:
        fcntl.ioctl(sent(message, "terminal"), termios.TIOCSCTTY, 0)
    code, files, supervisor, empty = (
        fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)
        for fd in (sent(message, "module"), sent(message, "files"), around.supervisor, around.empty)
    )
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for number, fd in given.items()}
    for number, fd in moved.items():
        os.dup2(fd, number)
    if missing:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in missing:
            os.dup2(null, number)
    numbers = sorted(missing | given.keys())
    _close_but(sorted([*numbers, report, code, files, supervisor, empty]))
    module = _load(around.engine, code)  # keeps the file open, to map its data from
    os.close(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)
    _give_up(message, empty)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of uid clears it, so only now
    if select.select([supervisor], [], [], 0)[0]:
        os._exit(125)
    os.close(supervisor)
    os.close(empty)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # so that every signal acts at once, whatever the module does
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return Task(message, around, module, Client(socket.socket(fileno=files)), numbers)


def _give_up(message: Message, empty: int) -> None:
    """Give up the file system and every privilege."""
    uid, gid = integer(message, "uid", 0, MAX_ID), integer(message, "gid", 0, MAX_ID)
    if os.geteuid() == 0:
        os.fchdir(empty)
        os.chroot(".")
    privilege.become(uid, gid)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # nobody's other tasks look into it
    if code := bytes.fromhex(text(message, "seccomp", 1 << 16, "")):
        syscalls.seccomp(code)


def _load(engine: wasmtime.Engine, code: int) -> wasmtime.Module:
    """Map compiled code. ESTALE where it is another machine's or wasmtime's."""
    try:
        return wasmtime.Module.deserialize_file(engine, f"/proc/self/fd/{code}")
    except wasmtime.WasmtimeError as error:
        raise OSError(ESTALE, str(error)) from error


def _close_but(kept: Sequence[int]) -> None:
    low = 0
    for number in kept:
        if low < number:
            os.closerange(low, number)
        low = number + 1
    os.closerange(low, MAX_NUMBER)


class Task:
    """A module that is ready to run. ENOMEM where its memory begins larger than it may be."""

    def __init__(
        self,
        message: Message,
        around: Surroundings,
        module: wasmtime.Module,
        client: Client,
        given: Sequence[int],
    ) -> None:
        environment = table(message, "env")
        env = {name: text(environment, name, MAX_ARGUMENT) for name in environment}
        args = texts(message, "argv", MAX_ARGUMENT)
        memory = integer(message, "memory", 0, 1 << 62, 0)
        if memory and max((first_bytes(export) for export in module.exports), default=0) > memory:
            raise OSError(ENOMEM, f"the module's memory begins larger than {memory} bytes")
        self._linker = around.linker
        self._module = module
        self._store = wasmtime.Store(around.engine)
        self._store.set_limits(memory_size=memory or -1, table_elements=MAX_TABLE)
        self._client = client
        root = client.attach(ROOT)
        self._world = around.world
        self._world.begin(self._store, client, root=root, args=args, env=env, given=given)

    def run(self) -> int:
        """Run the module to its end and return its exit code, unless it exits by itself."""
        code = 0
        try:
            start = self._linker.instantiate(self._store, self._module).exports(self._store)["_start"]
            assert isinstance(start, wasmtime.Func)
            start(self._store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            code = self._trapped(str(error))
        self._world.close()
        return code

    def _trapped(self, text: str) -> int:
        """Say why the task ends; the server has it when this returns."""
        with suppress(OSError):
            fid = self._client.attach(ERROR)
            self._client.open(fid, os.O_WRONLY)
            self._client.write(fid, 0, text.encode(errors="replace")[:MAX_TRAP])
            self._client.clunk(fid)
        return TRAPPED


def first_bytes(export: wasmtime.ExportType) -> int:
    """Return the size with which an exported memory begins; 0 for what is none."""
    return export.type.limits.min * PAGE if isinstance(export.type, wasmtime.MemoryType) else 0
