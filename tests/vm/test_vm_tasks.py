"""VM tasks through the files of a served tree, in real guests: what they do is what every task does."""

import difflib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import SECONDS, Served, serving

from tasks.drivers.vm import kernel, qemu
from tests.filetree import programs


def why_not() -> str:
    if not shutil.which(qemu.PROGRAM):
        return f"needs {qemu.PROGRAM} (Debian package qemu-system-x86)"
    try:
        kernel.find(kernel.default_cache(os.environ, os.geteuid()))
    except OSError as error:
        return str(error.strerror)
    return ""


pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(why_not()), reason=why_not())]
BOOT = 120.0


class Shell:
    """What a user of the mounted tree does."""

    def __init__(self, served: Served) -> None:
        assert served.mount
        self.served = served
        self.mount = served.mount

    def sh(self, script: str, seconds: float = BOOT) -> str:
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.mount, capture_output=True, text=True, timeout=seconds, check=False
        )
        return done.stdout + done.stderr

    def new(self, command: str, *lines: str) -> str:
        """Make a VM task and return its id."""
        task = self.sh("cat task/new").strip()
        for line in ("type vm", f"cmd {command}", *lines):
            assert not self.tell(task, line), line
        return task

    def tell(self, task: str, line: str) -> str:
        """Write a line to the task's ctl; return what was said against it."""
        try:
            with (self.mount / "task" / task / "ctl").open("w") as ctl:
                ctl.write(line + "\n")
        except OSError as error:
            return f"{error.strerror}: {(self.mount / 'task' / task / 'error').read_text()}"
        return ""

    def start(self, command: str, *lines: str) -> str:
        task = self.new(command, *lines)
        assert not self.tell(task, "start")
        return task

    def start_as_root(self, command: str) -> str:
        task = self.new(command, "user root")
        (self.mount / "task" / task / "cwd").write_text("/")
        assert not self.tell(task, "start")
        return task

    def read(self, task: str, name: str) -> str:
        return (self.mount / "task" / task / name).read_text()

    def end(self, task: str) -> tuple[int, str]:
        """Wait for a task's end; return its exit code and the reason."""
        return int(self.sh(f"timeout {SECONDS} cat task/{task}/wait")), self.read(task, "reason").strip()

    def run(self, command: str, *lines: str) -> tuple[int, str]:
        """Return a task's exit code and output."""
        task = self.start(command, *lines)
        code, _ = self.end(task)
        return code, self.read(task, "fd/1")

    def machine(self, task: str) -> int:
        """Return the pid of the process that is a task's machine."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes()
                group = (process / "cgroup").read_text()
            except OSError:
                continue
            if qemu.PROGRAM.encode() in words and group.rstrip().endswith(f"/{task}"):
                return int(process.name)
        raise AssertionError(f"task {task} has no machine")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """One server for all: the template boots once."""
    top = tmp_path_factory.mktemp("vm")
    top.chmod(0o755)
    with serving(top) as served:
        yield Shell(served)


def until(holds, seconds: float = SECONDS) -> None:
    """Wait for what a guest does and nothing here tells."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_program_runs_on_the_guest_kernel_as_the_tasks_user(shell: Shell) -> None:
    task = shell.start('sh -c "uname -sr; id -u; pwd; echo problem >&2; exit 7"')
    assert shell.end(task) == (7, "exited")
    system, uid, cwd = shell.read(task, "fd/1").splitlines()
    version = kernel.find(kernel.default_cache(os.environ, os.geteuid())).directory.name
    assert system == f"Linux {version}"
    assert int(uid) == (shell.mount / "task" / task / "home").stat().st_uid
    assert cwd == f"/home/{shell.read(task, 'user').split()[0]}"
    assert shell.read(task, "fd/2") == "problem\n"


def test_start_fails_with_the_errno_of_the_program_in_the_guest(shell: Shell) -> None:
    for command, said in (
        ("/no/such/program", "No such file"),
        ("/etc/passwd", "Permission denied"),
    ):
        task = shell.new(command)
        assert said in shell.tell(task, "start")
        assert shell.read(task, "status") == "allocated\n"
    for line, said in (
        ("memlimit 16M", "at least 128M"),
        ("net host", "no network"),
        ("dup 5 /dev/null", "descriptor"),
    ):
        task = shell.new("true")
        if line.startswith("dup"):
            shell.sh(f"echo 'open 5 /dev/null r' > task/{task}/fd/ctl")
        else:
            assert not shell.tell(task, line)
        assert said in shell.tell(task, "start"), line


