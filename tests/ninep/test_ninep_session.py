"""Requests and their replies: fids, walks, files, names, attributes, locks. No socket, no task."""

import os
import stat
from errno import (
    E2BIG,
    EACCES,
    EBADF,
    EBUSY,
    EEXIST,
    EFBIG,
    EINVAL,
    EIO,
    EISDIR,
    ELOOP,
    EMSGSIZE,
    ENODATA,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    ENOTSUP,
    EOPNOTSUPP,
    EPERM,
    EPROTO,
    ESTALE,
)

import pytest
from frames import GOLDEN
from ninepkit import ALICE, BOB, Slow, SlowHandle, Wire

from vfs.directory import Dir
from vfs.host import HostTree
from vfs.inline import start
from vfs.locks import LockTable
from vfs.memory import MemoryTree
from vfs.ninep import operations
from vfs.ninep.codec import ProtocolError, decode, encode, qid, qid_parts
from vfs.ninep.messages import MAX_MSIZE, MESSAGES, NONUNAME, NOTAG
from vfs.ninep.operations import Operations
from vfs.node import ROOT, Caller, Node, SetStat, Stat


@pytest.fixture
def tree():
    return MemoryTree(label="t", mode=0o777)


@pytest.fixture
def wire(tree):
    return Wire(tree.root).attach()


def refused(wire, errno, name, *values):
    with pytest.raises(OSError) as caught:
        wire.ask(name, *values)
    assert os.strerror(caught.value.errno) == os.strerror(errno)


def as_user(tree, who):
    return Wire(tree.root, who).attach()


# The table


@pytest.mark.parametrize("number", [n for n, m in MESSAGES.items() if m.name[0] == "T"])
def test_every_request_has_a_handler_with_the_fields_of_the_table(number):
    message = MESSAGES[number]
    if message.name in ("Tversion", "Tflush"):
        return  # of the session itself
    code = getattr(Operations, message.name[1:]).__code__
    assert code.co_argcount - 1 == len(message.fields)


# Version and attach


def test_the_smaller_msize_wins():
    wire = Wire(MemoryTree(label="t").root)
    assert wire.ask("Tversion", 8192, "9P2000.L", tag=NOTAG) == (8192, "9P2000.L")
    assert wire.ask("Tversion", 1 << 31, "9P2000.L", tag=NOTAG) == (MAX_MSIZE, "9P2000.L")


@pytest.mark.parametrize("version", ["9P2000", "9P2000.u", "9P2000.LX", "9P2000.l", "", "unknown"])
def test_another_version_is_unknown_and_nothing_works_after_it(version):
    wire = Wire(MemoryTree(label="t").root)
    assert wire.ask("Tversion", 8192, version, tag=NOTAG)[1] == "unknown"
    refused(wire, EPROTO, "Tattach", 0, 0, "", "/", 0)


def test_a_variant_of_the_version_is_answered_with_the_plain_one():
    wire = Wire(MemoryTree(label="t").root)
    assert wire.ask("Tversion", 8192, "9P2000.L.Google.12", tag=NOTAG)[1] == "9P2000.L"


def test_an_msize_that_holds_no_reply_is_refused():
    wire = Wire(MemoryTree(label="t").root)
    assert wire.ask("Tversion", 4119, "9P2000.L", tag=NOTAG)[1] == "unknown"


def test_nothing_works_before_the_version():
    wire = Wire(MemoryTree(label="t").root)
    refused(wire, EPROTO, "Tattach", 0, 0, "", "/", 0)
    refused(wire, EBADF, "Tgetattr", 0, 0)


def test_a_new_version_releases_every_fid(tree):
    slow = Slow()
    wire = Wire(Dir({"slow": slow}, mode=0o755, id=5)).attach()
    wire.open(1, "slow")
    assert slow.open_handles == 1
    wire.ask("Tversion", 8192, "9P2000.L", tag=NOTAG)
    assert slow.open_handles == 0
    refused(wire, EBADF, "Tgetattr", 0, 0)
    wire.ask("Tattach", 0, 0, "", "/", 0)


def test_who_attaches_is_decided_by_what_was_injected(tree):
    seen = []

    async def attach(uname, n_uname, aname, peer):
        seen.append((uname, n_uname, aname, peer))
        if aname != "/good":
            raise OSError(EACCES, "not you")
        return tree.root, ALICE

    wire = Wire(tree.root, attach=attach)
    wire.ask("Tversion", 8192, "9P2000.L", tag=NOTAG)
    refused(wire, EACCES, "Tattach", 0, 0, "me", "/bad", NONUNAME)
    assert wire.ask("Tattach", 0, 0, "me", "/good", 7) == (qid(stat.S_IFDIR, tree.root.id),)
    assert seen == [("me", NONUNAME, "/bad", None), ("me", 7, "/good", None)]
    refused(wire, EBADF, "Tattach", 0, 0, "me", "/good", 7)


def test_no_authentication_is_offered(wire):
    refused(wire, ENOENT, "Tauth", 9, "me", "/", 0)


# Fids and walks


def test_a_walk_of_no_names_clones_the_fid(wire, tree):
    assert wire.ask("Twalk", 0, 1, ()) == ((),)
    assert wire.ask("Tgetattr", 1, 0)[1] == qid(stat.S_IFDIR, tree.root.id)
    wire.ask("Tclunk", 0)
    wire.ask("Tgetattr", 1, 0)


def test_a_walk_gives_a_qid_for_every_step(wire):
    wire.ask("Tmkdir", 0, "a", 0o755, 0)
    wire.make("a/f")
    [(a, f)] = wire.ask("Twalk", 0, 1, ("a", "f"))
    assert (a[0], f[0]) == (0x80, 0)
    assert wire.ask("Tgetattr", 1, 0)[1] == f
    assert wire.ask("Twalk", 0, 2, ("a", "..", "a", ".", "f"))[0][-1] == f


