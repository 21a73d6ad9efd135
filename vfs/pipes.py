"""Pipes whose data stays in the kernel, seen as files: `/cap` pipe, duplex and signal, and a task's stdin.

Every open is a description of its own, so end of file and EPIPE come from the kernel's own count of readers and
writers, wherever those live: handles here, or descriptors given to tasks. The server counts as neither:

- it keeps the pipe alive by an O_PATH descriptor, which the kernel does not count;
- until an end has had its first user, one real descriptor (the "place") is held for it, so that readers who come
  before the first writer wait, and writers who come before the first reader fill the buffer.

Once the last writer has gone the pipe is over: a later open of the write end is EPIPE.
"""

import fcntl
import os
import select
import stat as statmod
import time
from collections import deque
from collections.abc import Awaitable, Callable
from errno import EACCES, EAGAIN, EBADF, EINVAL, EMSGSIZE, EPERM, EPIPE
from typing import Self

import trio

from vfs.inline import park
from vfs.node import HANGUP, MOMENT, READABLE, WRITABLE, Caller, Handle, Node, SetStat, Stat, node_id
from vfs.waiting import Signal

CAPACITY = 65536
"""Bytes that a pipe holds unless asked otherwise; the kernel's own default, pipe(7)."""
MAX_READ = 1 << 20
MAX_RECORD = 65536
MAX_QUEUED = 1 << 20
RECORD_COST = 64


class Pipe:
    """One kernel pipe of `capacity` bytes (rounded up by the kernel; EPERM past its limit, EINVAL) as two nodes.

    The nodes are owned by `uid`, `gid`. `close` ends the server's part: nothing can be opened any more, while open
    ends live on.
    """

    __slots__ = ("_born", "_gid", "_inode", "_path", "_places", "_uid", "on_used")

    def __init__(self, capacity: int = CAPACITY, *, uid: int = 0, gid: int = 0) -> None:
        if not 0 < capacity < 1 << 31:
            raise OSError(EINVAL, "not a pipe's capacity")
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._adopt(*ends, uid, gid)
        if capacity != CAPACITY:
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, capacity)

    @classmethod
    def from_fds(cls, r: int, w: int, *, uid: int = 0, gid: int = 0) -> Self:
        """Adopt both ends of a pipe that outlived a server; the descriptors belong to the pipe from now on.

        An O_PATH descriptor (as `keep` gives) for an end says that the end has had its first user.
        """
        pipe = cls.__new__(cls)
        pipe._adopt(r, w, uid, gid)
        return pipe

    def _adopt(self, r: int, w: int, uid: int, gid: int) -> None:
        self._uid, self._gid, self._born = uid, gid, time.time_ns()
        self._inode = os.fstat(r).st_ino
        self._path = os.open(f"/proc/self/fd/{r}", os.O_PATH | os.O_CLOEXEC)
        self._places: dict[int, int] = {}
        self.on_used: Callable[[], None] | None = None
        """Called after an end had its first user: what `keep` gives is another from then on."""
        for access, fd in ((os.O_RDONLY, r), (os.O_WRONLY, w)):
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
                os.close(fd)
            else:
                self._places[access] = fd

    @property
    def reader(self) -> "PipeEnd":
        """The node of the read end."""
        return self._end(os.O_RDONLY, 0o400)

    @property
    def writer(self) -> "PipeEnd":
        """The node of the write end."""
        return self._end(os.O_WRONLY, 0o200)

    def _end(self, access: int, mode: int) -> "PipeEnd":
        return PipeEnd(
            self, access, _stat(node_id("pipe", self._inode, access), mode, self._uid, self._gid, self._born)
        )

    def keep(self) -> tuple[int, int]:
        """Return what `from_fds` needs later, for a process that outlives this one; the caller owns both.

        An end that has had no user yet is kept open by its copy, which must be closed when that user comes.
        """
        r, w = (self._places.get(access, self._path) for access in (os.O_RDONLY, os.O_WRONLY))
        return os.dup(r), os.dup(w)

    def take_reader(self) -> int:
        """Return a blocking, close-on-exec read descriptor for a task; the caller owns it."""
        return self.open(os.O_RDONLY, nonblock=False)

    def take_writer(self) -> int:
        """Return a blocking, close-on-exec write descriptor for a task; the caller owns it. EPIPE as in `open`."""
        return self.open(os.O_WRONLY, nonblock=False)

    def open(self, access: int, *, nonblock: bool = True) -> int:
        """Return a new description of one end (os.O_RDONLY or os.O_WRONLY). EPIPE where the last writer has gone."""
        if self._path < 0:
            raise OSError(EPIPE, "the pipe has been removed")
        place = self._places.pop(access, None)
        if place is not None:
            os.set_blocking(place, not nonblock)
            if self.on_used is not None:
                self.on_used()
            return place
        if access == os.O_WRONLY and not self._has_writers():
            raise OSError(EPIPE, "the last writer has gone")
        return self._open(access | (os.O_NONBLOCK if nonblock else 0))

    def close(self) -> None:
        """Give up the places and the way to open more."""
        for place in self._places.values():
            os.close(place)
        self._places.clear()
        if self._path >= 0:
            os.close(self._path)
            self._path = -1

    def __del__(self) -> None:
        if hasattr(self, "_places"):
            self.close()

    def _open(self, flags: int) -> int:
        return os.open(f"/proc/self/fd/{self._path}", flags | os.O_CLOEXEC)

    def _has_writers(self) -> bool:
        probe = self._places.get(os.O_RDONLY)
        fd = self._open(os.O_RDONLY | os.O_NONBLOCK) if probe is None else probe
        try:
            return not _poll(fd) & HANGUP
        finally:
            if probe is None:
                os.close(fd)


