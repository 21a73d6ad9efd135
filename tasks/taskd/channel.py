"""The supervisor's end of a conversation: never blocks, keeps what the other side is too slow to take."""

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from errno import EMSGSIZE, ENOTSUP

from tasks.taskd.protocol import FDS_SPACE, MAX_PACKET, Frames, Message, ancillary, decode, frame, pack, received_fds
from tasks.taskd.protocol import unpack as unpack_packet

Handler = Callable[[Message, Sequence[int]], None]
"""Takes one message and its descriptors, which are closed afterwards: what is kept is duplicated."""


class PacketChannel:
    """A SEQPACKET socket: one message a packet, descriptors beside it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def clear(self) -> bool:
        """True when everything was sent."""
        return not self._unsent

    def receive(self, handle: Handler) -> bool:
        """Handle the next message; False if there is none yet.

        EOFError at the end; OSError for a malformed one, after which one may go on.
        """
        try:
            packet, extra, flags, _ = self._sock.recvmsg(MAX_PACKET, FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError as error:
            raise EOFError from error
        fds: Sequence[int] = received_fds(extra)
        try:
            if not packet:
                raise EOFError
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise OSError(EMSGSIZE, "packet too long")
            message, fds = unpack_packet(packet, fds)
            handle(message, fds)
            return True
        finally:
            for fd in fds:
                os.close(fd)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, now or by a later `flush`; the descriptors are the caller's to close at once. EMSGSIZE."""
        packet, fds, memory = pack(message, fds)
        if self._unsent or not self._sent(packet, fds):
            self._unsent.append((packet, [os.dup(fd) for fd in fds]))
        if memory >= 0:
            os.close(memory)

    def _sent(self, packet: bytes, fds: Sequence[int]) -> bool:
        """Send unless it would block. What a broken connection does not take is lost: `receive` will tell."""
        try:
            self._sock.sendmsg([packet], ancillary(fds))
        except BlockingIOError:
            return False
        except OSError:
            self._drop()
        return True

    def flush(self) -> None:
        """Send what the other side takes now."""
        while self._unsent and self._sent(*self._unsent[0]):
            if self._unsent:
                for fd in self._unsent.popleft()[1]:
                    os.close(fd)

    def _drop(self) -> None:
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()

    def close(self) -> None:
        self._drop()
        self._sock.close()


class StreamChannel:
    """A byte stream (a socket or a character device): framed messages, no descriptors. Owns `fd`.

    `resumed` says that somebody else has used it before, who may have left half a message on its way.
    """

    def __init__(self, fd: int, *, resumed: bool = False) -> None:
        self._fd = fd
        self._frames = Frames()
        self._unsent = bytearray(b"\n" if resumed else b"")
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        return self._fd

    @property
    def clear(self) -> bool:
        return not self._unsent

    def receive(self, handle: Handler) -> bool:
        """Handle what arrived; False for nothing. EOFError at the end; OSError for a malformed message among others."""
        try:
            data = os.read(self._fd, MAX_PACKET)
        except BlockingIOError:
            return False
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        try:
            frames = self._frames.feed(data)
        except OSError as error:  # the stream has lost its rhythm
            raise EOFError from error
        malformed: OSError | None = None
        for data in frames:
            try:
                handle(decode(data), ())
            except OSError as error:  # those that came with it are good
                malformed = error
        if malformed:
            raise malformed
        return True

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        if fds:
            raise OSError(ENOTSUP, "no descriptors over a byte stream")
        self._unsent += frame(message)
        self.flush()

    def flush(self) -> None:
        while self._unsent:
            try:
                sent = os.write(self._fd, self._unsent)
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                return
            del self._unsent[:sent]

    def close(self) -> None:
        os.close(self._fd)


Channel = PacketChannel | StreamChannel
