"""Tasks that are virtual machines: a guest kernel whose root is the task's namespace, and in it one process.

To the supervisor the machine is a process like others, with its kills, limits
and accounts; the task's streams are the machine's descriptors, so output goes
on without a server. Inside, the same supervisor program is pid 1 and runs the
task's command as the task's user. Files come from this server over 9P: when
it dies they are gone (EIO), what the guest computes goes on.
"""

import fcntl
import os
import secrets
import socket
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from errno import ECONNRESET, EINVAL, EIO, ENOENT, ENOTSUP, ESRCH, ETIMEDOUT
from pathlib import Path

import structlog
import trio

from tasks.drivers.base import Exit, Launch, Limits, Listener
from tasks.drivers.linux.client import Client, conversation
from tasks.drivers.linux.driver import SIGKILL, LinuxDriver
from tasks.drivers.vm import initrd, kernel, machine, names
from tasks.drivers.vm.machine import Hardware, Machine
from tasks.drivers.vm.monitor import Monitor, load, reopened, save
from tasks.drivers.vm.root import GuestRoot
from tasks.taskd.channel import StreamChannel
from tasks.taskd.guest import KERNEL_TREES
from tasks.taskd.protocol import VERSION, Message, integer, table, text
from vfs.directory import Dir
from vfs.inline import park
from vfs.ninep.operations import Attach
from vfs.ninep.peer import PeerCred
from vfs.ninep.server import Server
from vfs.node import Caller, Node

MEMORY = 256 << 20
"""Bytes of memory of a guest whose task has no limit."""
LEAST_MEMORY = 128 << 20
OVERHEAD = 256 << 20
"""Bytes that a machine may need beside its guest's memory."""
MSIZE = 256 << 10
BOOT_SECONDS = 120.0
HUNG_SECONDS = 60.0
SAVED_BYTES = 4096
DRAIN_SECONDS = 0.05
BROKEN = 134
"""The exit code of a task whose guest has ended in another way than the task."""

log = structlog.get_logger("vm")


