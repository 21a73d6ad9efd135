"""vfs.memory: what a memory tree adds to the conformance suite: its budget, its identity, times and privilege bits."""

import errno
import gc
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfs.inline import start
from vfs.memory import MemoryTree
from vfs.node import ROOT, Caller, SetStat
from vfs.sparse import CHUNK, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Sparse

ALICE = Caller(1000, 1000, frozenset({50}))


def now(operation):
    """A memory tree never waits: every operation ends inside `start`."""
    return start(operation)


def errno_of(operation):
    with pytest.raises(OSError) as caught:
        now(operation)
    return errno.errorcode[caught.value.errno]


@pytest.fixture
def root():
    return MemoryTree(label="test", max_bytes=1 << 20).root


def new_file(root, name="f", data=b"", mode=0o644, who=ROOT):
    node, handle = now(root.create(name, os.O_RDWR, mode, who))
    if data:
        assert now(handle.write(data, 0)) == len(data)
    return node, handle


def test_a_file_larger_than_the_budget_is_refused_and_takes_nothing(root):
    node, handle = new_file(root)
    used = root.tree.used
    assert errno_of(handle.allocate(0, 0, 1 << 40)) == "ENOSPC"
    assert root.tree.used == used
    assert now(node.stat()).st_size == 0


def test_a_write_past_the_budget_takes_what_there_is_room_for_then_refuses(root):
    node, handle = new_file(root)
    taken = now(handle.write(bytes(2 << 20), 0))
    assert 0 < taken < 1 << 20
    assert errno_of(handle.write(bytes(CHUNK), taken)) == "ENOSPC"
    now(root.unlink("f", ROOT))
    del node, handle
    gc.collect()  # the error caught above holds the handle in a cycle
    assert now(new_file(root, "g")[1].write(bytes(1 << 19), 0)) == 1 << 19


def test_memory_of_an_unlinked_file_returns_with_its_last_handle(root):
    before = root.tree.used
    node, handle = new_file(root, data=b"x" * 100_000)
    now(root.unlink("f", ROOT))
    assert now(handle.read(10, 99_990)) == b"x" * 10
    assert now(node.stat()).st_nlink == 0
    assert root.tree.used > before + 100_000
    del node, handle
    assert root.tree.used == before


def test_names_directories_links_and_attributes_are_charged(root):
    def fill(make):
        tree = MemoryTree(label="small", max_bytes=100_000)
        with pytest.raises(OSError) as caught:
            for number in range(100_000):
                make(tree.root, number)
        assert caught.value.errno == errno.ENOSPC
        return number

    assert fill(lambda root, n: now(root.mkdir(f"d{n}", 0o755, ROOT))) < 100
    assert fill(lambda root, n: now(root.symlink(f"l{n}", "t" * 4000, ROOT))) < 30
    assert fill(lambda root, n: now(root.setxattr(f"user.{n}", b"v" * 1000, 0, ROOT))) < 100
    file = []

    def link(root, number):
        if not file:
            file.append(new_file(root)[0])
        now(root.link(file[0], f"n{number}", ROOT))

    assert fill(link) < 200


def test_everything_removed_gives_the_whole_budget_back(root):
    before = root.tree.used
    directory = now(root.mkdir("d", 0o755, ROOT))
    new_file(directory, data=b"abc" * 50_000)
    now(directory.symlink("l", "f", ROOT))
    now(directory.setxattr("user.a", b"v", 0, ROOT))
    now(directory.rename("f", root, "g", 0, ROOT))
    now(directory.unlink("l", ROOT))
    now(root.unlink("g", ROOT))
    now(root.rmdir("d", ROOT))
    del directory
    assert root.tree.used == before


def test_a_full_tree_can_still_rename_and_remove():
    tree = MemoryTree(label="full", max_bytes=10_000)
    with pytest.raises(OSError):
        for number in range(100):
            now(tree.root.mkdir(f"d{number}", 0o755, ROOT))
    inner = now(tree.root.lookup("d0", ROOT))
    tree.charge(tree.max_bytes - tree.used)
    now(tree.root.rename("d1", inner, "moved", 0, ROOT))
    now(inner.rmdir("moved", ROOT))