class PipeEnd(Node):
    """The read or write end of a pipe. Shown as a regular file: a fifo would be the client kernel's own."""

    __slots__ = ("_access", "_pipe", "_stat")

    unshared = True
    attribute_seconds = MOMENT

    def __init__(self, pipe: Pipe, access: int, stat: Stat) -> None:
        self.id = stat.st_ino
        self._pipe = pipe
        self._access = access
        self._stat = stat

    async def stat(self) -> Stat:
        return self._stat

    async def setstat(self, change: SetStat, who: Caller) -> None:
        _only_size(change)

    async def open(self, flags: int, who: Caller) -> Handle:
        if flags & os.O_ACCMODE != self._access:
            raise OSError(EACCES, "the other end of the pipe")
        fd = self._pipe.open(self._access)
        nonblock = bool(flags & os.O_NONBLOCK)
        return PipeReader(fd, nonblock) if self._access == os.O_RDONLY else PipeWriter(fd, nonblock)

    def take(self) -> int:
        """Return a blocking descriptor of this end for a task; the caller owns it."""
        return self._pipe.open(self._access, nonblock=False)


class _PipeHandle(Handle):
    """One open end. The descriptor is non-blocking and its own: waiting on it disturbs nobody else's."""

    __slots__ = ("_fd", "_nonblock", "_turn", "_wakers")

    stream = True

    def __init__(self, fd: int, nonblock: bool) -> None:
        self._fd = fd
        self._nonblock = nonblock
        self._turn = trio.Lock()  # trio lets one task at a time wait for a descriptor
        self._wakers: list[Callable[[], None]] = []

    def _until_ready(self) -> Awaitable[None]:
        raise NotImplementedError

    async def _wait(self) -> None:
        """Return when the descriptor may be ready."""
        if not await park():
            async with self._turn:
                if self._fd < 0:
                    raise trio.ClosedResourceError
                await self._until_ready()

    def poll(self) -> int:
        return _poll(self._fd)

    def watch(self, wake: Callable[[], None]) -> None:
        self._wakers.append(wake)
        if len(self._wakers) == 1:
            trio.lowlevel.spawn_system_task(self._watch)

    async def _watch(self) -> None:
        try:
            await self._wait()
        except trio.ClosedResourceError:
            return
        except OSError:
            pass  # a device that cannot be waited for is always ready
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if self._wakers:
            trio.lowlevel.notify_closing(fd)
        os.close(fd)


