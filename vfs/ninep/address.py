"""Where a 9P server listens and a client dials: `unix!PATH`, `tcp!HOST!PORT`, or simply `/path` and `host:port`."""

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from errno import EADDRINUSE, ECONNREFUSED, EHOSTUNREACH, EINVAL, ENAMETOOLONG, EPERM
from typing import Literal

import trio

DEFAULT_PORT = 564
"""The port IANA gives 9P."""
_MAX_UNIX_PATH = 107
_IDLE, _INTERVAL, _PROBES, _USER_TIMEOUT_MS = 30, 10, 3, 60_000


@dataclass(frozen=True, slots=True)
class Address:
    """One end: a unix socket's `path`, or a TCP `host` and `port`."""

    network: Literal["unix", "tcp"]
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix!{self.path}" if self.network == "unix" else f"tcp!{self.host}!{self.port}"


def parse(text: str) -> Address:
    """Return the address that `text` names. EINVAL with the reason where it names none.

    `unix!PATH`, `/path`, `./path`; `tcp!HOST!PORT`, `tcp!HOST` (port 564), `host:port`, `[::1]:port`.
    """
    network, bang, rest = text.partition("!")
    if not bang:
        if text.startswith(("/", "./", "../")):
            return _unix(text)
        host, colon, port = text.rpartition(":")
        if not colon:
            raise OSError(EINVAL, f"not an address (unix!PATH, tcp!HOST!PORT, /path or host:port): {text!r}")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise OSError(EINVAL, f"write an IPv6 address as [ADDRESS]:PORT: {text!r}")
        return _tcp(host.strip("[]"), port)
    if network == "unix":
        return _unix(rest)
    if network == "tcp":
        host, bang, port = rest.partition("!")
        return _tcp(host, port if bang else str(DEFAULT_PORT))
    raise OSError(EINVAL, f"unknown network {network!r}: use unix! or tcp!")


def _unix(path: str) -> Address:
    if not path or "\0" in path:
        raise OSError(EINVAL, "no path of a socket")
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise OSError(ENAMETOOLONG, f"a socket's path is at most {_MAX_UNIX_PATH} bytes")
    return Address("unix", path=path)


def _tcp(host: str, port: str) -> Address:
    if not host or "!" in host or "\0" in host:
        raise OSError(EINVAL, f"not a host: {host!r}")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise OSError(EINVAL, f"not a port: {port!r}")
    return Address("tcp", host=host, port=int(port))


def is_loopback(host: str) -> bool:
    """Tell whether `host` is this machine for certain: `localhost` or a numeric loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(address: Address, *, allow_remote: bool = False, mode: int = 0o600, backlog: int = 1024) -> socket.socket:
    """Return a listening, non-blocking socket.

    A unix socket's file gets `mode`; one left by a server that is gone is replaced (EADDRINUSE while it serves),
    and removing it afterwards is the caller's. EPERM for a TCP host that is not loopback unless `allow_remote`.
    """
    if address.network == "unix":
        return _listen_unix(address.path, mode, backlog)
    if not (allow_remote or is_loopback(address.host)):
        raise OSError(EPERM, f"refusing to listen beyond loopback: {address}")
    family, kind, proto, _, target = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _listen_unix(path: str, mode: int, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != EADDRINUSE or not _abandoned(path):
                raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, mode)  # before listen: nobody connects under the umask's mode
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _abandoned(path: str) -> bool:
    """Tell whether `path` is a socket on which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == ECONNREFUSED
    return False


async def dial(address: Address) -> trio.SocketStream:
    """Connect, waiting; a TCP peer that vanishes silently is noticed within 60 s. OSError as connect(2)."""
    if address.network == "unix":
        return await trio.open_unix_socket(address.path)
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except socket.gaierror as error:
        raise OSError(EHOSTUNREACH, f"{address.host}: {error.strerror}") from error
    except OSError as error:
        if isinstance(error.__cause__, ExceptionGroup):  # one failure for each address of the host
            raise error.__cause__.exceptions[0] from error
        raise
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
    return stream
