"""Pid 1 of a guest whose cgroups are version 2, all of them: our groups against that kernel.

Each report is a JSON line on the virtio port "report": a case and what was wrong, or None.
"""

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import trio

from tasks.drivers.base import Limits
from tasks.drivers.linux.cgroup import Cgroups, Group, hierarchies
from tasks.drivers.linux.oom import OomWatch
from tasks.taskd import boot, syscalls

MEMORY = 32 << 20


def main() -> None:
    boot.mount_kernel()
    boot.load_modules()
    boot.mount("cgroup2", "/sys/fs/cgroup")
    ports = Path("/sys/class/virtio-ports").iterdir()
    (port,) = (f"/dev/{port.name}" for port in ports if (port / "name").read_text() == "report\n")
    mounted = hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    groups = Cgroups("wanixfs", mounted)
    with open(port, "w", buffering=1) as report:
        for name, case in CASES.items():
            group = groups.make(name.replace(" ", "-"))
            error = None
            try:
                case(groups, group)
                group.kill()
                reap()
                assert group.remove(), "the group cannot be removed"
            except BaseException:
                error = traceback.format_exc()
            print(json.dumps({"case": name, "error": error}), file=report)
    boot.power_off()


def born(group: Group, act: Callable[[], object]) -> int:
    """Do `act` in a child that is born in the group; return its pid."""
    assert group.unified
    directory = os.open(group.unified, os.O_RDONLY | os.O_DIRECTORY)
    pid = syscalls.clone3(0, cgroup=directory)
    os.close(directory)
    if pid == 0:
        try:
            act()
        finally:
            os._exit(1)
    return pid


def reap() -> list[int]:
    """Wait for every child; return their statuses."""
    statuses = []
    while True:
        try:
            statuses.append(os.waitstatus_to_exitcode(os.wait()[1]))
        except ChildProcessError:
            return statuses


def spin() -> None:
    while True:
        pass


def eat() -> None:
    data = bytearray(4 * MEMORY)
    data[::4096] = bytes(len(data[::4096]))


def has_controllers(groups: Cgroups, group: Group) -> None:
    assert groups.controllers >= {"memory", "pids", "cpu", "io"}, groups.controllers
    assert group.can_pause and not group.joined


def memory_is_bounded_and_told(groups: Cgroups, group: Group) -> None:
    group.limit(Limits(memory=MEMORY))
    told: list[int] = []

    async def wait() -> None:
        notice = group.oom_notice()
        assert notice
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                watch = OomWatch(notice, group.oom_kills, told.append)
                nursery.start_soon(watch.run)
                born(group, eat)
                while not told:
                    await trio.sleep(0.01)
                watch.finish()

    trio.run(wait)
    assert reap() == [-signal.SIGKILL]
    assert told == [group.oom_kills()], told
    assert group.stat("mem").get("peak_bytes", 0) <= MEMORY
    assert group.stat("mem")["limit_bytes"] == MEMORY


def processes_are_bounded(groups: Cgroups, group: Group) -> None:
    group.limit(Limits(pids=5))

    def bomb() -> None:
        made = 0
        try:
            while made < 100:
                if os.fork() == 0:
                    signal.pause()
                made += 1
        except BlockingIOError:
            os._exit(made)

    _, status = os.waitpid(born(group, bomb), 0)
    assert os.waitstatus_to_exitcode(status) == len(group.pids()) == 4
    assert group.stat("pids")["limit"] == 5


def a_pause_stops_and_a_kill_ends_even_the_paused(groups: Cgroups, group: Group) -> None:
    for _ in range(2):
        born(group, spin)

    async def wait() -> None:
        with trio.fail_after(60):
            while not group.stat("cpu")["user_usec"]:
                await trio.sleep(0.01)
            await group.pause(True)
            before = group.stat("cpu")
            sum(range(10**6))  # work, in whose time what is paused would have run
            assert group.stat("cpu") == before
            await group.pause(False)
            while group.stat("cpu") == before:
                await trio.sleep(0.01)
            await group.pause(True)

    trio.run(wait)
    group.kill()
    assert reap() == [-signal.SIGKILL] * 2


def processors_are_bounded(groups: Cgroups, group: Group) -> None:
    group.limit(Limits(cpu=0.1))
    born(group, spin)

    async def wait() -> None:
        with trio.fail_after(60):
            while not group.stat("cpu").get("throttled_usec"):
                await trio.sleep(0.01)

    trio.run(wait)


CASES = {
    "controllers": has_controllers,
    "memory": memory_is_bounded_and_told,
    "pids": processes_are_bounded,
    "pause and kill": a_pause_stops_and_a_kill_ends_even_the_paused,
    "cpu": processors_are_bounded,
}