class PipeReader(_PipeHandle):
    """The read side of a pipe."""

    __slots__ = ()

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        """Return what is there, at least one byte; b"" once the last writer has gone."""
        while True:
            try:
                return os.read(self._fd, min(size, MAX_READ))
            except BlockingIOError:
                if nonblock or self._nonblock:
                    raise
            await self._wait()

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        raise OSError(EBADF, "open for reading")

    def _until_ready(self) -> Awaitable[None]:
        return trio.lowlevel.wait_readable(self._fd)


class PipeWriter(_PipeHandle):
    """The write side of a pipe."""

    __slots__ = ()

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        """Take all of `data`, waiting for room; up to PIPE_BUF bytes go as one piece.

        EPIPE without readers. With `nonblock`, or cut short by cancellation or EPIPE, what was taken so far counts.
        """
        taken = 0
        rest, waited = memoryview(data), False
        try:
            while True:
                try:
                    taken += os.write(self._fd, rest[taken:])
                    if taken == len(rest) or nonblock or self._nonblock:
                        return taken
                except BlockingIOError:
                    if nonblock or self._nonblock:
                        raise
                if not waited:
                    rest, waited = memoryview(bytes(rest)), True
                await self._wait()
        except (OSError, trio.Cancelled):
            if not taken:
                raise
            return taken  # as write(2) does when a signal comes: bytes in the pipe can't be taken back

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        raise OSError(EBADF, "open for writing")

    def _until_ready(self) -> Awaitable[None]:
        return trio.lowlevel.wait_writable(self._fd)


class Duplex:
    """Two pipes crosswise, as pipe(3) of Plan 9: what is written to `data` is read from `data1`, and the reverse."""

    __slots__ = ("data", "data1", "pipes")

    def __init__(self, capacity: int = CAPACITY, *, uid: int = 0, gid: int = 0) -> None:
        self.pipes = (Pipe(capacity, uid=uid, gid=gid), Pipe(capacity, uid=uid, gid=gid))
        there, back = self.pipes
        self.data = DuplexEnd(back, there, uid, gid)
        self.data1 = DuplexEnd(there, back, uid, gid)

    def close(self) -> None:
        """Give up the server's part of both pipes."""
        for pipe in self.pipes:
            pipe.close()


class DuplexEnd(Node):
    """One side: reads from one pipe, writes to the other; opened for reading, writing or both."""

    __slots__ = ("_source", "_stat", "_target")

    unshared = True
    attribute_seconds = MOMENT

    def __init__(self, source: Pipe, target: Pipe, uid: int, gid: int) -> None:
        self._source = source
        self._target = target
        self.id = node_id("duplex", source.reader.id)
        self._stat = _stat(self.id, 0o600, uid, gid, time.time_ns())

    async def stat(self) -> Stat:
        return self._stat

    async def setstat(self, change: SetStat, who: Caller) -> None:
        _only_size(change)

    async def open(self, flags: int, who: Caller) -> Handle:
        access = flags & os.O_ACCMODE
        nonblock = bool(flags & os.O_NONBLOCK)
        if access == os.O_RDONLY:
            return PipeReader(self._source.open(os.O_RDONLY), nonblock)
        writer = PipeWriter(self._target.open(os.O_WRONLY), nonblock)
        if access == os.O_WRONLY:
            return writer
        try:
            return DuplexHandle(PipeReader(self._source.open(os.O_RDONLY), nonblock), writer)
        except OSError:
            writer.close()
            raise


