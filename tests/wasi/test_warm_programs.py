"""Warm programs that fail, seen through the driver: the supervisor says so and goes on."""

import sys
from errno import EAGAIN, EIO, ENOENT
from pathlib import Path

import pytest
import trio

from tasks.drivers.linux.driver import Warm
from tests.drivers.recorder import launch, linux_driver

SILENT = (sys.executable, "-c", "import socket; socket.socket(fileno=3).recv(1)")
FICKLE = (
    sys.executable,
    "-c",
    "import socket; s = socket.socket(fileno=3); s.sendall(b'{\"ready\": true}'); s.recv(1)",
)


def warm(program: tuple[str, ...]) -> Warm:
    return Warm(program=program, fds={}, fields={})


def test_programs_that_do_not_become_warm_are_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with linux_driver(tmp_path) as (driver, recorder):
            for program, errno in ((("/bin/false",), EIO), (("/bin/no-such",), ENOENT), (("/bin/echo", "x"), EIO)):
                for _ in range(2):
                    with pytest.raises(OSError) as raised:
                        await driver.warm_up(program)
                    assert raised.value.errno == errno, program
            await driver.start(launch("t", "true", state=tmp_path))
            assert (await recorder.exit_of("t")).code == 0

    trio.run(main)


def test_task_of_a_program_that_is_not_warm_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with linux_driver(tmp_path) as (driver, _):
            with pytest.raises(OSError) as raised:
                await driver.start(launch("t", "x", state=tmp_path), warm(SILENT))
            assert raised.value.errno == EAGAIN

    trio.run(main)


def test_program_that_dies_when_asked_fails_that_start_and_can_be_warmed_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with linux_driver(tmp_path) as (driver, recorder):
            for _ in range(2):
                await driver.warm_up(FICKLE)
                with pytest.raises(OSError) as raised:
                    await driver.start(launch("t", "x", state=tmp_path), warm(FICKLE))
                assert raised.value.errno == EIO
            assert recorder.order == []

    trio.run(main)


def test_supervisor_that_quits_takes_a_program_along_that_was_never_ready(tmp_path: Path) -> None:
    async def main() -> None:
        async with linux_driver(tmp_path) as (driver, _):
            with trio.move_on_after(0.2):
                await driver.warm_up(SILENT)
            pid = driver.supervisor_pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            assert len(children) == 1
        assert not Path(f"/proc/{children[0]}").exists()

    trio.run(main)
