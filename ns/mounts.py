"""The device `#9p`: a mount is a bind of `#9p/ADDRESS/ANAME`, whose lookup dials.

So mounts need no rules of their own: the mask, unions, dumps and replays are
those of every bind. What dials is given by whoever builds the device.
"""

import stat as statmod
from collections.abc import Awaitable, Callable, Sequence
from errno import EINVAL
from urllib.parse import quote, unquote

from ns.table import Origin
from vfs.node import Caller, DirEntry, Node, Stat, node_id

DEVICE = "9p"
Dial = Callable[[str, str, Caller], Awaitable[Node]]
"""Dials an address, attaches to an aname for a caller, returns the root. The connection lives as long as its nodes."""


def mount_origin(address: str, aname: str = "/") -> Origin:
    """Return the origin that a mount of this address and aname has. EINVAL if either is empty."""
    if not address or not aname:
        raise OSError(EINVAL, "no address or no aname")
    return Origin(DEVICE, f"{_element(address)}/{_element(aname)}")


def mount_of(origin: Origin) -> tuple[str, str] | None:
    """Return address and aname if `origin` is the whole tree of a mount."""
    address, slash, aname = origin.path.partition("/")
    if origin.device != DEVICE or not slash or "/" in aname:
        return None
    mount = unquote(address, errors="surrogateescape"), unquote(aname, errors="surrogateescape")
    return mount if mount_origin(*mount) == origin else None


def _element(word: str) -> str:
    """Escape a word into one path element."""
    if word in (".", ".."):
        return word.replace(".", "%2E")
    return quote(word, safe="!:,@+=", errors="surrogateescape")


class DialDevice(Node):
    """The device itself, and with `address` its directory of one server. Lists nothing: its names are endless."""

    __slots__ = ("address", "dial")

    def __init__(self, dial: Dial, address: str | None = None) -> None:
        self.dial = dial
        self.address = address
        self.id = node_id("ns", DEVICE, address or "")

    async def stat(self) -> Stat:
        return Stat(statmod.S_IFDIR | 0o555, self.id, 2)

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        return ()

    async def lookup(self, name: str, who: Caller) -> Node:
        word = unquote(name, errors="surrogateescape")
        if self.address is None:
            return DialDevice(self.dial, word)
        return await self.dial(self.address, word, who)
