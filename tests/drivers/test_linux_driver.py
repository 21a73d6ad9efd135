"""The Linux driver on real processes in the host's own root."""

import fcntl
import gc
import os
import resource
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Awaitable, Callable
from errno import EACCES, EEXIST, ENODEV, ENOENT, ENOEXEC, ESRCH
from pathlib import Path

import pytest
import trio

from tasks.drivers.base import Limits
from tasks.drivers.linux.driver import LinuxDriver
from tests.drivers.recorder import GID, ROOT, UID, Recorder, alive, launch, linux_driver, until

Body = Callable[[LinuxDriver, Recorder], Awaitable[None]]


def run(state: Path, body: Body, **options: object) -> None:
    async def main() -> None:
        async with linux_driver(state, **options) as (driver, recorder):
            await body(driver, recorder)

    trio.run(main)


def fds_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("cgroup", ["auto", None])
def test_exit_codes_and_signals_are_reported(tmp_path: Path, cgroup: str | None) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        for id, script, code, reason in (
            ("a", "exit 0", 0, "exited"),
            ("b", "exit 255", 255, "exited"),
            ("c", "kill -TERM $$", 143, "signal 15"),
            ("d", "kill -KILL $$", 137, "signal 9"),
        ):
            assert await driver.start(launch(id, "sh", "-c", script, state=tmp_path)) > 0
            exit = await recorder.exit_of(id)
            assert (exit.code, exit.reason) == (code, reason)
            assert exit.peak_bytes > 0

    run(tmp_path, body, cgroup=cgroup)


