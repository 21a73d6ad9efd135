"""Every writable tree of vfs against the shipped suite, a real filesystem as control, and the suite against liars."""

import os
import random
import socket
import stat

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfs.conformance import FEATURES, MountFiles, NodeFiles, Violation, check_mount, check_tree, remove_tree
from vfs.host import HostTree
from vfs.inline import start
from vfs.memory import MemoryDir, MemoryFile, MemoryTree
from vfs.ninep.client import connect
from vfs.ninep.server import Server
from vfs.node import ROOT, Caller, SetStat

ALICE = Caller(1000, 1000)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


def checked(root, who, features=FEATURES):
    report = trio.run(lambda: check_tree(root, who=who, features=features))
    report.check()
    return report


def test_a_memory_tree_keeps_every_promise():
    tree = MemoryTree(label="m")
    before = tree.used
    for who in (ROOT, ALICE):
        assert not checked(tree.root, who).skipped
    assert tree.used == before


@AS_ROOT
def test_a_host_tree_keeps_every_promise(tmp_path):
    for who in (ROOT, ALICE):
        assert not checked(HostTree(tmp_path, label="h").root, who).skipped
    assert os.listdir(tmp_path) == []


@AS_ROOT
def test_a_host_tree_on_tmpfs_keeps_every_promise_and_leaves_no_descriptor(shm_path):
    before = len(os.listdir("/proc/self/fd"))
    checked(HostTree(shm_path, label="h").root, ALICE)
    assert len(os.listdir("/proc/self/fd")) == before


@AS_ROOT
def test_the_control_is_a_real_filesystem(tmp_path, shm_path):
    check_mount(tmp_path).check()
    check_mount(shm_path).check()


NOT_IN_9P = {"holes", "fallocate", "noreplace", "exchange"}


@pytest.mark.parametrize(("who", "features"), [(ROOT, FEATURES - NOT_IN_9P), (ALICE, FEATURES - NOT_IN_9P - {"chown"})])
def test_a_memory_tree_keeps_every_promise_of_9p_through_a_client(who, features):
    root = MemoryTree(label="remote", mode=0o777).root

    async def attach(uname, uid, aname, peer):
        return root, who

    async def main():
        server, (ours, theirs) = Server(), socket.socketpair()
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            server.adopt(ours, attach)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            async with connect(stream, uid=who.uid) as client:
                report = await check_tree(client.root, who=who, features=features)
            nursery.cancel_scope.cancel()
        report.check()

    trio.run(main)


@pytest.fixture
def shm_path():
    path = f"/dev/shm/wanixfs-test-{os.getpid()}"
    os.mkdir(path)
    yield path
    start(remove_tree(MountFiles(path), ""))


# The suite must notice what is wrong


class ForgetfulFile(MemoryFile):
    __slots__ = ()

    def resize(self, size, who):
        if size:
            super().resize(size, who)  # O_TRUNC is lost


class ShortList(MemoryDir):
    __slots__ = ()

    async def readdir(self, who):
        return (await super().readdir(who))[:100]


class LooseDir(MemoryDir):
    __slots__ = ()

    async def rmdir(self, name, who):
        self._entry(name)
        self._remove(name)


class EagerLink(MemoryDir):
    __slots__ = ()

    async def link(self, target, name, who):
        if isinstance(target, MemoryFile):
            self._add(name, target)
        else:
            await super().link(target, name, who)


@pytest.mark.parametrize(
    ("kind", "liar", "found"),
    [
        (MemoryFile, ForgetfulFile, "truncation_cuts_and_extends_with_zeros"),
        (MemoryDir, ShortList, "directories_list_all_names_once_with_inode_and_type"),
        (MemoryDir, LooseDir, "directories_are_removed_empty_only_and_by_rmdir_only"),
        (MemoryDir, EagerLink, "hard_links_are_one_file"),
    ],
)
def test_the_suite_names_the_broken_promise(monkeypatch, kind, liar, found):
    monkeypatch.setattr(f"vfs.memory.{kind.__name__}", liar)
    report = trio.run(lambda: check_tree(MemoryTree(label="liar").root, who=ROOT))
    assert found in dict(report.failed)
    with pytest.raises(Violation, match=found):
        report.check()


def test_a_broken_promise_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr("vfs.memory.MemoryFile", ForgetfulFile)
    root = MemoryTree(label="liar").root
    assert trio.run(lambda: check_tree(root, who=ROOT)).failed
    assert start(root.readdir(ROOT)) == []


def test_a_feature_left_out_skips_its_cases_only():
    report = checked(MemoryTree(label="m").root, ROOT, FEATURES - {"xattr"})
    assert report.skipped == ("attributes_are_kept_as_bytes",)
    with pytest.raises(ValueError, match="teleport"):
        trio.run(lambda: check_tree(MemoryTree(label="m").root, who=ROOT, features={"teleport"}))


