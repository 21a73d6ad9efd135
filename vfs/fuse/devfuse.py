"""FUSE over /dev/fuse: mounting, and the loop that reads requests and writes replies.

Root mounts by itself, others by fusermount3. The loop is one trio task: it takes up to a turn's worth of requests as
long as there are any, and waits in trio when there are none.
"""

import array
import ctypes
import fcntl
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from errno import EBUSY, ECONNABORTED, EINTR, EINVAL, EIO, ENODEV, ENOENT, EPERM
from functools import partial
from pathlib import Path
from struct import Struct

import trio

from vfs.errors import log
from vfs.fuse.changes import Changes
from vfs.fuse.idle import Idle
from vfs.fuse.journal import Journal
from vfs.fuse.messages import MAX_IO, OUT_HEADER
from vfs.fuse.session import Session, Transport
from vfs.locks import LockTable
from vfs.node import Node

MS_NOSUID, MS_NODEV = 2, 4
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
BACKING_MAP = Struct("=iIQ")  # fd flags padding
IOC_BACKING_OPEN = 1 << 30 | BACKING_MAP.size << 16 | 229 << 8 | 1
IOC_BACKING_CLOSE = 1 << 30 | 4 << 16 | 229 << 8 | 2
BUFFER = MAX_IO + 8192
"""The largest request: a write of MAX_IO, its headers, and what the kernel asks to be to spare."""
TURN = 64
"""Requests that are answered before other tasks get a turn."""
ALONE = 32
"""Requests in a row, at the most, that are waited for without trying to read first. A single client asks only after it
was answered, so a try is in vain, at a third of a request's price. The more tries were, the rarer the next is."""
PROBE_SECONDS = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


def mount(path: str | os.PathLike[str], *, subtype: str = "wanixfs", allow_other: bool | None = None) -> int:
    """Mount a FUSE filesystem at the directory `path` and return its /dev/fuse descriptor.

    Others than the mounting user may use it if `allow_other`; None means where the system lets (root always).
    A mount of ours that a dead server left there is taken away first. EBUSY if it still has a server.
    """
    point = _point(path)
    if _mounted(point, subtype):
        _clear_dead(point)
    if os.geteuid() == 0:
        return _mount_as_root(point, subtype, allow_other is not False)
    return _mount_by_fusermount(point, subtype, _may_allow_other() if allow_other is None else allow_other)


def unmount(path: str | os.PathLike[str]) -> None:
    """Take the mount at `path` away, from those who still use it too. EINVAL if nothing is mounted there."""
    point = _point(path)
    if os.geteuid() == 0:
        _check(_libc.umount2(os.fsencode(point), MNT_DETACH | UMOUNT_NOFOLLOW), point)
        return
    done = subprocess.run(["fusermount3", "-u", "-z", "--", point], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(EINVAL, done.stderr.strip(), point)


def _point(path: str | os.PathLike[str]) -> str:
    """Return the mount point's real path without touching the point itself: a dead server would never answer."""
    head, tail = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(head), tail)


def _mounted(point: str, subtype: str) -> bool:
    escaped = point.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        fields = [line.split() for line in table]
    return any(line[4] == escaped and f"fuse.{subtype}" in line[6:] for line in fields)


def _clear_dead(point: str) -> None:
    """Take away mounts that no server stands behind. Another process asks, for one that hangs would answer never."""
    try:
        alive = subprocess.run(["stat", "--", point], capture_output=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(EBUSY, "mounted, and its server does not answer", point) from error
    if alive.returncode == 0:
        raise OSError(EBUSY, "mounted and served", point)
    unmount(point)


def _mount_as_root(point: str, subtype: str, allow_other: bool) -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
        if allow_other:
            options += ",allow_other"
        kind = f"fuse.{subtype}".encode()
        flags = MS_NOSUID | MS_NODEV
        _check(_libc.mount(subtype.encode(), os.fsencode(point), kind, flags, options.encode()), point)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mount_by_fusermount(point: str, subtype: str, allow_other: bool) -> int:
    options = f"nosuid,nodev,default_permissions,fsname={subtype},subtype={subtype}"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(
            ["fusermount3", "-o", options, "--", point],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OSError(EPERM, done.stderr.strip(), point)
        theirs.close()
        fds = array.array("i")
        _, messages, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize))
        for _, _, data in messages:
            fds.frombytes(data[: fds.itemsize])
    if not fds:
        raise OSError(EIO, "fusermount3 gave no descriptor", point)
    os.set_inheritable(fds[0], False)
    return fds[0]


def _may_allow_other() -> bool:
    try:
        lines = Path("/etc/fuse.conf").read_text().splitlines()
    except OSError:
        return False
    return "user_allow_other" in (line.strip() for line in lines)


