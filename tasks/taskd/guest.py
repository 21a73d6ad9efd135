"""The supervisor as pid 1 of a guest: what a virtual machine adds to what it does on a host.

The server talks to it through a virtio port, a byte stream. A task's streams
are ports too, which the machine's program connects to the descriptors that the
task has on the host; between a port and the task is a pipe or a terminal, and
what moves bytes there (`Pump`). The task's root is a directory that is mounted
from the host, the guest's own is only its boot archive. When the server says
`quit` the machine is switched off.
"""

import fcntl
import io
import os
import select
import socket
import struct
import sys
import termios
import time
import traceback
from collections.abc import Callable, Sequence
from errno import EBUSY, EINVAL, EIO, ENODEV
from functools import partial
from typing import TextIO

from tasks.taskd import boot, launch
from tasks.taskd.channel import StreamChannel
from tasks.taskd.protocol import Message, integer, table, text, texts
from tasks.taskd.supervisor import OPERATIONS, Reply, Request, Supervisor, Task

CONTROL = "control"
NAMESPACE = "/ns"
LOG = "/root/task.log"
KERNEL_TREES = ("proc", "sys", "dev")
CHUNK = 64 << 10
MAX_ENTROPY = 1024
CONNECT_SECONDS = 10.0
_PORTS = "/sys/class/virtio-ports"
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x4008_5203, 0x5207


def ports() -> dict[str, str]:
    """Return the device of each virtio port by the port's name."""
    found = {}
    for device in os.listdir(_PORTS):
        with open(f"{_PORTS}/{device}/name") as file:
            found[file.read().strip()] = f"/dev/{device}"
    return found


class Pump:
    """Moves bytes from one descriptor to another until the first ends or the second breaks. Owns both."""

    def __init__(self, guest: "Guest", source: int, sink: int, ended: Callable[[], None]) -> None:
        self._guest = guest
        self._source = source
        self._sink = sink
        self._ended = ended
        self._unsent = b""
        self.moved = 0
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        guest.watch(source, self._read)

    @property
    def over(self) -> bool:
        return self._source < 0

    def _read(self, _: int) -> None:
        try:
            self._unsent = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal that nobody has open any more
            self._unsent = b""
        if not self._unsent:
            self.close()
        elif not self._write():
            self._guest.unwatch(self._source)
            self._guest.watch(self._sink, self._go_on, select.EPOLLOUT)

    def _write(self) -> bool:
        """Write what was read; False while the sink takes no more of it."""
        try:
            while self._unsent:
                sent = os.write(self._sink, self._unsent)
                self._unsent = self._unsent[sent:]
                self.moved += sent
        except BlockingIOError:
            return False
        except OSError:  # nobody reads any more
            self.close()
        return True

    def _go_on(self, _: int) -> None:
        if self._write() and not self.over:
            self._guest.unwatch(self._sink)
            self._guest.watch(self._source, self._read)

    def close(self) -> None:
        if self.over:
            return
        for fd in (self._source, self._sink):
            self._guest.unwatch(fd)
            os.close(fd)
        self._source = self._sink = -1
        self._ended()