@dataclass(eq=False)
class Vm:
    """One machine, from its start to its end."""

    id: str
    console: Path
    pty: bool = False
    monitor: Monitor | None = None
    client: Client | None = None
    ready: trio.Event = field(default_factory=trio.Event)
    """Set when `client` is there."""
    over: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)
    """Replaced at every change of `exit` and `spooled`."""
    pid: int = 0
    running: trio.Event = field(default_factory=trio.Event)
    """Set when the task runs in the guest."""
    exit: Message | None = None
    """How the task ended, as the guest said."""
    machine_exit: Exit | None = None
    reason: str = ""
    """Why this driver has ended the machine."""
    paused: bool = False
    before: dict[int, int] = field(default_factory=dict)
    """How much of each spooled output there was before this run."""
    piped: set[int] = field(default_factory=set)
    """Outputs that go elsewhere."""
    spooled: dict[int, int] = field(default_factory=dict)
    """How much there is now."""

    async def call(self, op: str, **fields: object) -> Message:
        """Ask the supervisor in the guest. ESRCH when the machine is gone."""
        await self.ready.wait()
        if self.client is None or self.over.is_set():
            raise OSError(ESRCH, "the machine has ended")
        return await self.client.call(op, **fields)

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def close(self) -> None:
        """Leave the machine's monitor alone."""
        if self.monitor:
            self.monitor.close()

    def last_words(self) -> str:
        """Return the end of what the guest's kernel and the machine itself have said."""
        try:
            with self.console.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - SAVED_BYTES))
                return file.read().decode(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""


@dataclass(eq=False)
class Template:
    """A booted guest: its memory and the state of its devices, each a file in memory. Sealed, nobody can change it."""

    ram: int
    state: int
    sealed: bool = False

    def seal(self) -> None:
        fcntl.fcntl(self.ram, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        self.sealed = True

    def close(self) -> None:
        os.close(self.ram)
        os.close(self.state)


class VmDriver:
    """Implements `tasks.drivers.base.Driver` on top of the Linux driver, whose supervisor it shares. `run` must run.

    `files` serves the guests' namespaces and must be running. A guest has `boot` seconds to come up, and is ended when
    it does not answer for `patience` seconds. `spools` is where each task's console is kept, as
    `ID/console`; `kernels` is the cache of guest kernels, `cache` a directory for what is made of them.
    """

    name = "vm"

    def __init__(
        self,
        linux: LinuxDriver,
        listener: Listener,
        files: Server,
        *,
        machine: Machine,
        spools: Path,
        kernels: Path,
        cache: Path,
        boot: float = BOOT_SECONDS,
        patience: float = HUNG_SECONDS,
    ) -> None:
        self._linux = linux
        self._listener = listener
        self._files = files
        self._machine = machine
        self._spools = spools
        self._kernels = kernels
        self._cache = cache
        self._vms: dict[str, Vm] = {}
        self._boot = boot
        self._patience = patience
        self._making = trio.Lock()
        self._templates: dict[Hardware, Template] = {}
        self._nursery: trio.Nursery
        self.capabilities = linux.capabilities - {"net", "bind", "pidlimit"} | {"memlimit"}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Attend to machines until cancelled; they go on."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            for template in self._templates.values():
                template.close()
            for vm in self._vms.values():
                vm.close()

    # Starting

    async def start(self, launch: Launch) -> int:
        """Start a task. Answers after exec in the guest, so the errors are those of any other program's start."""
        assert launch.namespace is not None
        if further := [number for number in launch.fds if number > 2]:
            raise OSError(ENOTSUP, f"a VM task has no descriptor {further[0]}: only 0, 1 and 2")
        if launch.net != "none":
            raise OSError(ENOTSUP, f"net {launch.net}: a guest has no network")
        hardware = await self._hardware(launch.limits.memory or MEMORY)
        vm = Vm(launch.id, self._spools / launch.id / "console", pty=launch.pty is not None)
        made = [path for path in {*launch.spools.values(), vm.console} if not path.exists()]
        vm.console.parent.mkdir(parents=True, exist_ok=True)
        self._vms[launch.id] = vm
        self._linux.listeners[launch.id] = self
        try:
            template = await self._template(hardware)
            vm.monitor = await self._power_on(vm, launch, hardware, template)
            with trio.fail_after(self._boot):
                await vm.monitor.begin()
                await load(vm.monitor, machine.STATE)
                await self._begin(vm, launch)
            vm.running.set()
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await self._undo(vm)
            explained = self._explained(error, vm)
            for path in made:
                path.unlink(missing_ok=True)
            raise explained from None
        return vm.pid

    def _explained(self, error: BaseException, vm: Vm) -> BaseException:
        """Return an error that keeps a machine from being started, as who wanted it shall see it."""
        words = _last_line(vm.last_words())
        if isinstance(error, trio.TooSlowError):
            return OSError(ETIMEDOUT, f"the guest did not come up: {words}")
        if isinstance(error, OSError) and vm.machine_exit and error.errno in (ESRCH, ECONNRESET, EIO):
            return OSError(EIO, f"the machine ended ({vm.machine_exit.reason}): {words}")
        return error

    async def _hardware(self, memory: int) -> Hardware:
        if missing := self._machine.missing():
            raise OSError(ENOENT, missing)
        if memory < LEAST_MEMORY:
            raise OSError(EINVAL, f"memlimit: a guest needs at least {LEAST_MEMORY >> 20}M")
        async with self._making:
            return await trio.to_thread.run_sync(self._made_hardware, memory)

    def _made_hardware(self, memory: int) -> Hardware:
        """Return the hardware of a guest, its initrd made anew unless this process has made it."""
        found = kernel.find(self._kernels)
        archive = self._cache / f"initrd-{found.directory.name}-{os.getpid()}"
        if not archive.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            for old in self._cache.glob("initrd-*"):
                old.unlink()
            new = archive.with_name("new")
            new.write_bytes(initrd.build(found))
            new.chmod(0o644)
            new.rename(archive)
        return Hardware(kernel=found.image, initrd=archive, memory=memory >> 20 << 20)

    async def _template(self, hardware: Hardware) -> Template:
        """Return a machine of this hardware that has booted and waits for its task, made at first use."""
        async with self._making:
            if hardware not in self._templates:
                self._templates[hardware] = await self._boot_template(hardware)
            return self._templates[hardware]

    async def _boot_template(self, hardware: Hardware) -> Template:
        name = f"template-{os.getpid()}-{len(self._templates)}"
        vm = Vm(name, self._cache / f"{name}.console")
        self._vms[name] = vm
        self._linux.listeners[name] = self
        template = Template(os.memfd_create("ram", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC), os.memfd_create("state"))
        os.ftruncate(template.ram, hardware.memory)
        uid = 65534 if os.geteuid() == 0 else os.geteuid()
        gid = 65534 if os.geteuid() == 0 else os.getegid()
        launch = Launch(id=name, argv=(), env={}, cwd="/", uid=uid, gid=gid, user="", home=Path("/"))
        try:
            with trio.fail_after(self._boot):
                vm.monitor = monitor = await self._power_on(vm, launch, hardware, template)
                await vm.call("hello", version=VERSION)
                await monitor.begin()
                await save(monitor, template.state)
                await monitor.execute("quit")
                await vm.over.wait()
                template.seal()
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await self._undo(vm)
            template.close()
            raise self._explained(error, vm) from None
        else:
            self.forget(name)
        finally:
            vm.console.unlink(missing_ok=True)
        return template

    async def _power_on(self, vm: Vm, launch: Launch, hardware: Hardware, template: Template) -> Monitor:
        """Start the machine's process and attend to it.

        It makes the template, where that is not sealed yet, else it is a clone of it.
        """
        pairs = {number: socket.socketpair() for number in (machine.CONTROL, machine.MONITOR, machine.FILES)}
        control, monitor, files = (ours for ours, _ in pairs.values())
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        state, image, archive = reopened(template.state), _opened(hardware.kernel), _opened(hardware.initrd)
        try:
            self._files.adopt(files, self._attacher(launch))
            fds = {number: theirs.fileno() for number, (_, theirs) in pairs.items()}
            fds |= {machine.RAM: template.ram, machine.STATE: state, machine.KERNEL: image, machine.INITRD: archive}
            theirs_of = dict(enumerate((machine.STDIN, machine.OUT, 2 if launch.pty else machine.ERR)))
            fds |= {theirs_of[number]: fd for number, fd in launch.fds.items()}
            vm.piped = {theirs_of[number] for number in launch.fds} & {machine.OUT, machine.ERR}
            spools = {theirs_of[number]: path for number, path in launch.spools.items()}
            vm.before = {number: path.stat().st_size if path.exists() else 0 for number, path in spools.items()}
            spools |= {machine.CONSOLE: vm.console}
            if not launch.pty:
                spools |= {2: vm.console}
            if machine.ERR not in spools:
                fds.setdefault(machine.ERR, null)
            vm.pid = await self._linux.start(
                replace(
                    launch,
                    argv=self._machine.command(hardware.memory, clone=template.sealed),
                    env={"PATH": os.defpath},
                    cwd="/",
                    gid=self._machine.group() or launch.gid,
                    fds=fds,
                    spools=spools,
                    limits=self._around(launch.limits),
                    net="none",
                    namespace=None,
                )
            )
        except BaseException:
            control.close()
            monitor.close()
            raise
        finally:
            for fd in (null, state, image, archive):
                os.close(fd)
            for _, theirs in pairs.values():
                theirs.close()
        self._linux.vault.hold(f"vm/{vm.id}", [control.fileno(), monitor.fileno()])
        self._nursery.start_soon(self._attend, vm, StreamChannel(control.detach()))
        return Monitor(monitor)

    def _attacher(self, launch: Launch) -> Attach:
        root = GuestRoot(launch.namespace.root) if launch.namespace else Dir({})
        who = Caller(launch.uid, launch.gid)

        async def attach(uname: str, n_uname: int, aname: str, peer: PeerCred | None) -> tuple[Node, Caller]:
            """The socket is the task's, so it gets the task's tree, whoever in the guest it says it is."""
            return root, who

        return attach

    async def _begin(self, vm: Vm, launch: Launch) -> None:
        """Have the task started by the supervisor in the guest."""
        assert launch.namespace is not None
        await vm.call("hello", version=VERSION)
        entropy = secrets.token_hex(64)
        await vm.call("setup", time_ns=time.time_ns(), entropy=entropy, hostname=f"task-{launch.id}")
        table = launch.namespace.table
        bound = [tree for tree in KERNEL_TREES if table.members(f"/{tree}") and tree != "dev"]
        trees = [tree for tree in KERNEL_TREES if tree not in bound]
        address, port = names.FILES_ADDRESS, names.FILES_PORT
        await vm.call("mount", address=address, port=port, msize=MSIZE, kernel=trees)
        message: Message = {
            "task": launch.id,
            "argv": list(launch.argv),
            "env": {"PWD": launch.cwd, **launch.env},
            "cwd": launch.cwd,
            "uid": launch.uid,
            "gid": launch.gid,
            "spool_limit": 1,
            "streams": _streams(launch),
        }
        if launch.pty:
            message["pty"] = {"rows": launch.pty[0], "columns": launch.pty[1]}
            await self._make_raw(launch.id)
        await vm.call("start", **message)

    async def _make_raw(self, task: str) -> None:
        """Leave all that a terminal does to the one in the guest."""
        fd = await self._linux.terminal(task)
        try:
            mode = termios.tcgetattr(fd)
            mode[0:4] = [0, 0, mode[2], 0]
            termios.tcsetattr(fd, termios.TCSANOW, mode)
        finally:
            os.close(fd)

    async def _undo(self, vm: Vm) -> None:
        """End a machine that was not started to its end, and wait until it is gone."""
        if vm.pid:
            with suppress(ProcessLookupError):  # it is ending by itself
                await self._linux.kill(vm.id, SIGKILL)
            await vm.over.wait()
        vm.over.set()
        vm.ready.set()
        self.forget(vm.id)

    def _around(self, limits: Limits) -> Limits:
        """Return the limits of the process that runs a guest with these limits."""
        memory = (limits.memory or MEMORY) + OVERHEAD if "memlimit" in self._linux.capabilities else None
        return replace(limits, memory=memory, pids=None)

    # Living

    async def _attend(self, vm: Vm, channel: StreamChannel, count: int = 0) -> None:
        """Talk to the supervisor in a guest until the machine has ended."""

        def lost(reason: str) -> None:
            vm.client = None

        def event(message: Message) -> None:
            self._guest_event(vm, message)

        async with conversation(channel, on_event=event, on_lost=lost, count=count) as vm.client:
            vm.ready.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_over, vm)
                nursery.start_soon(self._end, vm)
                await vm.over.wait()
                nursery.cancel_scope.cancel()

    def _guest_event(self, vm: Vm, message: Message) -> None:
        if message.get("event") == "exited" and message.get("task") == vm.id and vm.exit is None:
            vm.exit = _checked(table(message, "exit"))
            vm.change()

    async def _end(self, vm: Vm) -> None:
        """Switch the machine off once the task has ended and all its output has arrived."""
        while vm.exit is None or not self._arrived(vm, vm.exit):
            await vm.changed.wait()
        for output in vm.piped:
            with suppress(OSError):  # then it has ended
                while vm.monitor and not await self._machine.drained(vm.monitor, output):
                    await trio.sleep(DRAIN_SECONDS)  # somebody else's pipe is full, and only the machine sees when not
        if vm.client:
            vm.client.post("quit")

    def _arrived(self, vm: Vm, exit: Message) -> bool:
        numbers = {names.OUTPUT: machine.OUT, names.ERROR: machine.ERR}
        sent = table(exit, "sent")
        return all(
            vm.spooled.get(number, 0) - vm.before[number] >= integer(sent, name, 0, 1 << 62)
            for name, number in numbers.items()
            if name in sent and number in vm.before
        )

    async def _watch_over(self, vm: Vm) -> None:
        """End a machine whose guest does not answer any more."""
        await vm.running.wait()  # a template must have no request on its way when it is saved
        while True:
            await trio.sleep(self._patience / 10)
            with trio.move_on_after(self._patience) as patience:
                try:
                    await vm.call("ping")
                except OSError:
                    await trio.sleep_forever()  # it is ending, or talks nonsense
            if patience.cancelled_caught and not vm.paused:
                vm.reason = "the guest does not answer"
                await self._linux.kill(vm.id, SIGKILL)
                return

    # What the supervisor reports of the machine

    def output(self, task: str, fd: int, end: int, start: int, eof: bool) -> None:
        vm = self._vms[task]
        if fd == machine.CONSOLE or (fd == 2 and not vm.pty):
            return
        vm.spooled[fd] = end
        vm.change()
        self._listener.output(task, 2 if fd == machine.ERR else fd, end, start, eof)

    def event(self, task: str, kind: str, detail: Mapping[str, object]) -> None:
        self._listener.event(task, kind, detail)

    def exited(self, task: str, exit: Exit) -> None:
        vm = self._vms[task]
        vm.machine_exit = exit
        vm.over.set()
        vm.ready.set()
        vm.close()
        self._linux.vault.drop(f"vm/{task}")
        if vm.running.is_set():
            self._listener.exited(task, self._verdict(vm, exit))

    def lost(self, reason: str) -> None:
        for vm in self._vms.values():
            vm.over.set()
            vm.ready.set()

    def _verdict(self, vm: Vm, exit: Exit) -> Exit:
        """Return how the task ended whose machine ended so."""
        if vm.exit is not None:
            return replace(exit, code=integer(vm.exit, "code", 0, 255), reason=text(vm.exit, "reason", 200))
        if vm.reason:
            return replace(exit, reason=vm.reason)
        words = vm.last_words()
        if "Kernel panic" in words:
            panic = next(line for line in words.splitlines() if "Kernel panic" in line)
            return replace(exit, code=BROKEN, reason=f"guest panic: {panic.partition('Kernel panic')[2].strip(' -:')}")
        if exit.code == 0:
            return replace(exit, code=BROKEN, reason="the guest was switched off")
        if exit.reason == "exited":
            return replace(exit, reason=f"the machine failed: {_last_line(words)}")
        return exit

    # The rest of a driver

    def _vm(self, task: str) -> Vm:
        vm = self._vms.get(task)
        if vm is None or vm.over.is_set():
            raise OSError(ESRCH, "the task has ended")
        return vm

    async def kill(self, task: str, signal: int) -> None:
        vm = self._vm(task)
        if signal == SIGKILL:
            await self._linux.kill(task, SIGKILL)
        else:
            await vm.call("kill", task=task, signal=signal)

    async def pause(self, task: str) -> None:
        self._vm(task).paused = True
        await self._linux.pause(task)

    async def resume(self, task: str) -> None:
        await self._linux.resume(task)
        self._vm(task).paused = False

    async def set_limits(self, task: str, limits: Limits) -> None:
        """Apply limits to the machine. The guest's memory stays as it was at its start."""
        await self._linux.set_limits(task, self._around(limits))

    async def stat(self, task: str, what: str) -> Mapping[str, int]:
        """Return the machine's figures and, beside them, the guest's own."""
        vm = self._vm(task)
        await park()
        figures = dict(await self._linux.stat(task, what))
        if not vm.paused:
            with trio.move_on_after(1):
                found = table(await vm.call("stat", what=what), "figures")
                figures |= {
                    name: integer(found, name, 0, 1 << 62) for name in list(found)[:16] if name.startswith("guest_")
                }
        return figures

    async def pids(self, task: str) -> Sequence[int]:
        return await self._linux.pids(task)

    async def terminal(self, task: str) -> int:
        return await self._linux.terminal(task)

    async def recover(self, tasks: Sequence[str]) -> Mapping[str, Exit | None]:
        for task in tasks:
            self._vms[task] = Vm(task, self._spools / task / "console")
            self._vms[task].running.set()
            self._linux.listeners[task] = self
        found = dict(await self._linux.recover(tasks))
        for task in tasks:
            vm = self._vms[task]
            vm.before = dict.fromkeys(vm.spooled, 0)
            vm.piped = {machine.OUT, machine.ERR} - vm.before.keys()
            held = await self._linux.vault.take(f"vm/{task}")
            exit = found.get(task)
            if task in found and exit is None and held:
                vm.monitor = Monitor(socket.socket(fileno=held[1]))
                self._nursery.start_soon(self._resume, vm, held[0])
                continue
            for fd in held:
                os.close(fd)
            if exit:
                found[task] = self._verdict(vm, exit)
        return found

    async def _resume(self, vm: Vm, control: int) -> None:
        """Go on with a machine that another server has left: its files are lost, its end may have been missed."""
        channel = StreamChannel(control, resumed=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._attend, vm, channel, time.time_ns() // 1000)
            try:
                await vm.call("lose_files")
                record = table(await vm.call("list"), vm.id)
                if record.get("exit") and vm.exit is None:
                    vm.exit = _checked(table(record, "exit"))
                    vm.change()
            except OSError as error:
                log.warning("guest not resumed", task=vm.id, error=str(error))

    def forget(self, task: str) -> None:
        if vm := self._vms.pop(task, None):
            vm.close()
        self._linux.forget(task)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _streams(launch: Launch) -> dict[str, str]:
    """Return the ports of the task's descriptors: outputs to one place share one, so that their order is kept."""
    if launch.pty:
        return {"0": names.INPUT, "1": names.OUTPUT}
    streams = {"0": names.INPUT, "1": names.OUTPUT, "2": names.ERROR}
    places = {number: _place(launch, number) for number in (1, 2)}
    if places[1] == places[2] is not None:
        streams["2"] = names.OUTPUT
    return streams


def _place(launch: Launch, number: int) -> object:
    """Return what tells where an output goes, None for nowhere."""
    if number in launch.fds:
        st = os.fstat(launch.fds[number])
        return st.st_dev, st.st_ino
    return launch.spools.get(number)


def _checked(exit: Message) -> Message:
    """Return what a guest says of its task's end, if it makes sense. EINVAL."""
    integer(exit, "code", 0, 255)
    text(exit, "reason", 200)
    sent = table(exit, "sent")
    for name in sent:
        integer(sent, name, 0, 1 << 62)
    return exit


def _last_line(words: str) -> str:
    lines = [line for line in words.splitlines() if line.strip()]
    return lines[-1].strip()[-300:] if lines else "it said nothing"
