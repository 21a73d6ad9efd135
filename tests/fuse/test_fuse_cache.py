"""What the kernel keeps, and when it is made to ask again."""

import os
import signal
import stat as statmod
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fusemount import Served, finish, served, until

from vfs.directory import Dir
from vfs.files import Text
from vfs.host import HostTree
from vfs.locks import WRITE_LOCK, Lock, LockTable
from vfs.memory import MemoryTree
from vfs.node import ROOT, DirEntry, Handle, Node, Stat, no_entry

pytestmark = pytest.mark.root

HOUR = 3600 * 10**9


class CachedFile(Node):
    """A file that the kernel may cache for ever; `data` and `ctime` are as the test sets them."""

    cache_seconds = 1e6

    def __init__(self, id: int, data: bytes) -> None:
        self.id = id
        self.data = data
        self.ctime = time.time_ns() - HOUR
        self.reads = 0
        self.stats = 0

    async def stat(self):
        self.stats += 1
        return Stat(statmod.S_IFREG | 0o644, self.id, st_size=len(self.data), st_ctime_ns=self.ctime)

    async def open(self, flags, who):
        return CachedHandle(self)


class CachedHandle(Handle):
    direct = False

    def __init__(self, node: CachedFile) -> None:
        self.node = node

    async def read(self, size, offset, nonblock=False):
        self.node.reads += 1
        return self.node.data[offset : offset + size]


class CachedDir(Node):
    """A directory that the kernel may cache for ever."""

    cache_seconds = 1e6
    steady = True

    def __init__(self, children: dict[str, Node]) -> None:
        self.id = 77
        self.children = children
        self.ctime = time.time_ns() - HOUR
        self.listings = 0
        self.lookups = 0

    async def stat(self):
        return Stat(statmod.S_IFDIR | 0o755, self.id, st_ctime_ns=self.ctime, st_mtime_ns=self.ctime)

    async def lookup(self, name, who):
        self.lookups += 1
        if name not in self.children:
            raise no_entry(name)
        return self.children[name]

    async def readdir(self, who):
        self.listings += 1
        return [DirEntry(name, node.id, statmod.S_IFREG) for name, node in self.children.items()]


@pytest.fixture
def tree():
    return CachedDir({"f": CachedFile(100, b"first"), "g": CachedFile(101, b"other")})


@pytest.fixture
def mount(tmp_path: Path, tree):
    with served(tmp_path / "m", Dir({"d": tree}, id=7)) as here:
        yield here


def test_a_node_is_asked_for_again_when_it_is_said_to_be_stale(mount: Served, tree: CachedDir):
    file = tree.children["f"]
    assert mount.sh("cat d/f; stat -c %s d/f") == "first5\n"
    file.data = b"changed"
    assert mount.sh("stat -c %s d/f") == "5\n"
    mount.run(mount.mount.stale_node, file.id)
    assert mount.sh("stat -c %s d/f; cat d/f") == "7\nchanged"


def test_a_name_is_looked_up_again_when_it_is_said_to_be_stale(mount: Served, tree: CachedDir):
    assert mount.sh("cat d/f") == "first"
    tree.children["f"] = CachedFile(102, b"replaced")
    assert mount.sh("cat d/f") == "first"
    mount.run(mount.mount.stale_entries, [(tree.id, "f")])
    assert mount.sh("cat d/f") == "replaced"
    mount.run(mount.mount.stale_entries, [(tree.id, "never seen"), (424242, "f")])
    mount.run(mount.mount.stale_node, 424242)


def test_pages_are_kept_from_open_to_open_only_while_the_file_is_surely_the_same(mount: Served, tree: CachedDir):
    file = tree.children["f"]
    assert mount.sh("cat d/f; cat d/f; cat d/f") == "first" * 3
    settled = file.reads
    assert mount.sh("cat d/f; cat d/f") == "first" * 2
    assert file.reads == settled
    file.data, file.ctime = b"again", time.time_ns()
    assert mount.sh("cat d/f") == "again"
    file.data = b"twice"  # changed within the same tick of the clock: the ctime does not tell
    assert mount.sh("cat d/f") == "twice"


def test_names_are_kept_while_the_directory_is_surely_the_same(mount: Served, tree: CachedDir):
    assert mount.sh("ls d; ls d") == "f\ng\n" * 2
    before = tree.listings
    assert mount.sh("ls d; ls -l d | wc -l") == "f\ng\n3\n"
    assert (tree.listings, tree.lookups) == (before, 2 * before)
    tree.children["h"] = CachedFile(103, b"")
    tree.ctime = time.time_ns()
    mount.run(mount.mount.stale_node, tree.id)
    assert mount.sh("ls d") == "f\ng\nh\n"
    del tree.children["h"]
    assert mount.sh("ls d") == "f\ng\n"