def test_a_walk_that_fails_midway_gives_the_steps_so_far_and_makes_no_fid(wire):
    wire.ask("Tmkdir", 0, "a", 0o755, 0)
    wire.make("a/f")
    assert len(wire.ask("Twalk", 0, 1, ("a", "none", "x"))[0]) == 1
    assert len(wire.ask("Twalk", 0, 1, ("a", "f", "x"))[0]) == 2
    refused(wire, EBADF, "Tgetattr", 1, 0)


def test_a_walk_whose_first_step_fails_is_an_error(wire):
    wire.make("f")
    refused(wire, ENOENT, "Twalk", 0, 1, ("none",))
    wire.ask("Twalk", 0, 1, ("f",))
    refused(wire, ENOTDIR, "Twalk", 1, 2, ("x",))
    refused(wire, ENOTDIR, "Twalk", 1, 2, ("..",))


def test_a_walk_in_place_moves_the_fid_only_if_all_of_it_succeeds(wire):
    wire.ask("Tmkdir", 0, "a", 0o755, 0)
    wire.ask("Twalk", 0, 1, ())
    assert len(wire.ask("Twalk", 1, 1, ("a", "none"))[0]) == 1
    root = wire.ask("Tgetattr", 1, 0)[1]
    [(a,)] = wire.ask("Twalk", 1, 1, ("a",))
    assert wire.ask("Tgetattr", 1, 0)[1] == a != root


def test_a_walk_to_a_fid_in_use_is_refused(wire):
    wire.ask("Twalk", 0, 1, ())
    refused(wire, EBADF, "Twalk", 0, 1, ())
    refused(wire, EBADF, "Twalk", 99, 2, ())


def test_an_open_fid_can_be_cloned_but_not_moved(wire):
    wire.make("f", b"x")
    wire.open(1, "f")
    refused(wire, EINVAL, "Twalk", 1, 1, ())
    wire.ask("Twalk", 1, 2, ())
    refused(wire, EBADF, "Tread", 2, 0, 1)
    wire.ask("Tlopen", 2, os.O_RDONLY)


def test_a_walk_is_at_most_sixteen_names_long(wire):
    wire.ask("Twalk", 0, 1, ("..",) * 16)
    refused(wire, EINVAL, "Twalk", 0, 2, ("..",) * 17)


def test_dot_dot_stays_at_the_root(wire, tree):
    [(up,)] = wire.ask("Twalk", 0, 1, ("..",))
    assert up == qid(stat.S_IFDIR, tree.root.id)


@pytest.mark.parametrize("name", ["", "a/b", "a\0b"])
def test_what_is_no_name_is_refused(wire, name):
    wire.make("f")
    wire.ask("Twalk", 0, 1, ("f",))
    refused(wire, EINVAL, "Twalk", 0, 2, (name,))
    wire.ask("Twalk", 0, 3, ())
    for request in (
        ("Tlcreate", 3, name, 0, 0o644, 0),
        ("Tmkdir", 0, name, 0o755, 0),
        ("Tsymlink", 0, name, "t", 0),
        ("Tmknod", 0, name, stat.S_IFIFO, 0, 0, 0),
        ("Tlink", 0, 1, name),
        ("Tunlinkat", 0, name, 0),
        ("Trenameat", 0, name, 0, "x"),
        ("Trenameat", 0, "f", 0, name),
        ("Trename", 1, 0, name),
    ):
        refused(wire, EINVAL, *request)
    wire.ask("Tgetattr", 1, 0)


def test_a_connection_has_so_many_fids_and_no_more(wire, monkeypatch):
    monkeypatch.setattr(operations, "MAX_FIDS", 3)
    wire.ask("Twalk", 0, 1, ())
    wire.ask("Twalk", 0, 2, ())
    refused(wire, 24, "Twalk", 0, 3, ())
    wire.ask("Tclunk", 2)
    wire.ask("Twalk", 0, 3, ())


def test_ten_thousand_fids_are_kept_apart_and_released(wire, tree):
    wire.make("f", b"x")
    for fid in range(1, 10_000):
        wire.ask("Twalk", 0, fid, ("f",) if fid % 2 else ())
    assert len(wire.session.operations.fids) == 10_000
    assert wire.ask("Tgetattr", 9_998, 0)[1][0] == 0x80
    assert wire.ask("Tgetattr", 9_999, 0)[1][0] == 0
    for fid in range(10_000):
        wire.ask("Tclunk", fid)
    assert not wire.session.operations.fids


def test_a_clunked_fid_is_gone(wire):
    wire.ask("Twalk", 0, 1, ())
    wire.ask("Tclunk", 1)
    for request in (("Tclunk", 1), ("Tgetattr", 1, 0), ("Tlopen", 1, 0), ("Tremove", 1)):
        refused(wire, EBADF, *request)


# Files


def test_what_is_written_is_read(wire):
    wire.make("f", b"hello world")
    wire.open(1, "f", os.O_RDWR)
    assert wire.read(1) == b"hello world"
    assert wire.ask("Twrite", 1, 6, b"there") == (5,)
    assert wire.read(1, 6, 3) == b"the"
    assert wire.read(1, 100) == b""


def test_a_fid_is_opened_once_and_used_as_it_was_opened(wire):
    wire.make("f", b"x")
    wire.open(1, "f", os.O_RDONLY)
    wire.open(2, "f", os.O_WRONLY)
    refused(wire, EBADF, "Tlopen", 1, os.O_RDONLY)
    refused(wire, EBADF, "Twrite", 1, 0, b"x")
    refused(wire, EBADF, "Tread", 2, 0, 1)
    refused(wire, EBADF, "Tlcreate", 1, "x", 0, 0o644, 0)
    wire.ask("Twalk", 0, 3, ("f",))
    refused(wire, EBADF, "Tread", 3, 0, 1)
    refused(wire, EBADF, "Twrite", 3, 0, b"x")
    refused(wire, EBADF, "Tfsync", 3, 0)
    refused(wire, EINVAL, "Tlopen", 3, 3)


