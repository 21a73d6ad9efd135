"""Pid 1 of a guest that uses our devices: its kernel's virtiofs and vsock drivers against our files and sockets.

Each report is a JSON line on the virtio port "report": a case, how long it took, and what was wrong or None.
"""

import errno
import faulthandler
import hashlib
import json
import os
import signal
import socket
import stat
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.taskd import boot
from tests.judges import load

TASK = 12345
OTHER = 23456
ECHO, SERVICE, NOBODY = 52, 99, 98
SIZE = 2 << 20
LACKING = ("setxattr", "getxattr", "removexattr")
"""What tmpfs of Linux 6.1 has not: user xattrs."""


def main() -> None:
    boot.mount_kernel()
    boot.load_modules()
    words = dict(word.partition("=")[::2] for word in Path("/proc/cmdline").read_text().split())
    (port,) = (
        f"/dev/{port.name}"
        for port in Path("/sys/class/virtio-ports").iterdir()
        if (port / "name").read_text() == "report\n"
    )
    faulthandler.dump_traceback_later(60, repeat=True)
    with open(port, "w", buffering=1) as report:
        for name, case in cases(int(words["calls"])):
            started = time.monotonic()
            error = None
            try:
                case()
            except BaseException:
                error = traceback.format_exc()
            seconds = round(time.monotonic() - started, 2)
            print(json.dumps({"case": name, "seconds": seconds, "error": error}), file=report)
    boot.power_off()


def cases(calls: int) -> Iterator[tuple[str, Callable[[], None]]]:
    boot.mount("tmpfs", "/right")
    for tree in ("memory", "host"):
        boot.mount("virtiofs", f"/{tree}", source=tree)
        yield f"{tree} file", lambda tree=tree: load.exercise_file(f"/{tree}/file", seed=1, count=calls // 2)
        yield f"{tree} calls", lambda tree=tree: compare(tree, calls)
    boot.mount("virtiofs", "/task", source="task")
    yield "whoever asks, the task's user acts", refused
    yield "a read that waits can be killed", killed
    yield "a read that waits ends when there is something", woken
    yield "to a port of the host", dial
    yield "to where nobody listens", dial_nobody
    yield "from the host", answer
    yield "a large file", whole


def compare(tree: str, calls: int) -> None:
    os.mkdir(f"/right/{tree}")
    os.mkdir(f"/{tree}/tree")
    load.compare_trees(f"/right/{tree}", f"/{tree}/tree", seed=2, count=calls, without=LACKING)


def refused() -> None:
    """Try, as root and as both users, what the task's user may not do, and what he may."""
    attempts: dict[str, Callable[[], object]] = {
        "read another's": lambda: os.open("/task/tmp/secret", os.O_RDONLY),
        "search another's": lambda: os.stat("/task/tmp/private/inside"),
        "write what is bound read-only": lambda: os.open("/task/usr/file", os.O_WRONLY),
        "make in what is bound read-only": lambda: os.mkdir("/task/usr/new"),
        "remove another's": lambda: os.unlink("/task/tmp/secret"),
        "give away": lambda: os.chown("/task/home/mine", OTHER, OTHER),
        "take": lambda: os.chown("/task/tmp/secret", TASK, TASK),
        "open to all": lambda: os.chmod("/task/tmp/secret", 0o777),
        "make a device": lambda: os.mknod("/task/home/null", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    }
    for uid in (0, TASK, OTHER):
        os.seteuid(uid)
        try:
            for what, attempt in attempts.items():
                found = load.outcome(lambda _, attempt=attempt: attempt(), "")
                assert found in ("EACCES", "EPERM", "EROFS"), f"{what} as {uid}: {found}"
        finally:
            os.seteuid(0)
    with open("/task/home/by-root", "w") as file:
        file.write("whose?")
    assert os.stat("/task/home/by-root").st_uid == TASK
    os.chmod("/task/home/mine", 0o4755)


def reader() -> int:
    """Fork a process that reads what is not there yet; returns its pid once the kernel waits for the answer."""
    pid = os.fork()
    if not pid:
        try:
            fd = os.open("/task/wait", os.O_RDONLY)
            os._exit(0 if os.read(fd, 100) == b"done\n" else 3)
        except BaseException:
            os._exit(4)
    deadline = time.monotonic() + 20
    while "fuse" not in Path(f"/proc/{pid}/stack").read_text():
        assert time.monotonic() < deadline, "the reader does not wait"
        time.sleep(0.01)
    return pid


def killed() -> None:
    pid = reader()
    os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    assert os.waitpid(pid, 0)[1] == signal.SIGTERM
    assert time.monotonic() - began < 10, "the signal waited"


def woken() -> None:
    pid = reader()
    Path("/task/go").write_text("now\n")
    assert os.waitpid(pid, 0)[1] == 0


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(min(1 << 16, size - len(data)))
        assert more, f"the end after {len(data)} bytes"
        data += more
    return data


def dial() -> None:
    """Have the host's service hash what we send, and send as much back."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.connect((2, SERVICE))
        data = os.urandom(SIZE)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert exactly(sock, 32) == hashlib.sha256(data).digest()
        back = exactly(sock, SIZE)
        assert exactly(sock, 32) == hashlib.sha256(back).digest()
        assert sock.recv(1) == b""


def dial_nobody() -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        assert sock.connect_ex((2, NOBODY)) == errno.ECONNRESET


def answer() -> None:
    """Send back what the host sends."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, ECHO))
        listener.listen(1)
        Path("/task/go").write_text("listening\n")
        sock, _ = listener.accept()
        with sock:
            while data := sock.recv(1 << 16):
                sock.sendall(data)


def whole() -> None:
    digest = hashlib.sha256()
    with open("/task/usr/large", "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    assert Path("/task/usr/large.sha256").read_text() == digest.hexdigest()
