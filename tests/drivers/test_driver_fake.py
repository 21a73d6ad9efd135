"""The fake driver's faults: each does what its name says."""

from errno import ENOEXEC
from pathlib import Path

import pytest
import trio

from tasks.drivers.base import Limits
from tasks.drivers.fake import FakeDriver
from tests.drivers.recorder import Recorder, launch


def test_refusal_hits_the_next_start_only(tmp_path: Path) -> None:
    async def main() -> None:
        driver = FakeDriver(Recorder())
        driver.refuse(ENOEXEC)
        with pytest.raises(OSError) as raised:
            await driver.start(launch("t", "p", state=tmp_path))
        assert raised.value.errno == ENOEXEC
        assert await driver.start(launch("t", "p", state=tmp_path))

    trio.run(main)


def test_early_exit_is_reported_before_the_start_answers(tmp_path: Path) -> None:
    async def main() -> None:
        recorder = Recorder()
        driver = FakeDriver(recorder)
        driver.exit_early(7)
        assert await driver.start(launch("t", "p", state=tmp_path)) > 0
        assert recorder.exits["t"].code == 7

    trio.run(main)


def test_held_start_answers_when_let(tmp_path: Path) -> None:
    async def main() -> None:
        driver = FakeDriver(Recorder())
        gate = driver.hold_starts()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.start, launch("t", "p", state=tmp_path))
            await driver.start_arrived()
            assert not driver.tasks
            gate.set()
        assert "t" in driver.tasks

    trio.run(main)


def test_lost_signal_does_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        recorder = Recorder()
        driver = FakeDriver(recorder)
        await driver.start(launch("t", "p", state=tmp_path))
        driver.kills_lost = 1
        await driver.kill("t", 9)
        assert not recorder.exits
        await driver.kill("t", 9)
        assert recorder.exits["t"].code == 137

    trio.run(main)


def test_burst_of_output_drops_the_oldest_as_accounted(tmp_path: Path) -> None:
    async def main() -> None:
        recorder = Recorder()
        driver = FakeDriver(recorder)
        await driver.start(launch("t", "p", state=tmp_path, spools={1: tmp_path / "out"}, spool_limit=10))
        driver.write("t", 1, b"x" * 8)
        driver.write("t", 1, b"y" * 8)
        assert recorder.spools["t", 1] == (16, 6, False)

    trio.run(main)


def test_lost_supervisor_takes_every_task(tmp_path: Path) -> None:
    async def main() -> None:
        recorder = Recorder()
        driver = FakeDriver(recorder)
        await driver.start(launch("t", "p", state=tmp_path))
        driver.lose()
        assert recorder.lost_because == ["supervisor lost"]
        assert await driver.recover(["t"]) == {}

    trio.run(main)


def test_memory_fault_tells_the_limit(tmp_path: Path) -> None:
    async def main() -> None:
        recorder = Recorder()
        driver = FakeDriver(recorder)
        await driver.start(launch("t", "p", state=tmp_path))
        await driver.set_limits("t", Limits(memory=99))
        driver.out_of_memory("t")
        assert recorder.events == [("t", "oom", {"limit_bytes": 99})]

    trio.run(main)


def test_new_server_finds_the_tasks_of_the_old_one(tmp_path: Path) -> None:
    async def main() -> None:
        old = FakeDriver(Recorder())
        for task in ("runs", "ended"):
            await old.start(launch(task, "p", state=tmp_path))
        old.finish("ended", 3)
        found = await FakeDriver(Recorder(), survivor=old).recover(["runs", "ended", "never"])
        assert found.keys() == {"runs", "ended"}
        assert found["runs"] is None

    trio.run(main)
