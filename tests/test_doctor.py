"""The doctor reports what it finds, not what it hopes."""

import os
import socket
from pathlib import Path

import pytest

from wanixfs import doctor
from wanixfs.doctor import Finding, State


def test_python_that_is_too_old_stops_everything() -> None:
    old = doctor.check_python((3, 10, 9))
    assert old.state is State.MISSING
    assert doctor.status([old]) == 1
    assert doctor.status([doctor.check_python()]) == 0


@pytest.mark.parametrize(
    ("uid", "release", "state"),
    [
        (0, "6.9.0", State.OK),
        (0, "6.18.44-x", State.OK),
        (0, "7.0", State.OK),
        (0, "6.8.12", State.LIMITED),
        (0, "5.10.0", State.LIMITED),
        (0, "strange", State.LIMITED),
        (1000, "6.18.0", State.LIMITED),
    ],
)
def test_passthrough_needs_root_and_a_new_kernel(uid: int, release: str, state: State) -> None:
    assert doctor.check_passthrough(uid, release).state is state


def test_fuse_device_that_cannot_be_opened_is_missing(tmp_path: Path) -> None:
    assert doctor.check_fuse(0, str(tmp_path / "none")).state is State.MISSING
    assert doctor.check_fuse(0, "/dev/null").state is State.OK


def test_fuse_for_users_needs_fusermount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_fuse(1000, "/dev/null").remedy == "apt-get install fuse3"


def test_syscalls_that_every_kernel_since_5_12_has_are_found() -> None:
    if tuple(map(int, os.uname().release.split(".")[:2])) < (5, 12):
        pytest.skip("needs Linux 5.12")
    assert doctor.check_syscalls().state is State.OK


def test_syscall_that_no_kernel_has_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.SYSCALLS, "teleport", 100_000)
    finding = doctor.check_syscalls()
    assert finding.state is State.MISSING
    assert "teleport" in finding.detail


def test_namespace_probe_reports_why_it_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare failed: no' >&2\nexit 1\n")
    unshare.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    finding = doctor.check_namespaces(0)
    assert finding.state is State.MISSING
    assert "unshare failed: no" in finding.detail


def test_cgroup_controllers_of_both_versions_are_read() -> None:
    text = (
        "30 23 0:26 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
        "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
        "33 23 0:29 / / rw - ext4 /dev/memory rw\n"
    )
    assert doctor.cgroup_controllers(text) == {
        "memory": "/sys/fs/cgroup/memory",
        "cpu": "/sys/fs/cgroup/cpu",
        "unified": "/sys/fs/cgroup/unified",
    }


def test_state_directory_that_is_a_file_is_refused_and_none_is_made(tmp_path: Path) -> None:
    assert doctor.check_state(tmp_path / "a/b").state is State.OK
    assert not (tmp_path / "a").exists()
    (tmp_path / "f").touch()
    finding = doctor.check_state(tmp_path / "f/state")
    assert finding.state is State.MISSING
    assert doctor.status([finding]) == 1


def test_server_is_found_by_connecting(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert doctor.check_server(f"unix!{path}").remedy == "wanixfs serve"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert doctor.check_server(f"unix!{path}").state is State.OK
    assert doctor.check_server("nonsense!").state is State.LIMITED


def test_report_gives_a_remedy_its_own_line() -> None:
    found = Finding(name="x", state=State.LIMITED, detail="so", remedy="do")
    first, second = doctor.report([found])
    assert first.split() == ["limited", "x", "so"]
    assert second.split() == ["->", "do"]
    assert doctor.status([found]) == 0


def test_examination_of_this_machine_covers_every_check(tmp_path: Path) -> None:
    names = [finding.name for finding in doctor.examine(f"unix!{tmp_path}/none", tmp_path)]
    checks = [name.removeprefix("check_") for name in vars(doctor) if name.startswith("check_")]
    assert sorted(names) == sorted(checks)


def test_wasi_needs_a_compiler_that_works(tmp_path: Path) -> None:
    assert doctor.check_wasi().state is State.OK
    broken = tmp_path / "compiler.py"
    broken.write_text("import no_such_engine")
    finding = doctor.check_wasi(broken)
    assert finding.state is State.MISSING and "no_such_engine" in finding.detail
    broken.write_text("import os; os.kill(os.getpid(), 9)")
    assert "-9" in doctor.check_wasi(broken).detail


def test_vm_needs_a_machine_and_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qemu-system-x86_64").write_text("")
    (tmp_path / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no guest kernel" in doctor.check_vm(tmp_path).detail
    (tmp_path / "6.1").mkdir()
    (tmp_path / "6.1/vmlinux").touch()
    found = doctor.check_vm(tmp_path)
    assert found.state in (State.OK, State.LIMITED) and "6.1" in found.detail
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.check_vm(tmp_path).state is State.MISSING
