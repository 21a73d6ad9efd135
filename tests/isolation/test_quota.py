"""A home that is held to a size."""

import os
import shutil
import signal
from errno import EBUSY, EINVAL
from pathlib import Path

import pytest
from prison import Prisoner, new_cell
from serving import SECONDS, Served, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not (shutil.which("mkfs.ext4") and os.path.exists("/dev/loop-control")),
        reason="needs mkfs.ext4 and loop devices",
    ),
]

FILL = """
with open(os.environ["HOME"] + "/big", "wb", buffering=0) as file:
    for _ in range({mebibytes}):
        file.write(bytes(1 << 20))
"""


def test_home_holds_what_its_quota_allows_and_no_more(served: Served) -> None:
    assert served.mount
    task = Prisoner(new_cell(served.mount, "quota 8M"))
    try:
        assert task.attempt(FILL.format(mebibytes=6)) == "0"
        assert task.attempt(FILL.format(mebibytes=20)) == "ENOSPC"
        assert task.sees("st = os.stat(os.environ['HOME']); return [st.st_mode & 0o777, st.st_uid == os.getuid()]") == [
            0o700,
            True,
        ]
        assert task.attempt("os.mknod(os.environ['HOME'] + '/x', 0o20666, 0x101)") == "EPERM"
    finally:
        task.release()
    home = served.state / "homes" / task.cell.id
    assert home.is_mount()
    task.cell.ctl("remove")
    assert not home.exists()
    assert not (served.state / "homes.quotas" / task.cell.id).exists()


def test_quota_is_for_an_empty_home_of_its_own(served: Served) -> None:
    assert served.mount
    cell = new_cell(served.mount)
    for line, number in (("quota 10", EINVAL), ("quota many", EINVAL)):
        with pytest.raises(OSError) as refused:
            cell.ctl(line)
        assert refused.value.errno == number
    (served.state / "homes" / cell.id / "file").write_text("there first")
    with pytest.raises(OSError) as refused:
        cell.ctl("quota 8M")
    assert refused.value.errno == EBUSY
    assert (served.state / "homes" / cell.id / "file").read_text() == "there first"
    task = Prisoner(new_cell(served.mount))
    try:
        child = "write('/task/' + read('/task/new').strip() + '/ctl', 'quota 8M')"
        assert task.attempt(child) == "ENOTSUP"
    finally:
        task.release()


def test_home_keeps_its_quota_and_files_over_servers_and_no_mount_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    top = tmp_path / "served"
    top.mkdir()
    with serving(top) as first:
        assert first.mount
        task = Prisoner(new_cell(first.mount, "quota 8M"))
        task.sees("open(os.environ['HOME'] + '/kept', 'w').close()")
        home = first.state / "homes" / task.cell.id
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(SECONDS)
    with serving(top):
        assert task.sees("return os.listdir(os.environ['HOME'])") == ["kept"]
        assert task.attempt(FILL.format(mebibytes=20)) == "ENOSPC"
        task.release()
    assert str(home) not in Path("/proc/self/mounts").read_text()
