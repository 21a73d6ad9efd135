"""Who is at the other end of a connection, as far as the kernel vouches for it."""

import socket
import struct
from dataclasses import dataclass
from errno import EPERM

from vfs.ninep.messages import NONUNAME

_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class PeerCred:
    """The process that connected a unix socket (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> PeerCred | None:
    """Return the connecting process of a unix socket, None for every other kind."""
    if connection.family != socket.AF_UNIX:
        return None
    return PeerCred(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def claimed_uid(peer: PeerCred, n_uname: int) -> int:
    """Return the uid that a local peer attaches as: root as anyone, all others only as themselves. EPERM.

    `n_uname` is Tattach's; NONUNAME means the peer itself.
    """
    if n_uname == NONUNAME:
        return peer.uid
    if peer.uid not in (0, n_uname):
        raise OSError(EPERM, f"uid {peer.uid} may not attach as uid {n_uname}")
    return n_uname