def _check(result: int, path: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def backing_open(fd: int, file: int) -> int:
    """Register `file` as one that the kernel may read and write by itself. EPERM unless root; other errors by kind."""
    # A mutable buffer, or fcntl.ioctl would not return the id.
    backing: int = fcntl.ioctl(fd, IOC_BACKING_OPEN, bytearray(BACKING_MAP.pack(file, 0, 0)), True)
    return backing


def backing_close(fd: int, backing: int) -> None:
    """End what `backing_open` began; the kernel keeps it for those who have it open."""
    fcntl.ioctl(fd, IOC_BACKING_CLOSE, bytearray(backing.to_bytes(4, "little")), True)


def sender(fd: int) -> Callable[..., None]:
    """Return a function that writes one reply or message to `fd`, whole, in one or two parts.

    One that the kernel no longer waits for is dropped.
    """

    def send(*parts: bytes | memoryview) -> None:
        try:
            if len(parts) == 1:
                os.write(fd, parts[0])
            else:
                os.writev(fd, parts)
        except OSError as error:
            if error.errno not in (ENOENT, ENODEV, ECONNABORTED, EPERM):
                refused(error, parts)

    def refused(error: OSError, parts: tuple[bytes | memoryview, ...]) -> None:
        _, code, unique = OUT_HEADER.unpack_from(parts[0])
        log("reply refused by the kernel", errno=error.errno, code=code, size=sum(map(len, parts)))
        if unique:  # someone waits for it
            with suppress(OSError):
                os.write(fd, OUT_HEADER.pack(OUT_HEADER.size, -EIO, unique))

    return send


async def serve(fd: int, session: Session) -> None:
    """Answer requests until the filesystem is unmounted. Calls that wait are ended, files closed, `fd` is not.

    Cancelling leaves requests unanswered in the kernel, for the next server that is given `fd`.
    """
    os.set_blocking(fd, False)
    send = sender(fd)
    try:
        async with trio.open_nursery() as nursery:
            session.attach(
                Transport(
                    spawn=nursery.start_soon,
                    notify=send,
                    backing_open=partial(backing_open, fd),
                    backing_close=partial(backing_close, fd),
                )
            )
            await _answer(fd, session.receive, send)
            nursery.cancel_scope.cancel()
    finally:
        session.close()


async def _answer(fd: int, receive: Callable[..., bool], send: Callable[..., None]) -> None:
    buffer = memoryview(bytearray(BUFFER))
    buffers = [buffer]
    readv = os.readv
    idle = Idle(fd)
    alone = waits = 0
    while True:
        for _ in range(TURN):
            if waits:
                waits -= 1
                await idle.readable()
            else:
                alone >>= 1
            try:
                size = readv(fd, buffers)
            except BlockingIOError:
                alone = waits = min(4 * alone + 2, ALONE)
            except OSError as error:
                if error.errno in (ENODEV, ECONNABORTED):
                    return
                if error.errno not in (EINTR, ENOENT):  # ENOENT: taken back while it was read
                    raise
            else:
                if receive(buffer[:size], send):
                    buffers[0] = buffer = memoryview(bytearray(BUFFER))
        await trio.lowlevel.checkpoint()


class Mount:
    """A mounted tree that is being served. `keep` set leaves it mounted at the end, for an heir that holds `fd`."""

    def __init__(self, path: Path, fd: int, session: Session) -> None:
        self.path = path
        self.fd = fd
        self.session = session
        self.keep = False
        self.gone = trio.Event()
        """Set when someone has unmounted it."""

    async def stale_node(self, id: int) -> None:
        """Make the kernel drop what it caches of the node `id`. Nothing happens if it holds none."""
        await self._tell([self.session.stale_node(id)])

    async def stale_entries(self, entries: Iterable[tuple[int, str]]) -> None:
        """Make the kernel look names up again, each given as the id of its directory and the name."""
        await self._tell([self.session.stale_entry(parent, name) for parent, name in entries])

    async def expired(self, entries: Iterable[tuple[int, str]]) -> None:
        """Make the kernel ask before it uses names again, each given with the nodeid of its directory."""
        await self._tell([self.session.expired_entry(nodeid, name) for nodeid, name in entries])

    async def _tell(self, messages: Sequence[bytes]) -> None:
        # In a thread: the kernel may hold it until a request is answered, which takes the thread we are in.
        await trio.to_thread.run_sync(_send_all, self.fd, messages, abandon_on_cancel=True)


def _send_all(fd: int, messages: Sequence[bytes]) -> None:
    send = sender(fd)
    for message in messages:
        send(message)


@asynccontextmanager
async def mounted(
    path: str | os.PathLike[str],
    root: Node,
    *,
    fd: int | None = None,
    journal: Path | None = None,
    views: Callable[[str], Node] | None = None,
    locks: LockTable | None = None,
    allow_other: bool | None = None,
    stack_depth: int = 1,
) -> AsyncIterator[Mount]:
    """Mount `root` at `path` and serve it inside the block; unmount at its end.

    With `journal`, a file, another process can go on with the mount after this one's death if someone else holds a
    duplicate of `mount.fd`: it gives that as `fd` (closed at the end) together with the same file, and mounts nothing.
    `views`, `locks` and `stack_depth` are the session's.
    """
    if fd is None and journal is not None:
        journal.unlink(missing_ok=True)
    book = Journal(journal) if journal is not None else None
    changes = Changes()
    try:
        fuse = mount(path, allow_other=allow_other) if fd is None else fd
        try:
            session = Session(root, views=views, journal=book, locks=locks, changes=changes, stack_depth=stack_depth)
            here = Mount(Path(path), fuse, session)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve, here)
                nursery.start_soon(changes.run, here.expired)
                try:
                    yield here
                finally:
                    if not here.keep and not here.gone.is_set():
                        _unmount_ours(here)
                    nursery.cancel_scope.cancel()
        finally:
            os.close(fuse)
    finally:
        changes.close()
        if book is not None:
            book.close()


async def _serve(here: Mount) -> None:
    await serve(here.fd, here.session)
    here.gone.set()


def _unmount_ours(here: Mount) -> None:
    try:
        unmount(here.path)
    except OSError as error:
        if error.errno != EINVAL:  # unmounted by someone else a moment ago
            raise