def test_opening_truncates_only_if_asked(wire):
    wire.make("f", b"hello")
    wire.open(1, "f", os.O_WRONLY)
    wire.open(2, "f", os.O_RDONLY)
    assert wire.read(2) == b"hello"
    wire.open(3, "f", os.O_WRONLY | os.O_TRUNC)
    assert wire.read(2) == b""


def test_a_reply_never_holds_more_than_msize_and_was_asked_for(tree):
    generous = Slow()
    generous.feed(b"x" * 100_000, b"y" * 100)
    wire = Wire(Dir({"f": generous}, mode=0o755, id=5)).attach(msize=8192)
    wire.open(1, "f")
    assert wire.read(1, 0, 1 << 31) == b"x" * (8192 - 24)
    assert wire.read(1, 0, 10) == b"y" * 10


def test_offsets_end_where_files_must(wire):
    wire.make("f", b"x")
    wire.open(1, "f", os.O_RDWR)
    refused(wire, EINVAL, "Tread", 1, 1 << 63, 1)
    refused(wire, EINVAL, "Tread", 1, (1 << 63) - 1, 1)
    refused(wire, EFBIG, "Twrite", 1, (1 << 63) - 1, b"x")
    refused(wire, EFBIG, "Twrite", 1, (1 << 64) - 1, b"")


def test_directories_and_links_open_as_open_says(wire):
    wire.ask("Tsymlink", 0, "link", "f", 0)
    wire.make("f")
    wire.ask("Twalk", 0, 1, ())
    refused(wire, EISDIR, "Tlopen", 1, os.O_WRONLY)
    refused(wire, EISDIR, "Tlopen", 1, os.O_TRUNC)
    wire.ask("Tlopen", 1, os.O_RDONLY | 0o200000)
    refused(wire, EISDIR, "Tread", 1, 0, 10)
    wire.ask("Twalk", 0, 2, ("link",))
    refused(wire, ELOOP, "Tlopen", 2, os.O_RDONLY)
    wire.ask("Twalk", 0, 3, ("f",))
    refused(wire, ENOTDIR, "Tlopen", 3, 0o200000)


def test_creating_opens_the_new_file_under_the_directory_s_fid(wire):
    wire.ask("Twalk", 0, 1, ())
    raw, unit = wire.ask("Tlcreate", 1, "f", os.O_RDWR, 0o640, 0)
    assert (raw[0], unit) == (0, 0)
    wire.ask("Twrite", 1, 0, b"abc")
    assert wire.read(1) == b"abc"
    attributes = wire.ask("Tgetattr", 1, 0)
    assert attributes[1:3] == (raw, stat.S_IFREG | 0o640)
    wire.ask("Tclunk", 1)
    wire.ask("Twalk", 0, 1, ("f",))


def test_creating_what_exists_opens_it_unless_exclusive(wire):
    wire.make("f", b"old")
    wire.ask("Tmkdir", 0, "d", 0o755, 0)
    wire.ask("Tsymlink", 0, "l", "f", 0)
    for fid in (1, 2, 3, 4):
        wire.ask("Twalk", 0, fid, ())
    refused(wire, EEXIST, "Tlcreate", 1, "f", os.O_RDWR | os.O_EXCL, 0o644, 0)
    wire.ask("Tlcreate", 1, "f", os.O_RDWR, 0o644, 0)
    assert wire.read(1) == b"old"
    refused(wire, EISDIR, "Tlcreate", 2, "d", os.O_RDWR, 0o644, 0)
    refused(wire, ELOOP, "Tlcreate", 3, "l", os.O_RDWR, 0o644, 0)
    refused(wire, EINVAL, "Tlcreate", 4, "g", 3, 0o644, 0)
    wire.ask("Tlcreate", 4, "f", os.O_WRONLY | os.O_TRUNC, 0o644, 0)
    assert wire.read(1) == b""


def test_an_unlinked_file_stays_readable_through_its_fid(wire):
    wire.make("f", b"still here")
    wire.open(1, "f")
    wire.ask("Tunlinkat", 0, "f", 0)
    assert wire.read(1) == b"still here"
    assert wire.ask("Tgetattr", 1, 0)[7] == 10


def test_fsync_reaches_the_open_file(wire):
    wire.make("f")
    wire.open(1, "f", os.O_WRONLY)
    assert wire.ask("Tfsync", 1, 0) == wire.ask("Tfsync", 1, 1) == ()


class Unsaved(Slow):
    """A file whose last error comes at close."""

    async def open(self, flags, who):
        return UnsavedHandle(self)


class UnsavedHandle(SlowHandle):
    async def flush(self):
        raise OSError(ENOSPC, "late")


def test_the_error_of_a_close_is_the_clunk_s_and_the_fid_is_gone_all_the_same():
    unsaved = Unsaved()
    wire = Wire(Dir({"f": unsaved}, mode=0o755, id=5)).attach()
    wire.open(1, "f", os.O_WRONLY)
    refused(wire, ENOSPC, "Tclunk", 1)
    assert unsaved.open_handles == 0
    refused(wire, EBADF, "Tclunk", 1)


def test_reading_without_waiting_is_chosen_at_open():
    slow = Slow()
    wire = Wire(Dir({"f": slow}, mode=0o755, id=5)).attach()
    wire.open(1, "f", os.O_RDWR | os.O_NONBLOCK)
    refused(wire, 11, "Tread", 1, 0, 10)
    refused(wire, 11, "Twrite", 1, 0, b"x")
    slow.feed(b"now", room=1)
    assert wire.read(1) == b"now"
    assert wire.ask("Twrite", 1, 0, b"x") == (1,)


# Directories


def test_a_directory_lists_itself_its_parent_and_every_name_once(wire):
    for number in range(300):
        wire.make(f"file-{number}")
    wire.open(1, "")
    expected = [".", "..", *(f"file-{n}" for n in range(300))]
    for count in (8192, 40, 100, 65000):
        assert sorted(wire.names(1, count)) == sorted(expected)