def test_input_reaches_the_program_and_ends(shell: Shell) -> None:
    task = shell.start("sha256sum")
    sent = os.urandom(300_000)
    with (shell.mount / "task" / task / "fd/0").open("wb") as stdin:
        stdin.write(sent)
    shell.sh(f"echo close > task/{task}/fd/0ctl")
    assert shell.end(task)[0] == 0
    assert shell.read(task, "fd/1").split()[0] == hashlib.sha256(sent).hexdigest()


def test_output_is_complete_and_in_order(shell: Shell) -> None:
    code, output = shell.run("seq 200000")
    assert (code, output) == (0, "".join(f"{number}\n" for number in range(1, 200001)))
    task = shell.new('sh -c "for i in 1 2 3; do echo out $i; echo err $i >&2; done"')
    shell.sh(f"echo 'dup 1 /tmp/both' > task/{task}/fd/ctl; echo 'dup 2 /tmp/both' > task/{task}/fd/ctl")
    assert not shell.tell(task, "start")
    assert shell.end(task)[0] == 0


@pytest.mark.parametrize("reader", ["md5sum", "sh -c 'sleep 2; md5sum'"], ids=["eager", "slow"])
def test_pipeline_goes_through_a_kernel_pipe(shell: Shell, reader: str) -> None:
    left, right = shell.new("seq 50000"), shell.sh("cat task/new").strip()
    for line in ("type linux", f"cmd {reader}"):
        assert not shell.tell(right, line)
    shell.sh(f"echo 'pipe {right}/fd/0' > task/{left}/fd/1ctl")
    for task in (right, left):
        assert not shell.tell(task, "start")
    assert shell.end(right)[0] == 0
    expected = hashlib.md5("".join(f"{number}\n" for number in range(1, 50001)).encode()).hexdigest()
    assert shell.read(right, "fd/1").split()[0] == expected


def test_signals_end_the_program_or_the_machine(shell: Shell) -> None:
    for number in (15, 9):
        task = shell.start("sleep 1000")
        assert not shell.tell(task, f"kill {number}")
        assert shell.end(task) == (128 + number, f"signal {number}")
    task = shell.start("sleep 1000")
    os.kill(shell.machine(task), signal.SIGKILL)
    assert shell.end(task) == (137, "signal 9")
    task = shell.start("sh -c 'trap \"echo caught; exit 3\" USR1; echo ready; while :; do sleep 0.1; done'")
    until(lambda: b"ready" in (shell.served.state / f"spools/{task}/1").read_bytes())
    assert not shell.tell(task, "kill USR1")
    assert shell.end(task) == (3, "exited")
    assert shell.read(task, "fd/1") == "ready\ncaught\n"


def test_paused_guest_does_nothing_until_it_is_resumed(shell: Shell) -> None:
    task = shell.start("sh -c 'while :; do echo; sleep 0.05; done'")
    spool = shell.served.state / f"spools/{task}/1"
    until(lambda: spool.stat().st_size > 2)
    assert not shell.tell(task, "pause")
    assert shell.read(task, "status") == "stopped\n"
    assert not shell.tell(task, "resume")
    size = spool.stat().st_size
    until(lambda: spool.stat().st_size > size)
    assert "guest_used_bytes" in shell.read(task, "stat/mem")
    shell.tell(task, "kill 9")
    shell.end(task)


def test_terminal_is_the_guests(shell: Shell) -> None:
    task = shell.start("sh -c 'tty; stty size; read line; echo got $line'", "pty 33x99")
    until(lambda: b"33 99" in (shell.served.state / f"spools/{task}/1").read_bytes())
    with (shell.mount / "task" / task / "fd/0").open("w") as keyboard:
        keyboard.write("typed\n")
    assert shell.end(task)[0] == 0
    lines = shell.read(task, "fd/1").replace("\r", "").splitlines()
    assert lines[0].startswith("/dev/pts/")
    assert "33 99" in lines and lines[-1] == "got typed"


