"""Start the supervisor: `python -I -S .../taskd/__main__.py DIRECTORY`.

Returns, leaving the supervisor in the background, once its socket in
DIRECTORY takes connections: so whoever starts it just waits. It has its own
session, no terminal, and a log beside the socket.
"""

import gc
import os
import socket
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tasks.taskd.protocol import LOG, SOCKET
from tasks.taskd.supervisor import Supervisor


def main(directory: str) -> None:
    os.chdir(directory)  # the socket's path may be longer than the kernel takes
    if os.path.lexists(SOCKET):
        os.unlink(SOCKET)  # its owner is dead: the server, which starts us, found nobody there
    os.umask(0o077)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(SOCKET)
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ready, listening = os.pipe()
    if os.fork():
        os.close(listening)
        os._exit(0 if os.read(ready, 1) else 1)
    os.close(ready)
    os.setsid()
    for fd, kept in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, kept)
    os.close(null)
    os.close(log)
    os.chdir("/")
    supervisor = Supervisor()
    gc.freeze()  # what is there stays, and stays shared with the children
    sock.listen(8)
    supervisor.listen(sock)
    os.write(listening, b"1")
    os.close(listening)
    supervisor.run()


if __name__ == "__main__":
    main(sys.argv[1])