@pytest.mark.parametrize("kind", ["memory", "host"])
def test_entries_carry_the_id_and_type_of_what_they_name(kind, tmp_path):
    root = MemoryTree(label="t").root if kind == "memory" else HostTree(tmp_path, label="h").root
    wire = Wire(root).attach()
    wire.ask("Tmkdir", 0, "d", 0o755, 0)
    wire.make("f")
    wire.ask("Tsymlink", 0, "l", "f", 0)
    wire.open(1, "")
    data = wire.ask("Treaddir", 1, 0, 8192)[0]
    kinds = {}
    while data:
        length = int.from_bytes(data[22:24], "little")
        kinds[data[24 : 24 + length].decode()] = (data[:13], data[21])
        data = data[24 + length :]
    for name, kind in (("d", 4), ("f", 8), ("l", 10)):
        assert kinds[name] == (wire.ask("Twalk", 0, 9, (name,))[0][0], kind)
        wire.ask("Tclunk", 9)
    assert kinds["."][1] == kinds[".."][1] == 4


def test_a_listing_is_a_snapshot_until_it_is_read_from_the_start_again(wire):
    for name in ("a", "b", "c"):
        wire.make(name)
    wire.open(1, "")
    first = wire.ask("Treaddir", 1, 0, 60)[0]
    assert len(first) == 25 + 26  # "." and ".."
    offset = int.from_bytes(first[25 + 13 : 25 + 21], "little")
    wire.ask("Tunlinkat", 0, "c", 0)
    wire.make("d")
    rest = wire.ask("Treaddir", 1, offset, 8192)[0]
    assert b"c" in rest
    assert b"d" not in rest[24:]
    assert sorted(wire.names(1)) == [".", "..", "a", "b", "d"]
    assert wire.ask("Treaddir", 1, 1 << 60, 8192) == (b"",)


def test_a_buffer_too_small_for_the_next_name_is_refused(wire):
    wire.make("a-rather-long-name")
    wire.open(1, "")
    refused(wire, EINVAL, "Treaddir", 1, 0, 24)
    assert wire.ask("Treaddir", 1, 0, 25)[0][24:] == b"."
    refused(wire, EINVAL, "Treaddir", 1, 2, 41)


def test_only_open_directories_are_listed(wire):
    wire.make("f")
    refused(wire, EBADF, "Treaddir", 0, 0, 8192)
    wire.open(1, "f")
    refused(wire, ENOTDIR, "Treaddir", 1, 0, 8192)


def test_names_that_are_no_utf8_survive(wire):
    name = b"caf\xe9\xff".decode("utf-8", "surrogateescape")
    wire.make(name)
    wire.open(1, "")
    assert name in wire.names(1)
    wire.ask("Twalk", 0, 2, (name,))
    wire.ask("Tunlinkat", 0, name, 0)


# Names


def test_names_are_made_linked_moved_and_removed(wire):
    [directory] = wire.ask("Tmkdir", 0, "d", 0o700, 0)
    [link] = wire.ask("Tsymlink", 0, "l", "d/f", 0)
    [fifo] = wire.ask("Tmknod", 0, "p", stat.S_IFIFO | 0o600, 0, 0, 0)
    assert (directory[0], link[0], fifo[0]) == (0x80, 2, 0)
    for name, made in (("d", directory), ("l", link), ("p", fifo)):
        assert wire.ask("Twalk", 0, 9, (name,)) == ((made,),)
        assert wire.ask("Tgetattr", 9, 0)[1] == made
        wire.ask("Tclunk", 9)
    wire.ask("Twalk", 0, 2, ("l",))
    assert wire.ask("Treadlink", 2) == ("d/f",)
    wire.make("d/f", b"x")
    wire.ask("Twalk", 0, 3, ("d", "f"))
    refused(wire, EINVAL, "Treadlink", 3)
    wire.ask("Tlink", 0, 3, "hard")
    assert wire.ask("Tgetattr", 3, 0)[5] == 2
    wire.ask("Twalk", 0, 4, ("d",))
    refused(wire, EPERM, "Tlink", 0, 4, "dirlink")
    refused(wire, ENOTEMPTY, "Tunlinkat", 0, "d", 0x200)
    wire.ask("Trenameat", 4, "f", 0, "g")
    wire.ask("Tunlinkat", 0, "d", 0x200)
    refused(wire, ENOENT, "Tunlinkat", 0, "d", 0x200)
    wire.ask("Tunlinkat", 0, "g", 0)
    assert wire.ask("Tgetattr", 3, 0)[5] == 1


def test_removing_by_fid_takes_the_name_and_the_fid(wire):
    wire.ask("Tmkdir", 0, "d", 0o755, 0)
    wire.make("d/f")
    wire.ask("Twalk", 0, 1, ("d",))
    wire.ask("Twalk", 0, 2, ("d", "f"))
    refused(wire, ENOTEMPTY, "Tremove", 1)
    refused(wire, EBADF, "Tgetattr", 1, 0)  # gone although it failed
    wire.ask("Tremove", 2)
    refused(wire, EBADF, "Tgetattr", 2, 0)
    wire.ask("Twalk", 0, 1, ("d",))
    wire.ask("Tremove", 1)
    wire.ask("Twalk", 0, 1, ())
    refused(wire, EBUSY, "Tremove", 1)
    refused(wire, EBADF, "Tgetattr", 1, 0)


def test_removing_by_fid_never_hits_a_file_that_took_the_name(wire, tree):
    wire.make("f", b"mine")
    wire.ask("Twalk", 0, 1, ("f",))
    start(tree.root.unlink("f", ROOT))  # behind the session's back
    wire.make("f", b"another's")
    refused(wire, ESTALE, "Tremove", 1)
    wire.open(2, "f")
    assert wire.read(2) == b"another's"


