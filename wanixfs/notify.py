"""Tell whoever started the server how far it is, as sd_notify(3) does: a datagram to $NOTIFY_SOCKET."""

import os
import socket


def notify(state: str) -> None:
    """Send `state` ("READY=1", "STOPPING=1", "STATUS=...", lines); nobody listening is no error."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
        try:
            out.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            pass
