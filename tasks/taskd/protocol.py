"""How a server and its supervisor talk.

A message is a JSON object. On the host it is one packet of a SEQPACKET
socket, with descriptors beside it; in a guest it is a line of a byte stream,
without descriptors. Lines, because a new server finds the stream where the
old one left it: in the middle of one, of which it drops what is left.

    request  {"id": N, "op": NAME, ...}; without an id it is only answered if it fails
    reply    {"id": N, "ok": {...}}  or  {"id": N, "errno": E, "error": TEXT}
    event    {"event": NAME, ...}

A request names a descriptor by its index among those sent along. An object
too large for a packet travels in a memfd, sent as the last descriptor.
Text that is not UTF-8 keeps its bytes as lone surrogates.
"""

import json
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from errno import EINVAL, EMSGSIZE, EPROTO

VERSION = 1
SOCKET = "taskd.sock"
LOG = "taskd.log"
MAX_PACKET = 64 << 10
MAX_MESSAGE = 8 << 20
MAX_FDS = 250  # the kernel passes at most 253 at a time
FDS_SPACE = socket.CMSG_SPACE(4 * (MAX_FDS + 1))
_ELSEWHERE = b"@"

Message = dict[str, object]


def encode(message: Message) -> bytes:
    """Return the message's bytes. EMSGSIZE past 8 MiB."""
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(data) > MAX_MESSAGE:
        raise OSError(EMSGSIZE, "message too long")
    return data


def decode(data: bytes) -> Message:
    """Return the message in `data`. EPROTO if it isn't one."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OSError(EPROTO, "not JSON") from error
    if not isinstance(message, dict):
        raise OSError(EPROTO, "not an object")
    return message


def pack(message: Message, fds: Sequence[int]) -> tuple[bytes, list[int], int]:
    """Return the packet, the descriptors to send with it, and which of them (or -1) to close once it is sent."""
    if len(fds) > MAX_FDS:
        raise OSError(EMSGSIZE, "too many descriptors")
    data = encode(message)
    if len(data) <= MAX_PACKET:
        return data, list(fds), -1
    memory = os.memfd_create("message")
    with open(memory, "wb", closefd=False) as file:
        file.write(data)
    return _ELSEWHERE, [*fds, memory], memory


def unpack(packet: bytes, fds: Sequence[int]) -> tuple[Message, Sequence[int]]:
    """Return the message of a packet and the descriptors that are its own. Takes no descriptor but a message's memfd.

    EPROTO, EMSGSIZE; then the descriptors are still the caller's to close.
    """
    if packet != _ELSEWHERE:
        return decode(packet), fds
    if not fds:
        raise OSError(EPROTO, "message without its memory")
    size = os.fstat(fds[-1]).st_size
    if size > MAX_MESSAGE:
        raise OSError(EMSGSIZE, "message too long")
    data = os.pread(fds[-1], size, 0)
    message = decode(data)
    os.close(fds[-1])
    return message, fds[:-1]


def received_fds(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors among recvmsg(2)'s ancillary data."""
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
    return fds


def ancillary(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Return sendmsg(2)'s ancillary data for these descriptors."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []


def frame(message: Message) -> bytes:
    """Return the message as a line of a byte stream."""
    return encode(message) + b"\n"


class Frames:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived and return the bytes of every message now complete. EMSGSIZE ends the stream for good."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(self._begun) + lines[0]
            self._begun.clear()
        self._begun += rest
        if len(self._begun) > MAX_MESSAGE:
            raise OSError(EMSGSIZE, "message too long")
        return [line for line in lines if line]


def integer(message: Message, key: str, low: int, high: int, default: int | None = None) -> int:
    """Return the integer `key` of a message, in low..high. EINVAL."""
    value = message.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise OSError(EINVAL, f"{key}: not a number from {low} to {high}")
    return value


def text(message: Message, key: str, longest: int, default: str | None = None) -> str:
    """Return the string `key` of a message: no NUL, `longest` characters at most. EINVAL."""
    return _text(message.get(key, default), key, longest)


def texts(message: Message, key: str, longest: int) -> list[str]:
    """Return the list of strings `key` of a message, each at most `longest` characters. EINVAL."""
    value = message.get(key, [])
    if not isinstance(value, list):
        raise OSError(EINVAL, f"{key}: not a list")
    return [_text(item, key, longest) for item in value]


def table(message: Message, key: str) -> Message:
    """Return the object `key` of a message ({} if left out). EINVAL."""
    value = message.get(key, {})
    if not isinstance(value, dict):
        raise OSError(EINVAL, f"{key}: not an object")
    return value


def _text(value: object, key: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or "\0" in value:
        raise OSError(EINVAL, f"{key}: not text of at most {longest} characters")
    return value