# Any sequence of operations gives the same results on a memory tree, a host tree and the host's own filesystem

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), PATHS, st.integers(0, 70_000), st.binary(max_size=20)),
    st.tuples(st.just("append"), PATHS, st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("read"), PATHS),
    st.tuples(st.just("truncate"), PATHS, st.integers(0, 70_000)),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("rmdir"), PATHS),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("symlink"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS, st.sampled_from([0, 0, 1, 2])),
    st.tuples(st.just("chmod"), PATHS, st.integers(0, 0o777)),
    st.tuples(st.just("setxattr"), PATHS, st.sampled_from([0, 1, 2]), st.binary(max_size=9)),
)


async def perform(files, step):
    """Return what one operation gives, or its errno."""
    try:
        match step:
            case "write", path, offset, data:
                file = await files.open(path, os.O_CREAT | os.O_WRONLY)
                try:
                    return await file.write(data, offset)
                finally:
                    file.close()
            case "append", path, data:
                file = await files.open(path, os.O_WRONLY | os.O_APPEND)
                try:
                    return await file.write(data, 0)
                finally:
                    file.close()
            case "read", path:
                file = await files.open(path, os.O_RDONLY if not path.endswith("c") else os.O_RDWR)
                try:
                    return await file.read(100_000, 0)
                finally:
                    file.close()
            case "truncate", path, size:
                if stat.S_ISLNK((await files.stat(path)).st_mode):
                    return "a symlink"  # the system would follow it
                return await files.setstat(path, SetStat(size=size))
            case "chmod", path, mode:
                if stat.S_ISLNK((await files.stat(path)).st_mode):
                    return "a symlink"
                return await files.setstat(path, SetStat(mode=mode))
            case "setxattr", path, flags, value:
                return await files.setxattr(path, "user.x", value, flags)
            case name, *rest:
                return await getattr(files, name)(*rest)
    except OSError as error:
        return error.errno


async def snapshot(files, path=""):
    """Return all there is below `path`, as comparable values."""
    seen = {}
    for entry in await files.readdir(path):
        inner = f"{path}/{entry.name}".lstrip("/")
        attributes = await files.stat(inner)
        kind = stat.S_IFMT(attributes.st_mode)
        facts = [attributes.st_mode, attributes.st_nlink]
        if kind == stat.S_IFREG:
            facts += [attributes.st_size, await perform(files, ("read", inner))]
        if kind == stat.S_IFLNK:
            facts += [await files.readlink(inner), attributes.st_size]
        if kind != stat.S_IFLNK:
            facts += [[await files.getxattr(inner, name) for name in await files.listxattr(inner)]]
        if kind == stat.S_IFDIR:
            facts += [await snapshot(files, inner)]
        seen[entry.name] = facts
    return seen


def compare(shm_path, steps):
    real, exposed = f"{shm_path}/real", f"{shm_path}/exposed"
    os.mkdir(real)
    os.mkdir(exposed)
    trees = [
        MountFiles(real),
        NodeFiles(MemoryTree(label="m").root, ROOT),
        NodeFiles(HostTree(exposed, label="h").root, ROOT),
    ]
    umask = os.umask(0)
    try:
        for step in steps:
            results = [start(perform(files, step)) for files in trees]
            assert results[0] == results[1] == results[2], step
        assert start(snapshot(trees[0])) == start(snapshot(trees[1])) == start(snapshot(trees[2]))
    finally:
        os.umask(umask)
        for path in (real, exposed):
            start(remove_tree(MountFiles(path), ""))


@settings(
    derandomize=True, deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(OPERATIONS, max_size=30))
def test_any_operations_give_the_same_on_every_tree(shm_path, steps):
    compare(shm_path, steps)


@pytest.mark.long
def test_many_operations_give_the_same_on_every_tree(shm_path):
    generator = random.Random(2024)

    def path():
        return "/".join(generator.choices("abc", k=generator.randint(1, 4)))

    def step():
        match generator.randrange(12):
            case 0:
                return "write", path(), generator.randrange(200_000), generator.randbytes(generator.randrange(100))
            case 1:
                return "append", path(), generator.randbytes(5)
            case 2:
                return "read", path()
            case 3:
                return "truncate", path(), generator.randrange(200_000)
            case 4 | 5:
                return "mkdir", path()
            case 6:
                return "rmdir", path()
            case 7:
                return "unlink", path()
            case 8:
                return "link", path(), path()
            case 9 | 10:
                return "rename", path(), path(), generator.choice([0, 0, 1, 2])
            case _:
                return "chmod", path(), generator.randrange(0o1000)

    for _ in range(30):
        compare(shm_path, [step() for _ in range(2000)])