def test_fids_follow_a_rename(wire):
    for path in ("a", "b", "a/sub"):
        *above, name = path.split("/")
        wire.ask("Twalk", 0, 50, tuple(above))
        wire.ask("Tmkdir", 50, name, 0o755, 0)
        wire.ask("Tclunk", 50)
    wire.make("a/sub/f")
    wire.ask("Twalk", 0, 1, ("a", "sub"))
    wire.ask("Twalk", 0, 2, ("a", "sub", "f"))
    wire.ask("Twalk", 0, 3, ("a",))
    wire.ask("Twalk", 0, 4, ("b",))
    wire.ask("Trenameat", 3, "sub", 4, "moved")
    [(b,)] = wire.ask("Twalk", 1, 5, ("..",))
    assert b == wire.ask("Tgetattr", 4, 0)[1]
    wire.ask("Trename", 2, 0, "top")
    wire.ask("Tremove", 2)
    refused(wire, ENOENT, "Twalk", 0, 7, ("top",))
    wire.ask("Tremove", 1)
    assert len(wire.ask("Twalk", 0, 7, ("b", "moved"))[0]) == 1


def test_the_root_cannot_be_renamed(wire):
    refused(wire, EBUSY, "Trename", 0, 0, "x")


# Attributes


def test_every_attribute_arrives(wire, tree):
    wire.make("f", b"12345", 0o4751)
    node = start(tree.root.lookup("f", ROOT))
    start(node.setstat(SetStat(uid=5, gid=6, atime_ns=1_000_000_002, mtime_ns=-1), ROOT))
    start(node.setstat(SetStat(mode=0o4751), ROOT))
    wire.ask("Twalk", 0, 1, ("f",))
    valid, raw, mode, uid, gid, nlink, rdev, size, blksize, blocks, *times = wire.ask("Tgetattr", 1, 0)
    assert (valid, raw, mode) == (0x7FF, qid(mode, node.id), stat.S_IFREG | 0o4751)
    assert (uid, gid, nlink, rdev, size) == (5, 6, 1, 0, 5)
    assert blksize and blocks
    assert times[:4] == [1, 2, (1 << 64) - 1, 999_999_999]
    assert times[6:] == [0, 0, 0, 0]


def setattr_(wire, fid, valid, mode=0, uid=0, gid=0, size=0, atime=(0, 0), mtime=(0, 0)):
    return ("Tsetattr", fid, valid, mode, uid, gid, size, *atime, *mtime)


def test_only_valid_attributes_change(wire):
    wire.make("f", b"12345", 0o644)
    wire.ask("Twalk", 0, 1, ("f",))
    before = wire.ask("Tgetattr", 1, 0)
    wire.ask(*setattr_(wire, 1, 0, 0o7777, 9, 9, 9, (9, 9), (9, 9)))
    assert wire.ask("Tgetattr", 1, 0) == before
    wire.ask(*setattr_(wire, 1, 0x1, 0o600))
    wire.ask(*setattr_(wire, 1, 0x2 | 0x4, uid=3, gid=4))
    wire.ask(*setattr_(wire, 1, 0x8, size=2))
    wire.ask(*setattr_(wire, 1, 0x10 | 0x80, atime=(7, 8)))
    wire.ask(*setattr_(wire, 1, 0x20 | 0x100, mtime=((1 << 64) - 2, 5)))
    after = wire.ask("Tgetattr", 1, 0)
    assert (after[2], after[3], after[4], after[7]) == (stat.S_IFREG | 0o600, 3, 4, 2)
    assert after[10:14] == (7, 8, (1 << 64) - 2, 5)


def test_a_time_without_a_value_is_now(wire, monkeypatch):
    wire.make("f")
    wire.ask("Twalk", 0, 1, ("f",))
    monkeypatch.setattr(operations.time, "time_ns", lambda: 42_000_000_001)
    wire.ask(*setattr_(wire, 1, 0x10 | 0x20, atime=(7, 7), mtime=(7, 7)))
    assert wire.ask("Tgetattr", 1, 0)[10:14] == (42, 1, 42, 1)


def test_impossible_attributes_are_refused(wire):
    wire.make("f")
    wire.ask("Twalk", 0, 1, ("f",))
    refused(wire, EINVAL, *setattr_(wire, 1, 0x90, atime=(1, 10**9)))
    refused(wire, EINVAL, *setattr_(wire, 1, 0x2, uid=0xFFFFFFFF))
    refused(wire, EINVAL, *setattr_(wire, 1, 0x4, gid=0xFFFFFFFF))
    refused(wire, EFBIG, *setattr_(wire, 1, 0x8, size=1 << 63))
    refused(wire, EINVAL, "Tmknod", 0, "dev", stat.S_IFCHR, 1 << 12, 0, 0)
    refused(wire, EINVAL, "Tmknod", 0, "dev", stat.S_IFCHR, 0, 1 << 20, 0)


def test_statfs_gives_the_tree_s_figures(wire, tree):
    assert wire.ask("Tstatfs", 0) == tuple(start(tree.root.statfs()))


def test_a_reply_that_msize_cannot_hold_is_an_error():
    class Link(Node):
        id = 9

        async def stat(self):
            return Stat(stat.S_IFLNK | 0o777)

        async def readlink(self):
            return "x" * 5000

    wire = Wire(Dir({"l": Link()}, mode=0o755, id=5)).attach(msize=4120)
    wire.ask("Twalk", 0, 1, ("l",))
    refused(wire, EMSGSIZE, "Treadlink", 1)


def test_extended_attributes_are_read_listed_set_and_removed(wire):
    wire.make("f")
    wire.ask("Twalk", 0, 1, ("f",))

    def set_(name, value, flags=0):
        wire.ask("Twalk", 1, 8, ())
        wire.ask("Txattrcreate", 8, name, len(value), flags)
        for at in range(0, len(value), 3):
            wire.ask("Twrite", 8, at, value[at : at + 3])
        wire.ask("Tclunk", 8)

    def get(name):
        [size] = wire.ask("Txattrwalk", 1, 9, name)
        value = wire.read(9, 0, 4) + wire.read(9, 4, 8192)
        wire.ask("Tclunk", 9)
        assert len(value) == size
        return value

    refused(wire, ENODATA, "Txattrwalk", 1, 9, "user.a")
    set_("user.a", b"hello")
    set_("user.empty", b"")
    assert (get("user.a"), get("user.empty"), sorted(get("").split(b"\0"))) == (
        b"hello", b"", [b"", b"user.a", b"user.empty"],
    )  # fmt: skip
    with pytest.raises(FileExistsError):
        set_("user.a", b"x", 1)
    set_("user.a", b"", 2)
    refused(wire, ENODATA, "Txattrwalk", 1, 9, "user.a")
    refused(wire, ENOTSUP, "Txattrwalk", 1, 9, "nonsense")
    wire.ask("Twalk", 1, 8, ())
    refused(wire, ENOTSUP, "Txattrcreate", 8, "nonsense", 1, 0)
    refused(wire, E2BIG, "Txattrcreate", 8, "user.b", 65537, 0)
    refused(wire, EBADF, "Txattrwalk", 1, 8, "")