def test_ids_are_never_shared_by_two_files_nor_reused_by_a_later_tree():
    def ids():
        root = MemoryTree(label="same").root
        return root.id, {now(root.mkdir(str(n), 0o755, ROOT)).id for n in range(100)}

    first_root, first = ids()
    second_root, second = ids()
    assert first_root == second_root
    assert len(first | second) == 200


def test_a_sparse_file_of_terabytes_reads_bounded_zeros(root):
    node, handle = new_file(root)
    now(handle.write(b"end", 1 << 42))
    assert now(node.stat()).st_size == (1 << 42) + 3
    assert now(node.stat()).st_blocks < 1000
    assert len(now(handle.read(1 << 50, 0))) <= 1 << 24
    assert now(handle.seek(0, os.SEEK_DATA)) == 1 << 42
    assert now(handle.seek(5, os.SEEK_HOLE)) == 5


def test_sizes_beyond_the_largest_file_are_efbig(root):
    node, handle = new_file(root)
    assert errno_of(node.setstat(SetStat(size=1 << 63), ROOT)) == "EFBIG"
    assert errno_of(handle.write(b"x", (1 << 63) - 1)) == "EFBIG"
    assert errno_of(handle.write(b"x", -1)) == "EINVAL"
    assert errno_of(handle.allocate(0, 0, 0)) == "EINVAL"
    assert errno_of(handle.allocate(PUNCH_HOLE, 0, 1)) == "ENOTSUP"


def test_privilege_bits_go_when_another_than_root_writes_truncates_or_anyone_chowns(root):
    def mode_after(act, mode=0o6755):
        node, _ = new_file(root, "suid", b"data", who=ALICE)
        now(node.setstat(SetStat(mode=mode), ROOT))
        act(node)
        now(root.unlink("suid", ROOT))
        return now(node.stat()).st_mode & 0o7777

    def write_as(who):
        return lambda node: now(now(node.open(os.O_WRONLY, who)).write(b"x", 0))

    assert mode_after(write_as(ALICE)) == 0o755
    assert mode_after(write_as(ALICE), 0o6745) == 0o2745  # setgid without group execute is mandatory locking
    assert mode_after(write_as(ROOT)) == 0o6755
    assert mode_after(lambda node: now(node.open(os.O_WRONLY | os.O_TRUNC, ALICE))) == 0o755
    assert mode_after(lambda node: now(node.setstat(SetStat(size=1), ALICE))) == 0o755
    assert mode_after(lambda node: now(node.setstat(SetStat(uid=5), ROOT))) == 0o755


def test_setgid_needs_membership_and_is_inherited_from_directories(root):
    directory = now(root.mkdir("d", 0o755, ROOT))
    now(directory.setstat(SetStat(gid=77, mode=0o2777), ROOT))
    child = now(directory.mkdir("sub", 0o755, ALICE))
    file, _ = new_file(directory, "f", mode=0o2755, who=ALICE)
    assert now(child.stat())[:6][0] & stat.S_ISGID
    assert (now(child.stat()).st_uid, now(child.stat()).st_gid) == (1000, 77)
    assert now(file.stat()).st_gid == 77
    assert not now(file.stat()).st_mode & stat.S_ISGID
    now(file.setstat(SetStat(mode=0o2755), ALICE))
    assert not now(file.stat()).st_mode & stat.S_ISGID
    now(file.setstat(SetStat(gid=50), ROOT))
    now(file.setstat(SetStat(mode=0o2755), ALICE))
    assert now(file.stat()).st_mode & stat.S_ISGID


