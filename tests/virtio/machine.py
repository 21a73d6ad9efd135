"""The other side: a machine that shares its memory and sets rings up, and the driver of the guest in it.

Real memory (a memfd), real eventfds, a real socket; only the guest's kernel is made up.
"""

import mmap
import os
import socket
import struct
from collections.abc import Sequence
from errno import EINVAL

import trio

HEADER = struct.Struct("<III")
DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
FEATURES = 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32
SIZE = 8 << 20
GUEST = 0x4000_0000
"""Where the memory is to the guest."""
USER = 0x7F00_0000_0000
"""Where it is to the machine's process."""


class Driver:
    """The guest's side of one ring: descriptors at `base`, buffers above them; nothing is reused but by `recycle`."""

    def __init__(self, machine: "Machine", index: int, size: int, base: int, room: int) -> None:
        self.machine = machine
        self.index = index
        self.size = size
        self.memory = machine.memory
        self.table = base
        self.available = base + 16 * size
        self.used = (self.available + 6 + 2 * size + 3) & ~3
        self.buffers = self.bottom = (self.used + 6 + 8 * size + 4095) & ~4095
        self.top = base + room
        self.next = self.seen = 0
        self.posted = 0
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        os.close(self.kick)
        os.close(self.call)

    def place(self, data: bytes | int, align: int = 8) -> tuple[int, int]:
        """Put `data`, or room for so many bytes, into memory; returns its offset there and its length."""
        size = data if isinstance(data, int) else len(data)
        at = self.buffers + align - 1 & -align
        assert at + size <= self.top, "the test's own memory is used up"
        self.buffers = at + size
        if not isinstance(data, int):
            self.memory[at : at + size] = data
        return at, size

    def recycle(self) -> None:
        """Use the room of all buffers anew."""
        self.buffers = self.bottom

    def descriptor(self, index: int, address: int, length: int, flags: int, following: int, table: int = -1) -> None:
        DESCRIPTOR.pack_into(
            self.memory, (self.table if table < 0 else table) + 16 * index, address, length, flags, following
        )

    def post(self, head: int) -> None:
        """Make the descriptor chain at `head` available."""
        struct.pack_into("<H", self.memory, self.available + 4 + 2 * (self.posted % self.size), head)
        self.posted += 1
        struct.pack_into("<H", self.memory, self.available + 2, self.posted & 0xFFFF)

    def ring(self) -> None:
        os.eventfd_write(self.kick, 1)

    def submit(self, readable: Sequence[bytes], writable: Sequence[int] = (), *, indirect: bool = False) -> "Posted":
        """Post one request as a driver does, and ring."""
        places = [(*self.place(data), 0) for data in readable] + [(*self.place(size), WRITE) for size in writable]
        head = self.next % self.size
        table = -1
        if indirect:
            table, length = self.place(16 * len(places), 16)
            self.descriptor(head, GUEST + table, length, INDIRECT, 0)
        numbers = [number if indirect else (head + number) % self.size for number in range(len(places))]
        for number, (at, size, flags) in enumerate(places):
            last = number == len(places) - 1
            following = 0 if last else numbers[number + 1]
            self.descriptor(numbers[number], GUEST + at, size, flags | (0 if last else NEXT), following, table)
        self.next += 1 if indirect else len(places)
        self.post(head)
        self.ring()
        return Posted(head, [(at, size) for at, size, flags in places if flags])

    def completions(self) -> list[tuple[int, int]]:
        """Return what came back since the last call: heads, and how many bytes were written for each."""
        (index,) = struct.unpack_from("<H", self.memory, self.used + 2)
        found = []
        while self.seen != index:
            at = self.used + 4 + 8 * (self.seen % self.size)
            found.append(struct.unpack_from("<II", self.memory, at))
            self.seen = self.seen + 1 & 0xFFFF
        struct.pack_into("<H", self.memory, self.available + 4 + 2 * self.size, self.seen)  # used_event: the next one
        return found

    async def returned(self, count: int = 1) -> list[tuple[int, int]]:
        """Wait for the interrupt until `count` requests have come back."""
        found = self.completions()
        with trio.fail_after(10):
            while len(found) < count:
                await trio.lowlevel.wait_readable(self.call)
                os.eventfd_read(self.call)
                found += self.completions()
        return found

    def read(self, posted: "Posted", length: int) -> bytes:
        """Return the first `length` bytes of what was written for a request."""
        return b"".join(bytes(self.memory[at : at + size]) for at, size in posted.writable)[:length]

    async def ask(self, readable: Sequence[bytes], writable: Sequence[int] = (), *, indirect: bool = False) -> bytes:
        """Submit one request, wait for it and return what was written."""
        posted = self.submit(readable, writable, indirect=indirect)
        ((head, length),) = await self.returned()
        assert head == posted.head
        return self.read(posted, length)


