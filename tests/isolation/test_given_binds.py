"""Host directories given to a task as its own, and devices of the machine."""

import os
from errno import EINVAL, EPERM
from pathlib import Path

import pytest
from prison import Prisoner, new_cell
from serving import Served

pytestmark = pytest.mark.root

OWNER = 12345


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory of somebody on the host, closed to everybody else."""
    for folder in (tmp_path, tmp_path / "project"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    made = tmp_path / "project"
    for name, owner in (("theirs", OWNER), ("roots", 0)):
        (made / name).write_text(f"{name}\n")
        (made / name).chmod(0o600)
        os.chown(made / name, owner, owner)
    os.chown(made, OWNER, OWNER)
    made.chmod(0o700)
    return made


def test_directory_bound_as_its_own_is_used_as_its_owner(served: Served, project: Path) -> None:
    assert served.mount
    cell = new_cell(served.mount)
    cell.ctl(f"bind -i #host{project} /given", file="ns/ctl")
    task = Prisoner(cell)
    try:
        assert task.sees("return os.stat('/given').st_uid == os.getuid()") is True
        assert task.sees("return read('/given/theirs')") == "theirs\n"
        assert task.attempt("read('/given/roots')") == "EACCES"
        assert task.sees("return os.stat('/given/roots').st_uid") == 65534
        task.sees("open('/given/new', 'w').close()")
        assert (project / "new").stat().st_uid == OWNER
        assert f"bind -i #host{project} /given\n" in (cell.path / "ns/dump").read_text()
        assert "i\n" in (cell.path / "ns/mounts").read_text()
        shown = (cell.path / "ns/root/given").stat().st_uid
        assert task.sees(f"return os.getuid() == {shown}") is True, "the tree of the server shows the same"
    finally:
        task.release()


def test_directory_is_given_and_taken_while_the_task_runs(served: Served, project: Path) -> None:
    assert served.mount
    task = Prisoner(new_cell(served.mount))
    try:
        task.cell.ctl(f"bind #host{project} /given", file="ns/ctl")
        assert task.attempt("os.listdir('/given')") == "EACCES"
        task.cell.ctl(f"bind -i #host{project} /given", file="ns/ctl")
        assert task.sees("return sorted(os.listdir('/given'))") == ["roots", "theirs"]
        task.cell.ctl("unbind /given", file="ns/ctl")
        assert task.attempt("os.listdir('/given')") == "ENOENT"
    finally:
        task.release()


def test_only_the_administrator_gives_what_belongs_to_others(served: Served) -> None:
    assert served.mount
    task = Prisoner(new_cell(served.mount))
    try:
        assert task.attempt("write('/task/self/ns/ctl', 'bind -i /usr /mnt')") == "EPERM"
        assert task.attempt("write('/task/self/ns/ctl', 'bind #dev/kmsg /mnt')") == "ENOENT"
        for line, number in (("bind -i #task /mnt", EINVAL), ("bind -i #host/usr /mnt", EPERM)):
            with pytest.raises(OSError) as refused:
                task.cell.ctl(line, file="ns/ctl")
            assert refused.value.errno == number
    finally:
        task.release()


def test_device_of_the_machine_is_the_tasks_where_it_was_bound(served: Served) -> None:
    assert served.mount
    cell = new_cell(served.mount)
    cell.ctl("bind #dev/kmsg /dev/log-of-the-kernel", "bind #dev/zero /zero", file="ns/ctl")
    task = Prisoner(cell)
    try:
        status = "st = os.stat('/dev/log-of-the-kernel'); return [stat.S_ISCHR(st.st_mode), st.st_rdev, st.st_uid]"
        expected = os.stat("/dev/kmsg").st_rdev
        assert task.sees(status) == [True, expected, task.sees("return os.getuid()")]
        task.sees("os.close(os.open('/dev/log-of-the-kernel', os.O_WRONLY))")
        assert task.sees("return open('/zero', 'rb').read(3).hex()") == "000000"
        assert task.attempt("os.mknod('/tmp/kmsg', 0o20600, 0x10b)") == "EPERM"
        cell.ctl("unbind /dev/log-of-the-kernel", file="ns/ctl")
        assert task.attempt("os.stat('/dev/log-of-the-kernel')") == "ENOENT"
    finally:
        task.release()


def test_what_is_no_device_cannot_be_bound_as_one(served: Served) -> None:
    assert served.mount
    cell = new_cell(served.mount)
    for name in ("none-such", "shm/../kmsg", "fd/0"):
        with pytest.raises(OSError):
            cell.ctl(f"bind #dev/{name} /x", file="ns/ctl")
