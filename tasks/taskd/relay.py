"""The way out of a task that may reach some hosts and nothing else (`net allow`).

In the task's network namespace each allowed HOST:PORT is a listener on an
address of its loopback. The listeners are made there by the task's own child,
before it gives up its privileges, and go to the relay: a process in the host's
network, with the task's uid and no privilege, which the task cannot see. It
makes two processes for each connection, one for each direction, so that a name
that is slow to resolve or a peer that does not read holds up nobody else.
"""

import fcntl
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from errno import EINVAL

from tasks.taskd import privilege, processes, syscalls
from tasks.taskd.protocol import Message, ancillary, integer, received_fds, text

MAX_ALLOWED = 64
MAX_CONNECTIONS = 64
FINISH_SECONDS = 2
"""How long what an ended task has said may take to reach its host."""
CONNECT_SECONDS = 30.0
CHUNK = 1 << 16
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _IFF_UP = 0x8913, 0x8914, 0x8916, 0x891C, 1
_RESET = struct.pack("ii", 1, 0)


class Allowed:
    """One host and port, and the IPv4 address that stands for it in the task."""

    def __init__(self, message: object) -> None:
        if not isinstance(message, dict):
            raise OSError(EINVAL, "allow: not an object")
        self.host = os.fsencode(text(message, "host", 255))  # str would have a codec imported, by whom may not read it
        self.port = integer(message, "port", 1, 65535)
        self.address = text(message, "address", 15)


def parse(message: Message) -> list[Allowed]:
    """Return what a `start` request allows. EINVAL."""
    allowed = message.get("allow", [])
    if not isinstance(allowed, list) or len(allowed) > MAX_ALLOWED:
        raise OSError(EINVAL, f"allow: not a list of at most {MAX_ALLOWED}")
    return [Allowed(item) for item in allowed]


def raise_loopback() -> None:
    """Bring up `lo` in the calling process's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack_from("h", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def listen(allowed: Sequence[Allowed], relay: int) -> None:
    """Make the listeners, in the calling process's network namespace, and send them to the relay."""
    listeners: list[socket.socket] = []
    with socket.socket(fileno=os.dup(relay)) as to_relay:
        for alias, address in enumerate(sorted({item.address for item in allowed})):
            if not address.startswith("127."):
                _add_address(f"lo:{alias}", address)
        for item in allowed:
            listener = socket.socket()
            listeners.append(listener)
            listener.bind((item.address, item.port))
            listener.listen()
        to_relay.sendmsg([b"."], ancillary([listener.fileno() for listener in listeners]))
    for listener in listeners:
        listener.close()


def _add_address(name: str, address: str) -> None:
    """Give the loopback one more address (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.255")):
            where = struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(sock, request, where)


def start(
    allowed: Sequence[Allowed], uid: int, gid: int, *, join: Sequence[str], cgroup: int, alive: int, null: int
) -> tuple[int, int]:
    """Start a relay in the task's cgroup; return its pid and where `listen` sends the listeners.

    It ends when those were never sent, when it is killed, and with the process of which `alive` is a pidfd.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        unblocked = syscalls.set_signal_mask(syscalls.ALL_SIGNALS)
        try:
            pid = syscalls.clone3(0, cgroup=cgroup)
            if pid == 0:
                try:
                    _become_relay(allowed, uid, gid, join, (null, null, null, theirs.fileno(), alive))
                finally:
                    os._exit(1)
        except OSError:
            ours.close()
            raise
        finally:
            syscalls.set_signal_mask(unblocked)
    return pid, ours.detach()


def _become_relay(allowed: Sequence[Allowed], uid: int, gid: int, join: Sequence[str], kept: Sequence[int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_DFL)
    os.setsid()
    processes.join(join)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 16) for fd in kept]
    for number, fd in enumerate(high):
        os.dup2(fd, number)
    os.closerange(len(kept), 1 << 30)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir("/")
    privilege.become(uid, gid)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    _die_with(4)
    syscalls.set_signal_mask(syscalls.NO_SIGNALS)
    with socket.socket(fileno=3) as control:
        _, extra, _, _ = control.recvmsg(1, socket.CMSG_SPACE(4 * MAX_ALLOWED), socket.MSG_CMSG_CLOEXEC)
    listeners = dict(zip(received_fds(extra), allowed, strict=False))
    if listeners:
        _serve(listeners)


def _die_with(parent: int) -> None:
    """Be killed when the parent, whose pidfd this is, ends; also if it ended just now."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent], [], [], 0)[0]:
        os._exit(1)


def _serve(listeners: dict[int, Allowed]) -> None:
    """Relay until SIGTERM: the task has ended. What it had said by then is still carried over, for a moment."""
    sockets = {fd: socket.socket(fileno=fd) for fd in listeners}
    relay = os.pidfd_open(os.getpid())
    ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(wake)
    connections = 0

    def accept(fd: int, *, ending: bool) -> None:
        client, _ = sockets[fd].accept()
        if os.fork() == 0:
            try:
                signal.set_wakeup_fd(-1)
                _die_with(relay)
                for listener in sockets.values():
                    listener.close()
                _connect(client, listeners[fd], ending=ending)
            finally:
                os._exit(0)
        client.close()

    while ended not in (ready := select.select([*sockets, ended], [], [])[0]):
        for fd in ready:
            while connections and os.waitpid(-1, 0 if connections >= MAX_CONNECTIONS else os.WNOHANG)[0]:
                connections -= 1
            try:
                accept(fd, ending=False)
            except OSError:  # the client has gone again
                continue
            connections += 1
    signal.alarm(FINISH_SECONDS)
    for fd, listener in sockets.items():
        listener.setblocking(False)
        with suppress(OSError):
            while connections < MAX_CONNECTIONS:
                accept(fd, ending=True)
                connections += 1
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _connect(client: socket.socket, allowed: Allowed, *, ending: bool) -> None:
    """Carry one connection to its end; once the task has ended, as far as the task has spoken.

    Where its host cannot be reached the client sees it reset.
    """
    spoken = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        if spoken:
            os._exit(0)

    signal.signal(signal.SIGTERM, end)
    try:
        server = socket.create_connection((allowed.host, allowed.port), CONNECT_SECONDS)  # type: ignore[arg-type]
    except OSError:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.close()
        return
    server.settimeout(None)
    here = os.pidfd_open(os.getpid())
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _die_with(here)
            _copy(server, client)
        finally:
            os._exit(0)
    _copy(client, server)
    spoken = True
    if not ending:
        os.wait()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Copy one direction to its end, and end it there; where either side broke, both directions."""
    try:
        while data := source.recv(CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
