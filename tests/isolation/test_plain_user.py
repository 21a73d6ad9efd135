"""The server of a plain user: root in a user namespace of its own, its tasks isolated, all with that user's uid."""

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from serving import ROOT, SECONDS, Served, serving

pytestmark = pytest.mark.root

UID = 54321
PYTHON = "/usr/bin/python3"
AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
PROGRAM = (PYTHON, "-m", "wanixfs.cli")
PATH = f"PYTHONPATH={ROOT}:{sysconfig.get_path('purelib')}"


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """A directory of the user, with a FUSE device that users may open, as most machines have it."""
    made = Path(tempfile.mkdtemp())  # what pytest makes only root may enter
    os.chown(made, UID, UID)
    made.chmod(0o755)
    os.mknod(made / "fuse", 0o20666, os.makedev(10, 229))
    (made / "fuse").chmod(0o666)
    probe = [*AS_USER, "env", PATH, PYTHON, "-c", "import trio, wanixfs.cli"]
    if not os.path.exists(PYTHON) or subprocess.run(probe, capture_output=True, check=False).returncode:
        shutil.rmtree(made)
        pytest.skip("needs a Python and packages that other users can read")
    if subprocess.run([*AS_USER, "unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        shutil.rmtree(made)
        pytest.skip("users may make no user namespaces here")
    yield made
    shutil.rmtree(made)


def command(top: Path) -> Sequence[str]:
    """Return what starts the program as the user, where that device is /dev/fuse."""
    script = f'mount --bind {top}/fuse /dev/fuse && exec "$@"'
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *AS_USER, "env", PATH, *PROGRAM)


@pytest.fixture(scope="module")
def served(top: Path) -> Iterator[Served]:
    with serving(top, mount=False, command=command(top)) as found:
        yield found


def run(served: Served, *words: str, status: int = 0) -> str:
    """Run a command of the client as the user, outside of any namespace."""
    done = subprocess.run(
        (*AS_USER, "env", PATH, *PROGRAM, *words),
        env=served.environment,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == status, done
    return (done.stdout + done.stderr).decode()


def sh(served: Served, script: str, *options: str) -> str:
    return run(served, "run", *options, "sh", "-c", script)


def test_task_sees_its_namespace_and_nothing_else(served: Served) -> None:
    shown = sh(served, f"echo /*; ls {served.state} /etc/shadow /root; echo $HOME; pwd; echo kept > x; cat x")
    lines = shown.splitlines()
    names = "bin cap dev etc home lib lib32 lib64 libx32 proc sbin sessions srv task tmp usr"
    assert set(lines[0].split()) <= {f"/{name}" for name in names.split()}
    assert shown.count("No such file") == 3
    assert "kept" in lines and sum(line.startswith("/home/pw-") for line in lines) == 2


def test_task_has_processes_network_and_names_of_its_own(served: Served) -> None:
    shown = sh(
        served,
        "echo /proc/[0-9]*; cut -d: -f1 /proc/net/dev | tail -n +3; readlink /proc/self/ns/user;ls /proc/1; true",
    )
    lines = shown.splitlines()
    assert lines[0] == "/proc/2"
    assert lines[1].strip() == "lo"
    assert lines[2] != os.readlink("/proc/self/ns/user")
    assert "No such file" in lines[3]


def test_task_has_no_capability_and_may_not_mount(served: Served) -> None:
    shown = sh(
        served,
        "grep -E 'CapPrm|CapEff|NoNewPrivs|Seccomp:' /proc/self/status;mount -t tmpfs x /tmp; chroot / true; true",
    )
    assert shown.count("0000000000000000") == 2
    assert "NoNewPrivs:\t1" in shown and "Seccomp:\t2" in shown
    assert "ermission denied" in shown or "not permitted" in shown
    assert "chroot" in shown


def test_task_is_the_user_on_the_host(served: Served) -> None:
    task = run(served, "run", "-d", "sh", "-c", "touch /tmp/made; exec sleep 1000").strip()
    try:
        assert (served.state / "homes" / task).stat().st_uid == UID
        run(served, "run", "sh", "-c", "until [ -e /tmp/made ]; do :; done")
        assert (served.state / "tmp/made").stat().st_uid == UID
    finally:
        run(served, "kill", task, status=0)


def test_siblings_are_out_of_sight(served: Served) -> None:
    task = run(served, "run", "-d", "sleep", "1000").strip()
    try:
        shown = sh(served, f"ls /task/{task} /home/pw-{task}; ls /task")
        assert shown.count("No such file") == 2
        assert task not in shown.splitlines()[-4:]
    finally:
        run(served, "kill", task)


def test_bind_reaches_a_running_task(served: Served) -> None:
    task = run(served, "run", "-d", "sh", "-c", "until [ -e /live/license ]; do :; done; cat /live/license").strip()
    bound = served.state.parent / "given"
    bound.mkdir(exist_ok=True)
    (bound / "license").write_text("free\n")
    subprocess.run(
        (*AS_USER, "env", PATH, *PROGRAM, "write", f"/task/{task}/ns/ctl"),
        env=served.environment,
        input=f"bind #host{bound} /live\n".encode(),
        timeout=SECONDS,
        check=True,
    )
    run(served, "wait", task)
    assert run(served, "logs", task).startswith("free\n")


def test_allowed_host_is_reached(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        port = server.getsockname()[1]
        script = f"import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'hi')"
        run(served, "run", "--net", f"127.0.0.1:{port}", "python3", "-c", script)
        peer, _ = server.accept()
        with peer:
            assert peer.recv(2) == b"hi"


def test_tasks_outlive_a_killed_server_and_new_ones_start(top: Path) -> None:
    place = top / "again"
    place.mkdir()
    os.chown(place, UID, UID)
    with serving(place, mount=False, command=command(top)) as first:
        task = run(first, "run", "-d", "sleep", "1000").strip()
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(SECONDS)
    with serving(place, mount=False, command=command(top)) as second:
        assert run(second, "cat", f"/task/{task}/status") == "running\n"
        assert sh(second, "echo fine") == "fine\n"
    shutil.rmtree(place)


def test_other_users_are_nobody_to_it(served: Served) -> None:
    other = ("setpriv", "--reuid=54322", "--regid=54322", "--clear-groups", "env", PATH, *PROGRAM)
    done = subprocess.run(
        (*other, "run", "true"), env=served.environment, capture_output=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 1 and b"not permitted" in done.stderr