def test_output_goes_to_spools_and_is_reported_before_the_exit(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out, err = tmp_path / "1", tmp_path / "2"
        await driver.start(launch("t", "sh", "-c", "echo out; echo error >&2", state=tmp_path, spools={1: out, 2: err}))
        assert out.exists() and err.exists()
        await recorder.exit_of("t")
        assert (out.read_bytes(), err.read_bytes()) == (b"out\n", b"error\n")
        assert recorder.spools == {("t", 1): (4, 0, True), ("t", 2): (6, 0, True)}
        assert recorder.order[-1] == "exited t"

    run(tmp_path, body)


def test_two_descriptors_with_one_spool_share_its_order(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        both = tmp_path / "out"
        script = "echo a; echo b >&2; echo c"
        await driver.start(launch("t", "sh", "-c", script, state=tmp_path, spools={1: both, 2: both}))
        await recorder.exit_of("t")
        assert both.read_text() == "a\nb\nc\n"
        assert recorder.spools["t", 1] == recorder.spools["t", 2] == (6, 0, True)

    run(tmp_path, body)


def test_spool_keeps_the_newest_bytes_at_their_offsets(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out, limit, size = tmp_path / "out", 64 << 10, 3_000_000
        script = f"seq -w 0 999999 | head -c {size}"
        await driver.start(launch("t", "sh", "-c", script, state=tmp_path, spools={1: out}, spool_limit=limit))
        await recorder.exit_of("t")
        end, start, eof = recorder.spools["t", 1]
        assert (end, eof) == (size, True)
        assert limit <= end - start < limit + 4096
        whole = "".join(f"{number:06}\n" for number in range(size // 7 + 1)).encode()[:size]
        assert out.read_bytes()[start:] == whole[start:]
        assert not out.read_bytes()[:start].strip(b"\0")
        assert out.stat().st_blocks * 512 <= limit + 8192

    run(tmp_path, body)


def test_writer_faster_than_a_deaf_server_is_not_stopped(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        with (tmp_path / "done").open("wb") as done:
            script = "head -c 50000000 /dev/zero; echo done >&5"
            await driver.start(launch("t", "sh", "-c", script, state=tmp_path, spools={1: out}, fds={5: done.fileno()}))
        deadline = trio.current_time() + 20
        while not (tmp_path / "done").stat().st_size:  # on purpose without letting the event loop run
            assert trio.current_time() < deadline
            select.select([], [], [], 0.01)
        exit = await recorder.exit_of("t")
        assert exit.code == 0
        assert recorder.spools["t", 1] == (50_000_000, 0, True)

    run(tmp_path, body)


def test_descriptors_are_exactly_those_given(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        with open("/dev/zero", "rb") as zero:
            code = "ls -l /proc/$$/fd; head -c 3 <&7 | wc -c"
            options = {"spools": {1: out}, "fds": {7: zero.fileno(), 3: zero.fileno()}}
            await driver.start(launch("t", "sh", "-c", code, state=tmp_path, **options))
        await recorder.exit_of("t")
        _, *lines, count = out.read_text().splitlines()
        found = dict(line.split()[-3::2] for line in lines)
        assert found.pop("1").startswith("pipe:")
        assert found == {"0": "/dev/null", "2": "/dev/null", "3": "/dev/zero", "7": "/dev/zero"}
        assert count.strip() == "3"

    run(tmp_path, body)


def test_process_starts_with_clean_signals_umask_session_and_limits(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        script = "grep -E '^(SigBlk|SigIgn|Umask|NoNewPrivs|Uid|Groups|CapEff)' /proc/self/status; ulimit -n"
        script += "; ps -o sid= -p $$; echo $$; pwd; env"
        home = launch("t", "sh", "-c", script, state=tmp_path, spools={1: out}, cwd="/usr", env={"A_B": "c\udcff\nd"})
        await driver.start(home)
        await recorder.exit_of("t")
        text = out.read_bytes().decode("utf-8", "surrogateescape")
        for line in ("SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "Umask:\t0022"):
            assert line in text
        assert "\n/usr\n" in text and "A_B=c\udcff\nd" in text
        if ROOT:
            assert "NoNewPrivs:\t1" in text and f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in text
            assert "Groups:\t \n" in text
            assert "CapEff:\t0000000000000000" in text
        lines = text.splitlines()
        at = lines.index("/usr")
        assert lines[at - 2].strip() == lines[at - 1]
        assert lines[at - 3] == str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    run(tmp_path, body)


def test_programs_that_cannot_run_fail_the_start_and_leave_nothing(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        directory = Path(os.environ.get("TMPDIR", "/tmp"))
        script, plain = directory / f"script-{os.getpid()}", directory / f"plain-{os.getpid()}"
        try:
            for path, mode in ((script, 0o755), (plain, 0o644)):
                path.write_text("echo no shebang\n")
                path.chmod(mode)
            before = fds_of(driver.supervisor_pid)
            for program, error in (
                ("nowhere-to-be-found", ENOENT),
                ("/no/such/program", ENOENT),
                (str(plain), EACCES),
                ("/", EACCES),
                (str(script), ENOEXEC),
            ):
                out = tmp_path / "out"
                with pytest.raises(OSError) as raised:
                    await driver.start(launch("t", program, state=tmp_path, spools={1: out}))
                assert raised.value.errno == error
                assert program in str(raised.value)
                assert not out.exists()
            with pytest.raises(FileNotFoundError, match="cwd"):
                await driver.start(launch("t", "true", state=tmp_path, cwd="/no/such/directory"))
            assert fds_of(driver.supervisor_pid) == before
            assert await driver.recover(["t"]) == {}
            assert not recorder.order
        finally:
            script.unlink(missing_ok=True)
            plain.unlink(missing_ok=True)

    run(tmp_path, body)


def test_a_long_command_and_environment_arrive_whole(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        words = [f"{number:01000}" for number in range(1000)]
        env = {"PATH": "/usr/bin:/bin", **{f"V{number}": "x" * 100_000 for number in range(5)}}
        task = launch("t", "sh", "-c", 'echo $# "${999}" ${#V4}', *words, state=tmp_path, spools={1: out}, env=env)
        await driver.start(task)
        await recorder.exit_of("t")
        assert out.read_text() == f"999 {words[-1]} 100000\n"

    run(tmp_path, body)


def test_a_task_id_is_used_once_until_forgotten(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        await driver.start(launch("t", "true", state=tmp_path))
        await recorder.exit_of("t")
        with pytest.raises(OSError) as raised:
            await driver.start(launch("t", "true", state=tmp_path))
        assert raised.value.errno == EEXIST
        with pytest.raises(OSError) as raised:
            await driver.kill("t", signal.SIGTERM)
        assert raised.value.errno == ESRCH

    run(tmp_path, body)


def test_many_quick_tasks_leave_no_descriptor_process_or_group(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        count = 1000
        limiter = trio.CapacityLimiter(8)
        gc.collect()  # what earlier tests have left
        before = fds_of(driver.supervisor_pid), fds_of(os.getpid())

        async def one(number: int) -> None:
            async with limiter:
                out = tmp_path / f"{number}.out"
                script = f"echo {number}; exit {number % 200}"
                await driver.start(launch(str(number), "sh", "-c", script, state=tmp_path, spools={1: out}))
                assert (await recorder.exit_of(str(number))).code == number % 200
                assert out.read_text() == f"{number}\n"
                driver.forget(str(number))

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)
        await until(lambda: fds_of(driver.supervisor_pid) == before[0])
        assert fds_of(os.getpid()) <= before[1]
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(driver.supervisor_pid)], capture_output=True)
        assert not children.stdout.strip()

    run(tmp_path, body)


@pytest.mark.parametrize("cgroup", ["auto", None])
def test_kill_reaches_what_forked_away_and_left_the_session(tmp_path: Path, cgroup: str | None) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        notes = tmp_path / "notes"
        notes.touch()
        with notes.open("ab") as file:
            await driver.start(launch("t", "sh", "-c", FORKS, state=tmp_path, fds={5: file.fileno()}))
        await until(lambda: notes.read_text().count("\n") == 6)
        pids = [int(line) for line in notes.read_text().split()]
        assert all(map(alive, pids))
        assert set(pids) <= set(await driver.pids("t"))
        await driver.kill("t", signal.SIGKILL)
        assert (await recorder.exit_of("t")).code == 137
        assert not any(map(alive, pids))

    run(tmp_path, body, cgroup=cgroup)


# Six sleepers: children, grandchildren whose parent has gone, and some in a session of their own.
FORKS = """
for i in 1 2; do
    sh -c 'echo $$ >&5; exec sleep 1000' &
    (setsid sh -c 'echo $$ >&5; exec sleep 1000' &)
    setsid sh -c '(sh -c "echo \\$\\$ >&5; exec sleep 1000" &)'
done
sleep 1000
"""


@pytest.mark.parametrize("cgroup", ["auto", None])
def test_end_of_the_main_process_ends_what_it_left_running(tmp_path: Path, cgroup: str | None) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        notes = tmp_path / "notes"
        script = "(setsid sh -c 'echo $$ >&5; echo ready >&6; exec sleep 1000' &); read line <&7; exit 3"
        ready, say_ready = os.pipe()
        with notes.open("ab") as file:
            fds = {5: file.fileno(), 6: say_ready, 7: ready}
            await driver.start(launch("t", "sh", "-c", script, state=tmp_path, fds=fds))
        os.close(ready)
        os.close(say_ready)
        assert (await recorder.exit_of("t")).code == 3
        assert not alive(int(notes.read_text()))

    run(tmp_path, body, cgroup=cgroup)


@pytest.mark.parametrize("cgroup", ["auto", None])
def test_ended_task_spares_the_processes_of_others(tmp_path: Path, cgroup: str | None) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        notes = tmp_path / "notes"
        with notes.open("ab") as file:
            script = "(sh -c 'echo $$ >&5; exec sleep 1000' &); sleep 1000"
            await driver.start(launch("other", "sh", "-c", script, state=tmp_path, fds={5: file.fileno()}))
        await until(lambda: notes.read_text().endswith("\n"))
        for number in range(5):
            await driver.start(launch(f"t{number}", "sh", "-c", "(sleep 1000 &) ; exit 1", state=tmp_path))
            await recorder.exit_of(f"t{number}")
        assert alive(int(notes.read_text()))
        assert "other" not in recorder.exits

    run(tmp_path, body, cgroup=cgroup)


@pytest.mark.parametrize("cgroup", ["auto", None])
def test_paused_task_stands_still_until_resumed(tmp_path: Path, cgroup: str | None) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        with out.open("ab") as file:
            script = "while :; do echo more; done"
            pid = await driver.start(launch("t", "sh", "-c", script, state=tmp_path, fds={1: file.fileno()}))
        await until(lambda: out.stat().st_size > 0)
        await driver.pause("t")
        if cgroup is None:  # a signal takes its time
            await until(lambda: "\nState:\tT" in Path(f"/proc/{pid}/status").read_text())
        size = out.stat().st_size
        for number in range(5):
            await driver.start(launch(f"meanwhile{number}", "true", state=tmp_path))
            await recorder.exit_of(f"meanwhile{number}")
        assert out.stat().st_size == size
        await driver.resume("t")
        await until(lambda: out.stat().st_size > size)

    run(tmp_path, body, cgroup=cgroup)


@pytest.mark.parametrize("cgroup", ["auto", None])
def test_paused_task_can_be_killed(tmp_path: Path, cgroup: str | None) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        await driver.start(launch("t", "sleep", "1000", state=tmp_path))
        await driver.pause("t")
        await driver.kill("t", signal.SIGKILL)
        assert (await recorder.exit_of("t")).code == 137

    run(tmp_path, body, cgroup=cgroup)


def test_signal_other_than_kill_goes_to_the_main_process(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        script = "trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 0.01; done"
        await driver.start(launch("t", "sh", "-c", script, state=tmp_path, spools={1: out}))
        await recorder.until(lambda: ("t", 1) in recorder.spools)
        await driver.kill("t", signal.SIGTERM)
        assert (await recorder.exit_of("t")).code == 4
        assert out.read_text() == "ready\ncaught\n"

    run(tmp_path, body)


def test_nice_is_set_at_start_and_later(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        pid = await driver.start(launch("t", "sleep", "1000", state=tmp_path, limits=Limits(nice=5)))
        assert os.getpriority(os.PRIO_PROCESS, pid) == 5
        await driver.set_limits("t", Limits(nice=11))
        assert os.getpriority(os.PRIO_PROCESS, pid) == 11

    run(tmp_path, body)


def test_memory_beyond_the_limit_ends_the_task_and_says_so(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        if "memlimit" not in driver.capabilities:
            pytest.skip("no memory controller here")
        limit = 32 << 20
        command = ("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
        await driver.start(launch("t", *command, state=tmp_path, limits=Limits(memory=limit)))
        exit = await recorder.exit_of("t")
        assert (exit.code, exit.reason) == (137, "out of memory")
        assert exit.peak_bytes <= limit
        [(task, kind, detail)] = recorder.events
        assert (task, kind, detail["limit_bytes"]) == ("t", "oom", limit)

    run(tmp_path, body)


def test_processes_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        if "pidlimit" not in driver.capabilities:
            pytest.skip("no pids controller here")
        out = tmp_path / "out"
        script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all"
        options = {"spools": {1: out, 2: out}, "limits": Limits(pids=5)}
        await driver.start(launch("t", "sh", "-c", script, state=tmp_path, **options))
        await recorder.exit_of("t")
        assert "all" not in out.read_text().split()
        assert "fork" in out.read_text().lower()

    run(tmp_path, body)


def test_limits_set_later_hold_for_every_process_there_is(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        if not {"pidlimit", "cpulimit"} <= driver.capabilities:
            pytest.skip("no pids and cpu controllers here")
        out = tmp_path / "out"
        script = "sleep 1000 & sleep 1000 & echo ready; read x; (true) && echo forked"
        reader, writer = os.pipe()
        with open(reader, "rb"), open(writer, "wb") as stdin:
            await driver.start(
                launch("t", "sh", "-c", script, state=tmp_path, spools={1: out, 2: out}, fds={0: reader})
            )
            await recorder.until(lambda: ("t", 1) in recorder.spools)
            await driver.set_limits("t", Limits(pids=3, cpu=0.5))
            figures = await driver.stat("t", "pids")
            assert (figures["current"], figures["limit"]) == (3, 3)
            assert "throttled_usec" in await driver.stat("t", "cpu")
            stdin.write(b"\n")
            stdin.flush()
            assert (await recorder.exit_of("t")).code != 0
        assert "forked" not in out.read_text().split()

    run(tmp_path, body)


@pytest.mark.parametrize("cgroup", ["auto", None])
def test_figures_of_a_running_task_are_plausible(tmp_path: Path, cgroup: str | None) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000 & sleep 1000"
        await driver.start(launch("t", "sh", "-c", script, state=tmp_path, spools={1: out}))
        await recorder.until(lambda: ("t", 1) in recorder.spools)
        assert (await driver.stat("t", "mem"))["current_bytes"] > 0
        cpu = await driver.stat("t", "cpu")
        assert cpu["user_usec"] + cpu["system_usec"] > 0
        assert 1 <= (await driver.stat("t", "pids"))["current"] <= 3
        assert {"read_bytes", "write_bytes"} <= (await driver.stat("t", "io")).keys()

    run(tmp_path, body, cgroup=cgroup)


def test_terminal_is_one_and_takes_input_and_size(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; stty size; read x; stty size; echo got $x"
        await driver.start(launch("t", "sh", "-c", script, state=tmp_path, spools={1: out}, pty=(33, 99)))
        await recorder.until(lambda: b"33 99" in out.read_bytes())
        terminal = await driver.terminal("t")
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 44, 111, 0, 0))
        os.write(terminal, b"input\n")
        os.close(terminal)
        assert (await recorder.exit_of("t")).code == 0
        assert out.read_text().split() == ["terminal", "33", "99", "input", "44", "111", "got", "input"]
        assert recorder.spools["t", 1][2]

    run(tmp_path, body)


def test_terminal_passes_the_interrupt_key_on(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        command = ("sh", "-c", "echo ready; exec sleep 1000")
        await driver.start(launch("t", *command, state=tmp_path, spools={1: out}, pty=(24, 80)))
        await recorder.until(lambda: b"ready" in out.read_bytes())
        terminal = await driver.terminal("t")
        os.write(terminal, b"\x03")
        os.close(terminal)
        assert (await recorder.exit_of("t")).code == 130

    run(tmp_path, body)


def test_task_without_a_terminal_has_none_to_give(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        await driver.start(launch("t", "sleep", "1000", state=tmp_path))
        with pytest.raises(OSError) as raised:
            await driver.terminal("t")
        assert raised.value.errno == ENODEV

    run(tmp_path, body)


def test_standard_descriptors_can_be_opened_by_name(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        read, write = os.pipe()
        command = ("sh", "-c", "cat /proc/self/fd/0; echo out > /proc/self/fd/1")
        await driver.start(launch("t", *command, state=tmp_path, fds={0: read}, spools={1: out, 2: out}))
        os.write(write, b"in\n")
        os.close(read)
        os.close(write)
        await recorder.exit_of("t")
        assert out.read_text() == "in\nout\n"

    run(tmp_path, body)


def test_three_tasks_form_a_pipeline_of_kernel_pipes(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        (r1, w1), (r2, w2) = os.pipe(), os.pipe()
        await driver.start(launch("c", "wc", "-l", state=tmp_path, fds={0: r2}, spools={1: out}))
        await driver.start(launch("b", "grep", "7", state=tmp_path, fds={0: r1, 1: w2}))
        await driver.start(launch("a", "seq", "100000", state=tmp_path, fds={1: w1}))
        for fd in (r1, w1, r2, w2):
            os.close(fd)
        assert [(await recorder.exit_of(task)).code for task in "abc"] == [0, 0, 0]
        assert out.read_text().strip() == str(sum("7" in str(number) for number in range(1, 100001)))

    run(tmp_path, body)


def test_output_of_who_outlives_the_task_is_still_spooled(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        pid = await driver.start(launch("t", "sleep", "1000", state=tmp_path, spools={1: out}))
        pidfd = os.pidfd_open(pid)
        late = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)  # as a task that inherits the descriptor has it
        os.close(pidfd)
        await driver.kill("t", signal.SIGKILL)
        await recorder.exit_of("t")
        assert recorder.spools.get(("t", 1), (0, 0, False))[2] is False
        os.write(late, b"late")
        os.close(late)
        await recorder.until(lambda: recorder.spools.get(("t", 1)) == (4, 0, True))
        assert out.read_text() == "late"

    run(tmp_path, body)


@pytest.mark.root
def test_network_of_none_is_only_a_loopback_of_its_own(tmp_path: Path) -> None:
    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        out = tmp_path / "out"
        script = "grep -c : /proc/net/dev; readlink /proc/self/ns/net"
        await driver.start(launch("t", "sh", "-c", script, state=tmp_path, spools={1: out}, net="none"))
        await recorder.exit_of("t")
        interfaces, space = out.read_text().split()
        assert interfaces == "1"
        assert space != os.readlink("/proc/self/ns/net")

    run(tmp_path, body)


def test_uid_of_another_needs_root(tmp_path: Path) -> None:
    if ROOT:
        pytest.skip("runs as root")

    async def body(driver: LinuxDriver, recorder: Recorder) -> None:
        with pytest.raises(PermissionError):
            await driver.start(launch("t", "true", state=tmp_path, uid=UID + 1, gid=GID))

    run(tmp_path, body)
