"""The commands for tasks, run as a user runs them, against a whole server."""

import json
import os
import pty
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import SECONDS, WANIXFS, Served, serving

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    top = tmp_path_factory.mktemp("served")
    top.chmod(0o755)
    with serving(top) as served:
        yield served


def started(server: Served, *words: str) -> str:
    """Start a task that stays; return its id."""
    return server.out("run", "-d", *words).strip()


def test_run_gives_output_errors_and_exit_code_of_the_program(server: Served) -> None:
    done = server.run("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7", status=7)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_run_relays_stdin_and_its_end(server: Served) -> None:
    data = os.urandom(3_000_000)
    assert server.run("run", "cat", stdin=data).stdout == data
    assert server.run("run", "true", stdin=data).stdout == b""


def test_run_hands_arguments_over_exactly(server: Served) -> None:
    words = ["", "two words", "new\nline", "'", '"', "$HOME", "--help", "ü"]
    assert server.out("run", "printf", "<%s>", *words) == "".join(f"<{word}>" for word in words)


def test_run_configures_what_its_options_say(server: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("bound\n")
    tmp_path.chmod(0o755)
    script = "cat /data/file; pwd; echo $K; echo x > /data/file || echo readonly"
    words = ["--bind", f"#host{tmp_path}:/data:r", "--env", "K=a b", "--cwd", "/tmp", "--label", "a=1", "--name", "me"]
    done = server.run("run", *words, "--memlimit", "64M", "--timeout", "50", "sh", "-c", script)
    assert done.stdout == b"bound\n/tmp\na b\nreadonly\n"
    assert server.out("cat", "/task/me/labels") == "a=1\n"


@pytest.mark.parametrize(("words", "status"), [(["/none/such"], 127), (["none-such"], 127), (["/etc/passwd"], 126)])
def test_program_that_cannot_run_gives_the_shells_status(server: Served, words: list[str], status: int) -> None:
    before = server.out("ls", "/task")
    done = server.run("run", *words, status=status)
    assert done.stderr.startswith(b"wanixfs: ")
    assert done.stderr.count(b"\n") == 1
    assert server.out("ls", "/task") == before


def test_task_that_cannot_be_made_gives_125_and_leaves_nothing(server: Served) -> None:
    before = server.out("ls", "/task")
    done = server.run("run", "--bind", "/none/such:/mnt", "true", status=125)
    assert b"wanixfs: /task/" in done.stderr
    assert server.out("ls", "/task") == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_handed_on(server: Served, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 9' {number.value}; echo ready; while :; do sleep 0.05; done"
    with server.start("run", "sh", "-c", script) as running:
        assert running.stdout
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)
        out, err = running.communicate(timeout=SECONDS)
    assert (out, err, running.returncode) == (b"caught\n", b"", 9)


def test_signal_that_ends_the_task_is_the_exit_code(server: Served) -> None:
    with server.start("run", "sh", "-c", "echo ready; exec sleep 1000") as running:
        assert running.stdout
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(SECONDS) == 143
        running.communicate()


def test_a_task_deaf_to_interrupts_is_killed_in_the_end(server: Served) -> None:
    with server.start("run", "sh", "-c", "trap 'echo no' INT; echo ready; while :; do sleep 0.05; done") as running:
        assert running.stdout
        assert running.stdout.readline() == b"ready\n"
        for _ in range(3):
            running.send_signal(signal.SIGINT)
            assert running.stdout.readline() == b"no\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(SECONDS) == 137
        running.communicate()


def test_reader_of_ours_that_leaves_ends_the_task(server: Served) -> None:
    with server.start("run", "--name", "endless", "yes") as running:
        assert running.stdout and running.stderr
        assert running.stdout.read(4) == b"y\ny\n"
        running.stdout.close()
        assert running.wait(SECONDS) == 141
        assert running.stderr.read() == b""
    assert server.out("cat", "/task/endless/wait") == "141\n"


def test_detached_task_is_seen_killed_and_waited_for(server: Served) -> None:
    task = started(server, "--label", "kind=test", "sleep", "1000")
    (row,) = [one for one in json.loads(server.out("ps", "--json")) if one["id"] == int(task)]
    assert (row["status"], row["args"], row["labels"], row["exitcode"]) == (
        "running",
        ["sleep", "1000"],
        {"kind": "test"},
        None,
    )
    line = next(line for line in server.out("ps", "-l").splitlines() if line.split()[0] == task)
    assert "kind=test" in line and line.endswith("sleep 1000")
    server.run("kill", "-s", "KILL", task)
    server.run("wait", task, status=137)
    assert task not in [line.split()[0] for line in server.out("ps").splitlines()]
    (ended,) = [one for one in json.loads(server.out("ps", "-a", "--json")) if one["id"] == int(task)]
    assert (ended["status"], ended["exitcode"]) == ("exited", 137)


def test_kill_of_several_reports_each_that_is_not_there(server: Served) -> None:
    task = started(server, "sleep", "1000")
    done = server.run("kill", "999999", task, status=1)
    assert done.stderr.count(b"\n") == 1
    server.run("wait", task, status=143)


def test_logs_end_where_output_is_and_follow_to_its_end(server: Served) -> None:
    task = started(server, "sh", "-c", "echo one; echo bad >&2; read x; echo $x")
    with server.start("logs", "-f", task) as following:
        assert following.stdout
        assert following.stdout.readline() == b"one\n"
        now = server.run("logs", task)
        assert now.stdout == b"one\n"
        server.run("write", f"/task/{task}/fd/0", "two")
        out, err = following.communicate(timeout=SECONDS)
    assert (out, err, following.returncode) == (b"two\n", b"bad\n", 0)


def test_attach_shows_what_comes_and_leaves_without_harm(server: Served) -> None:
    task = started(server, "sh", "-c", "echo before; while read x; do echo got $x; done")
    with server.start("attach", task) as attached:
        assert attached.stdin and attached.stdout
        attached.stdin.write(b"one\n")
        attached.stdin.flush()
        assert attached.stdout.readline() in (b"got one\n", b"before\n")
        attached.send_signal(signal.SIGINT)
        attached.communicate(timeout=SECONDS)
        assert attached.returncode == 130
    assert server.out("cat", f"/task/{task}/status") == "running\n"
    server.run("write", f"/task/{task}/fd/0ctl", "close")
    server.run("wait", task, status=0)


class Terminal:
    """A `wanixfs` command on a terminal of its own."""

    def __init__(self, server: Served, *words: str) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(WANIXFS[0], [*WANIXFS, *words], server.environment | {"TERM": "xterm"})
        self.seen = b""

    def expect(self, text: bytes) -> None:
        """Read until `text` appears."""
        while text not in self.seen:
            assert select.select([self.fd], [], [], SECONDS)[0], f"never said {text!r}: {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 65536)
            except OSError as error:
                raise AssertionError(f"ended without {text!r}: {self.seen!r}") from error
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def end(self) -> int:
        """Return the exit status once the command has ended."""
        while select.select([self.fd], [], [], SECONDS)[0]:
            try:
                self.seen += os.read(self.fd, 65536)
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_run_with_a_terminal_is_a_terminal_to_the_program(server: Served) -> None:
    terminal = Terminal(server, "run", "-t", "sh", "-c", "tty -s && stty size; read x; echo got-$x; exit 4")
    terminal.expect(b"\r\n")
    terminal.type(b"line\n")
    terminal.expect(b"got-line")
    assert terminal.end() == 4


def test_interrupt_key_reaches_the_program_not_us(server: Served) -> None:
    terminal = Terminal(
        server, "run", "-t", "sh", "-c", "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    )
    terminal.expect(b"ready")
    terminal.type(b"\x03")
    terminal.expect(b"caught")
    assert terminal.end() == 5


def test_shell_sees_the_tree_at_its_root(server: Served) -> None:
    terminal = Terminal(server, "shell")
    terminal.type(b"id=$(cat /task/new); echo made-$id; cat /task/$id/status\n")
    terminal.expect(b"allocated")
    terminal.type(b"exit 6\n")
    assert terminal.end() == 6


def test_shell_without_a_terminal_reads_a_script(server: Served) -> None:
    script = """
        id=$(cat /task/new)
        echo 'cmd echo from a task' > /task/$id/ctl
        echo start > /task/$id/ctl
        cat /task/$id/fd/1
    """
    assert server.run("shell", stdin=script.encode()).stdout == b"from a task\n"


def test_detach_key_leaves_a_terminal_task_running(server: Served) -> None:
    task = started(server, "-t", "sh")
    terminal = Terminal(server, "attach", task)
    terminal.type(b"echo a''b\n")
    terminal.expect(b"ab")
    terminal.type(b"\x1d")
    assert terminal.end() == 0
    assert server.out("cat", f"/task/{task}/status") == "running\n"
    server.run("kill", "-s", "KILL", task)


def test_watch_redraws_when_a_task_appears(server: Served) -> None:
    terminal = Terminal(server, "ps", "--watch")
    terminal.expect(b"COMMAND")
    task = started(server, "sleep", "98765")
    terminal.expect(b"sleep 98765")
    server.run("kill", task)
    terminal.type(b"\x03")
    assert terminal.end() == 130


def test_watch_is_refused_where_nobody_watches(server: Served) -> None:
    assert b"/task/events" in server.run("ps", "--watch", status=2).stderr