class Guest(Supervisor):
    """Supervises the one task of a virtual machine."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: dict[int, str] = {}
        self._outputs: dict[str, Pump] = {}
        self._inputs: list[Pump] = []
        self._files: socket.socket | None = None
        self.watch, self.unwatch = self._watch, self._unwatch

    # Streams

    def _start(self, message: Message, fds: Sequence[int], request: Request) -> None:
        """Start the task: `streams` names the port of each of its descriptors 0 to 2; several may share one."""
        streams = table(message, "streams")
        self._wanted = {number: text(streams, str(number), 16) for number in range(3) if str(number) in streams}
        if self._outputs or self._inputs:
            raise OSError(EBUSY, "the guest has its task")
        super()._start({**message, "chroot": NAMESPACE if self._files else "/"}, fds, request)

    def _open_spools(self, spec: launch.Spec, task: Task, given: dict[int, int], ours: list[int]) -> None:
        """Connect the task's streams to their ports, by pipes or by its terminal."""
        known = ports()
        if missing := set(self._wanted.values()) - known.keys():
            raise OSError(ENODEV, f"no port {missing}")
        for name in dict.fromkeys(self._wanted.values()):
            numbers = [number for number, port in self._wanted.items() if port == name]
            port = os.open(known[name], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            if spec.pty:
                theirs = os.dup(task.terminal)
            else:
                theirs, end = os.pipe()[:: -1 if numbers == [0] else 1]
                os.fchmod(end, 0o666)  # /dev/stdin and the like can be opened anew
                ours.append(end)
                given |= dict.fromkeys(numbers, end)
            if numbers == [0]:
                self._inputs.append(Pump(self, port, theirs, lambda: None))
            else:
                self._outputs[name] = Pump(self, theirs, port, partial(self._finish, task))

    def _finish(self, task: Task) -> None:
        """Report the end once all output is on its way."""
        if task.main or task.exit or task.id not in self._tasks:
            return
        if not self._others(task) and not task.failed:
            if not all(pump.over for pump in self._outputs.values()):
                return
            if task.ending:
                task.ending["sent"] = {name: pump.moved for name, pump in self._outputs.items()}
        super()._finish(task)
        if task.exit:
            for pump in (*self._inputs, *self._outputs.values()):
                pump.close()

    def _resize(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        task = self._task(message)
        if task.terminal < 0:
            raise OSError(ENODEV, "the task has no terminal")
        size = integer(message, "rows", 1, 65535), integer(message, "columns", 1, 65535)
        fcntl.ioctl(task.terminal, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
        return {}, ()

    # The guest as a whole

    def _setup(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        """Give the guest its clock, name and entropy: a clone wakes with those of its template."""
        time.clock_settime_ns(time.CLOCK_REALTIME, integer(message, "time_ns", 0, 1 << 62))
        socket.sethostname(text(message, "hostname", 64))
        entropy = bytes.fromhex(text(message, "entropy", 2 * MAX_ENTROPY))
        with open("/dev/urandom", "wb") as random:
            fcntl.ioctl(random, _RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
            fcntl.ioctl(random, _RNDRESEEDCRNG)
        return {}, ()

    def _mount(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        """Mount the task's namespace from a 9P server, and on it what of the `kernel`'s trees is asked for."""
        if self._files:
            raise OSError(EBUSY, "the namespace is mounted")
        kernel = texts(message, "kernel", 8)
        if not set(kernel) <= set(KERNEL_TREES):
            raise OSError(EINVAL, "kernel: none of the kernel's trees")
        where = text(message, "address", 64), integer(message, "port", 1, 65535)
        files = socket.socket()
        files.settimeout(CONNECT_SECONDS)
        files.connect(where)  # not create_connection, which would have a codec imported that is not there
        files.settimeout(None)
        files.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = str(files.fileno())
        options = {
            "version": "9p2000.L",
            "access": "any",
            "cache": "mmap",
            "msize": str(integer(message, "msize", 4096, 1 << 20)),
        }
        boot.mount("9p", NAMESPACE, source="task", trans="fd", rfdno=number, wfdno=number, aname="/", **options)
        self._files = files
        for tree in kernel:
            boot.bind(f"/{tree}", f"{NAMESPACE}/{tree}")
        return {}, ()

    def _lose_files(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        """Let every call on the namespace fail with EIO: the server that had its state is gone."""
        if self._files:
            self._files.shutdown(socket.SHUT_RDWR)
        return {}, ()

    def _stat(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        return {"figures": figures(text(message, "what", 8))}, ()

    def _ping(self, message: Message, fds: Sequence[int], request: Request) -> Reply:
        return {}, ()


Guest.operations = {
    **{name: OPERATIONS[name] for name in ("hello", "list", "kill", "pids", "forget", "quit")},
    "start": Guest._start,
    "resize": Guest._resize,
    "setup": Guest._setup,
    "mount": Guest._mount,
    "lose_files": Guest._lose_files,
    "stat": Guest._stat,
    "ping": Guest._ping,
}


def figures(what: str) -> dict[str, int]:
    """Return figures of the guest as the kernel counts them (proc(5)). EINVAL for none known."""
    if what == "mem":
        with open("/proc/meminfo") as file:
            found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in file}
        return {"guest_total_bytes": found["MemTotal"], "guest_used_bytes": found["MemTotal"] - found["MemAvailable"]}
    if what == "cpu":
        with open("/proc/stat") as file:
            user, nice, system = map(int, file.readline().split()[1:4])
        tick = 1_000_000 // os.sysconf("SC_CLK_TCK")
        return {"guest_user_usec": (user + nice) * tick, "guest_system_usec": system * tick}
    if what == "pids":
        return {"guest_processes": sum(name.isdigit() for name in os.listdir("/proc"))}
    if what == "io":
        return {}
    raise OSError(EINVAL, f"no figures of {what}")


def open_control(device: str) -> int:
    """Open the port to the server, and return when the host has it open too: before, it reads as ended."""
    port = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    changes = select.epoll()
    changes.register(port, select.EPOLLIN | select.EPOLLET)
    state = select.poll()
    state.register(port, select.POLLIN)
    while any(events & select.POLLHUP for _, events in state.poll(0)):
        changes.poll()
    changes.close()
    return port


class Log(io.TextIOBase):
    """What goes wrong, for whoever looks inside the guest (LOG) and for the host, which has the console."""

    def __init__(self, console: TextIO) -> None:
        self._files = (console, open(LOG, "a", buffering=1))

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
            file.flush()
        return len(text)


def main() -> None:
    """Be pid 1: boot, supervise, switch the machine off."""
    try:
        boot.mount_kernel()
        sys.stderr = Log(sys.stderr)
        boot.load_modules()
        boot.raise_interface("lo")
        try:
            boot.raise_interface("eth0", boot.ADDRESS, boot.NETMASK)
        except OSError as error:
            if error.errno != ENODEV:
                raise
        guest = Guest()
        guest.connect(StreamChannel(open_control(ports()[CONTROL])))
        guest.run()
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        raise OSError(EIO, "pid 1 has failed") from None  # the kernel panics, and the console says so
    boot.power_off()