def test_changes_of_a_memory_tree_by_others_are_seen_at_once(tmp_path: Path):
    memory = MemoryTree(label="cache")
    with served(tmp_path / "m", memory.root) as here:
        here.sh("mkdir d; echo one > d/f; cat d/f; ls d")

        async def change(number: int) -> None:
            directory = await memory.root.lookup("d", ROOT)
            file = await directory.lookup("f", ROOT)
            handle = await file.open(os.O_WRONLY, ROOT)
            await handle.write(b"changed %d\n" % number, 0)
            handle.close()
            await directory.mkdir(f"new{number}", 0o755, ROOT)

        for number in range(20):
            here.run(change, number)
            assert here.sh("head -1 d/f; ls d | wc -l") == f"changed {number}\n{number + 2}\n"


WATCHER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
for line in sys.stdin:
    print(os.fstat(file).st_size, len(os.pread(file, 1 << 20, 0)), flush=True)
"""


def test_an_open_memory_file_that_others_write_shows_so_at_once(tmp_path: Path):
    memory = MemoryTree(label="watched")
    with served(tmp_path / "m", memory.root) as here:
        here.sh("touch f")
        with subprocess.Popen(
            [sys.executable, "-c", WATCHER, here.path / "f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:

            def seen() -> str:
                client.stdin.write("\n")
                client.stdin.flush()
                return client.stdout.readline()

            async def grow() -> None:
                handle = await memory.root.entries["f"].open(os.O_WRONLY | os.O_APPEND, ROOT)
                await handle.write(b"x", 0)
                handle.close()

            for size in range(200):  # each well within the time for which the kernel trusts what it was told
                assert seen() == f"{size} {size}\n"
                here.run(grow)
            client.stdin.close()
        file = here.call(lambda: memory.root.entries["f"])
        here.sh("cat f")
        assert len(file.watchers) == 1
    assert not file.watchers


def test_opening_a_made_file_asks_for_its_attributes_once(tmp_path: Path):
    class Counted(Text):
        stats = 0

        async def stat(self):
            self.stats += 1
            return await super().stat()

    file = Counted(lambda: "text")
    with served(tmp_path / "m", Dir({"f": file}, id=7)) as here:
        least = 9
        for _ in range(20):  # the kernel's clock may tick in between
            before = file.stats
            here.sh("read line < f; [ $line = text ]")
            least = min(least, file.stats - before)
        assert least == 1


def test_a_host_file_changed_behind_the_mount_is_seen_by_the_next_open(tmp_path: Path):
    host = tmp_path / "host"
    host.mkdir()
    with served(tmp_path / "m", HostTree(host, label="host").root, stack_depth=0) as here:
        for number in range(20):
            (host / "f").write_text(f"text {number % 10}\n")
            assert here.sh("cat f") == f"text {number % 10}\n"


LOCKER = """
import fcntl, os, sys
os.chdir(sys.argv[1])
f = open("f", "r+")
print("tries", flush=True)
getattr(fcntl, sys.argv[2])(f, fcntl.LOCK_EX)
print("has it", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["lockf", "flock"])
def test_locks_are_shared_with_other_protocols(tmp_path: Path, kind: str):
    memory, table = MemoryTree(label="locks"), LockTable()
    clients = []

    def locks() -> list[Lock]:
        return [lock for held in table._held.values() for lock in held]

    def start(here: Served) -> subprocess.Popen[bytes]:
        program = "import signal; signal.signal(2, signal.SIG_DFL)\n" + LOCKER
        command = [sys.executable, "-c", program, here.path, kind]
        clients.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
        assert clients[-1].stdout.readline() == b"tries\n"
        return clients[-1]

    with served(tmp_path / "m", memory.root, locks=table) as here:
        here.sh("touch f")
        try:
            first = start(here)
            assert first.stdout.readline() == b"has it\n"
            second = start(here)
            here.until_waiting(1)
            assert [lock.pid for lock in here.call(locks)] == [first.pid]
            finish(first)
            assert second.stdout.readline() == b"has it\n"
            if kind == "lockf":
                foreign = Lock(WRITE_LOCK, 0, 1 << 63, ("9p", 1), 0)
                assert here.call(table.conflict, next(iter(table._held)), foreign).pid == second.pid
            third = start(here)
            here.until_waiting(1)
            third.send_signal(signal.SIGINT)
            assert finish(third)[0] == -signal.SIGINT
            second.kill()
            second.communicate()
            until(lambda: not here.call(locks), "the locks of the dead are gone")
        finally:
            for client in clients:
                client.kill()
                client.communicate()
