"""A server that dies while others hold the mount, and the next that goes on in its place."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fusemount import finish, is_mounted, served, shell, until

from vfs.directory import Dir
from vfs.files import Text
from vfs.fuse.devfuse import mount, unmount

pytestmark = pytest.mark.root

NOBODY = 65534
REPOSITORY = Path(__file__).parents[2]


class Place:
    """A mount point, its descriptor, and servers that come and go."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "m"
        self.host = tmp_path / "host"
        self.journal = tmp_path / "journal"
        self.path.mkdir()
        (self.host / "sub/deep").mkdir(parents=True)
        (self.host / "sub/deep/file").write_text("first line\nsecond line\n")
        self.fd = mount(self.path)
        self.servers: list[subprocess.Popen[bytes]] = []
        self.clients: list[subprocess.Popen[bytes]] = []

    def serve(self) -> str:
        """Start a server and return whether it is an heir."""
        server = subprocess.Popen(
            [
                sys.executable,
                Path(__file__).with_name("heir_server.py"),
                self.path,
                str(self.fd),
                self.journal,
                self.host,
            ],
            pass_fds=[self.fd],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        self.servers.append(server)
        assert server.stdout is not None
        word, heir = server.stdout.readline().decode().split()
        assert word == "ready"
        return heir

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.servers[-1].send_signal(number)
        self.servers[-1].wait(10)

    def python(self, program: str) -> subprocess.Popen[bytes]:
        client = subprocess.Popen(
            [sys.executable, "-c", "import os, sys\nos.chdir(sys.argv[1])\n" + program, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self.clients.append(client)
        return client

    def close(self) -> None:
        unmount(self.path)
        os.close(self.fd)
        for process in self.servers + self.clients:
            process.kill()
            process.communicate()


@pytest.fixture
def place(tmp_path: Path):
    made = Place(tmp_path)
    yield made
    made.close()
    assert not is_mounted(made.path)


READER = """
print(os.read(os.open("wait", os.O_RDONLY), 100).decode(), end="")
"""

WORKER = """
os.chdir("host/sub/deep")
text = os.open("../../../text", os.O_RDONLY)
file = os.open("file", os.O_RDWR)
many = os.open("../../../many", os.O_RDONLY)
pipe = os.open("../../../pipe", os.O_WRONLY)
listing = os.scandir(many)
names = [next(listing).name for _ in range(700)]
print(os.read(text, 4).decode(), os.read(file, 11).decode(), flush=True)
sys.stdin.readline()
print(os.read(text, 4).decode(), os.read(file, 12).decode())
os.write(file, b"third line\\n")
names += [entry.name for entry in listing]
print(len(names), len(set(names)))
print(os.getcwd()[-14:], sorted(os.listdir(".")), os.fstat(file).st_size)
again = os.open("file", os.O_RDONLY)
print(len(os.read(again, 100)), os.write(pipe, b"x"))
os.mkdir("new"); print(sorted(os.listdir(".")))
os.close(file); os.close(again)
print(os.read(os.open("file", os.O_RDONLY), 100).count(b"line"))
"""


def test_what_was_open_before_a_kill_works_after_it(place: Place):
    assert place.serve() == "False"
    worker = place.python(WORKER)
    assert worker.stdout is not None and worker.stdin is not None
    assert worker.stdout.readline() == b"one\n"
    assert worker.stdout.readline() == b" first line\n"
    assert worker.stdout.readline() == b"\n"
    place.kill()
    assert place.serve() == "True"
    worker.stdin.write(b"go on\n")
    code, output = finish(worker)
    assert output.decode().splitlines() == [
        "two",
        " second line",
        "",
        "2000 2000",
        "/host/sub/deep ['file'] 34",
        "34 1",
        "['file', 'new']",
        "3",
    ]
    assert code == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_requests_of_an_outage_are_answered_by_the_next_server(place: Place, how: int):
    place.serve()
    reader = place.python(READER)
    until(lambda: blocked(reader.pid), "a blocked reader")
    place.kill(how)
    late = place.python('print(sorted(os.listdir("host")))')
    place.serve()
    assert finish(late) == (0, b"['sub']\n")
    assert reader.poll() is None
    shell("echo 7 > go", place.path)
    assert finish(reader) == (0, b"7\n")


def test_a_blocked_reader_can_be_interrupted_after_a_change_of_servers(place: Place):
    place.serve()
    reader = place.python("import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n" + READER)
    until(lambda: blocked(reader.pid), "a blocked reader")
    place.kill()
    place.serve()
    reader.send_signal(signal.SIGINT)
    assert finish(reader, 5)[0] == -signal.SIGINT


def blocked(pid: int) -> bool:
    """Tell whether a process waits in read(2) for a FUSE answer."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith("0 ") and "wait" in os.readlink(
        f"/proc/{pid}/fd/{int(Path(f'/proc/{pid}/syscall').read_text().split()[1], 16)}"
    )


def test_renamed_files_are_found_by_the_next_server(place: Place):
    place.serve()
    client = place.python(
        """
os.chdir("host")
os.rename("sub", "moved")
here = os.open("moved/deep", os.O_PATH)
os.rename("moved", "again")
print("renamed", flush=True)
sys.stdin.readline()
os.fchdir(here)
print(os.listdir("."))
"""
    )
    assert client.stdout is not None and client.stdin is not None
    assert client.stdout.readline() == b"renamed\n"
    place.kill()
    place.serve()
    client.stdin.write(b"\n")
    assert finish(client) == (0, b"['file']\n")


def test_a_mount_whose_server_died_is_replaced(tmp_path: Path):
    path = tmp_path / "m"
    path.mkdir()
    os.close(mount(path))
    try:
        assert "not connected" in shell(f"stat {path}", tmp_path, check=False)
        with served(path, Dir({"a": Text(lambda: "alive")}, id=5)) as here:
            assert here.sh("cat a") == "alive\n"
    finally:
        subprocess.run(["umount", "-q", path], check=False)


def test_a_mount_that_is_served_is_not_replaced(tmp_path: Path):
    with served(tmp_path / "m", Dir({"a": Text(lambda: "first")}, id=5)) as here:
        with pytest.raises(OSError, match="mounted and served"):
            mount(here.path)
        assert here.sh("cat a") == "first\n"


def test_what_a_new_server_no_longer_has_is_an_error_and_never_another_file(place: Place):
    place.serve()
    client = place.python(
        """
file = os.open("memory/f", os.O_CREAT | os.O_RDWR)
os.write(file, b"old")
os.chdir("memory")
print("made", flush=True)
sys.stdin.readline()
for call in (lambda: os.pread(file, 3, 0), lambda: os.listdir("."), lambda: open("f").read()):
    try: print(call())
    except OSError as error: print(type(error).__name__, os.strerror(error.errno))
"""
    )
    assert client.stdout is not None and client.stdin is not None
    assert client.stdout.readline() == b"made\n"
    place.kill()
    place.serve()
    client.stdin.write(b"\n")
    code, output = finish(client)
    assert code == 0
    first, second, third = output.decode().splitlines()
    assert first == "OSError Stale file handle"
    assert second == "[]"
    assert third == "FileNotFoundError No such file or directory"


def test_a_user_without_privileges_mounts_by_fusermount(tmp_path: Path):
    point, host, node = tmp_path / "m", tmp_path / "host", tmp_path / "fuse"
    for directory in (point, host):
        directory.mkdir()
        os.chown(directory, NOBODY, NOBODY)
    (host / "file").write_text("of the host\n")
    for directory in [tmp_path, *tmp_path.parents[:2]]:
        directory.chmod(directory.stat().st_mode | 0o011)
    # In a mount namespace of its own, where /dev/fuse is what distributions make it.
    script = 'mknod -m 666 "$1" c 10 229 && mount --bind "$1" /dev/fuse && exec "$2" "$3" "$4" 65534'
    words = [node, sys.executable, Path(__file__).with_name("user_mount.py"), point]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "text\n65534 644\nof the host\nhost\nmemory\nfuseblk\n22\nFalse\n"
