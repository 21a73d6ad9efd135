"""A 9P2000.L client for a process with one thread: a request is sent, its reply waited for.

The server at the other end is trusted; what it sends is still checked, so that its mistakes end as EIO.
"""

import os
import socket
from collections.abc import Sequence
from errno import EIO
from typing import Any, Final

from tasks.taskd.protocol import FDS_SPACE, received_fds
from vfs.ninep.codec import HEADER, ProtocolError, decode_body, pieces, qid_parts
from vfs.ninep.messages import HEADER_SIZE, NOFID, NONUNAME, NOTAG, NUMBER, READ_OVERHEAD, VERSION

MSIZE: Final = (256 << 10) + READ_OVERHEAD
PAYLOAD: Final = MSIZE - READ_OVERHEAD
MAX_WALK: Final = 16
_TAG: Final = 1
_RLERROR: Final = NUMBER["Rlerror"]


class Client:
    """One connection. Fids are numbers that `attach`, `walk` and `clone` return and `clunk` gives back.

    Every method raises the server's OSError, and EIO once the server is gone.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = bytearray(MSIZE)
        self._view = memoryview(self._buffer)
        self._free: list[int] = []
        self._fids = 0
        msize, version = self._call("Tversion", MSIZE, VERSION, tag=NOTAG)
        if version != VERSION or msize != MSIZE:
            raise OSError(EIO, f"the server speaks {version!r}, {msize} bytes")

    def _call(self, name: str, *values: Any, tag: int = _TAG, passed: list[int] | None = None) -> tuple[Any, ...]:
        """Send a request and return its reply's values; data among them is valid until the next request.

        Descriptors beside the reply are added to `passed`, or closed.
        """
        number = NUMBER[name]
        parts, _ = pieces(number, tag, values)
        try:
            self._send(parts)
            size = self._receive(passed)
        except OSError as error:
            raise OSError(EIO, "the server is gone") from error
        _, kind, _ = HEADER.unpack_from(self._buffer)
        try:
            reply = decode_body(kind, self._view, HEADER_SIZE, size)
        except ProtocolError as error:
            raise OSError(EIO, str(error)) from error
        if kind == _RLERROR:
            raise OSError(reply[0], os.strerror(reply[0]))
        if kind != number + 1:
            raise OSError(EIO, f"reply {kind} to {name}")
        return reply

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        if len(parts) == 1:
            self._socket.sendall(parts[0])
        else:
            self._socket.sendall(b"".join(parts))

    def _receive(self, passed: list[int] | None) -> int:
        """Receive one frame into the buffer and return its size."""
        have, size = 0, HEADER_SIZE
        while have < size:
            if passed is None:
                count = self._socket.recv_into(self._view[have:])
            else:
                room = [self._view[have:]]
                count, extra, _, _ = self._socket.recvmsg_into(room, FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
                passed += received_fds(extra)
            if not count:
                raise ConnectionResetError
            have += count
            if have >= HEADER_SIZE:
                size = HEADER.unpack_from(self._buffer)[0]
                if not HEADER_SIZE <= size <= MSIZE:
                    raise ConnectionAbortedError
        return size

    # Fids

    def _new(self) -> int:
        if self._free:
            return self._free.pop()
        self._fids += 1
        return self._fids

    def attach(self, aname: str) -> int:
        """Return the root of the tree that the server has under this name."""
        fid = self._new()
        self._call("Tattach", fid, NOFID, "", aname, NONUNAME)
        return fid

    def clone(self, fid: int) -> int:
        """Return a fid of the same file, not open."""
        return self.walk(fid, ())[0]

    def walk(self, fid: int, names: Sequence[str]) -> tuple[int, list[int]]:
        """Walk plain names, following no symlink: return (new fid, the type of each qid).

        Fewer types than names, and fid 0, where the walk ended early; the server's error where it did not begin.
        """
        new = self._new()
        types: list[int] = []
        source = fid
        try:
            while True:
                part = names[len(types) : len(types) + MAX_WALK]
                (qids,) = self._call("Twalk", source, new, tuple(part))
                types += (qid_parts(raw)[0] for raw in qids)
                if len(qids) == len(part):
                    source = new
                    if len(types) == len(names):
                        return new, types
                    continue
                if source == new:
                    self.clunk(new)
                else:
                    self._free.append(new)
                return 0, types
        except OSError:
            if source == new:
                self.clunk(new)
                if types:
                    return 0, types
            else:
                self._free.append(new)
            raise

    def clunk(self, fid: int) -> None:
        """Give a fid back; the error is what the last of its writes came to."""
        try:
            self._call("Tclunk", fid)
        finally:
            self._free.append(fid)

    # Files

    def open(self, fid: int, flags: int, passed: list[int] | None = None) -> None:
        """Open the file that `fid` is. Where it is a host's, a descriptor of it is added to `passed`."""
        self._call("Tlopen", fid, flags, passed=passed)

    def create(self, fid: int, name: str, flags: int, mode: int, passed: list[int]) -> None:
        """Turn a directory's fid into the open new file `name`; see `open`."""
        self._call("Tlcreate", fid, name, flags, mode, 0xFFFFFFFF, passed=passed)

    def read(self, fid: int, offset: int, count: int) -> memoryview:
        """Return up to `count` bytes, none at the end; valid until the next request."""
        (data,) = self._call("Tread", fid, offset, min(count, PAYLOAD))
        assert isinstance(data, memoryview)
        return data[:count]

    def write(self, fid: int, offset: int, data: bytes | memoryview) -> int:
        """Write up to 256 KiB of `data`; return how much of it."""
        (count,) = self._call("Twrite", fid, offset, data[:PAYLOAD])
        return min(int(count), len(data))

    def readdir(self, fid: int, offset: int, count: int) -> memoryview:
        (data,) = self._call("Treaddir", fid, offset, min(count, PAYLOAD))
        assert isinstance(data, memoryview)
        return data

    def fsync(self, fid: int, datasync: bool) -> None:
        self._call("Tfsync", fid, int(datasync))

    def getattr(self, fid: int) -> tuple[Any, ...]:
        """Return Rgetattr's values, in the protocol's order."""
        return self._call("Tgetattr", fid, 0x7FF)

    def setattr(self, fid: int, valid: int, *, size: int = 0, atime_ns: int = 0, mtime_ns: int = 0) -> None:
        times = (*divmod(atime_ns, 10**9), *divmod(mtime_ns, 10**9))
        self._call("Tsetattr", fid, valid, 0, 0, 0, size, *times)

    # Names

    def mkdir(self, fid: int, name: str, mode: int) -> None:
        self._call("Tmkdir", fid, name, mode, 0xFFFFFFFF)

    def symlink(self, fid: int, name: str, target: str) -> None:
        self._call("Tsymlink", fid, name, target, 0xFFFFFFFF)

    def readlink(self, fid: int) -> str:
        (target,) = self._call("Treadlink", fid)
        return str(target)

    def link(self, directory: int, fid: int, name: str) -> None:
        self._call("Tlink", directory, fid, name)

    def rename(self, old: int, name: str, new: int, new_name: str) -> None:
        self._call("Trenameat", old, name, new, new_name)

    def unlink(self, fid: int, name: str, *, directory: bool) -> None:
        self._call("Tunlinkat", fid, name, 0x200 if directory else 0)