def test_only_root_makes_devices_and_special_files_are_not_opened(root):
    assert errno_of(root.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), ALICE)) == "EPERM"
    device = now(root.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), ROOT))
    assert now(device.stat()).st_rdev == os.makedev(1, 3)
    for kind in (stat.S_IFIFO, stat.S_IFSOCK):
        node = now(root.mknod(str(kind), kind | 0o666, 0, ALICE))
        assert errno_of(node.open(os.O_RDONLY, ALICE)) == "ENXIO"
    assert errno_of(root.mknod("d", stat.S_IFDIR | 0o777, 0, ROOT)) == "EPERM"
    assert errno_of(device.open(os.O_RDONLY, ROOT)) == "ENXIO"


def test_operations_across_trees_are_exdev(root):
    other = MemoryTree(label="other").root
    node, _ = new_file(root)
    assert errno_of(other.link(node, "x", ROOT)) == "EXDEV"
    assert errno_of(root.rename("f", other, "x", 0, ROOT)) == "EXDEV"


def test_nothing_is_made_in_a_removed_directory(root):
    gone = now(root.mkdir("d", 0o755, ROOT))
    node, _ = new_file(root)
    now(root.rmdir("d", ROOT))
    assert errno_of(gone.create("x", os.O_RDWR, 0o644, ROOT)) == "ENOENT"
    assert errno_of(gone.mkdir("x", 0o755, ROOT)) == "ENOENT"
    assert errno_of(gone.link(node, "x", ROOT)) == "ENOENT"
    assert errno_of(root.rename("f", gone, "x", 0, ROOT)) == "ENOENT"


def test_attribute_rules_are_those_of_linux(root):
    node, _ = new_file(root)
    link = now(root.symlink("l", "f", ROOT))
    assert errno_of(node.setxattr("user." + "n" * 251, b"", 0, ROOT)) == "ERANGE"
    assert errno_of(node.setxattr("", b"", 0, ROOT)) == "ERANGE"
    assert errno_of(node.setxattr("user.big", bytes(65537), 0, ROOT)) == "E2BIG"
    assert errno_of(node.setxattr("system.posix_acl_access", b"", 0, ROOT)) == "ENOTSUP"
    assert errno_of(node.setxattr("trusted.a", b"", 0, ALICE)) == "EPERM"
    assert errno_of(link.setxattr("user.a", b"", 0, ROOT)) == "EPERM"
    assert errno_of(node.setxattr("user.a", b"", 4, ROOT)) == "EINVAL"


# Content against the simplest model there is

OFFSETS = st.integers(0, 3 * CHUNK) | st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
STEPS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, st.binary(min_size=1, max_size=40).map(lambda seed: seed * 500)),
    st.tuples(st.just("truncate"), OFFSETS),
    st.tuples(st.just("allocate"), st.sampled_from([0, KEEP_SIZE]), OFFSETS, OFFSETS),
    st.tuples(st.just("zero"), st.sampled_from([PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE]), OFFSETS, OFFSETS),
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(STEPS, max_size=12))
def test_sparse_content_equals_a_flat_buffer(steps):
    charged = 0

    def charge(amount):
        nonlocal charged
        charged += amount

    sparse, flat = Sparse(charge), bytearray()
    for step in steps:
        match step:
            case "write", offset, data:
                assert sparse.write(data, offset) == len(data)
                flat.extend(bytes(max(0, offset + len(data) - len(flat))))
                flat[offset : offset + len(data)] = data
            case "truncate", size:
                sparse.truncate(size)
                del flat[size:]
                flat.extend(bytes(size - len(flat)))
            case "allocate", mode, offset, length:
                sparse.allocate(mode, offset, length + 1)
                if not mode & KEEP_SIZE:
                    flat.extend(bytes(max(0, offset + length + 1 - len(flat))))
            case "zero", mode, offset, length:
                sparse.allocate(mode, offset, length + 1)
                end = min(len(flat), offset + length + 1)
                flat[offset:end] = bytes(max(0, end - offset))
        assert sparse.size == len(flat)
        assert sparse.read(len(flat) + 10, 0) == flat
        assert sparse.read(CHUNK, CHUNK // 2) == flat[CHUNK // 2 : CHUNK // 2 + CHUNK]
        assert charged == sparse.kept
    sparse.truncate(0)
    assert charged == 0
