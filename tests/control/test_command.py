"""A control plane as its administrator has it: a process, its place on disk, and the commands that call it."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBUSY
from pathlib import Path

import pytest
from peers import SECONDS, Stream, channel

from wanixfs.control.joining import join
from wanixfs.control.place import Place, Profile
from wanixfs.control.proto import taskrun_v1_pb2 as pb
from wanixfs.control.security.tokens import BearerToken

WANIXFS = [sys.executable, "-m", "wanixfs.cli"]


class Plane:
    """A plane that is served from a state directory, and the ports that it printed."""

    def __init__(self, state: Path, ports: dict[str, int]) -> None:
        self.state = state
        self.ports = ports

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        profile = str(self.state / "control/admin.json")
        return subprocess.run(
            [*WANIXFS, *words, "--plane", profile], capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def said(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done
        return done.stdout.strip()


@contextmanager
def plane(state: Path, *, ending: signal.Signals = signal.SIGTERM) -> Iterator[Plane]:
    ports = ["--worker-port", "0", "--client-port", "0", "--enroll-port", "0"]
    command = [*WANIXFS, "control", "serve", "--state", str(state), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            lines = [running.stdout.readline().split() for _ in range(3)]
            yield Plane(state, {name: int(address.rpartition(":")[2]) for name, address in lines})
        finally:
            running.send_signal(ending)
            status = running.wait(SECONDS)
    assert status == (0 if ending == signal.SIGTERM else -ending)


def work(served: Plane, text: str) -> None:
    """Enroll a worker, have it take one run, print, and complete it."""

    async def main() -> None:
        token = BearerToken.read(served.said("control", "token", "enroll", "w1"))
        pair, authority = await asyncio.to_thread(join, "127.0.0.1", served.ports["enrollment"], token)
        async with asyncio.timeout(SECONDS), channel(served.ports["workers"], authority, pair) as opened:
            stream = Stream(opened)
            await stream.hello("w1")
            await stream.hear("ack")
            run_id = (await stream.hear("assign_run")).assign_run.run_id
            await stream.put(run_id, 0, text)
            await stream.report(run_id, pb.RUN_STATUS_COMPLETED)
            await stream.hear("ack")
            await stream.hear("ack")

    asyncio.run(main())


def test_what_was_acknowledged_survives_a_plane_that_is_killed(tmp_path: Path) -> None:
    with plane(tmp_path, ending=signal.SIGKILL) as first:
        made = first.said("submit", "echo", '{"n": 1}', "--label", "k=v", "--key", "once")
        assert json.loads(first.said("task", made, "--json"))["status"] == "PENDING"
    with plane(tmp_path) as again:
        assert again.said("submit", "echo", '{"n": 1}', "--label", "k=v", "--key", "once") == made
        work(again, "hello\n")
        assert again.said("output", "-f", made) == "hello"
        shown = json.loads(again.said("task", made, "--json"))
        assert (shown["status"], shown["created_by"], shown["labels"]) == ("COMPLETED", "administrator", {"k": "v"})
        assert [run["status"] for run in shown["runs"]] == ["COMPLETED"]
        assert again.said("control", "workers").split()[:2] == ["w1", "IDLE"]
        assert again.said("control", "revoke", "w1") == "1 certificates revoked"


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    with plane(tmp_path) as served:
        made = served.said("submit", "echo")
        assert served.said("cancel", made) == ""
        done = served.run("cancel", made)
        assert (done.returncode, done.stderr) == (1, f"wanixfs: task {made} is CANCELLED\n")
        assert served.said("tasks").split() == [made, "CANCELLED", "echo"]
        assert "input_json is not JSON" in served.run("submit", "echo", "{").stderr


def test_what_a_plane_keeps_is_its_owners_alone(tmp_path: Path) -> None:
    with plane(tmp_path):
        directory = tmp_path / "control"
        assert directory.stat().st_mode & 0o777 == 0o700
        for name in ("authority.pem", "admin.json"):
            assert (directory / name).stat().st_mode & 0o777 == 0o600
        before = Profile.read(directory / "admin.json")
        with pytest.raises(OSError) as refused, Place(directory).held():
            pass
        assert refused.value.errno == EBUSY
    with plane(tmp_path):
        after = Profile.read(directory / "admin.json")
    assert (after.token, after.authority) == (before.token, before.authority)


def test_a_profile_that_makes_no_sense_is_told(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"address": 1, "token": 2, "authority": 3}'):
        (tmp_path / "p").write_text(text)
        with pytest.raises(OSError, match="no profile"):
            Profile.read(tmp_path / "p")
