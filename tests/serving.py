"""A server of our own for tests that need the whole program: started and stopped as a user does it."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 30.0
"""How long anything here may take before it counts as hung."""
WANIXFS = (sys.executable, "-m", "wanixfs.cli")


@dataclass(frozen=True)
class Served:
    """A running server: its process, where its tree is mounted (None: nowhere) and where it listens."""

    process: subprocess.Popen[bytes]
    mount: Path | None
    address: str
    state: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"WANIXFS_ADDR": self.address, "PYTHONPATH": str(ROOT)}

    def start(self, *words: str, **options: object) -> subprocess.Popen[bytes]:
        """Start a `wanixfs` command on this server, its streams pipes."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen((*WANIXFS, *words), env=self.environment, **(streams | options))  # type: ignore[call-overload,no-any-return]

    def run(self, *words: str, stdin: bytes = b"", status: int | None = 0) -> subprocess.CompletedProcess[bytes]:
        """Run a `wanixfs` command to its end; its exit status must be `status` (None: any)."""
        done = subprocess.run(
            (*WANIXFS, *words), env=self.environment, input=stdin, capture_output=True, timeout=SECONDS, check=False
        )
        assert status is None or done.returncode == status, (words, done)
        return done

    def out(self, *words: str, stdin: bytes = b"") -> str:
        """Return what a command that succeeds prints."""
        return self.run(*words, stdin=stdin).stdout.decode()


@contextmanager
def serving(
    top: Path, *options: str, mount: bool = True, command: Sequence[str | os.PathLike[str]] = WANIXFS
) -> Iterator[Served]:
    """Serve below `top` until the block ends, then stop the server and expect it to leave in order.

    If the test has killed it by then, everything is left for the next server over the same `top`.
    """
    state, where, address = top / "state", top / "mnt", f"unix!{top}/9p"
    words: Sequence[str] = ("serve", "--state", str(state), "--listen", address, *options)
    if mount:
        if str(where) not in Path("/proc/self/mounts").read_text():  # a killed server's mount may have no answer
            where.mkdir(exist_ok=True)
        words = (*words, "--mount", str(where))
    ready_name = f"ready-{os.urandom(4).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, (top / "log").open("wb") as log:
        ready.bind(f"{top}/{ready_name}")
        os.chmod(f"{top}/{ready_name}", 0o777)
        environment = os.environ | {"NOTIFY_SOCKET": f"{top}/{ready_name}", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen((*command, *words), env=environment, stdin=subprocess.DEVNULL, stderr=log)
        killed = False
        try:
            wait_ready(process, ready, top / "log")
            yield Served(process, where if mount else None, address, state)
            killed = process.poll() == -signal.SIGKILL
            if not killed:
                process.send_signal(signal.SIGTERM)
                assert process.wait(SECONDS) == 0, (top / "log").read_text()
        finally:
            os.unlink(f"{top}/{ready_name}")
            if not killed:
                end_all(process, state)
                if mount and os.path.ismount(where):
                    subprocess.run(["umount", "-l", where], check=False)
                shutil.rmtree(state, ignore_errors=True)


def end_all(server: subprocess.Popen[bytes], state: Path) -> None:
    """Kill a server that did not leave, and its supervisor with every task."""
    if server.poll() is None:
        server.kill()
        server.wait()
    with suppress(AssertionError):
        os.kill(supervisor(state), signal.SIGKILL)


def supervisor(state: Path) -> int:
    """Return the pid of the supervisor of a state directory."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(state) in words and any(b"taskd" in word for word in words):
            return int(process.name)
    raise AssertionError(f"no supervisor of {state}")


def wait_ready(process: subprocess.Popen[bytes], ready: socket.socket, log: Path) -> None:
    """Return once the server says that it is ready; fail with its log if it ends before or takes too long."""
    pidfd = os.pidfd_open(process.pid)
    try:
        said = b""
        while b"READY=1" not in said:
            readable, _, _ = select.select([ready, pidfd], [], [], SECONDS)
            assert ready in readable, f"the server is not ready:\n{log.read_text()}"
            said = ready.recv(4096)
    finally:
        os.close(pidfd)
