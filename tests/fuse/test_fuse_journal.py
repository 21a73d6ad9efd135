"""The journal of a mount: what is written is there for the next server, whatever happened in between."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfs.fuse.journal import Agreed, Journal, Name, Opened


def test_the_next_reader_finds_what_is_alive(tmp_path: Path):
    first = Journal(tmp_path / "j")
    first.agree(Agreed(45, 7 << 36))
    first.named(10, 1, b"a")
    first.named(11, 10, b"b\xff\n")
    first.named(12, 1, b"gone")
    first.forgotten(12)
    first.named(10, 1, b"renamed")
    first.opened(5, Opened(11, 0o2, -1))
    first.opened(6, Opened(11, 0, 3))
    first.released(5)
    second = Journal(tmp_path / "j")  # the first was never closed: its process was killed
    assert second.agreed == (45, 7 << 36)
    assert second.names == {10: Name(1, b"renamed"), 11: Name(10, b"b\xff\n")}
    assert second.files == {6: Opened(11, 0, 3)}
    first.close()
    second.close()


def test_it_grows_with_what_is_alive_and_shrinks_again(tmp_path: Path):
    journal = Journal(tmp_path / "j")
    for number in range(2, 20_000):
        journal.named(number, 1, b"a rather long name %d" % number)
    large = (tmp_path / "j").stat().st_size
    assert large < 20_000 * 60 * 4
    for number in range(2, 20_000):
        journal.forgotten(number)
    for number in range(50_000):
        journal.named(1_000_000 + number, 1, b"short lived")
        journal.forgotten(1_000_000 + number)
    assert (tmp_path / "j").stat().st_size == 1 << 16
    assert not Journal(tmp_path / "j").names
    journal.close()


def test_a_new_agreement_drops_what_was_before(tmp_path: Path):
    journal = Journal(tmp_path / "j")
    journal.named(10, 1, b"a")
    journal.opened(5, Opened(10, 0, 0))
    journal.agree(Agreed(31, 1))
    again = Journal(tmp_path / "j")
    assert (again.names, again.files, again.agreed) == ({}, {}, Agreed(31, 1))
    again.close()
    journal.close()


def test_only_its_owner_can_read_it(tmp_path: Path):
    journal = Journal(tmp_path / "j")
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o600
    journal.close()


@pytest.mark.parametrize("content", [b"", b"something else\n", b"wanixfs fuse journal 1"])
def test_a_file_that_is_no_journal_counts_as_empty(tmp_path: Path, content: bytes):
    (tmp_path / "j").write_bytes(content)
    journal = Journal(tmp_path / "j")
    assert (journal.names, journal.files, journal.agreed) == ({}, {}, None)
    journal.close()


@settings(max_examples=100)
@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(23, 400), st.integers(0, 255)), max_size=3))
def test_a_damaged_journal_is_read_as_far_as_it_makes_sense(tmp_path_factory, cut: int, flips):
    path = tmp_path_factory.mktemp("journal") / "j"
    journal = Journal(path)
    journal.agree(Agreed(45, 1))
    for number in range(10, 20):
        journal.named(number, 1, b"name")
    journal.close()
    data = bytearray(path.read_bytes()[:cut])
    for at, value in flips:
        if at < len(data):
            data[at] = value
    path.write_bytes(data)
    damaged = Journal(path)
    assert len(damaged.names) <= 13
    damaged.close()