def test_an_extended_attribute_is_set_whole_or_not_at_all(wire):
    wire.make("f")
    wire.ask("Twalk", 0, 1, ("f",))
    wire.ask("Twalk", 0, 2, ("f",))
    wire.ask("Txattrcreate", 2, "user.a", 4, 0)
    refused(wire, EBADF, "Tread", 2, 0, 1)
    refused(wire, ENOSPC, "Twrite", 2, 0, b"12345")
    refused(wire, ENOSPC, "Twrite", 2, 1, b"1")
    wire.ask("Twrite", 2, 0, b"123")
    refused(wire, EINVAL, "Tclunk", 2)
    refused(wire, ENODATA, "Txattrwalk", 1, 9, "user.a")


# Locks


def lock(fid, kind, start_at=0, length=0, owner=1, flags=0, client="c"):
    return ("Tlock", fid, kind, flags, start_at, length, owner, client)


def test_locks_exclude_other_owners_and_are_shown(wire):
    wire.make("f")
    wire.open(1, "f", os.O_RDWR)
    wire.open(2, "f", os.O_RDWR)
    assert wire.ask(*lock(1, 1, 10, 5, owner=7)) == (0,)
    assert wire.ask(*lock(2, 0, owner=8)) == (1,)
    assert wire.ask(*lock(2, 0, owner=7, client="other")) == (1,)
    assert wire.ask("Tgetlock", 2, 1, 12, 1, 8, "c") == (1, 10, 5, 7, "c")
    assert wire.ask(*lock(2, 0, owner=7)) == (0,)  # the same process through another fid
    assert wire.ask("Tgetlock", 2, 1, 12, 1, 8, "c") == (0, 0, 0, 7, "c")
    assert wire.ask(*lock(1, 2, owner=7)) == (0,)
    assert wire.ask("Tgetlock", 2, 1, 12, 1, 8, "c") == (2, 12, 1, 8, "c")
    refused(wire, EINVAL, *lock(1, 3))
    refused(wire, EINVAL, *lock(1, 1, 1 << 63))
    wire.ask("Twalk", 0, 3, ("f",))
    refused(wire, EBADF, *lock(3, 1))


def test_a_clunk_releases_the_locks_taken_through_the_fid(wire):
    wire.make("f")
    wire.open(1, "f")
    wire.open(2, "f")
    wire.ask(*lock(1, 1, owner=7))
    wire.ask("Tclunk", 1)
    assert wire.ask(*lock(2, 1, owner=8)) == (0,)


def test_locks_hold_across_connections_until_one_ends(tree):
    table = LockTable()
    one, two = (Wire(tree.root, locks=table).attach() for _ in range(2))
    one.make("f")
    for wire in (one, two):
        wire.open(1, "f")
    assert one.ask(*lock(1, 1)) == (0,)
    assert two.ask(*lock(1, 1)) == (1,)  # same numbers, another connection
    one.session.close()
    assert two.ask(*lock(1, 1)) == (0,)


# Permissions


@pytest.fixture
def shared(tree):
    """Alice's files: a private directory, one that others may only search, a sticky one."""
    alice = as_user(tree, ALICE)
    for name, mode in (("private", 0o700), ("search", 0o711), ("sticky", 0o1777), ("listed", 0o744)):
        alice.ask("Tmkdir", 0, name, mode, 1000)
        alice.make(f"{name}/f", b"alice's", 0o644, 1000)
    alice.make("group", b"g", 0o640, 50)
    return tree


def test_search_permission_is_needed_on_every_directory_walked_through(shared):
    bob = as_user(shared, BOB)
    assert len(bob.ask("Twalk", 0, 1, ("private", "f"))[0]) == 1
    assert len(bob.ask("Twalk", 0, 1, ("listed", "f"))[0]) == 1
    assert len(bob.ask("Twalk", 0, 1, ("private", ".."))[0]) == 1
    bob.ask("Twalk", 0, 1, ("private",))
    refused(bob, EACCES, "Twalk", 1, 2, ("f",))
    bob.open(3, "search/f")
    refused(bob, EACCES, "Tlopen", 1, os.O_RDONLY)


def test_opening_needs_the_bits_for_what_it_is_opened_for(shared):
    bob = as_user(shared, BOB)
    bob.ask("Twalk", 0, 1, ("search", "f"))
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        refused(bob, EACCES, "Tlopen", 1, flags)
    bob.ask("Tlopen", 1, os.O_RDONLY)
    bob.ask("Twalk", 0, 2, ("group",))
    refused(bob, EACCES, "Tlopen", 2, os.O_RDONLY)
    as_user(shared, Caller(7, 7, frozenset({50}))).open(1, "group")
    bob.ask("Twalk", 0, 3, ("search",))
    refused(bob, EACCES, "Tlopen", 3, os.O_RDONLY)


