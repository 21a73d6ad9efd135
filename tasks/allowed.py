"""What `net allow HOST:PORT...` means: which address inside the task stands for which host."""

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from tasks.values import invalid, number

MAX_ALLOWED = 64


class Allowed(NamedTuple):
    """A host and port of the outside and the IPv4 address, of the task's own loopback, that leads there."""

    host: str
    port: int
    address: str


def allowed(net: str) -> list[Allowed]:
    """Return what a task's `net` allows, [] unless that is `allow ...`. EINVAL.

    An IPv4 address stands for itself, `localhost` for 127.0.0.1, other names for 127.1.0.N in the order given.
    """
    what, *words = net.split()
    return list(_allowed(words)) if what == "allow" else []


def _allowed(words: Iterable[str]) -> Iterable[Allowed]:
    addresses: dict[str, str] = {"localhost": "127.0.0.1"}
    for count, word in enumerate(words):
        host, _, port = word.rpartition(":")
        if not host or len(host) > 255 or not all(c.isascii() and (c.isalnum() or c in ".-_") for c in host):
            raise invalid(f"not HOST:PORT: {word[:64]!r} (HOST a name or an IPv4 address)")
        if count == MAX_ALLOWED:
            raise invalid(f"at most {MAX_ALLOWED} hosts")
        if _is_address(host):
            addresses[host] = host
        elif host not in addresses:
            addresses[host] = f"127.1.0.{len(addresses)}"
        yield Allowed(host, number(port, 1, 65535), addresses[host])


def _is_address(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def hosts_file(net: str) -> str:
    """Return hosts(5) for a task with this `net`."""
    names = {item.host: item.address for item in allowed(net) if item.host != item.address}
    lines = [f"{address}\t{name}" for name, address in ({"localhost": "127.0.0.1"} | names).items()]
    return "\n".join([*lines, "::1\tlocalhost"])
