"""vfs.walk against the kernel's own resolution inside a root: openat2(2) with RESOLVE_IN_ROOT is the control."""

import errno
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfs.host import HostTree
from vfs.inline import start
from vfs.memory import MemoryTree
from vfs.node import ROOT, Caller
from vfs.syscalls import openat2
from vfs.walk import split, walk, walk_chain

RESOLVE_IN_ROOT = 0x10
ALICE = Caller(1000, 1000)


def errno_of(operation):
    with pytest.raises(OSError) as caught:
        start(operation)
    return errno.errorcode[caught.value.errno]


def build(root, layout):
    """Make what `layout` says: names to dicts (directories), bytes (files) or str (symlinks)."""
    for name, what in layout.items():
        if isinstance(what, dict):
            build(start(root.mkdir(name, 0o755, ROOT)), what)
        elif isinstance(what, str):
            start(root.symlink(name, what, ROOT))
        else:
            start(root.create(name, os.O_WRONLY, 0o644, ROOT))[1].close()
    return root


@pytest.fixture
def root():
    return build(
        MemoryTree(label="walk").root,
        {"a": {"b": {"f": b""}, "up": "..", "abs": "/a/b", "out": "../../../../a/b"}, "loop": "loop", "f": b""},
    )


def test_links_and_dots_are_resolved_inside_the_root(root):
    for path in ("a/b/f", "/a/b/f", "a//b/./f", "a/up/a/b/f", "a/abs/f", "a/out/f", "../../a/b/f", "a/b/../b/f"):
        chain = start(walk_chain(root, path, ROOT))
        assert [name for name, _ in chain] == ["", "a", "b", "f"], path


def test_the_last_link_is_followed_only_when_asked_or_a_directory_is_meant(root):
    assert start(walk(root, "a/abs", ROOT)) is start(walk(root, "a/b", ROOT))
    assert start(start(walk(root, "a/abs", ROOT, follow=False)).readlink()) == "/a/b"
    assert start(walk(root, "a/abs/", ROOT, follow=False)) is start(walk(root, "a/b", ROOT))
    assert errno_of(walk(root, "f/", ROOT)) == "ENOTDIR"


def test_loops_long_paths_and_nul_are_refused(root):
    assert errno_of(walk(root, "loop", ROOT)) == "ELOOP"
    assert errno_of(walk(root, "loop/x", ROOT)) == "ELOOP"
    assert errno_of(walk(root, "a/" * 3000, ROOT)) == "ENAMETOOLONG"
    assert errno_of(walk(root, "a\0b", ROOT)) == "ENOENT"
    assert split("//a/./b//") == ["a", "b"]


def test_forty_links_are_followed_and_one_more_is_not(root):
    for number in range(41):
        start(root.symlink(f"l{number}", f"l{number - 1}" if number else "f", ROOT))
    assert start(walk(root, "l39", ROOT)) is start(walk(root, "f", ROOT))
    assert errno_of(walk(root, "l40", ROOT)) == "ELOOP"


def test_every_directory_needs_search_permission(root):
    closed = start(root.mkdir("closed", 0o700, ROOT))
    build(closed, {"d": {"f": b""}})
    assert errno_of(walk(root, "closed/d", ALICE)) == "EACCES"
    assert errno_of(walk(root, "closed/none", ALICE)) == "EACCES"
    assert start(walk(root, "closed", ALICE)) is closed
    assert start(walk(root, "closed/d/f", ALICE, checked=False)).id
    assert start(walk(root, "closed/d/f", ROOT)).id


# Against the kernel

NAMES = st.sampled_from(["a", "b", "c"])
TARGETS = st.builds(
    lambda lead, parts, trail: lead + "/".join(parts) + trail,
    st.sampled_from(["", "/", "../", "./"]),
    st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4),
    st.sampled_from(["", "", "/"]),
)
LAYOUTS = st.recursive(
    st.just(b"") | TARGETS, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
).filter(lambda layout: isinstance(layout, dict))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(LAYOUTS, st.lists(TARGETS, min_size=1, max_size=8))
def test_any_path_leads_where_the_kernel_leads(tmp_path, layout, paths):
    top = tmp_path / "top"
    top.mkdir()
    try:
        root = build(HostTree(top, label="walk").root, layout)
        fd = os.open(top, os.O_PATH)
        try:
            for path in paths:
                for follow in (True, False):
                    assert ours(root, path, follow) == kernels(fd, path, follow), (path, follow)
        finally:
            os.close(fd)
    finally:
        shutil.rmtree(top)


def ours(root, path, follow):
    try:
        return start(start(walk(root, path, ROOT, follow=follow)).stat()).st_ino
    except OSError as error:
        return errno.errorcode[error.errno]


def kernels(top, path, follow):
    try:
        fd = openat2(top, path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), RESOLVE_IN_ROOT)
    except OSError as error:
        return errno.errorcode[error.errno]
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)
