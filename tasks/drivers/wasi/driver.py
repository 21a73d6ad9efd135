"""Tasks that are WebAssembly modules for WASI preview 1.

To the supervisor they are processes like others, with its kills, limits,
spools and accounts. What is special: the process is forked from a warm
program instead of executed, and every file it opens is in the task's
namespace, which the server serves to it over 9P on a socket of its own. It
needs neither root nor a mount. When the server dies what it computes goes on,
with its pipes and the host's files that it has open; all others are gone (EIO).
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from errno import EAGAIN, ESTALE
from pathlib import Path

from ns.namespace import Namespace
from tasks.drivers.base import Exit, Launch, Limits, Listener
from tasks.drivers.linux.driver import LinuxDriver, Warm
from tasks.drivers.linux.seccomp import filter_program
from tasks.drivers.wasi.modules import Modules
from tasks.drivers.wasi.names import ERROR, ROOT
from tasks.sniff import open_program
from vfs.files import Text
from vfs.ninep.peer import PeerCred
from vfs.ninep.server import Server
from vfs.node import Caller, Node, no_entry

PROGRAM = (sys.executable, "-I", str(Path(__file__).with_name("zygote.py")))
OVERHEAD = 64 << 20
"""Bytes that a runner may need beside the module's memory, at most: the task's group is limited to both together."""
MAX_ERROR = 64 << 10
FILTER = filter_program(
    also={  # a runner has all that it needs: nothing to execute, to start, to look into or to connect to
        "execve": (59, 221),
        "execveat": (322, 281),
        "fork": (57, 220),
        "vfork": (58, 220),
        "clone": (56, 220),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "pidfd_getfd": (438, 438),
        "socket": (41, 198),
        "connect": (42, 203),
        "bind": (49, 200),
    }
).hex()


class WasiDriver:
    """Implements `tasks.drivers.base.Driver` on top of the Linux driver, whose supervisor it shares.

    `files` serves the tasks' namespaces and must be running; `cache` is a directory for compiled modules.
    """

    name = "wasi"

    def __init__(self, linux: LinuxDriver, listener: Listener, files: Server, cache: Path) -> None:
        self._linux = linux
        self._listener = listener
        self._files = files
        self._modules = Modules(cache)
        self.capabilities = linux.capabilities - {"net", "bind", "pidlimit"} | {"memlimit"}

    async def start(self, launch: Launch) -> int:
        assert launch.namespace is not None
        who = Caller(launch.uid, launch.gid)
        file = await open_program(launch.namespace.root, launch.argv[0], launch.cwd, launch.env, who)
        try:
            code, path = await self._modules.open(file)
            try:
                return await self._start(launch, code)
            except OSError as error:
                if error.errno != ESTALE:
                    raise
            finally:
                os.close(code)
            path.unlink(missing_ok=True)  # another machine's, or of a wasmtime built otherwise
            code, _ = await self._modules.open(file)
            try:
                return await self._start(launch, code)
            finally:
                os.close(code)
        finally:
            file.close()

    async def _start(self, launch: Launch, code: int) -> int:
        """Start a task, and first the program it is forked from where that is not warm."""
        assert launch.namespace is not None
        try:
            return await self._fork(launch, launch.namespace, code)
        except OSError as error:
            if error.errno != EAGAIN:
                raise
        await self._linux.warm_up(PROGRAM)
        return await self._fork(launch, launch.namespace, code)

    async def _fork(self, launch: Launch, namespace: Namespace, code: int) -> int:
        who = Caller(launch.uid, launch.gid)

        async def attach(uname: str, n_uname: int, aname: str, peer: PeerCred | None) -> tuple[Node, Caller]:
            """The socket is the task's, so it gets the task's trees, whoever it says it is."""
            if aname == ROOT:
                return namespace.root, who
            if aname == ERROR:
                return Text(None, lambda text: self._trapped(launch.id, text), mode=0o222), who
            raise no_entry(aname)

        ours, theirs = socket.socketpair()
        with theirs:
            self._files.adopt(ours, attach, pass_files=True)
            memory = launch.limits.memory
            warm = Warm(
                program=PROGRAM,
                fds={"module": code, "files": theirs.fileno()},
                fields={"memory": memory or 0, "seccomp": FILTER},
            )
            env = {"PWD": launch.cwd, **launch.env}
            limits = self._around(launch.limits)
            return await self._linux.start(replace(launch, env=env, limits=limits, cwd="/"), warm)

    def _trapped(self, task: str, text: str) -> None:
        self._listener.event(task, "trap", {"error": text[:MAX_ERROR]})

    def _around(self, limits: Limits) -> Limits:
        """Return the limits of the process that a module with these limits runs in."""
        if limits.memory is None:
            return limits
        return replace(limits, memory=limits.memory + OVERHEAD if "memlimit" in self._linux.capabilities else None)

    async def kill(self, task: str, signal: int) -> None:
        await self._linux.kill(task, signal)

    async def pause(self, task: str) -> None:
        await self._linux.pause(task)

    async def resume(self, task: str) -> None:
        await self._linux.resume(task)

    async def set_limits(self, task: str, limits: Limits) -> None:
        """Apply limits to the process. The module's own bound on its memory stays as it was at its start."""
        await self._linux.set_limits(task, self._around(limits))

    async def stat(self, task: str, what: str) -> Mapping[str, int]:
        return await self._linux.stat(task, what)

    async def pids(self, task: str) -> Sequence[int]:
        return await self._linux.pids(task)

    async def terminal(self, task: str) -> int:
        return await self._linux.terminal(task)

    async def recover(self, tasks: Sequence[str]) -> Mapping[str, Exit | None]:
        return await self._linux.recover(tasks)

    def forget(self, task: str) -> None:
        self._linux.forget(task)
