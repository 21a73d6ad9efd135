"""The supervisor against whoever speaks to it badly, and what it keeps."""

import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBUSY, EINVAL, EMSGSIZE, ENOSYS, EPROTO, ESRCH
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.drivers.linux.client import ensure
from tasks.taskd.protocol import LOG, MAX_PACKET, SOCKET, Message

START: Message = {
    "op": "start",
    "task": "t",
    "argv": ["true"],
    "env": {"PATH": "/usr/bin:/bin"},
    "cwd": "/",
    "uid": os.geteuid(),
    "gid": os.getegid(),
    "spool_limit": 1 << 20,
}


class Raw:
    """A connection that says whatever it likes."""

    def __init__(self, state: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(30)
        here = os.open(state, os.O_PATH)
        self.socket.connect(f"/proc/self/fd/{here}/{SOCKET}")
        os.close(here)
        self.pid = 0
        self.events: list[Message] = []

    def packet(self, packet: bytes, fds: list[int] | None = None) -> Message:
        """Send a packet; return the reply to it, keeping the events that came before."""
        socket.send_fds(self.socket, [packet], fds or [])
        while True:
            reply = self.next()
            if "event" not in reply:
                return reply
            self.events.append(reply)

    def next(self) -> Message:
        data, fds, _, _ = socket.recv_fds(self.socket, 1 << 20, 250)
        for fd in fds:
            os.close(fd)
        reply = json.loads(data)
        assert isinstance(reply, dict)
        return reply

    def ask(self, message: Message, fds: list[int] | None = None) -> Message:
        return self.packet(json.dumps({"id": 1, **message}).encode(), fds)

    def end_of(self, task: str) -> Message:
        """Wait for the end of a task."""
        while True:
            event = self.events.pop(0) if self.events else self.next()
            if event.get("event") == "exited" and event["task"] == task:
                end = event["exit"]
                assert isinstance(end, dict)
                return end


@contextmanager
def supervisor(state: Path) -> Iterator[Raw]:
    assert ensure(state)
    raw = Raw(state)
    try:
        raw.pid = raw.ask({"op": "hello", "version": 1})["ok"]["pid"]  # type: ignore[index]
        yield raw
    finally:
        last = Raw(state)
        assert last.ask({"op": "quit"})["ok"] == {}
        last.socket.close()
        raw.socket.close()
        assert (state / LOG).read_text() == ""


def fds_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


BAD_STARTS = [
    {"task": 1},
    {"task": "t" * 65},
    {"argv": []},
    {"argv": [""]},
    {"argv": "true"},
    {"argv": ["true", 1]},
    {"argv": ["a\0b"]},
    {"env": ["PATH=/bin"]},
    {"env": {"A=B": "c"}},
    {"env": {"": "c"}},
    {"env": {"A": 1}},
    {"cwd": None},
    {"uid": -1},
    {"uid": 1 << 32},
    {"nice": 20},
    {"fds": {"0": 0}},
    {"fds": {"-1": 0}},
    {"fds": {"1024": 0}},
    {"fds": {"zero": 0}},
    {"fds": [0]},
    {"spools": {"1": 5}},
    {"spool_limit": 0},
    {"pty": {"rows": 0, "columns": 80}},
    {"pty": [24, 80]},
    {"cgroup": 0},
    {"join": [0]},
    {"seccomp": "not hex"},
    {"root": {"steps": "none"}},
    {"root": {"steps": [{"kind": "bind"}]}},
    {"root": {"steps": [{"kind": "cdrom", "at": "/x"}]}},
    {"root": {"steps": [{"kind": "bind", "at": "relative", "path": "/"}]}},
    {"root": {"steps": [{"kind": "proc", "at": "/"}]}},
    {"root": {"steps": [{"kind": "file", "at": "/x", "text": 1}]}},
]


def test_start_with_a_bad_field_is_invalid_and_starts_nothing(tmp_path: Path) -> None:
    with supervisor(tmp_path) as raw:
        before = fds_of(raw.pid)
        for bad in BAD_STARTS:
            reply = raw.ask({**START, **bad})
            assert (reply["id"], reply["errno"]) == (1, EINVAL), bad
            assert reply["error"]
        assert raw.ask({"op": "list"})["ok"] == {}
        assert fds_of(raw.pid) == before
        assert "ok" in raw.ask(START)
        assert raw.end_of("t")["code"] == 0


def test_what_is_no_request_is_answered_with_an_error(tmp_path: Path) -> None:
    with supervisor(tmp_path) as raw:
        before = fds_of(raw.pid)
        for packet, error in (
            (b"nonsense", EPROTO),
            (b"[1]", EPROTO),
            (b"@", EPROTO),
            (b"{}", EINVAL),
            (b'{"op":7}', EINVAL),
            (b'{"op":"dance"}', ENOSYS),
            (b'{"op":"hello","version":99}', EPROTO),
            (b'{"op":"kill","task":"t","signal":9}', ESRCH),
            (b'{"op":"forget"}', EINVAL),
            (b"x" * (MAX_PACKET + 1), EMSGSIZE),
        ):
            assert raw.packet(packet, [0, 1])["errno"] == error, packet
        assert raw.ask({"op": "hold", "key": "k"})["errno"] == EINVAL
        assert fds_of(raw.pid) == before
        assert raw.ask({"op": "list"})["ok"] == {}


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_requests_never_end_the_supervisor(shared: Raw, data: st.DataObject) -> None:
    whole = json.dumps({"id": 1, **START, "task": "fuzz", "argv": ["/no/such/program"]}).encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.binary(max_size=4))
    reply = shared.packet(whole[:at] + damage + whole[at + len(damage) :])
    assert "errno" in reply


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raw]:
    with supervisor(tmp_path_factory.mktemp("shared")) as raw:
        yield raw


def test_task_still_running_is_not_forgotten(tmp_path: Path) -> None:
    with supervisor(tmp_path) as raw:
        raw.ask({**START, "argv": ["sleep", "1000"]})
        assert raw.ask({"op": "forget", "task": "t"})["errno"] == EBUSY
        raw.ask({"op": "kill", "task": "t", "signal": 9})
        assert raw.end_of("t")["code"] == 137
        assert "ok" in raw.ask({"op": "forget", "task": "t"})
        assert raw.ask({"op": "forget", "task": "t"})["errno"] == ESRCH


def test_socket_and_log_are_private(tmp_path: Path) -> None:
    with supervisor(tmp_path):
        for name in (SOCKET, LOG):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o077 == 0


def test_path_longer_than_a_socket_address_is_no_obstacle(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 20) / ("er" * 60)
    state.mkdir(parents=True)
    with supervisor(state) as raw:
        assert raw.pid


def test_supervisor_imports_no_site_packages(tmp_path: Path) -> None:
    with supervisor(tmp_path) as raw:
        assert "site-packages" not in Path(f"/proc/{raw.pid}/maps").read_text()
        assert Path(f"/proc/{raw.pid}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-I", b"-S"]
