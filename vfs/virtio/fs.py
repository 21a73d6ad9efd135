"""virtiofs: a tree as a guest's file system, on the FUSE session that /dev/fuse has.

Source: VIRTIO 1.2, section 5.11. Queue 0 is for what must not wait (forgets), the others for requests. What a guest
says about who asks counts for nothing: `root` is to be a tree as one user may use it (`vfs.confined`).

A host file is read by the kernel straight into the guest's memory. Where that would have to wait for a disk, and for
all else, the session answers.
"""

import os
from errno import EPROTO
from functools import partial
from struct import Struct

import trio

from vfs.confined import Confined
from vfs.fuse.messages import IN_HEADER, MAX_IO, OUT_HEADER, READ_IN, UNANSWERED, Op
from vfs.fuse.session import Session, Transport
from vfs.locks import LockTable
from vfs.node import Caller, Node
from vfs.virtio.memory import gather, room, scatter
from vfs.virtio.ring import Chain, Queue
from vfs.virtio.service import listening, serve

LONGEST = MAX_IO + 8192
"""The largest request: a write of MAX_IO and its headers."""
TURN = 64
"""Requests that are answered before the guest is told and other tasks get a turn."""
READ_SIZE = IN_HEADER.size + 40
PATIENCE = 1.0
"""Seconds after which a request that waits is answered EINTR: Linux cannot interrupt one on virtiofs (6.12), nor kill
who waits for it. So a signal is heeded within that time, and a program that tries again, as most do, waits on."""

_unpack_read = READ_IN.unpack_from
_unpack_brief = Struct("=IIQ").unpack_from  # len opcode unique


class FileSystem:
    """The device: `session`, whose transport the virtqueues are.

    `request_queues` is how many queues beside the first the machine may set up.
    """

    features = 0
    config = b""

    def __init__(self, session: Session, *, request_queues: int = 1) -> None:
        self.queues = 1 + request_queues
        self._session = session
        self._served: Queue | None = None

    def reset(self) -> None:
        self._session.close()

    def serve(self, queue: Queue) -> bool:
        self._served = queue
        try:
            for _ in range(TURN):
                chain = queue.pop()
                if chain is None:
                    return False
                self._take(queue, chain)
        finally:
            self._served = None
        return True

    def _take(self, queue: Queue, chain: Chain) -> None:
        frame = gather(chain.readable, LONGEST)
        if len(frame) < IN_HEADER.size:
            raise OSError(EPROTO, "a request without a header")
        length, opcode, unique = _unpack_brief(frame)
        if opcode == Op.READ and length == len(frame) == READ_SIZE and self._read(queue, chain, unique, frame):
            return
        if opcode in UNANSWERED or not chain.writable:
            self._session.receive(memoryview(frame), _drop)
            queue.push(chain, 0)
        else:
            self._session.receive(memoryview(frame), partial(self._reply, queue, chain))

    def _read(self, queue: Queue, chain: Chain, unique: int, frame: bytes) -> bool:
        """Have the kernel read an open host file into the guest's memory; False leaves the request to the session."""
        fh, offset, size, _ = _unpack_read(frame, IN_HEADER.size)
        fd = self._session.host_file(fh)
        if fd < 0 or size > MAX_IO:
            return False
        places = room(chain.writable, OUT_HEADER.size, size)
        done = 0
        try:
            while done < size:
                rest = room(places, done, size - done) if done else places
                got = os.preadv(fd, rest, offset + done, os.RWF_NOWAIT)
                if not got:
                    break
                done += got
        except (OSError, OverflowError):
            return False
        scatter([OUT_HEADER.pack(OUT_HEADER.size + done, 0, unique)], chain.writable)
        queue.push(chain, OUT_HEADER.size + done)
        return True

    def _reply(self, queue: Queue, chain: Chain, *parts: bytes | memoryview) -> None:
        try:
            written = scatter(parts, chain.writable)
        except OSError:  # the guest's own fault
            written = 0
        queue.push(chain, written)
        if self._served is not queue:
            queue.tell()


def _drop(*parts: bytes | memoryview) -> None:
    """Take an answer for which the guest has left no room."""


async def serve_fs(
    path: str | os.PathLike[str],
    root: Node,
    user: Caller,
    *,
    locks: LockTable | None = None,
    mode: int = 0o600,
    request_queues: int = 1,
    patience: float = PATIENCE,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `root` as `user` may use it to the machine that connects to the unix socket `path`, until cancelled.

    It listens from `task_status.started()` on; a machine that hangs up may be followed by another. `locks` makes file
    locks those of a table shared with other protocols, else they are the guest's own. The socket is removed at the end;
    a guest that is left without us waits for its files for ever, so end its machine, or let it unmount, before.
    """
    with listening(path, mode=mode) as listener:
        async with trio.open_nursery() as nursery:
            session = Session(Confined(root, user), locks=locks, stack_depth=0, patience=patience)
            session.attach(Transport(spawn=nursery.start_soon))
            task_status.started()
            await serve(listener, FileSystem(session, request_queues=request_queues))
