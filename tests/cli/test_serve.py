"""`wanixfs serve` as its user meets it: what it refuses, and in how many words."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
from serving import SECONDS, WANIXFS, serving

pytestmark = pytest.mark.root


def refused(*words: str) -> str:
    """Return the one line with which `serve` declines."""
    done = subprocess.run([*WANIXFS, "serve", *words], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode in (1, 2)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--listen", "udp!h!1"], "wanixfs: listen: unknown network"),
        (["--uids", "9-1"], "wanixfs: uids: not a range"),
        (["--keep-tasks", "-1"], "wanixfs: keep-tasks: at least 0"),
        (["--listen", "tcp!0.0.0.0!0"], "wanixfs: refusing to listen beyond loopback"),
        (["--namespace", "/none/such"], "wanixfs: /none/such: No such file"),
    ],
)
def test_setting_that_cannot_be_used_is_one_line(tmp_path: Path, words: list[str], complaint: str) -> None:
    assert refused("--state", str(tmp_path / "s"), "--listen", f"unix!{tmp_path}/9p", *words).startswith(complaint)


def test_state_directory_serves_one_server(tmp_path: Path) -> None:
    with serving(tmp_path, mount=False) as served:
        assert str(served.state) in refused("--state", str(served.state), "--listen", f"unix!{tmp_path}/other")


def test_tcp_asks_for_the_token_in_the_state_directory(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp!127.0.0.1!{free.getsockname()[1]}"
    with serving(tmp_path, "--listen", address, mount=False) as served:
        token = (served.state / "token").read_text().strip()
        assert "task" in served.out("--addr", address, "--token", token, "ls")
        for words in ([], ["--token", token[:-1]]):
            assert b"Permission denied" in served.run("--addr", address, *words, "ls", status=1).stderr


def test_doctor_finds_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, mount=False) as served:
        assert f"answers at {served.address}" in served.out("doctor")
    gone = served.run("doctor", status=0).stdout.decode()
    assert "-> wanixfs serve" in gone


def test_log_goes_to_stderr_as_json_where_no_terminal_is(tmp_path: Path) -> None:
    with serving(tmp_path, mount=False) as served:
        served.run("run", "/none/such", status=127)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {"serving", "stopping"} <= {line["event"] for line in lines}
    assert all(line.keys() >= {"event", "level", "timestamp"} for line in lines)