def test_names_change_only_where_the_directory_may_be_written(shared):
    bob = as_user(shared, BOB)
    bob.ask("Twalk", 0, 1, ("search",))
    bob.ask("Twalk", 0, 2, ("search", "f"))
    bob.ask("Twalk", 0, 3, ("search",))
    for request in (
        ("Tlcreate", 3, "new", 1, 0o644, 0),
        ("Tlcreate", 3, "f", 1, 0o644, 0),
        ("Tmkdir", 1, "d", 0o755, 0),
        ("Tsymlink", 1, "l", "t", 0),
        ("Tmknod", 1, "p", stat.S_IFIFO, 0, 0, 0),
        ("Tlink", 1, 2, "hard"),
        ("Tunlinkat", 1, "f", 0),
        ("Trenameat", 1, "f", 0, "stolen"),
        ("Trename", 2, 0, "stolen"),
        ("Tremove", 2),
    ):
        refused(bob, EACCES, *request)


def test_a_sticky_directory_protects_other_people_s_files(shared):
    bob, alice = as_user(shared, BOB), as_user(shared, ALICE)
    bob.make("sticky/bobs", b"", 0o644)
    bob.ask("Twalk", 0, 1, ("sticky",))
    refused(bob, EPERM, "Tunlinkat", 1, "f", 0)
    refused(bob, EPERM, "Trenameat", 1, "f", 1, "g")
    refused(bob, EPERM, "Trenameat", 1, "bobs", 1, "f")
    bob.ask("Trenameat", 1, "bobs", 1, "fine")
    alice.ask("Twalk", 0, 1, ("sticky",))
    alice.ask("Tunlinkat", 1, "fine", 0)  # the directory is hers
    alice.ask("Tunlinkat", 1, "f", 0)


def test_moving_a_directory_to_another_needs_writing_the_directory_itself(tree):
    as_user(tree, ALICE).ask("Tmkdir", 0, "d", 0o755, 1000)
    bob = as_user(tree, BOB)
    bob.ask("Tmkdir", 0, "into", 0o755, 1001)
    bob.ask("Twalk", 0, 1, ("into",))
    refused(bob, EACCES, "Trenameat", 0, "d", 1, "d")
    bob.ask("Trenameat", 0, "d", 0, "e")  # same parent: only a name changes


def test_files_belong_to_who_attached(tree):
    alice = as_user(tree, ALICE)
    for name, asked, given in (("own", 1000, 1000), ("group", 50, 50), ("foreign", 7, 1000), ("root", 0, 1000)):
        alice.ask("Tmkdir", 0, name, 0o755, asked)
        alice.ask("Twalk", 0, 1, (name,))
        assert alice.ask("Tgetattr", 1, 0)[3:5] == (1000, given)
        alice.ask("Tclunk", 1)
    root = as_user(tree, ROOT)
    root.ask("Tmkdir", 0, "r", 0o755, 33)
    root.ask("Twalk", 0, 1, ("r",))
    assert root.ask("Tgetattr", 1, 0)[3:5] == (0, 33)


def test_attributes_are_the_owner_s_to_change(shared):
    bob, alice = as_user(shared, BOB), as_user(shared, ALICE)
    for wire in (bob, alice):
        wire.ask("Twalk", 0, 1, ("search", "f"))
    for request in (
        setattr_(bob, 1, 0x1, 0o777),
        setattr_(bob, 1, 0x2, uid=1001),
        setattr_(bob, 1, 0x4, gid=1001),
        setattr_(bob, 1, 0x90, atime=(1, 1)),
    ):
        refused(bob, EPERM, *request)
    refused(bob, EACCES, *setattr_(bob, 1, 0x8, size=0))
    refused(bob, EPERM, *setattr_(bob, 1, 0x30))
    refused(alice, EPERM, *setattr_(alice, 1, 0x2, uid=0))
    refused(alice, EPERM, *setattr_(alice, 1, 0x4, gid=0))
    alice.ask(*setattr_(alice, 1, 0x4, gid=50))
    alice.ask(*setattr_(alice, 1, 0x1, 0o666))
    bob.ask(*setattr_(bob, 1, 0x30))  # "now" is for every writer
    refused(bob, EPERM, *setattr_(bob, 1, 0x30 | 0x80, atime=(1, 1)))
    bob.ask(*setattr_(bob, 1, 0x8, size=1))


def test_a_file_open_for_writing_is_truncated_whatever_its_mode_became(shared):
    alice, bob = as_user(shared, ALICE), as_user(shared, BOB)
    alice.ask("Twalk", 0, 1, ("search", "f"))
    alice.ask(*setattr_(alice, 1, 0x1, 0o666))
    bob.open(1, "search/f", os.O_WRONLY)
    bob.open(2, "search/f", os.O_RDONLY)
    alice.ask(*setattr_(alice, 1, 0x1, 0o600))
    bob.ask(*setattr_(bob, 1, 0x8, size=3))
    refused(bob, EACCES, *setattr_(bob, 2, 0x8, size=1))


def test_only_root_makes_devices(tree):
    alice = as_user(tree, ALICE)
    refused(alice, EPERM, "Tmknod", 0, "null", stat.S_IFCHR | 0o666, 1, 3, 0)
    refused(alice, EPERM, "Tmknod", 0, "disk", stat.S_IFBLK | 0o666, 8, 0, 0)
    alice.ask("Tmknod", 0, "fifo", stat.S_IFIFO | 0o666, 0, 0, 0)


def test_extended_attributes_have_the_rules_of_their_class(shared):
    bob, alice = as_user(shared, BOB), as_user(shared, ALICE)
    for wire in (bob, alice):
        wire.ask("Twalk", 0, 1, ("search", "f"))
        wire.ask("Twalk", 0, 2, ("group",))
    refused(bob, EACCES, "Txattrcreate", 1, "user.a", 1, 0)
    refused(bob, ENODATA, "Txattrwalk", 1, 9, "user.a")
    refused(bob, EACCES, "Txattrwalk", 2, 9, "user.a")
    for name in ("trusted.a", "security.a"):
        refused(alice, EPERM, "Txattrcreate", 1, name, 1, 0)
    refused(alice, EPERM, "Txattrwalk", 1, 9, "trusted.a")
    refused(bob, EPERM, "Txattrcreate", 1, "system.posix_acl_access", 1, 0)
    alice.ask("Txattrcreate", 1, "user.a", 1, 0)


