"""The warm program of WASI tasks: wasmtime loaded once, then a fork for every task (see `tasks.taskd.zygote`).

It has one thread, touches no module, and holds nothing a task could want.
"""

import gc
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from errno import EPROTO

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))

from tasks.drivers.wasi import runner
from tasks.taskd import privilege, syscalls
from tasks.taskd.protocol import FDS_SPACE, MAX_PACKET, Message, encode, integer, received_fds, text, unpack
from tasks.taskd.zygote import SOCKET_NUMBER


def serve(sock: socket.socket) -> None:
    """Fork on request until the supervisor is gone."""
    privilege.one_user()
    around = runner.surroundings(os.pidfd_open(os.getppid()), _empty_directory())
    gc.collect()
    gc.freeze()  # stays shared with the tasks
    sock.sendall(encode({"ready": True}))
    while True:
        packet, extra, _, _ = sock.recvmsg(MAX_PACKET, FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return
        fds: Sequence[int] = received_fds(extra)
        try:
            message, fds = unpack(packet, fds)
            pid = _fork(message, fds)
            if pid == 0:
                runner.run(message, fds, around)
            reply: Message = {"pid": pid}
        except OSError as error:
            reply = {"errno": error.errno or EPROTO, "error": error.strerror or str(error)}
        for fd in fds:
            os.close(fd)
        sock.sendall(encode(reply))


def _fork(message: Message, fds: Sequence[int]) -> int:
    """Return the pid of a new child of the supervisor, 0 in the child."""
    flags = syscalls.CLONE_PARENT
    if text(message, "net", 16, "host") == "none":
        flags |= syscalls.CLONE_NEWNET
    cgroup = fds[integer(message, "cgroup", 0, len(fds) - 1)] if "cgroup" in message else -1
    return syscalls.clone3(flags, cgroup=cgroup)


def _empty_directory() -> int:
    """Return a directory in which nothing is nor can be: one that was removed."""
    path = tempfile.mkdtemp()
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.rmdir(path)


if __name__ == "__main__":
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    os.set_inheritable(SOCKET_NUMBER, False)
    serve(socket.socket(fileno=SOCKET_NUMBER))
