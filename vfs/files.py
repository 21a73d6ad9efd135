"""Synthetic files: text that is made on each open, values, and texts that have to be waited for."""

import os
import stat as statmod
import time
from collections.abc import Awaitable, Callable
from errno import E2BIG, EACCES, EAGAIN, EBADF, EINVAL, EPERM
from typing import Protocol

from vfs.node import ACCESS_MODE, MOMENT, READABLE, Caller, Handle, Node, SetStat, Stat
from vfs.waiting import Signal

MAX_VALUE = 4 << 20
"""Bytes that a value file takes at the most (argument lists are the largest)."""

Source = Callable[[], "str | bytes | Awaitable[str | bytes]"]
Sink = Callable[[str], "Awaitable[None] | None"]


class Owner(Protocol):
    """To whom synthetic nodes belong, and when what they show last changed (ns)."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def changed_ns(self) -> int: ...


class _Server:
    uid = os.geteuid()
    gid = os.getegid()
    changed_ns = time.time_ns()


ROOT_OWNER: Owner = _Server()
"""Whoever runs the program."""


class Synthetic(Node):
    """A node made by the program: fixed mode, an owner, size 0.

    Id and owner may be left open; the directory that holds the node then
    gives it its own (see `vfs.directory`).
    """

    __slots__ = ("mode", "owner")
    owner: Owner | None
    attribute_seconds = MOMENT

    def __init__(self, mode: int, owner: Owner | None = None, id: int = 0) -> None:
        self.id = id
        self.mode = mode
        self.owner = owner

    async def stat(self) -> Stat:
        owner = self.owner or ROOT_OWNER
        when = owner.changed_ns
        return Stat(self.mode, self.id, 1, owner.uid, owner.gid, self.size(), when, when, when)

    def size(self) -> int:
        return 0

    async def setstat(self, change: SetStat, who: Caller) -> None:
        """Accept a new size or new times, which mean nothing here, so that `>` and touch work. EPERM for all else."""
        if change.mode is not None or change.uid is not None or change.gid is not None:
            raise OSError(EPERM, "mode and owner are fixed")


def as_bytes(text: str | bytes) -> bytes:
    """Encode what a source returned: text gets its final newline, bytes stay as they are."""
    if isinstance(text, bytes):
        return text
    if text and not text.endswith("\n"):
        text += "\n"
    return os.fsencode(text)


def as_text(data: bytes) -> str:
    """Decode what was written: UTF-8, with other bytes kept as surrogates."""
    return os.fsdecode(data)


class Text(Synthetic):
    """A value file: `read` makes its text, `write` (if any) takes a whole new value without its final newline.

    The text is made once per open and again by each read at offset 0, so a reader never sees half of two
    versions. A write at offset 0 replaces the value; one that goes on where the last ended extends it.
    """

    __slots__ = ("read", "write")

    def __init__(self, read: Source | None, write: Sink | None = None, *, mode: int | None = None) -> None:
        if mode is None:
            mode = (0o444 if read else 0) | (0o200 if write else 0)
        super().__init__(statmod.S_IFREG | mode)
        self.read = read
        self.write = write

    async def open(self, flags: int, who: Caller) -> Handle:
        access = flags & ACCESS_MODE
        if (access != os.O_WRONLY and self.read is None) or (access != os.O_RDONLY and self.write is None):
            raise OSError(EACCES, "not for that")
        return TextHandle(self)


class TextHandle(Handle):
    """An open `Text`."""

    __slots__ = ("_node", "_text", "_written")

    def __init__(self, node: Text) -> None:
        self._node = node
        self._text: bytes | None = None
        self._written = b""

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        if self._text is None or offset == 0:
            if self._node.read is None:
                raise OSError(EBADF, "write only")
            made = self._node.read()
            self._text = as_bytes(made if isinstance(made, str | bytes) else await made)
        return self._text[offset : offset + size]

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        if self._node.write is None:
            raise OSError(EBADF, "read only")
        if offset and offset != len(self._written):
            raise OSError(EPERM, "a value is replaced whole")
        value = self._written[:offset] + bytes(data)
        if len(value) > MAX_VALUE:
            raise OSError(E2BIG, "value too long")
        text = as_text(value)
        done = self._node.write(text[:-1] if text.endswith("\n") else text)
        if done is not None:
            await done
        self._written = value
        return len(data)


class Awaited(Synthetic):
    """A text that is there only later: a read waits until `ready()`, woken by `signal`, then gives `text()` once.

    `take` is called by the read that gets the text, as the moment it is considered told.
    """

    __slots__ = ("ready", "signal", "text")

    def __init__(
        self, ready: Callable[[], bool], text: Callable[[], str], signal: Callable[[], Signal], *, mode: int = 0o444
    ) -> None:
        super().__init__(statmod.S_IFREG | mode)
        self.ready = ready
        self.text = text
        self.signal = signal

    async def open(self, flags: int, who: Caller) -> Handle:
        if flags & ACCESS_MODE != os.O_RDONLY:
            raise OSError(EACCES, "read only")
        return AwaitedHandle(self)


class AwaitedHandle(Handle):
    """An open `Awaited`: the text, once given, stays for this open file."""

    __slots__ = ("_node", "_text")

    def __init__(self, node: Awaited) -> None:
        self._node = node
        self._text: bytes | None = None

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        node = self._node
        while self._text is None:
            if node.ready():
                self._text = as_bytes(node.text())
            elif nonblock:
                raise OSError(EAGAIN, "not yet")
            else:
                await node.signal().wait()
        return self._text[offset : offset + size]

    def poll(self) -> int:
        return READABLE if self._text is not None or self._node.ready() else 0

    def watch(self, wake: Callable[[], None]) -> None:
        self._node.signal().watch(wake)


class Device(Synthetic):
    """A file that behaves like one of the memory devices of mem(4), for places where a real device node cannot act.

    `fill` is what reads return over and over (None: end of file), `full` makes writes fail with ENOSPC.
    """

    __slots__ = ("fill", "refuse")

    def __init__(self, fill: Callable[[int], bytes] | None, *, refuse: int = 0, mode: int = 0o666) -> None:
        super().__init__(statmod.S_IFREG | mode)
        self.fill = fill
        self.refuse = refuse

    async def open(self, flags: int, who: Caller) -> Handle:
        return DeviceHandle(self)


class DeviceHandle(Handle):
    """An open `Device`."""

    __slots__ = ("_node",)
    stream = True

    def __init__(self, node: Device) -> None:
        self._node = node

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        return b"" if self._node.fill is None else self._node.fill(size)

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        if self._node.refuse:
            raise OSError(self._node.refuse, "device refuses writes")
        return len(data)


class Link(Synthetic):
    """A symbolic link whose target is made on each read."""

    __slots__ = ("target",)

    def __init__(self, target: Callable[[], str]) -> None:
        super().__init__(statmod.S_IFLNK | 0o777)
        self.target = target

    async def readlink(self) -> str:
        return self.target()


class Allocator(Synthetic):
    """A file whose open allocates something; every read of that open file returns its id."""

    __slots__ = ("allocate",)
    allocates = True

    def __init__(self, allocate: Callable[[Caller], int], mode: int = 0o600) -> None:
        super().__init__(statmod.S_IFREG | mode)
        self.allocate = allocate

    async def open(self, flags: int, who: Caller) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(EINVAL, "read it to allocate")
        return AllocatedHandle(b"%d\n" % self.allocate(who))


class AllocatedHandle(Handle):
    """An open `Allocator`."""

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes | memoryview:
        return self._text[offset : offset + size]
