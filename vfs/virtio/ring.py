"""Split virtqueues: the rings through which a guest hands over buffers and gets them back.

Source: Virtual I/O Device (VIRTIO) 1.2, section 2.7. The guest may write anything anywhere at any time, so each field
is read once and checked before it counts; what breaks the rules is EPROTO or EFAULT and the end of that device.

Indices are read and written through views of 16 bits: single, aligned accesses, in the program's order as on x86. The
one order that x86 does not keep, a load after a store, is kept by taking a lock.
"""

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from errno import EINVAL, ENOTSUP, EPROTO
from struct import Struct
from threading import Lock
from typing import NamedTuple

from vfs.virtio.memory import Memory

MAX_SIZE = 32768
MAX_CHAIN = 1024
"""Buffers of one request at the most (IOV_MAX)."""
NEXT, WRITE, INDIRECT = 1, 2, 4
_DESCRIPTOR = Struct("<QIHH")  # address length flags next
_EACH = _DESCRIPTOR.size
_unpack = _DESCRIPTOR.unpack_from
_fence = Lock()
ORDERED = platform.machine() in ("x86_64", "i686")


class Addresses(NamedTuple):
    """Where the three parts of a ring lie, in the machine's process."""

    descriptors: int
    used: int
    available: int


class Chain(NamedTuple):
    """One request: what the guest wrote, and where it wants the answer; `run` says by which driver."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]
    run: int


class Queue:
    """One virtqueue: set up by the machine, then started; stopped and started again when the machine is halted."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.addresses: Addresses | None = None
        self.kick = -1
        """The eventfd by which the guest says that there is something, or -1."""
        self.call = -1
        """The eventfd by which we do, or -1."""
        self.running = False
        self.frugal = False
        """Whether both sides say up to where they need not be told (VIRTIO_F_EVENT_IDX)."""
        self.last = 0
        """How many buffers were taken, modulo 2**16."""
        self._used = self._told = self._seen = 0
        self._run = 0
        self._taken = 0
        self._held: list[tuple[int, int]] = []
        self._forget()

    def _forget(self) -> None:
        self._memory: Callable[[int, int], memoryview] = Memory().guest
        self._descriptors = self._indices = self._available = self._ring = self._wanted = memoryview(b"")

    # Set-up

    def resize(self, size: int) -> None:
        """Set how many entries the ring has. EINVAL unless a power of two up to 2**15."""
        if self.running or not 0 < size <= MAX_SIZE or size & size - 1:
            raise OSError(EINVAL, "not the size of a ring")
        self.size = size

    def start(self, memory: Memory) -> None:
        """Go on at `last`. Requests taken before are still to be answered if the ring is as it was left.

        EINVAL, EFAULT as `map`; ENOTSUP on a processor that keeps another order than x86.
        """
        if not ORDERED:
            raise OSError(ENOTSUP, "rings need the memory order of x86")
        self.map(memory)
        used = self._indices[1]
        if self._taken and (self.last - used & 0xFFFF) != self._taken:
            self._run += 1  # another driver: it never heard of them
            self._held.clear()
            self._taken = 0
        self._used = self._told = used
        self.running = True
        for head, length in self._held:
            self._push(head, length)
        self._held.clear()
        self.tell()

    def map(self, memory: Memory) -> None:
        """Find the ring in `memory`, at the start or because that was shared anew. EINVAL, EFAULT."""
        if self.addresses is None or not self.size:
            raise OSError(EINVAL, "a ring that was not set up")
        size, (descriptors, used, available) = self.size, self.addresses
        if descriptors % 16 or available % 2 or used % 4:
            raise OSError(EINVAL, "a ring that is not aligned")
        self._descriptors = memory.user(descriptors, _EACH * size)
        self._available = memory.user(available, 6 + 2 * size).cast("H")  # flags, index, heads, used_event
        parts = memory.user(used, 6 + 8 * size)
        self._indices = parts[:4].cast("H")  # flags, index
        self._ring = parts[4:-2].cast("I")
        self._wanted = parts[-2:].cast("H")  # avail_event
        self._memory = memory.guest

    def stop(self) -> int:
        """Take nothing more and give nothing back until the next start; returns `last`."""
        self.running = False
        return self.last

    def close(self) -> None:
        """Close the eventfds and forget the ring."""
        self.running = False
        self._run += 1
        for fd in (self.kick, self.call):
            if fd >= 0:
                os.close(fd)
        self.kick = self.call = -1
        self._forget()

    # Buffers

    def look(self) -> int:
        """Return how many requests the guest has made available that were not taken yet."""
        if not self.running:
            return 0
        self._seen = seen = self._available[1]
        return seen - self.last & 0xFFFF

    def listen(self) -> bool:
        """Ask to be told of what comes next; tells whether something has come since we last looked."""
        if not self.running:
            return False
        if self.frugal:
            self._wanted[0] = self._seen
            with _fence:
                pass
        return self._available[1] != self._seen

    def pop(self) -> Chain | None:
        """Take the next request, if there is one and the ring runs. EPROTO, EFAULT."""
        ahead = self.look()
        if not ahead:
            return None
        last, size = self.last, self.size
        if ahead > size or self._taken >= size:
            raise OSError(EPROTO, "more requests than the ring holds")
        head = self._available[2 + (last & size - 1)]
        if head >= size:
            raise OSError(EPROTO, "no such descriptor")
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        self._walk(head, readable, writable)
        self.last = last + 1 & 0xFFFF
        self._taken += 1
        return Chain(head, readable, writable, self._run)

    def unpop(self) -> None:
        """Give the request that was taken last back to the ring, unanswered."""
        self.last = self.last - 1 & 0xFFFF
        self._taken -= 1

    def _walk(self, at: int, readable: list[memoryview], writable: list[memoryview]) -> None:
        """Sort the buffers of a request; those that adjoin in the guest's memory become one."""
        guest, unpack = self._memory, _unpack
        table: memoryview | bytes = self._descriptors
        limit = self.size
        address, length, flags, following = unpack(table, at * _EACH)
        if flags & INDIRECT:
            limit = length // _EACH
            if flags & NEXT or length % _EACH or not 0 < limit <= MAX_CHAIN:
                raise OSError(EPROTO, "not an indirect table")
            table = guest(address, length).tobytes()
            address, length, flags, following = unpack(table, 0)
        found, kind = (writable, WRITE) if flags & WRITE else (readable, 0)
        start = end = address
        for _ in range(min(limit, MAX_CHAIN)):
            if flags & INDIRECT:
                raise OSError(EPROTO, "a table in a table")
            if address != end or kind != flags & WRITE:
                found.append(guest(start, end - start))
                if kind > flags & WRITE:
                    raise OSError(EPROTO, "something to read behind what is to be written")
                if kind < flags & WRITE:
                    found, kind = writable, WRITE
                start = address
            end = address + length
            if not flags & NEXT:
                found.append(guest(start, end - start))
                return
            if following >= limit:
                raise OSError(EPROTO, "no such descriptor")
            address, length, flags, following = unpack(table, following * _EACH)
        raise OSError(EPROTO, "a request of too many buffers")

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back, with `written` bytes for the guest to read. Then `tell`."""
        if chain.run != self._run:
            return
        if self.running:
            self._push(chain.head, written)
        else:
            self._held.append((chain.head, written))

    def _push(self, head: int, written: int) -> None:
        used = self._used
        slot = 2 * (used & self.size - 1)
        self._ring[slot] = head
        self._ring[slot + 1] = written
        self._used = used = used + 1 & 0xFFFF
        self._indices[1] = used
        self._taken -= 1

    def tell(self) -> None:
        """Interrupt the guest if anything was given back since the last time, and it wants to know."""
        used = self._used
        fresh = used - self._told & 0xFFFF
        if not fresh or not self.running:
            return
        self._told = used
        if self.frugal:
            with _fence:
                pass
            if (used - 1 - self._available[-1] & 0xFFFF) >= fresh:
                return
        if self.call >= 0:
            with suppress(BlockingIOError):  # it was told, over and over
                os.eventfd_write(self.call, 1)