class Posted:
    """A request that was made available: its head, and where its answer goes."""

    def __init__(self, head: int, writable: list[tuple[int, int]]) -> None:
        self.head = head
        self.writable = writable


class Machine:
    """A vhost-user master that is connected to `path`."""

    def __init__(self, sock: socket.socket, *, size: int = SIZE) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.drivers: list[Driver] = []
        self.set_up_memory(size)

    def set_up_memory(self, size: int) -> None:
        self.fd = os.memfd_create("guest")
        os.truncate(self.fd, size)
        self.memory = mmap.mmap(self.fd, size)
        self.size = size

    def drop_memory(self) -> None:
        self.memory.close()
        os.close(self.fd)

    @classmethod
    async def connect(cls, path: object, **options: int) -> "Machine":
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.connect(str(path))
        return cls(sock._sock, **options)

    def close(self) -> None:
        self.sock.close()
        for driver in self.drivers:
            driver.close()
        self.drop_memory()

    # Messages

    async def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1) -> None:
        data = HEADER.pack(request, flags, len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        assert await self.sock.sendmsg([data], rights) == len(data)

    async def reply(self) -> tuple[int, bytes]:
        """Return the request number and the body of the next reply. ConnectionResetError where there is none."""
        with trio.fail_after(10):
            number, flags, size = HEADER.unpack(await self._exactly(12))
            assert flags == 1 | 4
            return number, await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.sock.recv(size - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data

    async def get(self, request: int, payload: bytes = b"") -> bytes:
        await self.send(request, payload)
        number, body = await self.reply()
        assert number == request
        return body

    async def put(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Make a request that is acknowledged. OSError EINVAL if it is refused."""
        await self.send(request, payload, fds, flags=1 | 8)
        number, body = await self.reply()
        assert number == request
        if body != bytes(8):
            raise OSError(EINVAL, "refused")

    async def closed(self) -> bool:
        """Wait until the other side hangs up."""
        with trio.fail_after(10):
            try:
                return await self.sock.recv(1) == b""
            except ConnectionResetError:
                return True

    # What every machine does at the start

    async def begin(self) -> None:
        """Agree on features and share the memory."""
        offered = struct.unpack("<Q", await self.get(1))[0]
        assert offered & FEATURES == FEATURES
        protocol = struct.unpack("<Q", await self.get(15))[0]
        await self.put(16, struct.pack("<Q", protocol))
        await self.put(3)
        await self.put(2, struct.pack("<Q", offered))
        await self.share()

    def table(self, size: int | None = None) -> bytes:
        return struct.pack("<II QQQQ", 1, 0, GUEST, size or self.size, USER, 0)

    async def share(self) -> None:
        await self.put(5, self.table(), [self.fd])

    async def queue(self, index: int, size: int = 64) -> Driver:
        """Set a queue up and start it."""
        room = self.size // 4
        driver = Driver(self, index, size, index * room, room)
        self.drivers.append(driver)
        await self.start(driver)
        return driver

    async def start(self, driver: Driver, last: int = 0) -> None:
        index = driver.index
        await self.put(8, struct.pack("<II", index, driver.size))
        await self.put(10, struct.pack("<II", index, last))
        where = (USER + driver.table, USER + driver.used, USER + driver.available)
        await self.put(9, struct.pack("<IIQQQQ", index, 0, *where, 0))
        await self.put(13, struct.pack("<Q", index), [driver.call])
        await self.put(12, struct.pack("<Q", index), [driver.kick])
        await self.put(18, struct.pack("<II", index, 1))

    async def stop(self, driver: Driver) -> int:
        """Halt a queue; returns how many requests were taken."""
        index, last = struct.unpack("<II", await self.get(11, struct.pack("<II", driver.index, 0)))
        assert index == driver.index
        return int(last)
