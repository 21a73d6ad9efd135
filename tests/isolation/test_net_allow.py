"""A task that may reach some hosts reaches those, by name and by address, and nothing else."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prison import Prisoner, new_cell
from serving import SECONDS, Served, serving

pytestmark = pytest.mark.root

TALK = """
with socket.create_connection({at!r}, 20) as peer:
    peer.sendall(b"hello")
    peer.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: peer.recv(65536), b"")).decode()
"""


@contextmanager
def echoing(host: str = "127.0.0.1", data: bytes = b"") -> Iterator[int]:
    """Serve connections: answer what was said in capitals, then `data`; yield the port."""
    listener = socket.create_server((host, 0))
    listener.settimeout(SECONDS)

    def answer(peer: socket.socket) -> None:
        with peer:
            said = b"".join(iter(lambda: peer.recv(65536), b""))
            peer.sendall(said.upper() + data)

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@contextmanager
def allowed(served: Served, *lines: str) -> Iterator[Prisoner]:
    assert served.mount
    found = Prisoner(new_cell(served.mount, *lines))
    try:
        yield found
    finally:
        found.release()


def relays(prisoner: Prisoner) -> list[int]:
    """Return the pids of the processes that carry its connections: in its cgroup, in our network."""
    uid = prisoner.sees("return os.getuid()")
    ours = os.stat("/proc/self/ns/net").st_ino
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid in (uid, 0) and os.stat(process / "ns/net").st_ino == ours:
                status = (process / "status").read_text()
                if f"\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status and "State:\tZ" not in status:
                    found.append(int(process.name))
        except OSError:
            continue
    return found


def test_allowed_host_is_reached_by_name_and_nothing_else(served: Served) -> None:
    name = socket.gethostname()
    with echoing("0.0.0.0") as port, echoing() as other, allowed(served, f"net allow {name}:{port}") as task:
        assert task.sees(TALK.format(at=(name, port))) == "HELLO"
        assert task.attempt(TALK.format(at=(name, other))) == "ECONNREFUSED"
        assert task.attempt(TALK.format(at=("127.0.0.1", port))) == "ECONNREFUSED"
        assert task.attempt(TALK.format(at=("192.0.2.1", 80))) == "ENETUNREACH"


def test_allowed_address_and_localhost_are_reached_as_they_are(served: Served) -> None:
    with echoing("0.0.0.0") as port:
        address = first_address()
        with allowed(served, f"net allow localhost:{port} {address}:{port}") as task:
            assert task.sees(TALK.format(at=("127.0.0.1", port))) == "HELLO"
            assert task.sees(TALK.format(at=(address, port))) == "HELLO"


def first_address() -> str:
    """Return an address of this machine: of an interface if it has one, else another of the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.2"
        return str(probe.getsockname()[0])


def test_privileged_ports_and_bulk_data_pass(served: Served) -> None:
    data = os.urandom(1 << 16).hex().encode() * 40
    with echoing(data=data) as port, allowed(served, f"net allow 127.0.0.1:{port}") as task:
        body = TALK.format(at=("127.0.0.1", port)).replace(".decode()", ".endswith(bytes.fromhex('0a')) or 'short'")
        assert task.sees(body) == "short"
        assert task.sees(
            TALK.format(at=("127.0.0.1", port)).replace("return b", "return len(b").replace(".decode()", ")")
        ) == 5 + len(data)


def test_host_that_cannot_be_reached_resets_the_connection(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with allowed(served, f"net allow 127.0.0.1:{port}") as task:
        assert task.attempt(TALK.format(at=("127.0.0.1", port))) in ("ECONNRESET", "EPIPE")


def test_relay_is_unseen_unprivileged_and_goes_with_its_task(served: Served) -> None:
    with echoing() as port, allowed(served, f"net allow 127.0.0.1:{port}") as task:
        [relay] = relays(task)
        status = Path(f"/proc/{relay}/status").read_text()
        assert "CapPrm:\t0000000000000000\n" in status and "NoNewPrivs:\t1\n" in status
        assert len(os.listdir(f"/proc/{relay}/fd")) < 10
        assert task.attempt(f"os.kill({relay}, 9)") == "ESRCH"
        task.cell.end()
        assert not os.path.exists(f"/proc/{relay}")


def test_relay_outlives_the_server(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with echoing() as port:
        with serving(tmp_path) as first:
            assert first.mount
            task = Prisoner(new_cell(first.mount, f"net allow 127.0.0.1:{port}"))
            first.process.send_signal(signal.SIGKILL)
            first.process.wait(SECONDS)
        with serving(tmp_path):
            assert task.sees(TALK.format(at=("127.0.0.1", port))) == "HELLO"
            task.release()


def test_connections_are_bounded_and_the_next_waits(served: Served) -> None:
    with echoing() as port, allowed(served, f"net allow 127.0.0.1:{port}") as task:
        body = f"""
            peers = [socket.create_connection(("127.0.0.1", {port}), 20) for _ in range(70)]
            for peer in peers:
                peer.sendall(b"x")
                peer.shutdown(socket.SHUT_WR)
            return [peer.recv(1).decode() for peer in peers] == ["X"] * 70
        """
        assert task.sees(body) is True


def test_task_gives_its_child_no_network_that_it_lacks(served: Served) -> None:
    child = "write('/task/' + read('/task/new').strip() + '/ctl', 'net allow {}')"
    with allowed(served, "net allow localhost:1 localhost:2") as task:
        assert task.attempt(child.format("localhost:2")) == "0"
        assert task.attempt(child.format("localhost:1 localhost:3")) == "EPERM"
        assert task.attempt(child.format("localhost:1 " * 65)) == "EINVAL"
        assert task.attempt(child.format("::1:1")) == "EINVAL"
    with allowed(served) as task:
        assert task.attempt(child.format("localhost:1")) == "EPERM"


def test_last_words_of_a_task_reach_their_host(served: Served) -> None:
    assert served.mount
    said = b"last words" * 10_000
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        port = server.getsockname()[1]
        script = f"import socket; socket.create_connection(('127.0.0.1', {port})).sendall(b'last words' * 10_000)"
        for _ in range(10):
            cell = new_cell(served.mount, f"net allow 127.0.0.1:{port}")
            (cell.path / "args").write_bytes(b"\0".join((b"/usr/bin/python3", b"-Ic", script.encode(), b"")))
            cell.ctl("start")
            peer, _ = server.accept()
            with peer:
                peer.settimeout(SECONDS)
                assert b"".join(iter(lambda peer=peer: peer.recv(65536), b"")) == said
            assert cell.read("wait") == "0"