def test_home_is_the_users_on_the_host_and_binds_follow(shell: Shell, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "given").write_text("from the host\n")
    (tmp_path / "given").chmod(0o666)
    task = shell.start(
        "sh -c 'echo mine > ~/file; while ! cat /mnt/given; do sleep 0.1; done; echo x > /mnt/given; ls /mnt'"
    )
    assert not shell.tell(task, "label a=b")
    shell.sh(f"echo 'bind -r #host{tmp_path} /mnt' > task/{task}/ns/ctl")
    shell.end(task)
    file = shell.mount / "task" / task / "home/file"
    assert file.read_text() == "mine\n"
    assert file.stat().st_uid == (shell.mount / "task" / task / "home").stat().st_uid
    assert "from the host" in shell.read(task, "fd/1")
    assert "Read-only file system" in shell.read(task, "fd/2")
    assert (tmp_path / "given").read_text() == "from the host\n"


def test_guest_makes_tasks_of_its_own(shell: Shell) -> None:
    script = "n=$(cat /task/new); echo cmd echo from the child > /task/$n/ctl; echo start > /task/$n/ctl"
    script += "; cat /task/$n/wait; dd if=/task/$n/fd/1 bs=100 count=1 2>/dev/null"
    assert shell.run(f"sh -c '{script}'") == (0, "0\nfrom the child\n")


def test_clones_differ_in_what_must_be_unique(shell: Shell) -> None:
    script = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; hostname; date +%s"
    seen = [shell.run(f"sh -c '{script}'")[1].splitlines() for _ in range(3)]
    for column in range(3):
        assert len({lines[column] for lines in seen}) == 3
    assert all(abs(int(lines[3]) - time.time()) < SECONDS for lines in seen)


def test_guest_that_panics_ends_the_task_with_the_reason(shell: Shell) -> None:
    task = shell.start_as_root("sh -c 'echo c > /proc/sysrq-trigger'")
    code, reason = shell.end(task)
    assert code == 134 and reason.startswith("guest panic: not syncing: sysrq triggered crash")
    assert "Kernel panic" in shell.read(task, "console")
    task = shell.start_as_root("sh -c 'echo o > /proc/sysrq-trigger; sleep 1000'")
    assert shell.end(task) == (134, "the guest was switched off")


NETWORK = """
import socket
for host in ("10.0.2.2", "10.0.2.3", "1.1.1.1"):
    with socket.socket() as sock:
        sock.settimeout(2)
        print(sock.connect_ex((host, 22)) != 0)
"""


def test_guest_has_no_network_but_the_wire_to_its_files(shell: Shell, tmp_path: Path) -> None:
    (shell.mount / "tmp/network.py").write_text(NETWORK)
    assert shell.run("/usr/bin/python3 /tmp/network.py") == (0, "True\n" * 3)


def test_task_outlives_its_server(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with serving(tmp_path) as served:
        first = Shell(served)
        task = first.start("sh -c 'echo before; read line; exit 9'")
        ended = first.start("sh -c 'echo before; sleep 2; exit 4'")
        machine = first.machine(task)
        until(lambda: b"before" in (served.state / f"spools/{ended}/1").read_bytes())
        served.process.kill()
        served.process.wait()
    with serving(tmp_path) as served:
        second = Shell(served)
        assert second.machine(task) == machine
        assert second.read(task, "status") == "running\n"
        assert second.end(ended) == (4, "exited")
        with (second.mount / "task" / task / "fd/0").open("w") as stdin:
            stdin.write("go on\n")
        assert second.end(task) == (9, "exited")


def test_nothing_is_left_of_machines(shell: Shell) -> None:
    shell.run("true")
    shell.tell(shell.new("/no/such/program"), "start")
    supervisor = [
        p
        for p in Path("/proc").glob("[0-9]*")
        if (p / "cmdline").exists() and str(shell.served.state).encode() in _words(p)
    ]
    assert not [process for process in supervisor if qemu.PROGRAM.encode() in _words(process)]


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(bool(programs.why_not("linux")), reason=programs.why_not("linux"))
def test_program_that_works_on_files_says_what_it_says_on_the_host(shell: Shell, tmp_path: Path) -> None:
    program = programs.compiled("linux", tmp_path)
    (tmp_path / "here").mkdir()
    expected = subprocess.run([program, tmp_path / "here"], capture_output=True, text=True, check=True).stdout
    shutil.copy(program, shell.served.state / "tmp")
    (shell.served.state / "tmp/work").mkdir()
    (shell.served.state / "tmp/work").chmod(0o777)
    code, said = shell.run(f"/tmp/{program.name} /tmp/work")
    assert code == 0
    whole = re.compile(r"(?<=\d)\.\d{9}\b")  # v9fs sets times by the second
    right, found = (whole.sub("", text).splitlines() for text in (expected, said))
    assert list(difflib.unified_diff(right, found, n=0)) == []
