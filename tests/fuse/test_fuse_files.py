"""Synthetic files, waits and wake-ups through the real kernel: what shells and programs see of them."""

import os
import random
import signal
import stat as statmod
import subprocess
import sys
from errno import EEXIST, EINVAL, ENOENT, EPERM
from pathlib import Path

import pytest
from fusemount import Served, finish, is_mounted, served, until

from vfs.directory import Dir
from vfs.files import Awaited, Synthetic, Text
from vfs.memory import MemoryTree
from vfs.node import Handle
from vfs.pipes import Pipe
from vfs.waiting import Signal

pytestmark = pytest.mark.root


class Log(Synthetic):
    """A text that grows; readers wait at its end until it is closed."""

    def __init__(self) -> None:
        super().__init__(statmod.S_IFREG | 0o444)
        self.data = b""
        self.signal = Signal()
        self.closed = False

    def size(self) -> int:
        return len(self.data)

    def append(self, data: bytes) -> None:
        self.data += data
        self.signal.notify()

    async def open(self, flags, who):
        return LogHandle(self)


class LogHandle(Handle):
    def __init__(self, log: Log) -> None:
        self.log = log

    async def read(self, size, offset, nonblock=False):
        return self.log.data[offset : offset + size]


class Refusing(Synthetic):
    """A control file whose every command is wrong, and whose close fails too once `late` is set."""

    def __init__(self) -> None:
        super().__init__(statmod.S_IFREG | 0o644)
        self.late = False

    async def open(self, flags, who):
        return RefusingHandle(self)


class RefusingHandle(Handle):
    def __init__(self, node: Refusing) -> None:
        self.node = node

    async def read(self, size, offset, nonblock=False):
        return b"usage\n"[offset:]

    async def write(self, data, offset, nonblock=False):
        if self.node.late:
            return len(data)
        raise OSError(EINVAL, "no such verb")

    async def flush(self):
        if self.node.late:
            raise OSError(EPERM, "too late")


class Tree:
    """The nodes that the tests of this file use."""

    def __init__(self) -> None:
        self.value = "first"
        self.done = False
        self.signal = Signal()
        self.pipe = Pipe(4096)
        self.log = Log()
        self.ctl = Refusing()
        self.memory = MemoryTree(label="files")
        self.root = Dir(
            {
                "value": Text(lambda: self.value, self.set),
                "wait": Awaited(lambda: self.done, lambda: "0", lambda: self.signal),
                "r": self.pipe.reader,
                "w": self.pipe.writer,
                "log": self.log,
                "ctl": self.ctl,
                "memory": self.memory.root,
            },
            id=99,
        )

    def set(self, value: str) -> None:
        self.value = value

    def finish(self) -> None:
        self.done = True
        self.signal.notify()


@pytest.fixture
def tree():
    made = Tree()
    yield made
    made.pipe.close()


@pytest.fixture
def mount(tmp_path, tree):
    with served(tmp_path / "m", tree.root) as here:
        yield here
        until(lambda: here.waiting == 0, "all requests answered")


def test_a_value_is_read_and_replaced_by_the_shell(mount: Served, tree: Tree):
    assert mount.sh("cat value; echo second > value; cat value; printf third >value; cat value; stat -c %s value") == (
        "first\nsecond\nthird\n0\n"
    )
    assert tree.value == "third"


def test_a_write_that_is_refused_fails_at_once_with_its_own_error(mount: Served):
    assert "Invalid argument" in mount.sh("echo nonsense > ctl", check=False)
    assert mount.sh("cat ctl") == "usage\n"


def test_an_error_at_close_reaches_close(mount: Served, tree: Tree):
    tree.ctl.late = True
    assert "Operation not permitted" in mount.sh("dd if=/dev/zero of=ctl bs=1 count=1 2>&1", check=False)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_blocked_reader_dies_by_a_signal_at_once(mount: Served, name: str):
    number = getattr(signal, name)
    cat = mount.popen("trap - INT; exec cat wait", preexec_fn=default_signals)
    mount.until_waiting(1)
    cat.send_signal(number)
    assert finish(cat, 5) == (-number, b"")
    mount.until_waiting(0)


