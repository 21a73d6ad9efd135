"""The main job, end to end: a served, mounted tree drives real processes, by the shell's own tools."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import SECONDS, serving, supervisor

pytestmark = pytest.mark.root

EPOLL = ("232", "281", "22")
"""System call numbers of epoll_wait and epoll_pwait (x86_64, aarch64)."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("main")) as server:
        yield server


def sh(served, script, status=0, seconds=SECONDS):
    """Run a shell script with $M as the mount point; return what it prints."""
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env=os.environ | {"M": str(served.mount)},
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    assert status is None or done.returncode == status, done
    return done.stdout.decode(errors="replace")


def new(served, *lines):
    id = sh(served, "cat $M/task/new").strip()
    for line in lines:
        (served.mount / f"task/{id}/ctl").write_text(line)
    return id


def read(served, path):
    return (served.mount / path).read_text()


def until(condition):
    """Wait for what a foreign process does without telling anyone."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
    return value


def events_so_far(served, id):
    fd = os.open(served.mount / f"task/{id}/events", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def blocked_in_fuse(pid):
    return "fuse" in Path(f"/proc/{pid}/wchan").read_text() or "request_wait" in Path(f"/proc/{pid}/stack").read_text()


def test_the_first_session_of_every_newcomer(served):
    script = """
        id=$(cat $M/task/new)
        echo "cmd /bin/sh -c 'echo hi; echo err >&2; exit 3'" > $M/task/$id/ctl
        echo start > $M/task/$id/ctl
        cat $M/task/$id/wait
        cat $M/task/$id/fd/1 $M/task/$id/fd/1
        cat $M/task/$id/fd/2 $M/task/$id/fd/2
        cat $M/task/$id/exitcode $M/task/$id/status
    """
    assert sh(served, script) == "3\nhi\nhi\nerr\nerr\n3\nexited\n"


def test_interrupting_a_blocked_reader_ends_it_at_once(served):
    id = new(served, "cmd sleep 1000", "start")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        reader = subprocess.Popen(["cat", served.mount / f"task/{id}/wait"], stdout=subprocess.PIPE)
        until(lambda pid=reader.pid: blocked_in_fuse(pid))
        reader.send_signal(number)
        assert reader.wait(SECONDS) == -number
        reader.stdout.close()
    assert sh(served, f"timeout 0.2 cat $M/task/{id}/wait", status=124) == ""
    (served.mount / f"task/{id}/ctl").write_text("kill 9")
    assert read(served, f"task/{id}/wait") == "137\n"


def test_interrupting_a_blocked_9p_reader_ends_it_at_once(served):
    id = new(served, "cmd sleep 1000", "start")
    reader = served.start("cat", f"/task/{id}/wait")
    until(lambda: Path(f"/proc/{reader.pid}/syscall").read_text().split()[0] in EPOLL)
    reader.send_signal(signal.SIGINT)
    assert reader.communicate(timeout=SECONDS)[0] == b""
    assert reader.returncode == 130
    (served.mount / f"task/{id}/ctl").write_text("kill 9")
    assert served.out("cat", f"/task/{id}/wait") == "137\n"


def test_two_writers_blocked_on_a_full_pipe_can_both_be_killed(served):
    cap = sh(served, "cat $M/cap/new/pipe").strip()
    reader = os.open(served.mount / f"cap/{cap}/r", os.O_RDONLY)
    writers = [
        subprocess.Popen(["dd", "if=/dev/zero", f"of={served.mount}/cap/{cap}/w", "bs=64k", "conv=notrunc"], stderr=-3)
        for _ in range(2)
    ]
    for writer in writers:
        until(lambda pid=writer.pid: blocked_in_fuse(pid))
    for writer in writers:
        writer.kill()
    assert [writer.wait(SECONDS) for writer in writers] == [-9, -9]
    os.close(reader)


def test_stdin_stdout_and_a_pipeline_of_three(served):
    script = """
        a=$(cat $M/task/new); b=$(cat $M/task/new); c=$(cat $M/task/new)
        echo "cmd cat" > $M/task/$a/ctl
        echo "cmd tr a-z A-Z" > $M/task/$b/ctl
        echo "cmd sort" > $M/task/$c/ctl
        echo "pipe $a/fd/1" > $M/task/$b/fd/0ctl
        echo "pipe $b/fd/1" > $M/task/$c/fd/0ctl
        for t in $a $b $c; do echo start > $M/task/$t/ctl; done
        printf 'pear\\napple\\n' > $M/task/$a/fd/0
        echo close > $M/task/$a/fd/0ctl
        cat $M/task/$c/wait $M/task/$c/fd/1
    """
    assert sh(served, script) == "0\nAPPLE\nPEAR\n"


def test_a_reader_follows_what_a_task_writes(served):
    id = new(served, "cmd sh -c 'read x; echo got $x; read y; echo and $y'", "start")
    output = served.mount / f"task/{id}/fd/1"
    reader = subprocess.Popen(["cat", output], stdout=subprocess.PIPE)
    (served.mount / f"task/{id}/fd/0").write_text("one\n")
    assert reader.stdout.readline() == b"got one\n"
    follower = subprocess.Popen(["tail", "-f", output], stdout=subprocess.PIPE)
    assert follower.stdout.readline() == b"got one\n"
    (served.mount / f"task/{id}/fd/0").write_text("two\n")
    assert reader.communicate(timeout=SECONDS)[0] == b"and two\n"
    assert follower.stdout.readline() == b"and two\n"
    follower.kill()
    follower.communicate()
    assert read(served, f"task/{id}/wait") == "0\n"


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        ("echo nope > $M/task/$id/ctl", "Invalid argument"),
        ("echo 'memlimit lots' > $M/task/$id/ctl", "Invalid argument"),
        ("head -c 100 /dev/urandom | tr -d '\\n' > $M/task/$id/ctl", "Invalid argument"),
        (
            "head -c 1100000 /dev/zero | tr '\\0' x | dd of=$M/task/$id/ctl bs=2M iflag=fullblock",
            "Argument list too long",
        ),
        ("printf '\\377\\376 x\\n' > $M/task/$id/ctl", "Invalid argument"),
        ("echo start > $M/task/$id/ctl", "Invalid argument"),
        ("echo 'kill 9' > $M/task/$id/ctl", "No such process"),
        ("echo 'unbind /nothing' > $M/task/$id/ns/ctl", "No such file"),
        ("echo 'bind /no/such /x' > $M/task/$id/ns/ctl", "No such file"),
        ("cat $M/task/999999/status", "No such file"),
        ("echo x > $M/task/$id/status", "Permission denied"),
        ("touch $M/task/$id/extra", "Operation not permitted"),
        ("rm $M/task/$id/ctl", "Operation not permitted"),
        ("rmdir $M/task/$id", "Operation not permitted"),
        ("mkdir $M/task/7777", "Operation not permitted"),
        ("chmod 777 $M/task/$id/ctl", "Operation not permitted"),
    ],
)
def test_bad_input_is_an_errno_at_once_and_changes_nothing(served, command, errno):
    id = new(served)
    before = events_so_far(served, id)
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=os.environ | {"M": str(served.mount), "id": id, "LC_ALL": "C"},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    said = (done.stderr + done.stdout).decode(errors="replace")
    assert done.returncode != 0 or "error" in said, done
    if "I/O error" not in said:
        assert errno in said
    assert events_so_far(served, id) == before
    assert read(served, f"task/{id}/status") == "allocated\n"


def test_the_errno_of_a_write_is_the_commands(served):
    id = new(served)
    for line, errno in (("nope", 22), ("kill 9", 3), ("start", 22)):
        with pytest.raises(OSError) as info:
            (served.mount / f"task/{id}/ctl").write_text(line)
        assert info.value.errno == errno


def test_binds_and_symlinks_in_circles_end(served):
    id = new(served)
    ctl = served.mount / f"task/{id}/ns/ctl"
    (served.mount / "tmp/in").mkdir()
    ctl.write_text("bind /tmp /loop\nbind /tmp /loop/in\nbind /tmp /loop/in/in\n")
    assert os.listdir(served.mount / f"task/{id}/ns/root/loop/in/in") == ["in"]
    cap = sh(served, "cat $M/cap/new/mem").strip()
    tree = served.mount / f"cap/{cap}/mount"
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        (tree / "a").read_text()
    with pytest.raises(OSError):
        ctl.write_text(f"bind /cap/{cap}/mount/a /x")
    odd = tree / "new\nline \udcff"
    odd.mkdir()
    ctl.write_bytes(b"bind '/cap/%s/mount/new\nline \xff' /odd\n" % cap.encode())
    assert "odd" in os.listdir(served.mount / f"task/{id}/ns/root")


def test_many_shells_lose_no_task(served, request):
    shells, each = (50, 20) if request.config.option.long else (10, 5)
    script = f"""
        for i in $(seq {each}); do
            id=$(cat $M/task/new) || exit 1
            echo "cmd sh -c 'echo $id; exit 7'" > $M/task/$id/ctl || exit 2
            echo start > $M/task/$id/ctl || exit 3
            [ "$(cat $M/task/$id/wait)" = 7 ] || exit 4
            [ "$(cat $M/task/$id/fd/1)" = $id ] || exit 5
            echo remove > $M/task/$id/ctl || exit 6
        done
    """
    pids = [served.process.pid, supervisor(served.state)]

    def all_at_once():
        with ThreadPoolExecutor(shells) as pool:
            list(pool.map(lambda _: sh(served, script, seconds=20 * SECONDS), range(shells)))
        return [(len(os.listdir(f"/proc/{pid}/fd")), resident(pid)) for pid in pids]

    all_at_once()  # caches fill, and the heap grows to what so many at once need
    before = all_at_once()
    all_at_once()

    def grown():
        """Return what is more than before: descriptors, memory, children of the supervisor."""
        found = []
        for pid, (fds, size) in zip(pids, before, strict=True):
            fds_now, size_now = len(os.listdir(f"/proc/{pid}/fd")), resident(pid)
            if fds_now > fds + 4 or size_now > size * 1.2 + (1 << 20):
                found.append((pid, fds, fds_now, size, size_now))
        return found + children_of(pids[1])

    deadline = time.monotonic() + SECONDS
    while left := grown():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def resident(pid):
    """Return the bytes of memory that are a process's own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Anon:"))