class DuplexHandle(Handle):
    """A reader and a writer as one open file."""

    __slots__ = ("_reader", "_writer")

    stream = True

    def __init__(self, reader: PipeReader, writer: PipeWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        return await self._reader.read(size, offset, nonblock)

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        return await self._writer.write(data, offset, nonblock)

    def poll(self) -> int:
        return self._reader.poll() | self._writer.poll()

    def watch(self, wake: Callable[[], None]) -> None:
        woken = False

        def once() -> None:
            nonlocal woken
            if not woken:
                woken = True
                wake()

        self._reader.watch(once)
        self._writer.watch(once)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class Broadcast(Node):
    """A file whose every write is one record, delivered to every reader that is open at that moment.

    Each read returns one record (its rest, where the read was too small). A reader that lags by more than 1 MiB
    loses its oldest records and is told by a record `# lost N records`: a writer never waits for a slow reader.
    A record is at most 64 KiB (EMSGSIZE).
    """

    __slots__ = ("_readers", "_stat")

    attribute_seconds = MOMENT

    def __init__(self, *, uid: int = 0, gid: int = 0) -> None:
        self.id = node_id("broadcast", os.urandom(8).hex())
        self._stat = _stat(self.id, 0o600, uid, gid, time.time_ns())
        self._readers: dict[BroadcastHandle, None] = {}

    async def stat(self) -> Stat:
        return self._stat

    async def setstat(self, change: SetStat, who: Caller) -> None:
        _only_size(change)

    async def open(self, flags: int, who: Caller) -> Handle:
        handle = BroadcastHandle(self, flags)
        if flags & os.O_ACCMODE != os.O_WRONLY:
            self._readers[handle] = None
        return handle

    def send(self, record: bytes) -> None:
        """Give `record` to every open reader. EMSGSIZE."""
        if len(record) > MAX_RECORD:
            raise OSError(EMSGSIZE, "record longer than 64 KiB")
        if record:
            for reader in self._readers:
                reader.deliver(record)

    def forget(self, handle: "BroadcastHandle") -> None:
        """Deliver nothing more to `handle`."""
        self._readers.pop(handle, None)


class BroadcastHandle(Handle):
    """One open file of a Broadcast, with the records that its reader has not taken."""

    __slots__ = ("_arrived", "_flags", "_lost", "_node", "_queued", "_records")

    stream = True

    def __init__(self, node: Broadcast, flags: int) -> None:
        self._node = node
        self._flags = flags
        self._records: deque[bytes] = deque()
        self._queued = 0
        self._lost = 0
        self._arrived = Signal()

    def deliver(self, record: bytes) -> None:
        """Queue one record, dropping the oldest where there is no room."""
        self._records.append(record)
        self._queued += len(record) + RECORD_COST
        while self._queued > MAX_QUEUED:
            self._queued -= len(self._records.popleft()) + RECORD_COST
            self._lost += 1
        self._arrived.notify()

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        if self._flags & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(EBADF, "open for writing")
        while not self._records:
            if nonblock or self._flags & os.O_NONBLOCK:
                raise BlockingIOError(EAGAIN, "no record yet")
            await self._arrived.wait()
        if self._lost:
            record, self._lost = b"# lost %d records\n" % self._lost, 0
        else:
            record = self._records.popleft()
            self._queued -= len(record) + RECORD_COST
        if len(record) > size:
            self._records.appendleft(record[size:])
            self._queued += len(record) - size + RECORD_COST
        return record[:size]

    async def write(self, data: bytes | memoryview, offset: int, nonblock: bool = False) -> int:
        if self._flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(EBADF, "open for reading")
        self._node.send(bytes(data))
        return len(data)

    def poll(self) -> int:
        return WRITABLE | (READABLE if self._records else 0)

    def watch(self, wake: Callable[[], None]) -> None:
        self._arrived.watch(wake)

    def close(self) -> None:
        self._node.forget(self)


def _stat(ino: int, mode: int, uid: int, gid: int, born: int) -> Stat:
    return Stat(statmod.S_IFREG | mode, ino, 1, uid, gid, st_atime_ns=born, st_mtime_ns=born, st_ctime_ns=born)


def _only_size(change: SetStat) -> None:
    """Accept a change of size, which the shell's `>` makes, as meaning nothing. EPERM for the rest."""
    if change != SetStat(size=change.size):
        raise OSError(EPERM, "attributes are fixed")


def _poll(fd: int) -> int:
    """Return the poll(2) state of a pipe's descriptor; a writer without readers counts as hung up."""
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLOUT)
    events = sum(bits for _, bits in poller.poll(0))
    state = 0
    if events & (select.POLLIN | select.POLLHUP):
        state |= READABLE
    if events & (select.POLLOUT | select.POLLERR):
        state |= WRITABLE
    return state | (HANGUP if events & (select.POLLHUP | select.POLLERR) else 0)
