"""vfs.host: nothing outside the tree is ever reached, whatever the host does meanwhile; and nobody waits for a disk."""

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from vfs import host, workers
from vfs.conformance import FEATURES, check_tree
from vfs.host import DESCRIPTORS, HostTree
from vfs.inline import PENDING, resume, start
from vfs.node import ROOT, Caller, SetStat

ROOT_OF_PROJECT = Path(__file__).parent.parent
ALICE = Caller(1000, 1000)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


def now(operation):
    result = start(operation)
    assert result is not PENDING
    return result


def errno_of(operation):
    with pytest.raises(OSError) as caught:
        now(operation)
    return errno.errorcode[caught.value.errno]


def down(node, path):
    for name in path.split("/"):
        node = now(node.lookup(name, ROOT))
    return node


def content(node):
    handle = now(node.open(os.O_RDONLY, ROOT))
    try:
        return bytes(now(handle.read(1000, 0)))
    finally:
        handle.close()


def evict_all():
    """Close every descriptor that the host trees hold, as if others had been used since."""
    limit, DESCRIPTORS.limit = DESCRIPTORS.limit, 0
    keeper = HostTree("/", label="keeper").root
    DESCRIPTORS.limit = 0
    now(keeper.lookup("dev", ROOT))
    DESCRIPTORS.limit = limit


