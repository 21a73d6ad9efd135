"""What is left after a kill -9 of the server, or of its supervisor."""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from errno import ECONNRESET
from pathlib import Path

import pytest
import trio

from tasks.drivers.base import Exit
from tasks.drivers.linux.client import connect, ensure
from tasks.drivers.linux.driver import LinuxDriver
from tests.drivers.recorder import DEADLINE, Recorder, alive, launch, linux_driver, until

SERVER = Path(__file__).with_name("server.py")


class Server:
    """A server in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.supervisor = int(self._answer().split()[1])

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer.startswith("ok"), answer
        return answer[3:]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def server(state: Path) -> Iterator[Server]:
    env = {**os.environ, "PYTHONPATH": str(SERVER.parents[2])}
    command = [sys.executable, str(SERVER), str(state)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def second_server(state: Path, body: Callable[[LinuxDriver, Recorder], Awaitable[None]]) -> None:
    async def main() -> None:
        async with linux_driver(state) as (driver, recorder):
            await body(driver, recorder)

    trio.run(main)


def test_killed_server_finds_tasks_output_and_exits_again(tmp_path: Path) -> None:
    with server(tmp_path) as first:
        pid = int(first.ask("start runs echo before; read x < /proc/self/cwd/proc/version; exec sleep 1000"))
        first.ask("start ends echo unread; exit 7")
        first.ask("start old exit 3")
        first.ask("exited old")
        first.kill()
    assert alive(pid)

    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        assert driver.supervisor_pid == first.supervisor
        found: dict[str, Exit | None] = {}
        while found.get("ends") is None:
            found = dict(await driver.recover(["runs", "ends", "old", "unheard of"]))
        assert found.keys() == {"runs", "ends", "old"}
        assert found["runs"] is None
        ends, old = found["ends"], found["old"]
        assert ends and (ends.code, ends.reason) == (7, "exited")
        assert old and old.code == 3
        assert old.peak_bytes > 0
        assert (tmp_path / "ends.out").read_text() == "unread\n"
        assert recorder.spools["ends", 1] == (7, 0, True)
        await recorder.until(lambda: recorder.spools["runs", 1][0] == 7)
        assert await driver.pids("runs") == [pid]
        await driver.kill("runs", signal.SIGTERM)
        assert (await recorder.exit_of("runs")).code == 143
        assert recorder.spools["runs", 1] == (7, 0, True)

    second_server(tmp_path, body)


def test_end_during_recovery_is_reported_once(tmp_path: Path) -> None:
    with server(tmp_path) as first:
        for number in range(20):
            first.ask(f"start t{number} exit {number}")
        first.kill()

    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        names = [f"t{number}" for number in range(20)]
        found = await driver.recover(names)
        for name, exit in found.items():
            assert exit is None or name not in recorder.exits
            assert (exit or await recorder.exit_of(name)).code == int(name[1:])
        assert list(found) == names

    second_server(tmp_path, body)


def test_held_descriptors_survive_the_server_but_not_beyond_their_grace(tmp_path: Path) -> None:
    with server(tmp_path) as first:
        assert first.ask("hold pipe") == "0"
        first.kill()

    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        read, write = await driver.vault.take("pipe")
        assert os.read(read, 10) == b"kept"
        os.write(write, b"works")
        driver.vault.drop("pipe")
        assert os.read(read, 10) == b"works"
        while await driver.vault.take("pipe"):
            pass
        os.close(write)
        assert os.read(read, 10) == b""
        os.close(read)

    def brief_is_dropped() -> bool:
        folder = f"/proc/{first.supervisor}/fd"
        links = [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]
        return not any(link.startswith("pipe:") and links.count(link) == 3 for link in links)

    async def wait() -> None:
        with trio.fail_after(DEADLINE):
            await until(brief_is_dropped)

    trio.run(wait)
    second_server(tmp_path, body)


def test_death_of_the_supervisor_takes_its_tasks_and_is_reported(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        script = "(setsid sleep 1000 &) ; echo started; exec sleep 1000"
        await driver.start(launch("t", "sh", "-c", script, state=tmp_path, spools={1: tmp_path / "out"}))
        await recorder.until(lambda: ("t", 1) in recorder.spools)
        pids = await driver.pids("t")
        os.kill(driver.supervisor_pid, signal.SIGKILL)
        await recorder.until(lambda: bool(recorder.lost_because))
        assert recorder.lost_because == ["supervisor lost"]
        gone = pids if "pidlimit" in driver.capabilities else pids[:1]  # without groups only the main process can be
        await until(lambda: not any(map(alive, gone)))
        for pid in set(pids) - set(gone):
            os.kill(pid, signal.SIGKILL)
        for request in (driver.kill("t", 9), driver.pids("t"), driver.recover(["t"])):
            with pytest.raises(OSError) as raised:
                await request
            assert raised.value.errno == ECONNRESET

    second_server(tmp_path, body)

    async def again(driver: LinuxDriver, recorder: Recorder) -> None:
        assert await driver.recover(["t"]) == {}
        await driver.start(launch("t", "true", state=tmp_path))
        assert (await recorder.exit_of("t")).code == 0

    second_server(tmp_path, again)


def test_supervisor_cannot_be_ended_by_polite_signals(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(driver.supervisor_pid, number)
        await driver.start(launch("t", "true", state=tmp_path))
        assert (await recorder.exit_of("t")).code == 0
        assert os.getsid(driver.supervisor_pid) == driver.supervisor_pid

    second_server(tmp_path, body)


def test_newer_server_takes_over(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        async with connect(tmp_path, on_event=lambda _: None, on_lost=lambda _: None) as newer:
            await recorder.until(lambda: bool(recorder.lost_because))
            assert recorder.lost_because == ["another server has taken over"]
            await newer.call("quit")

    second_server(tmp_path, body)


def test_quit_ends_every_task_and_the_supervisor(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        pids = [await driver.start(launch(f"t{number}", "sleep", "1000", state=tmp_path)) for number in range(5)]
        await driver.pause("t3")
        await driver.quit()
        assert {exit.code for exit in recorder.exits.values()} == {137}
        assert len(recorder.exits) == 5
        assert not any(map(alive, pids))
        await until(lambda: not alive(driver.supervisor_pid))
        recorder.lost_because.append("it was told to")  # nothing left to tell

    second_server(tmp_path, body)


def test_supervisor_is_started_only_where_none_runs(tmp_path: Path) -> None:
    assert ensure(tmp_path)
    assert not ensure(tmp_path)

    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        assert driver.supervisor_pid

    second_server(tmp_path, body)


def test_supervisor_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="did not start: FileNotFoundError"):
        ensure(tmp_path / "missing")
    (tmp_path / "taskd.sock").mkdir()
    with pytest.raises(OSError, match="did not start: IsADirectoryError"):
        ensure(tmp_path)