def default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_timeout_on_a_blocked_reader_leaves_no_process(mount: Served):
    assert mount.sh("timeout 0.2 cat wait; echo $?") == "124\n"
    assert mount.waiting == 0


def test_a_blocked_reader_holds_up_nobody_and_gets_its_text(mount: Served, tree: Tree):
    cats = [mount.popen("exec cat wait") for _ in range(3)]
    mount.until_waiting(3)
    assert mount.sh("cat value; ls memory; echo x > memory/f; cat memory/f") == "first\nx\n"
    mount.call(tree.finish)
    assert [finish(cat) for cat in cats] == [(0, b"0\n")] * 3


def test_writers_blocked_on_a_full_pipe_die_by_sigkill_each_by_itself(mount: Served):
    fill = "exec head -c 100000 /dev/zero >w"
    writers = [mount.popen(fill), mount.popen(fill)]
    try:
        mount.until_waiting(2)
        writers[1].kill()
        assert finish(writers[1], 5)[0] == -signal.SIGKILL
        mount.until_waiting(1)
        writers[0].kill()
        assert finish(writers[0], 5)[0] == -signal.SIGKILL
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(5)


def test_a_storm_of_readers_that_come_and_are_killed_leaves_nothing(mount: Served, tree: Tree):
    order = random.Random(5)
    cats = [mount.popen("exec cat wait") for _ in range(40)]
    mount.until_waiting(40)
    order.shuffle(cats)
    for cat in cats[:30]:
        cat.send_signal(order.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
    mount.until_waiting(10)
    assert mount.sh("cat value") == "first\n"
    mount.call(tree.finish)
    assert [finish(cat) for cat in cats[30:]] == [(0, b"0\n")] * 10
    assert all(finish(cat)[0] < 0 for cat in cats[:30])
    operations = mount.mount.session._operations
    until(lambda: not mount.call(lambda: operations.files), "all files released")


def test_a_pipe_passes_everything_and_then_ends(mount: Served):
    count = 1 << 20
    reader = mount.popen("md5sum < r")
    mount.sh(f"head -c {count} /dev/zero > w")
    assert finish(reader)[1].split()[0] == mount.sh(f"head -c {count} /dev/zero | md5sum").split()[0].encode()


def python(mount: Served, program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "import os, sys\nos.chdir(sys.argv[1])\n" + program, str(mount.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


NONBLOCKING = """
import fcntl
for name, flags in ("r", os.O_RDONLY), ("wait", os.O_RDONLY):
    fd = os.open(name, flags | os.O_NONBLOCK)
    try: print(os.read(fd, 10))
    except BlockingIOError: print("EAGAIN")
fd = os.open("wait", os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
try: print(os.read(fd, 10))
except BlockingIOError: print("EAGAIN")
fd = os.open("w", os.O_WRONLY | os.O_NONBLOCK)
sent = 0
try:
    while True: sent += os.write(fd, bytes(1000))
except BlockingIOError: print(sent)
"""


def test_nonblocking_reads_and_writes_say_eagain(mount: Served):
    assert finish(python(mount, NONBLOCKING)) == (0, b"EAGAIN\nEAGAIN\nEAGAIN\n4000\n")


WAKEUPS = """
import select
fd = os.open("r", os.O_RDONLY | os.O_NONBLOCK)
poll = select.poll(); poll.register(fd, select.POLLIN)
level = select.epoll(); level.register(fd, select.EPOLLIN)
edge = select.epoll(); edge.register(fd, select.EPOLLIN | select.EPOLLET)
waits = {
    "poll": lambda: poll.poll(20000),
    "select": lambda: select.select([fd], [], [], 20)[0],
    "level": lambda: level.poll(20),
    "edge": lambda: edge.poll(20),
}
for how, wait in waits.items():
    assert not poll.poll(0)
    edge.poll(0)
    print("waits", how, flush=True)
    assert wait(), how
    print(os.read(fd, 100).decode(), flush=True)
"""


def test_poll_select_and_epoll_are_woken_by_data(mount: Served, tree: Tree):
    writer = mount.call(tree.pipe.open, os.O_WRONLY)
    client = python(mount, WAKEUPS)
    assert client.stdout is not None
    try:
        for how in ("poll", "select", "level", "edge"):
            assert client.stdout.readline() == f"waits {how}\n".encode()
            os.write(writer, how.encode())
            assert client.stdout.readline() == f"{how}\n".encode()
        assert finish(client) == (0, b"")
    finally:
        client.kill()
        client.communicate()
        os.close(writer)


def test_a_waiter_in_poll_sleeps_until_it_is_told(mount: Served, tree: Tree):
    client = python(
        mount,
        'import select\nfd = os.open("wait", os.O_RDONLY)\np = select.poll()\np.register(fd, 1)\nprint(p.poll(20000))',
    )
    watched = lambda: any(file.watched for file in mount.mount.session._operations.files.values())  # noqa: E731
    until(lambda: mount.call(watched), "a watch")
    mount.call(tree.finish)
    code, output = finish(client)
    assert (code, output.split(b", ")[1]) == (0, b"1)]\n")
    until(lambda: not mount.call(watched), "the end of the watch")  # RELEASE comes some time after close(2)


def test_tail_follows_a_file_that_grows(mount: Served, tree: Tree):
    mount.call(tree.log.append, b"one\n")
    tail = mount.popen("exec tail -c +1 -s 0.02 -f log")
    assert tail.stdout is not None
    try:
        assert tail.stdout.readline() == b"one\n"
        for line in (b"two\n", b"three\n"):
            mount.call(tree.log.append, line)
            assert tail.stdout.readline() == line
    finally:
        tail.kill()
        tail.communicate()


class Raced(Dir):
    """A directory in which another makes a file between a lookup and the create that follows."""

    raced = False

    async def lookup(self, name, who):
        if not self.raced:
            self.raced = True
            raise OSError(ENOENT, "not yet")
        return await super().lookup(name, who)

    async def create(self, name, flags, mode, who):
        raise OSError(EEXIST, "already there")


def test_open_of_what_another_makes_meanwhile_opens_that(tmp_path: Path):
    with served(tmp_path / "m", Raced({"f": Text(lambda: "theirs", lambda text: None)}, mode=0o777, id=7)) as here:
        program = "import os, sys; print(os.read(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR), 9))"
        assert here.sh(f"{sys.executable} -c '{program}' f") == "b'theirs\\n'\n"


def test_many_names_are_listed_once_each(tmp_path: Path):
    names = {f"name-{number:05}": Text(lambda: "x") for number in range(10_000)}
    with served(tmp_path / "m", Dir(names, id=7)) as here:
        assert here.sh("ls -f | grep -c ^name-; ls | sort -u | wc -l; ls | tail -1").split() == [
            "10000",
            "10000",
            "name-09999",
        ]


def test_clients_see_an_error_when_the_server_ends(tmp_path: Path, tree: Tree):
    with served(tmp_path / "m", tree.root) as here:
        cat = here.popen("exec cat wait")
        here.until_waiting(1)
    code, output = finish(cat)
    assert code == 1
    assert b"cat:" in output


def test_an_unmount_by_someone_else_ends_the_server(tmp_path: Path, tree: Tree):
    with served(tmp_path / "m", tree.root) as here:
        subprocess.run(["umount", here.path], check=True)
        here.run(here.mount.gone.wait)
        assert not is_mounted(here.path)


def test_views_are_reached_by_name_only_and_by_root_only(tmp_path: Path):
    views = {"1": Dir({"self": Text(lambda: "one")}, id=101), "2": Dir({"self": Text(lambda: "two")}, id=102)}

    def view(name):
        if name not in views:
            raise FileNotFoundError(2, "no such view")
        return views[name]

    with served(tmp_path / "m", Dir({"a": Text(lambda: "a")}, id=7), views=view) as here:
        assert here.sh("ls -a; cat .views/1/self .views/2/self; ls -A .views; stat -c %a .views") == (
            ".\n..\na\none\ntwo\n700\n"
        )
        assert "No such file" in here.sh("cat .views/3/self", check=False)
        assert "denied" in here.sh(
            "exec setpriv --reuid 1234 --regid 1234 --clear-groups cat .views/1/self", check=False
        )
        there = tmp_path / "bound"
        there.mkdir()
        subprocess.run(["mount", "--bind", here.path / ".views/2", there], check=True)
        try:
            assert here.sh(f"cat {there}/self") == "two\n"
        finally:
            subprocess.run(["umount", there], check=True)
