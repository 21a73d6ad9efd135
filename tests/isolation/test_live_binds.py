"""Binds changed inside a running task: seen by its next command, and never a mount of the host."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT
from pathlib import Path

import pytest
from prison import Cell, Prisoner, new_cell
from serving import SECONDS, Served, serving, supervisor

pytestmark = pytest.mark.root


@contextmanager
def shell(served: Served) -> Iterator[Prisoner]:
    """A running task that does what it is told."""
    assert served.mount
    found = Prisoner(new_cell(served.mount))
    try:
        yield found
    finally:
        found.release()


def mounts(pid: int | str = "self") -> list[str]:
    """Return where what is mounted for a process, but for what others keep in /tmp meanwhile."""
    lines = [line.split(" ", 4)[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    ours = tempfile.gettempdir()
    return sorted(line for line in lines if line.startswith(ours) or not line.startswith("/tmp/"))


def folder(tmp_path: Path, name: str) -> Path:
    tmp_path.chmod(0o755)
    made = tmp_path / name
    made.mkdir()
    (made / "file").write_text(f"of {name}\n")
    return made


def test_bind_and_unbind_are_seen_by_the_next_command(served: Served, tmp_path: Path) -> None:
    one, two = folder(tmp_path, "one"), folder(tmp_path, "two")
    with shell(served) as task:
        assert task.attempt("read('/live/file')") == "ENOENT"
        task.cell.ctl(f"bind #host{one} /live", file="ns/ctl")
        assert task.sees("return read('/live/file')") == "of one\n"
        task.cell.ctl(f"bind #host{two} /live", file="ns/ctl")
        assert task.sees("return read('/live/file')") == "of two\n"
        task.cell.ctl("unbind /live", file="ns/ctl")
        assert task.attempt("os.listdir('/live')") == "ENOENT"


def test_task_binds_what_it_has_for_itself(served: Served) -> None:
    with shell(served) as task:
        task.sees("write('/task/self/ns/ctl', 'bind -r /usr/share /mnt')")
        assert task.sees("return os.path.samefile('/usr/share', '/mnt')") is True
        task.sees("write('/task/self/ns/ctl', 'unbind /mnt')")
        assert task.attempt("os.listdir('/mnt')") == "ENOENT"


def test_proc_that_comes_back_is_the_tasks_own(served: Served) -> None:
    with shell(served) as task:
        task.sees("write('/task/self/ns/ctl', 'bind -r /usr/share /proc')")
        assert task.attempt("os.listdir('/proc/self')") == "ENOENT"
        task.sees("write('/task/self/ns/ctl', 'unbind /proc')")
        pids = task.sees("return [int(name) for name in os.listdir('/proc') if name.isdigit()]")
        assert pids[0] == 2 and len(pids) == 2, "the shell and the attempt"
        assert task.attempt(f"os.listdir('/proc/{os.getpid()}')") == "ENOENT"


def test_dump_is_what_the_task_sees(served: Served, tmp_path: Path) -> None:
    one = folder(tmp_path, "one")
    with shell(served) as task:
        task.cell.ctl(f"bind #host{one} /live", "mask /usr/share/doc", file="ns/ctl")
        assert f"bind #host{one} /live\n" in (task.cell.path / "ns/dump").read_text()
        assert task.sees("return os.listdir('/live')") == ["file"]
        assert task.attempt("os.listdir('/usr/share/doc')") == "EACCES"
        assert served.mount
        other = new_cell(served.mount)
        (other.path / "ns/ctl").write_text((task.cell.path / "ns/dump").read_text())
        assert (other.path / "ns/dump").read_text() == (task.cell.path / "ns/dump").read_text()


def test_bind_that_cannot_be_followed_leaves_the_task_as_it_was(served: Served, tmp_path: Path) -> None:
    gone = folder(tmp_path, "gone")
    with shell(served) as task:
        task.cell.ctl(f"bind #host{gone} /live", file="ns/ctl")
        before = mounts(task.cell.main_pid())
        with pytest.raises(OSError) as refused:
            task.cell.ctl("bind #host/none/such /live", file="ns/ctl")
        assert refused.value.errno == ENOENT
        with pytest.raises(OSError):
            task.cell.ctl(f"bind #host{gone}/file /live", file="ns/ctl")
        assert mounts(task.cell.main_pid()) == before
        assert task.sees("return read('/live/file')") == "of gone\n"


def bind_often(cell: Cell, source: Path, times: int) -> None:
    for turn in range(times):
        cell.ctl(f"bind #host{source} /live/{turn % 7}", file="ns/ctl")
        cell.ctl(f"unbind /live/{turn % 7}", file="ns/ctl")


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_live_binds_leave_no_mount_anywhere(served: Served, tmp_path: Path, times: int) -> None:
    source = folder(tmp_path, "one")
    with shell(served) as task:
        pid = task.cell.main_pid()
        bind_often(task.cell, source, 1)  # whatever is made on first use
        places = ("self", served.process.pid, supervisor(served.state), pid)
        before = [mounts(place) for place in places]
        bind_often(task.cell, source, times)
        assert [mounts(place) for place in places] == before
        assert task.attempt("os.listdir('/live')") == "ENOENT"


def test_killed_server_leaves_no_mount_after_its_successor(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    top = tmp_path / "served"
    top.mkdir()
    source = folder(tmp_path, "one")
    before = mounts()
    with serving(top) as served:
        assert served.mount
        cell = new_cell(served.mount, "cmd sleep 1000")
        cell.ctl(f"bind #host{source} /live", file="ns/ctl")
        cell.ctl("start")
        pid = cell.main_pid()
        served.process.send_signal(signal.SIGKILL)
        served.process.wait(SECONDS)
    with serving(top):
        assert cell.read("status") == "running"
        assert (Path(f"/proc/{pid}/root/live/file")).read_text() == "of one\n"
        cell.ctl("unbind /live", file="ns/ctl")
        assert not os.path.exists(f"/proc/{pid}/root/live")
    assert mounts() == before
