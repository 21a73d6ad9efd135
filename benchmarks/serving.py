"""A server of our own for the time of a benchmark, and how the benchmarks print."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
READY_SECONDS = 30.0


class Server(NamedTuple):
    """A running server: its pid, where its tree is mounted, its address and its state directory."""

    pid: int
    mount: Path
    address: str
    state: Path

    def supervisor(self) -> int:
        """Return the pid of the supervisor."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(self.state) in words and any(b"taskd" in word for word in words):
                return int(process.name)
        raise RuntimeError("no supervisor")


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """Serve with further `options` in a temporary directory until the block ends; nothing is left."""
    top = Path(tempfile.mkdtemp(prefix="wanixfs-bench-"))
    top.chmod(0o755)
    server = Server(0, top / "mnt", f"unix!{top}/9p", top / "state")
    command = [sys.executable, "-m", "wanixfs.cli", "serve", "--state", str(server.state)]
    command += ["--listen", server.address, "--mount", str(server.mount), *options]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, (top / "log").open("wb") as log:
        ready.bind(f"{top}/ready")
        environment = os.environ | {"NOTIFY_SOCKET": f"{top}/ready", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while b"READY=1" not in _said(ready):
                pass
            yield server._replace(pid=process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            shutil.rmtree(top, ignore_errors=True)


def _said(ready: socket.socket) -> bytes:
    if not select.select([ready], [], [], READY_SECONDS)[0]:
        raise TimeoutError("the server is not ready")
    return ready.recv(4096)


def cpu_seconds(*pids: int) -> float:
    """Return the processor time that processes (not their children) have used, to the nanosecond (schedstat)."""
    threads = (thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def resident_bytes(pid: int) -> int:
    """Return the memory of a process that is its own (proportional set size)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss")


def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns below a title."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    print(f"\n{title}")
    for row in [head, *rows]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