@pytest.fixture
def top(tmp_path):
    """A directory with a tree and a secret beside it."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "d").mkdir()
    (tmp_path / "tree" / "d" / "f").write_text("inside")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "f").write_text("secret")
    return tmp_path


@pytest.fixture
def tree(top):
    return HostTree(top / "tree", label="t")


# Confinement


@pytest.mark.parametrize("name", ["..", ".", "", "d/f", "/etc/passwd", "../secret", "f\0"])
def test_a_name_is_one_name_or_einval(tree, name):
    root = tree.root
    for operation in (
        root.lookup(name, ROOT),
        root.create(name, os.O_RDWR, 0o644, ROOT),
        root.mkdir(name, 0o755, ROOT),
        root.symlink(name, "x", ROOT),
        root.mknod(name, stat.S_IFIFO, 0, ROOT),
        root.unlink(name, ROOT),
        root.rmdir(name, ROOT),
        root.rename(name, root, "x", 0, ROOT),
        root.rename("d", root, name, 0, ROOT),
        root.link(down(root, "d/f"), name, ROOT),
    ):
        assert errno_of(operation) == "EINVAL"


@pytest.mark.parametrize("target", ["../secret", "/etc", "d", "..", "/proc/self/root"])
def test_a_symlink_is_shown_and_never_followed(top, tree, target):
    os.symlink(target, top / "tree" / "link")
    link = down(tree.root, "link")
    assert now(link.readlink()) == target
    assert stat.S_ISLNK(now(link.stat()).st_mode)
    assert errno_of(link.open(os.O_RDONLY, ROOT)) == "ELOOP"
    assert errno_of(link.lookup("f", ROOT)) == "ENOTDIR"
    assert errno_of(link.readdir(ROOT)) == "ENOTDIR"
    assert errno_of(link.create("x", os.O_RDWR, 0o644, ROOT)) == "ENOTDIR"


def test_magic_links_of_proc_lead_nowhere():
    proc = HostTree("/proc/self", label="proc").root
    for name in ("root", "cwd", "exe"):
        link = now(proc.lookup(name, ROOT))
        assert stat.S_ISLNK(now(link.stat()).st_mode)
        assert errno_of(link.lookup("etc", ROOT)) == "ENOTDIR"
        assert errno_of(link.open(os.O_RDONLY, ROOT)) == "ELOOP"


def test_creating_never_writes_through_a_planted_symlink(top, tree):
    os.symlink(top / "secret" / "new", top / "tree" / "x")
    assert errno_of(tree.root.create("x", os.O_RDWR | os.O_TRUNC, 0o644, ROOT)) == "EEXIST"
    assert not (top / "secret" / "new").exists()


def test_a_directory_swapped_for_a_symlink_keeps_its_node_on_the_old_inode(top, tree):
    directory = down(tree.root, "d")
    os.rename(top / "tree" / "d", top / "tree" / "moved")
    os.symlink("../secret", top / "tree" / "d")
    assert content(down(directory, "f")) == b"inside"
    evict_all()
    assert errno_of(directory.lookup("f", ROOT)) == "ESTALE"


def test_a_name_that_is_another_file_now_is_estale(top, tree):
    node = down(tree.root, "d/f")
    (top / "tree" / "d" / "other").write_text("other")
    os.rename(top / "tree" / "d" / "other", top / "tree" / "d" / "f")
    assert content(node) == b"inside"
    evict_all()
    for operation in (node.stat(), node.open(os.O_RDONLY, ROOT), node.setstat(SetStat(size=0), ROOT)):
        assert errno_of(operation) == "ESTALE"
    assert (top / "tree" / "d" / "f").read_text() == "other"
    assert content(down(tree.root, "d/f")) == b"other"


def test_swapping_names_in_a_race_never_shows_what_is_outside(top, tree):
    inside, link = top / "tree" / "d", top / "tree" / "link"
    os.symlink("../secret", link)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            host.renameat2(-100, str(inside), -100, str(link), 2)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            evict_all()
            try:
                seen.add(content(down(tree.root, "d/f")))
            except OSError as error:
                seen.add(errno.errorcode[error.errno])
    finally:
        stop.set()
        thread.join()
    assert b"inside" in seen
    assert "ENOTDIR" in seen
    assert seen <= {b"inside", "ENOTDIR", "ESTALE", "ELOOP"}


def test_the_root_is_never_left_when_its_directory_is_moved_or_removed(top):
    (top / "gone").mkdir()
    root = HostTree(top / "gone", label="gone").root
    os.rename(top / "gone", top / "secret" / "gone")
    now(root.mkdir("below", 0o755, ROOT))
    assert os.listdir(top / "secret" / "gone") == ["below"]
    os.rmdir(top / "secret" / "gone" / "below")
    os.rmdir(top / "secret" / "gone")
    assert now(root.readdir(ROOT)) == []
    assert errno_of(root.lookup("below", ROOT)) == "ENOENT"
    assert errno_of(root.create("x", os.O_RDWR, 0o644, ROOT)) == "ENOENT"
    assert errno_of(root.mkdir("x", 0o755, ROOT)) == "ENOENT"


@AS_ROOT
def test_what_takes_the_place_of_a_new_directory_gets_no_new_owner(top, tree, monkeypatch):
    victim = top / "tree" / "victim"
    victim.mkdir(0o750)
    real = host.openat2

    def swapped_first(parent, name, flags, resolve):
        if name == "new":
            os.rename(top / "tree" / "new", top / "tree" / "aside")
            os.rename(victim, top / "tree" / "new")
        return real(parent, name, flags, resolve)

    monkeypatch.setattr(host, "openat2", swapped_first)
    now(tree.root.mkdir("new", 0o777, ALICE))
    st = os.stat(top / "tree" / "new")
    assert (st.st_uid, st.st_mode & 0o7777) == (0, 0o750)


@pytest.mark.root
def test_mounts_below_are_not_part_of_the_tree_even_when_made_later(tmp_path):
    def mount(path, *options):
        subprocess.run(["mount", "-t", "tmpfs", "none", path, *options], check=True, timeout=20)

    outer = tmp_path / "outer"
    outer.mkdir()
    mount(outer)
    try:
        subprocess.run(["mount", "--make-shared", outer], check=True, timeout=20)
        for name in ("before", "after"):
            (outer / name).mkdir()
        mount(outer / "before")
        (outer / "before" / "mounted").touch()
        root = HostTree(outer, label="outer").root
        mount(outer / "after")
        (outer / "after" / "mounted").touch()
        for name in ("before", "after"):
            node = down(root, name)
            assert now(node.stat()).st_dev == now(root.stat()).st_dev
            assert now(node.readdir(ROOT)) == []
        del node, root
    finally:
        subprocess.run(["umount", "-R", "-l", outer], check=True, timeout=20)


def test_special_files_are_not_opened_and_never_block(top, tree):
    os.mkfifo(top / "tree" / "fifo")
    assert errno_of(down(tree.root, "fifo").open(os.O_RDONLY, ROOT)) == "ENXIO"
    assert errno_of(down(tree.root, "fifo").open(os.O_WRONLY, ROOT)) == "ENXIO"
    open_one = HostTree(top / "tree", label="t", devices=True).root
    handle = now(down(open_one, "fifo").open(os.O_RDONLY, ROOT))
    handle.close()


def test_devices_open_only_where_the_tree_says_so():
    null = down(HostTree("/dev", label="dev").root, "null")
    assert errno_of(null.open(os.O_RDWR, ROOT)) == "ENXIO"
    assert errno_of(HostTree("/dev", label="dev").root.mknod("x", stat.S_IFCHR | 0o666, 259, ROOT)) == "EPERM"
    devices = HostTree("/dev", label="dev", devices=True).root
    zero = now(down(devices, "zero").open(os.O_RDWR, ROOT))
    assert now(zero.read(5, 0)) == bytes(5)
    assert now(zero.write(b"gone", 0)) == 4
    zero.close()

    async def main():
        handle = now(down(devices, "null").open(os.O_RDONLY, ROOT))
        woken = trio.Event()
        handle.watch(woken.set)  # a device that can't be waited for
        with trio.fail_after(5):
            await woken.wait()
        handle.close()

    trio.run(main)


def test_a_readonly_tree_answers_erofs_to_every_change(top):
    root = HostTree(top / "tree", label="ro", readonly=True).root
    directory = down(root, "d")
    file = down(directory, "f")
    for operation in (
        root.create("x", os.O_RDWR, 0o644, ROOT),
        root.mkdir("x", 0o755, ROOT),
        root.symlink("x", "y", ROOT),
        root.mknod("x", stat.S_IFIFO, 0, ROOT),
        root.link(file, "x", ROOT),
        directory.unlink("f", ROOT),
        root.rmdir("d", ROOT),
        root.rename("d", root, "e", 0, ROOT),
        file.setstat(SetStat(mode=0), ROOT),
        file.setxattr("user.a", b"", 0, ROOT),
        file.removexattr("user.a", ROOT),
        file.open(os.O_RDWR, ROOT),
        file.open(os.O_WRONLY | os.O_TRUNC, ROOT),
    ):
        assert errno_of(operation) == "EROFS"
    assert content(file) == b"inside"


def test_other_namespaces_of_attributes_are_roots(tree):
    node = down(tree.root, "d/f")
    assert errno_of(node.setxattr("trusted.a", b"", 0, ALICE)) == "EPERM"
    assert errno_of(node.setxattr("security.a", b"", 0, ALICE)) == "EPERM"
    assert errno_of(node.setxattr("system.posix_acl_access", b"", 0, ROOT)) == "ENOTSUP"


# Identity and descriptors


def test_hard_links_are_one_node_that_works_while_any_name_is_left(top, tree):
    os.link(top / "tree" / "d" / "f", top / "tree" / "g")
    one, two = down(tree.root, "d/f"), down(tree.root, "g")
    assert one is two
    os.unlink(top / "tree" / "d" / "f")
    evict_all()
    assert content(one) == b"inside"


def test_two_trees_give_the_same_file_different_ids_and_one_tree_always_the_same(top):
    def ids(label):
        root = HostTree(top / "tree", label=label).root
        return {root.id, down(root, "d").id, down(root, "d/f").id}

    assert len(ids("a")) == 3
    assert ids("a") == ids("a")
    assert not ids("a") & ids("b")


def test_descriptors_are_bounded_and_opened_again_on_demand(tmp_path, monkeypatch):
    for number in range(300):
        (tmp_path / str(number)).write_text(str(number))
    root = HostTree(tmp_path, label="many").root
    monkeypatch.setattr(DESCRIPTORS, "limit", 64)
    before = len(os.listdir("/proc/self/fd"))
    nodes = [down(root, str(number)) for number in range(300)]
    assert len(os.listdir("/proc/self/fd")) <= before + 64
    assert [content(node) for node in nodes] == [str(number).encode() for number in range(300)]
    assert len(os.listdir("/proc/self/fd")) <= before + 64
    del nodes
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the last node listed is still named


def test_the_bound_follows_rlimit_nofile():
    HostTree("/", label="any")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert DESCRIPTORS.limit <= max(64, soft // 2)


def test_nodes_move_with_a_rename_through_the_tree(top, tree):
    root = tree.root
    directory, file = down(root, "d"), down(root, "d/f")
    now(root.mkdir("e", 0o755, ROOT))
    now(root.rename("d", down(root, "e"), "moved", 0, ROOT))
    evict_all()
    assert content(file) == b"inside"
    now(directory.rename("f", root, "g", 0, ROOT))
    evict_all()
    assert content(file) == b"inside"
    now(root.rename("g", root, "e", 2, ROOT))
    evict_all()
    assert content(file) == b"inside"
    assert now(directory.stat()).st_nlink == 2


def test_an_unlinked_file_is_reached_through_its_open_handle(top, tree):
    node = down(tree.root, "d/f")
    handle = now(node.open(os.O_RDWR, ROOT))
    now(down(tree.root, "d").unlink("f", ROOT))
    evict_all()
    assert now(node.stat()).st_nlink == 0
    now(node.setstat(SetStat(size=2), ROOT))
    assert now(handle.read(10, 0)) == b"in"
    handle.close()
    assert errno_of(node.stat()) == "ESTALE"


def test_a_directory_seen_before_is_what_its_name_leads_to_now(top, tree):
    root = tree.root
    seen = down(root, "d")
    os.rename(top / "tree" / "d", top / "tree" / "e")
    assert errno_of(root.lookup("d", ROOT)) == "ENOENT"
    os.mkdir(top / "tree" / "d")
    assert down(root, "d") is not seen
    assert down(root, "e") is seen
    os.rmdir(top / "tree" / "d")
    os.symlink("e", top / "tree" / "d")
    assert stat.S_ISLNK(down(root, "d").kind)
    assert content(down(seen, "f")) == b"inside"


def test_directories_seen_and_gone_leave_no_node_nor_descriptor_behind(tmp_path):
    for number in range(host.MAX_BELOW + 10):
        (tmp_path / str(number)).mkdir()
    root = HostTree(tmp_path, label="many").root
    before = len(os.listdir("/proc/self/fd"))
    held = [down(root, str(number)) for number in range(host.MAX_BELOW + 10)]
    assert [down(root, str(number)) for number in range(host.MAX_BELOW + 10)] == held
    del held
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert all(root.tree.known(root.tree.id_of(entry.stat())) is None for entry in os.scandir(tmp_path))


@pytest.fixture
def deep():
    """Directories in each other, deeper than Python recurses; their removal must not recurse either."""
    top = tempfile.mkdtemp()
    yield HostTree(top, label="deep").root
    subprocess.run(["rm", "-rf", top], check=True, timeout=60)


def test_a_path_deeper_than_the_stack_and_the_cache_is_reopened(deep, monkeypatch):
    monkeypatch.setattr(DESCRIPTORS, "limit", 64)
    first = node = now(deep.mkdir("d", 0o755, ROOT))
    for _ in range(1200):
        node = now(node.mkdir("d", 0o755, ROOT))
    evict_all()
    now(node.mkdir("bottom", 0o755, ROOT))
    now(first.mkdir("x", 0o755, ROOT))
    evict_all()
    now(first.rename("x", node, "x", 0, ROOT))  # the second chain of descriptors must not close the first
    assert {entry.name for entry in now(node.readdir(ROOT))} == {"bottom", "x"}
    evict_all()
    file, handle = now(first.create("f", os.O_RDWR, 0o644, ROOT))
    handle.close()
    now(node.link(file, "f", ROOT))
    assert now(file.stat()).st_nlink == 2


def test_directories_that_the_host_moves_into_each_other_are_estale_not_a_loop(top, tree):
    root = tree.root
    outer = down(root, "d")
    now(outer.mkdir("inner", 0o755, ROOT))
    inner = down(outer, "inner")
    os.rename(top / "tree" / "d" / "inner", top / "tree" / "inner")
    os.rename(top / "tree" / "d", top / "tree" / "inner" / "d")
    assert now(inner.lookup("d", ROOT)) is outer
    evict_all()
    assert errno_of(outer.stat()) == "ESTALE"
    assert errno_of(inner.stat()) == "ESTALE"


def test_a_single_file_is_a_tree(top):
    root = HostTree(top / "secret" / "f", label="file").root
    assert content(root) == b"secret"
    assert errno_of(root.lookup("x", ROOT)) == "ENOTDIR"
    assert errno_of(root.readdir(ROOT)) == "ENOTDIR"


# Ownership


@AS_ROOT
def test_what_is_made_belongs_to_the_caller_with_its_exact_mode(top, tree):
    umask = os.umask(0o077)
    try:
        node, handle = now(tree.root.create("f", os.O_RDWR, 0o666, ALICE))
        handle.close()
        directory = now(tree.root.mkdir("e", 0o777, ALICE))
        link = now(tree.root.symlink("l", "f", ALICE))
        fifo = now(tree.root.mknod("p", stat.S_IFIFO | 0o622, 0, ALICE))
    finally:
        os.umask(umask)
    for made, mode in ((node, 0o666), (directory, 0o777), (link, 0o777), (fifo, 0o622)):
        st = now(made.stat())
        assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (1000, 1000, mode)


@AS_ROOT
def test_privilege_bits_go_when_another_than_root_writes(top, tree):
    path = top / "tree" / "d" / "f"
    node = down(tree.root, "d/f")

    def mode_after(who, act):
        os.chmod(path, 0o6755)
        handle = now(node.open(os.O_RDWR, who))
        act(handle)
        handle.close()
        return os.stat(path).st_mode & 0o7777

    assert mode_after(ROOT, lambda handle: now(handle.write(b"x", 0))) == 0o6755
    assert mode_after(ALICE, lambda handle: now(handle.write(b"x", 0))) == 0o755
    os.chmod(path, 0o6755)
    now(node.open(os.O_WRONLY | os.O_TRUNC, ALICE)).close()
    assert os.stat(path).st_mode & 0o7777 == 0o755
    os.chmod(path, 0o6755)
    now(node.setstat(SetStat(size=3), ALICE))
    assert os.stat(path).st_mode & 0o7777 == 0o755


@contextmanager
def unprivileged():
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@AS_ROOT
def test_a_server_that_is_not_root_serves_its_own_files_and_enters_no_mount():
    path = f"/dev/shm/wanixfs-host-{os.getpid()}"
    os.mkdir(path)
    os.chown(path, 65534, os.getegid())
    try:
        with unprivileged():
            tree = HostTree(path, label="own")
            report = trio.run(
                lambda: check_tree(tree.root, who=Caller(65534, os.getegid()), features=FEATURES - {"chown"})
            )
            report.check()
            with pytest.raises(OSError) as caught:
                now(HostTree("/", label="/").root.lookup("proc", ROOT))
            assert caught.value.errno == errno.EXDEV
    finally:
        shutil.rmtree(path)


# Waiting


def finish(*operations):
    """Run parked operations to their end in tasks of their own; returns their results in order."""
    results = {}

    async def one(number, operation):
        results[number] = await resume(operation)

    async def main():
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number, operation in enumerate(operations):
                    assert start(operation) is PENDING
                    nursery.start_soon(one, number, operation)

    trio.run(main)
    return [results[number] for number in range(len(operations))]


def test_cold_data_is_read_in_a_worker_and_never_reported_short(top, tree, monkeypatch):
    (top / "tree" / "big").write_bytes(bytes(range(256)) * 400)
    handle = now(down(tree.root, "big").open(os.O_RDONLY, ROOT))
    real = os.preadv
    in_threads = []

    def partly_cold(fd, buffers, offset, flags=0):
        if flags:
            if offset == 0:
                return real(fd, [buffers[0][:4096]], offset)
            raise BlockingIOError(errno.EAGAIN, "cold")
        in_threads.append(threading.current_thread() is not threading.main_thread())
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", partly_cold)
    [data] = finish(handle.read(100_000, 0))
    assert bytes(data) == (bytes(range(256)) * 400)[:100_000]
    assert in_threads == [True]
    handle.close()


def test_large_writes_and_syncs_go_to_a_worker_and_keep_their_own_copy(top, tree):
    node, handle = now(tree.root.create("big", os.O_RDWR, 0o644, ROOT))
    data = bytearray(os.urandom(host.INLINE_WRITE + 4096))
    sent = bytes(data)
    write = handle.write(memoryview(data), 0)
    assert start(write) is PENDING
    data[:] = bytes(len(data))

    async def main():
        assert await resume(write) == len(sent)

    trio.run(main)
    finish(handle.fsync(), handle.fsync(True), handle.allocate(0, 0, 2 << 20))
    assert (top / "tree" / "big").read_bytes() == sent.ljust(2 << 20, b"\0")
    handle.close()
    assert now(node.stat()).st_size == 2 << 20


def test_a_large_directory_is_read_in_a_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "INLINE_DIRECTORY", 0)
    (tmp_path / "f").touch()
    before = len(os.listdir("/proc/self/fd"))
    root = HostTree(tmp_path, label="large").root
    [entries] = finish(root.readdir(ROOT))
    assert [entry.name for entry in entries] == ["f"]
    abandoned = root.readdir(ROOT)
    assert start(abandoned) is PENDING
    abandoned.close()
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the tree's own


def test_a_handle_closed_during_a_system_call_keeps_its_descriptor_until_the_end(tree):
    handle = now(down(tree.root, "d/f").open(os.O_RDONLY, ROOT))
    fd = handle.fileno()
    entered, leave = threading.Event(), threading.Event()
    alive = []

    def slow_call():
        entered.set()
        assert leave.wait(20)
        alive.append(os.fstat(fd).st_ino)

    async def main():
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle._in_worker, slow_call)
                await trio.to_thread.run_sync(entered.wait)
                nursery.cancel_scope.cancel()
                handle.close()
                leave.set()

    inode = os.fstat(fd).st_ino
    trio.run(main)
    assert alive == [inode]
    with pytest.raises(OSError):
        os.fstat(fd)


def test_workers_deliver_every_result_and_error_in_any_number_and_run():
    async def main():
        got = []

        async def one(number):
            def call():
                if number % 7 == 0:
                    raise OSError(errno.EIO, str(number))
                return number

            try:
                got.append(await workers.in_worker(call))
            except OSError as error:
                got.append(int(error.strerror))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(500):
                    nursery.start_soon(one, number)
        assert sorted(got) == list(range(500))

    trio.run(main)
    trio.run(main)
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("vfs-worker")]) <= workers.THREADS


def test_the_descriptor_of_a_handle_is_an_ordinary_blocking_one(tree):
    handle = now(down(tree.root, "d/f").open(os.O_RDWR, ROOT))
    assert os.get_blocking(handle.fileno())
    assert os.pread(handle.fileno(), 100, 0) == b"inside"
    handle.close()


FORKING = """
import os, sys
from vfs.host import HostTree
from vfs.inline import start
from vfs.node import ROOT

tree = HostTree(sys.argv[1], label="t")
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
shifted = [os.dup(0) for _ in range(50)]  # so that what is opened next has a number that the parent has not
handle = start(start(tree.root.lookup("f", ROOT)).open(os.O_RDONLY, ROOT))
sys.exit(bytes(start(handle.read(100, 0))) != b"inside")
"""


def test_a_forked_process_opens_by_its_own_descriptors(top):
    subprocess.run([sys.executable, "-c", FORKING, top / "tree" / "d"], check=True, timeout=60, cwd=ROOT_OF_PROJECT)