def children_of(pid):
    """Return the processes that are children of `pid`."""
    stats = (read_stat(process) for process in Path("/proc").glob("[0-9]*"))
    return [name for name, parent in filter(None, stats) if parent == pid]


def read_stat(process):
    try:
        return process.name, int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_a_killed_server_leaves_its_tasks_and_the_next_one_finds_them(tmp_path):
    with serving(tmp_path) as first:
        running = new(first, "cmd sh -c 'echo before; read x; echo after $x; exit 5'", "alias survivor", "start")
        ended = new(first, "cmd sh -c 'read x; exit 9'", "start")
        until(lambda: has_output(first, running))
        stdin = os.open(first.mount / f"task/{ended}/fd/0", os.O_WRONLY)
        waiter = subprocess.Popen(["cat", first.mount / f"task/{running}/wait"], stdout=subprocess.PIPE)
        until(lambda: blocked_in_fuse(waiter.pid))
        first.process.kill()
        first.process.wait()
        with serving(tmp_path) as second:
            assert read(second, "task/survivor/status") == "running\n"
            os.write(stdin, b"x\n")
            os.close(stdin)
            assert read(second, f"task/{ended}/wait") == "9\n"
            (second.mount / f"task/{running}/fd/0").write_text("again\n")
            assert waiter.communicate(timeout=SECONDS)[0] == b"5\n"
            assert read(second, f"task/{running}/fd/1") == "before\nafter again\n"


def has_output(served, id):
    return (served.mount / f"task/{id}/fd/1").stat().st_size > 0