# Frames


def test_a_message_of_no_request_is_answered_so(wire):
    for number in (0, 6, 7, 98, 106, 107, 119, 255):
        frame = (7).to_bytes(4, "little") + bytes([number, 5, 0])
        assert wire.send(frame) == [("Rlerror", 5, (EOPNOTSUPP,))]


def test_a_malformed_message_is_an_error_and_the_connection_goes_on(wire):
    for golden in GOLDEN:
        if golden.name[0] == "T":
            for body in (golden.frame[7:-1], golden.frame[7:] + b"\0"):
                if golden.name == "Tversion":
                    continue
                frame = (7 + len(body)).to_bytes(4, "little") + golden.frame[4:7] + body
                assert wire.send(frame) == [("Rlerror", golden.tag, (EPROTO,))], golden.name
    wire.ask("Tgetattr", 0, 0)


@pytest.mark.parametrize("size", [0, 6, 65537, 0xFFFFFFFF])
def test_a_frame_of_impossible_size_ends_the_connection(wire, size):
    with pytest.raises(ProtocolError):
        wire.send(size.to_bytes(4, "little") + bytes(3))


def test_frames_may_come_in_any_pieces(tree):
    frames = [
        encode("Tversion", NOTAG, 8192, "9P2000.L"),
        encode("Tattach", 1, 0, 0, "", "/", 0),
        encode("Tmkdir", 2, 0, "d", 0o755, 0),
        encode("Twalk", 3, 0, 1, ("d",)),
        encode("Tlcreate", 4, 1, "f", 2, 0o644, 0),
        encode("Twrite", 5, 1, 0, b"x" * 1000),
        encode("Tread", 6, 1, 0, 500),
        encode("Tclunk", 7, 1),
    ]
    stream = b"".join(frames)
    answers = []
    for step in (len(stream), 1, 2, 7, 100):
        wire = Wire(MemoryTree(label="same").root)
        buffer, at, out = bytearray(stream), 0, b""
        for end in [*range(step, len(stream), step), len(stream)]:
            at = wire.session.process(buffer, at, end)
            out += b"".join(wire.session.out)
            wire.session.sent(wire.session.out_size)
        assert at == len(stream)
        answers.append([(name, tag) for name, tag, _ in _split(out)])
    assert answers == [answers[0]] * len(answers)
    assert [name for name, _ in answers[0]] == [
        "Rversion", "Rattach", "Rmkdir", "Rwalk", "Rlcreate", "Rwrite", "Rread", "Rclunk",
    ]  # fmt: skip


def _split(data):
    while data:
        size = int.from_bytes(data[:4], "little")
        yield decode(data[:size])
        data = data[size:]


def test_much_unsent_output_stops_the_processing_until_it_is_sent(wire):
    wire.make("f", b"x" * 60_000)
    wire.open(1, "f")
    frames = bytearray(encode("Tread", 1, 1, 0, 60_000) * 10)
    at = wire.session.process(frames, 0, len(frames))
    assert at == 2 * 23
    assert wire.session.process(frames, at, len(frames)) == at
    wire.session.sent(wire.session.out_size)
    assert wire.session.process(frames, at, len(frames)) == 4 * 23


@pytest.mark.parametrize("step", [1, 5, 11, 30_000, 60_011, 100_000])
def test_output_taken_in_any_pieces_is_the_same(wire, step):
    wire.make("f", os.urandom(60_000))
    wire.open(1, "f")
    frames = bytearray(encode("Tread", 1, 1, 0, 60_000) + encode("Tgetattr", 2, 1, 0))
    wire.session.process(frames, 0, len(frames))
    whole = b"".join(wire.session.out)
    taken = b""
    while wire.session.out_size:
        piece = b"".join(wire.session.out)[:step]
        taken += piece
        wire.session.sent(len(piece))
    assert taken == whole
    assert wire.session.out == []


def test_a_bug_in_a_node_is_an_io_error_and_not_the_end(wire, monkeypatch):
    class Broken(Node):
        id = 9

        async def stat(self):
            raise ZeroDivisionError

    logged = []
    monkeypatch.setattr("vfs.errors.log", lambda *words, **facts: logged.append(facts))
    wire = Wire(Dir({"b": Broken()}, mode=0o755, id=5)).attach()
    refused(wire, EIO, "Twalk", 0, 1, ("b",))
    assert "ZeroDivisionError" in logged[0]["traceback"]
    wire.ask("Tgetattr", 0, 0)


def test_qids_do_not_change_with_the_file(wire):
    wire.make("f", b"x")
    wire.ask("Twalk", 0, 1, ("f",))
    before = wire.ask("Tgetattr", 1, 0)[1]
    wire.open(2, "f", os.O_WRONLY)
    wire.ask("Twrite", 2, 0, b"changed")
    assert wire.ask("Tgetattr", 1, 0)[1] == before
    assert qid_parts(before)[1] == 0


@pytest.mark.parametrize("errno", [-2, 0, 1 << 40, None])
def test_an_error_without_a_usable_number_is_an_io_error(errno, monkeypatch):
    class Odd(Node):
        id = 9

        async def stat(self):
            raise OSError(errno, "odd") if errno is not None else OSError("odd")

    monkeypatch.setattr("vfs.errors.log", lambda *words, **facts: None)
    wire = Wire(Dir({"odd": Odd()}, mode=0o755, id=5)).attach()
    refused(wire, EIO, "Twalk", 0, 1, ("odd",))


def test_attributes_that_no_reply_can_hold_are_an_io_error(monkeypatch):
    class Huge(Node):
        id = 9

        async def stat(self):
            return Stat(stat.S_IFREG | 0o644, st_size=-1)

    monkeypatch.setattr("vfs.errors.log", lambda *words, **facts: None)
    wire = Wire(Dir({"huge": Huge()}, mode=0o755, id=5)).attach()
    wire.ask("Twalk", 0, 1, ("huge",))
    refused(wire, EIO, "Tgetattr", 1, 0)
