"""The VM driver against machines and guests that fail or lie, and where something is missing: fast, without a guest."""

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from errno import EINVAL, EIO, ENOENT, ENOTSUP, ETIMEDOUT
from pathlib import Path

import pytest
import trio
from serving import serving

from ns.namespace import Namespace
from tasks.drivers.base import Limits
from tasks.drivers.vm.driver import VmDriver
from tasks.drivers.vm.names import MODULES
from tasks.drivers.vm.qemu import PROGRAM, Qemu
from tests.drivers.recorder import Recorder, launch, linux_driver
from vfs.ninep.server import Server

FAKE = Path(__file__).with_name("fake_qemu.py")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Put a fake QEMU on the PATH, and a kernel that boots nothing in its place; called with how it shall behave."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    program = place / PROGRAM
    program.write_text("#!/usr/bin/python3 -IS\n" + FAKE.read_text())
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    kernels = tmp_path / "kernels"
    monkeypatch.setenv("WANIXFS_KERNELS", str(kernels))
    (kernels / "1.0/modules").mkdir(parents=True)
    (kernels / "1.0/vmlinux").write_bytes(b"\x7fELF")
    for name in MODULES:
        (kernels / f"1.0/modules/{name}.ko").write_bytes(b"")
    yield lambda behaviour: (place / "behaviour").write_text(behaviour) and None
    shutil.rmtree(place)


class EmptyNamespace:
    """As much of a namespace as a start looks at."""

    class table:
        members = staticmethod(lambda path: ())

    class root:
        id = 5


Body = Callable[[VmDriver, Recorder], Awaitable[None]]


def run(state: Path, body: Body, **options: float) -> None:
    """Run `body` with a driver whose supervisor, and all it started, is gone afterwards."""

    async def main() -> None:
        async with linux_driver(state) as (linux, recorder), trio.open_nursery() as nursery:
            files = Server()
            await nursery.start(files.run)
            driver = VmDriver(
                linux,
                recorder,
                files,
                machine=Qemu(),
                spools=state / "spools",
                kernels=Path(os.environ["WANIXFS_KERNELS"]),
                cache=state / "vm",
                **options,
            )
            await nursery.start(driver.run)
            await body(driver, recorder)
            nursery.cancel_scope.cancel()

    trio.run(main)


def vm_launch(state: Path, id: str = "t", **options: object) -> object:
    namespace: Namespace = EmptyNamespace()  # type: ignore[assignment]
    return launch(
        id, "program", state=state, **{"namespace": namespace, "net": "none", "spools": {1: state / "out"}, **options}
    )


async def refused(errno: int, said: str, awaitable: Awaitable[object]) -> None:
    with pytest.raises(OSError) as raised:
        await awaitable
    assert raised.value.errno == errno and said in str(raised.value), raised.value


@pytest.mark.parametrize("behaviour", ["honest", "lies"])
def test_exit_and_output_are_those_that_the_guest_reports(
    tmp_path: Path, fake: Callable[[str], None], behaviour: str
) -> None:
    async def body(driver: VmDriver, recorder: Recorder) -> None:
        assert await driver.start(vm_launch(tmp_path)) > 0
        exit = await recorder.exit_of("t")
        assert (exit.code, exit.reason) == (5, "exited")
        assert recorder.spools["t", 1] == (6, 0, True)
        assert (tmp_path / "out").read_text() == "hello\n"

    fake(behaviour)
    run(tmp_path, body)


def test_guest_that_does_not_answer_is_ended(tmp_path: Path, fake: Callable[[str], None]) -> None:
    async def body(driver: VmDriver, recorder: Recorder) -> None:
        await driver.start(vm_launch(tmp_path))
        exit = await recorder.exit_of("t")
        assert (exit.code, exit.reason) == (137, "the guest does not answer")

    fake("hangs")
    run(tmp_path, body, patience=0.5)


def test_figures_of_a_guest_are_taken_only_where_they_make_sense(tmp_path: Path, fake: Callable[[str], None]) -> None:
    async def body(driver: VmDriver, recorder: Recorder) -> None:
        await driver.start(vm_launch(tmp_path))
        await refused(EINVAL, "guest_x", driver.stat("t", "mem"))
        await driver.kill("t", 9)
        assert (await recorder.exit_of("t")).reason == "signal 9"

    fake("waits")
    run(tmp_path, body)


def test_guest_that_never_comes_up_is_refused_and_leaves_nothing(tmp_path: Path, fake: Callable[[str], None]) -> None:
    async def body(driver: VmDriver, recorder: Recorder) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for errno, said, behaviour in ((ETIMEDOUT, "did not come up", "mute"), (EIO, "it burns", "dies")):
            fake(behaviour)
            await refused(errno, said, driver.start(vm_launch(tmp_path)))
            assert not (tmp_path / "out").exists() and not recorder.exits
            assert await driver.recover(["t"]) == {}
            driver.forget("t")
        assert len(os.listdir("/proc/self/fd")) <= before + 3  # the template's two, and the archive's module cache
        fake("honest")
        await driver.start(vm_launch(tmp_path))
        assert (await recorder.exit_of("t")).code == 5

    fake("mute")
    run(tmp_path, body, boot=6.0)


def test_what_is_missing_or_impossible_is_said_at_start(
    tmp_path: Path, fake: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(driver: VmDriver, recorder: Recorder) -> None:
        memory = Limits(memory=16 << 20)
        await refused(EINVAL, "at least 128M", driver.start(vm_launch(tmp_path, limits=memory)))
        await refused(ENOTSUP, "no network", driver.start(vm_launch(tmp_path, net="host")))
        await refused(ENOTSUP, "descriptor 5", driver.start(vm_launch(tmp_path, fds={5: 0})))
        shutil.rmtree(os.environ["WANIXFS_KERNELS"])
        await refused(ENOENT, "no guest kernel", driver.start(vm_launch(tmp_path)))
        monkeypatch.setenv("PATH", "/nowhere")
        await refused(ENOENT, PROGRAM, driver.start(vm_launch(tmp_path)))
        assert not recorder.order

    fake("honest")
    run(tmp_path, body)


@pytest.mark.root
def test_guest_that_says_it_is_root_is_the_tasks_user(tmp_path: Path, fake: Callable[[str], None]) -> None:
    fake("forges")
    tmp_path.chmod(0o755)
    with serving(tmp_path) as served:
        assert served.mount
        task = (served.mount / "task/new").read_text().strip()
        (served.mount / f"task/{task}/ctl").write_text("type vm\ncmd true\nstart\n")
        assert (served.mount / f"task/{task}/wait").read_text() == "5\n"
        forged = (served.state / "tmp/forged").stat()
        assert forged.st_uid == (served.mount / f"task/{task}/home").stat().st_uid != 0
