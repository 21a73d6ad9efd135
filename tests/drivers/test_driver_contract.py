"""What every driver owes the task service: the same cases on the fake and on the real one."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from errno import EEXIST, EINVAL, ENODEV, ENOENT, ESRCH
from pathlib import Path

import pytest
import trio

from tasks.drivers.base import Driver, Exit, Limits
from tasks.drivers.fake import FakeDriver
from tests.drivers.recorder import DEADLINE, Recorder, launch, linux_driver


class World:
    """A driver and how to make its tasks do things."""

    def __init__(self, driver: Driver, recorder: Recorder, state: Path) -> None:
        self.driver = driver
        self.recorder = recorder
        self.state = state

    async def start(self, task: str, code: int = 0, **options: object) -> int:
        """Start a task that ends with `code` when `end` says so, having written "hello" to descriptor 1."""
        raise NotImplementedError

    async def end(self, task: str) -> None:
        raise NotImplementedError

    async def start_missing(self, task: str) -> None:
        """Start a program that is not there."""
        raise NotImplementedError


class FakeWorld(World):
    driver: FakeDriver

    async def start(self, task: str, code: int = 0, **options: object) -> int:
        self.codes = {**getattr(self, "codes", {}), task: code}
        spools = {1: self.state / f"{task}.out"}
        pid = await self.driver.start(launch(task, "program", state=self.state, **{"spools": spools, **options}))
        if 1 in self.driver.tasks[task].launch.spools:
            self.driver.write(task, 1, b"hello\n")
        return pid

    async def end(self, task: str) -> None:
        self.driver.finish(task, self.codes[task])

    async def start_missing(self, task: str) -> None:
        self.driver.refuse(ENOENT)
        await self.start(task)


class LinuxWorld(World):
    def __init__(self, driver: Driver, recorder: Recorder, state: Path) -> None:
        super().__init__(driver, recorder, state)
        self.inputs: dict[str, int] = {}

    async def start(self, task: str, code: int = 0, **options: object) -> int:
        read, self.inputs[task] = os.pipe()
        try:
            options = {"spools": {1: self.state / f"{task}.out"}, "fds": {9: read}, **options}
            script = f"echo hello; read line <&9; exit {code}"
            return await self.driver.start(launch(task, "sh", "-c", script, state=self.state, **options))
        finally:
            os.close(read)

    async def end(self, task: str) -> None:
        os.close(self.inputs.pop(task))

    async def start_missing(self, task: str) -> None:
        spools = {1: self.state / f"{task}.out"}
        await self.driver.start(launch(task, "/no/such/program", state=self.state, spools=spools))

    def close(self) -> None:
        for fd in self.inputs.values():
            os.close(fd)


@asynccontextmanager
async def fake_world(state: Path) -> AsyncIterator[World]:
    recorder = Recorder()
    with trio.fail_after(DEADLINE):
        yield FakeWorld(FakeDriver(recorder), recorder, state)


@asynccontextmanager
async def linux_world(state: Path) -> AsyncIterator[World]:
    async with linux_driver(state) as (driver, recorder):
        world = LinuxWorld(driver, recorder, state)
        try:
            yield world
        finally:
            world.close()


WORLDS = {"fake": fake_world, "linux": linux_world}


@pytest.fixture(params=WORLDS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def runner(body: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            async with WORLDS[request.param](tmp_path) as world:
                await body(world)

        trio.run(main)

    return runner


Run = Callable[[Callable[[World], Awaitable[None]]], None]


def test_start_answers_with_a_pid_once_its_spools_exist(run: Run) -> None:
    async def body(world: World) -> None:
        assert await world.start("t") > 0
        assert (world.state / "t.out").exists()
        assert len(await world.driver.pids("t")) == 1

    run(body)


def test_end_is_reported_once_with_code_and_reason(run: Run) -> None:
    async def body(world: World) -> None:
        for task, code in (("a", 0), ("b", 3)):
            await world.start(task, code)
            await world.end(task)
            exit = await world.recorder.exit_of(task)
            assert (exit.code, exit.reason) == (code, "exited")

    run(body)


def test_killed_task_ends_with_its_signal(run: Run) -> None:
    async def body(world: World) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            await world.start(number.name)
            await world.driver.kill(number.name, number)
            exit = await world.recorder.exit_of(number.name)
            assert (exit.code, exit.reason) == (128 + number, f"signal {number.value}")

    run(body)


def test_output_is_complete_and_ended_before_the_end_is_reported(run: Run) -> None:
    async def body(world: World) -> None:
        await world.start("t")
        await world.recorder.until(lambda: world.recorder.spools.get(("t", 1)) == (6, 0, False))
        await world.end("t")
        await world.recorder.exit_of("t")
        assert world.recorder.spools["t", 1] == (6, 0, True)
        assert world.recorder.order[-1] == "exited t"
        assert (world.state / "t.out").read_text() == "hello\n"

    run(body)


def test_refused_start_leaves_nothing_and_the_name_free(run: Run) -> None:
    async def body(world: World) -> None:
        with pytest.raises(FileNotFoundError):
            await world.start_missing("t")
        assert not (world.state / "t.out").exists()
        assert await world.driver.recover(["t"]) == {}
        assert not world.recorder.order
        await world.start("t")

    run(body)


def test_task_that_is_not_running_is_no_such_process(run: Run) -> None:
    async def body(world: World) -> None:
        await world.start("over")
        await world.end("over")
        await world.recorder.exit_of("over")
        for task in ("over", "never"):
            for request in (
                world.driver.kill(task, signal.SIGTERM),
                world.driver.pids(task),
                world.driver.pause(task),
                world.driver.resume(task),
                world.driver.set_limits(task, Limits(nice=1)),
                world.driver.stat(task, "mem"),
            ):
                with pytest.raises(OSError) as raised:
                    await request
                assert raised.value.errno == ESRCH

    run(body)


def test_figures_come_by_name_with_units(run: Run) -> None:
    async def body(world: World) -> None:
        await world.start("t")
        for what, keys in (
            ("mem", {"current_bytes"}),
            ("cpu", {"user_usec", "system_usec"}),
            ("io", {"read_bytes", "write_bytes"}),
            ("pids", {"current"}),
        ):
            assert keys <= (await world.driver.stat("t", what)).keys()
        with pytest.raises(OSError) as raised:
            await world.driver.stat("t", "luck")
        assert raised.value.errno == EINVAL

    run(body)


def test_task_that_is_known_is_not_started_again(run: Run) -> None:
    async def body(world: World) -> None:
        await world.start("t")
        with pytest.raises(OSError) as raised:
            await world.start("t")
        assert raised.value.errno == EEXIST
        await world.driver.kill("t", signal.SIGKILL)
        assert (await world.recorder.exit_of("t")).code == 137
        world.driver.forget("t")
        world.recorder.exits.clear()
        await world.start("t")

    run(body)


def test_terminal_is_only_where_one_was_asked_for(run: Run) -> None:
    async def body(world: World) -> None:
        await world.start("without")
        with pytest.raises(OSError) as raised:
            await world.driver.terminal("without")
        assert raised.value.errno == ENODEV
        await world.start("with", pty=(24, 80))
        os.close(await world.driver.terminal("with"))

    run(body)


def test_pausing_keeps_a_task_alive(run: Run) -> None:
    async def body(world: World) -> None:
        await world.start("t", 5)
        await world.driver.pause("t")
        await world.driver.pause("t")
        await world.driver.resume("t")
        await world.end("t")
        assert (await world.recorder.exit_of("t")).code == 5

    run(body)


def test_recovery_tells_running_from_ended_and_forgets_the_forgotten(run: Run) -> None:
    async def body(world: World) -> None:
        for task in ("runs", "ended", "forgotten"):
            await world.start(task, 4)
        for task in ("ended", "forgotten"):
            await world.end(task)
            await world.recorder.exit_of(task)
        world.driver.forget("forgotten")
        found = dict(await world.driver.recover(["runs", "ended", "forgotten", "never"]))
        assert found.keys() == {"runs", "ended"}
        ended = found["ended"]
        assert found["runs"] is None and isinstance(ended, Exit) and ended.code == 4
        assert world.recorder.spools["ended", 1] == (6, 0, True)

    run(body)
