"""Finding cgroup hierarchies, and the files a group is made of, without a kernel that has them."""

import os
import subprocess
from contextlib import closing
from errno import ENOTSUP
from pathlib import Path

import pytest
import trio

from tasks.drivers.base import Limits
from tasks.drivers.linux.cgroup import Cgroups, Group, Hierarchy, hierarchies
from tasks.drivers.linux.oom import OomNotice

LINE = "{n} 1 0:{n} {root} {mount} rw,relatime - {kind} {kind} rw{options}\n"


def test_each_version_1_controller_is_found_at_its_own_cgroup() -> None:
    table = LINE.format(n=30, root="/", mount="/sys/fs/cgroup/memory", kind="cgroup", options=",memory")
    table += LINE.format(n=31, root="/", mount="/sys/fs/cgroup/cpu,cpuacct", kind="cgroup", options=",cpu,cpuacct")
    table += LINE.format(n=32, root="/", mount="/sys/fs/cgroup/systemd", kind="cgroup", options=",name=systemd")
    table += LINE.format(n=33, root="/box", mount="/sys/fs/cgroup/pids", kind="cgroup", options=",pids")
    table += LINE.format(n=34, root="/", mount="/", kind="ext4", options="")
    own = "9:memory:/user/me\n8:cpu,cpuacct:/\n7:pids:/box/inner\n0::/\n"
    assert hierarchies(table, own) == [
        Hierarchy(Path("/sys/fs/cgroup/memory/user/me"), frozenset({"memory"}), False),
        Hierarchy(Path("/sys/fs/cgroup/cpu,cpuacct"), frozenset({"cpu", "cpuacct"}), False),
        Hierarchy(Path("/sys/fs/cgroup/pids/inner"), frozenset({"pids"}), False),
    ]


def test_version_2_is_based_where_children_may_have_controllers(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for directory, enabled in ((tmp_path, "memory pids\n"), (tmp_path / "own", "\n")):
        (directory / "cgroup.controllers").write_text("cpu memory pids rdma\n")
        (directory / "cgroup.subtree_control").write_text(enabled)
    (tmp_path / "own" / "cgroup.subtree_control").chmod(0o400)
    table = LINE.format(n=30, root="/", mount=tmp_path, kind="cgroup2", options="")
    [found] = hierarchies(table, "0::/elsewhere\n")
    assert (found.base, found.unified) == (tmp_path, True)


def version_2(tmp_path: Path, **files: str) -> Group:
    directory = tmp_path / "task"
    directory.mkdir()
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)
    return Group("task", [(directory, Hierarchy(tmp_path, frozenset({"memory", "cpu", "pids", "io"}), True))])


def test_version_2_limits_are_written_in_its_own_words(tmp_path: Path) -> None:
    there = dict.fromkeys(
        ("memory__max", "memory__swap__max", "memory__oom__group", "pids__max", "cpu__max", "cpu__weight__nice"), ""
    )
    group = version_2(tmp_path, **there)
    group.limit(Limits(memory=1 << 20, pids=7, cpu=1.5, nice=3))
    written = {file.name: file.read_text() for file in (tmp_path / "task").iterdir()}
    assert written == {
        "memory.max": "1048576",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "7",
        "cpu.max": "150000 100000",
        "cpu.weight.nice": "3",
    }
    group.limit(Limits())
    written = {file.name: file.read_text() for file in (tmp_path / "task").iterdir()}
    assert written["memory.max"].startswith("max") and written["pids.max"].startswith("max")
    assert written["cpu.max"].startswith("max 100000")


def test_version_2_figures_are_read_from_its_own_files(tmp_path: Path) -> None:
    group = version_2(
        tmp_path,
        memory__current="4096\n",
        memory__peak="8192\n",
        memory__max="max\n",
        memory__events="low 0\noom 2\noom_kill 1\n",
        cpu__stat="usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 0\nthrottled_usec 5\n",
        pids__current="3\n",
        pids__max="9\n",
        io__stat="8:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=1 wios=1\n",
    )
    assert group.stat("mem") == {"current_bytes": 4096, "peak_bytes": 8192}
    assert group.stat("cpu") == {"user_usec": 20, "system_usec": 10, "throttled_usec": 5}
    assert group.stat("io") == {"read_bytes": 101, "write_bytes": 22}
    assert group.stat("pids") == {"current": 3, "limit": 9}
    assert group.oom_kills() == 1


def test_limit_without_its_controller_is_not_supported(tmp_path: Path) -> None:
    (tmp_path / "pids.max").write_text("")
    group = Group("task", [(tmp_path, Hierarchy(tmp_path, frozenset({"pids"}), False))])
    for limits in (Limits(memory=1), Limits(cpu=1.0)):
        with pytest.raises(OSError) as raised:
            group.limit(limits)
        assert raised.value.errno == ENOTSUP
    with pytest.raises(OSError) as raised:
        trio.run(group.pause, True)
    assert raised.value.errno == ENOTSUP
    assert group.stat("mem") == {} and group.oom_kills() == 0


def test_hierarchies_that_let_us_make_nothing_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "blocked").write_text("a file")
    mounted = [
        Hierarchy(tmp_path / "blocked", frozenset({"memory"}), False),
        Hierarchy(tmp_path / "good", frozenset({"pids"}), False),
    ]
    groups = Cgroups("ours", mounted)
    assert groups.controllers == {"pids"}
    group = groups.make("t")
    assert (tmp_path / "good/ours/t").is_dir()
    assert groups.find("other") is None
    groups.remove(group)
    groups.close()
    assert not (tmp_path / "good/ours").exists()
    assert not Cgroups("ours", mounted[:1])


@pytest.mark.root
def test_notice_of_version_2_wakes_at_each_change_and_not_before(tmp_path: Path) -> None:
    """A cgroup's `cgroup.events`, which needs no controller, changes and polls as its `memory.events` does."""
    unified = [h.base for h in hierarchies(Path("/proc/self/mountinfo").read_text(), "") if h.unified]
    if not unified:
        pytest.skip("no version 2 hierarchy here")
    group = unified[0] / f"wanixfs-test-{os.getpid()}"
    group.mkdir()
    process = None

    async def main() -> None:
        nonlocal process
        with trio.fail_after(30), closing(OomNotice(directory, unified=True)) as notice:
            with trio.move_on_after(0) as early:
                await notice.wait()
            assert early.cancelled_caught
            for _ in range(2):
                process = subprocess.Popen(["sleep", "1000"])
                (group / "cgroup.procs").write_text(str(process.pid))
                await notice.wait()
                process.kill()
                process.wait()
                await notice.wait()

    directory = tmp_path / "group"
    directory.mkdir()
    (directory / "memory.events").symlink_to(group / "cgroup.events")
    try:
        trio.run(main)
    finally:
        if process:
            process.kill()
            process.wait()
        group.rmdir()
