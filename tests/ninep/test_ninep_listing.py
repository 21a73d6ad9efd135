"""Listings that are kept: when one may be given again, and when it may not."""

import os
import time

import pytest
from ninepkit import Wire

from vfs.host import HostTree
from vfs.ninep import listing
from vfs.ninep.listing import Listings
from vfs.node import DirEntry, Node, Stat


class Steady(Node):
    """A directory that says it is steady, and counts how often it is listed."""

    steady = True

    def __init__(self, id, names, mtime_ns=0, size=10):
        self.id = id
        self.names = names
        self.times = mtime_ns
        self.size = size
        self.listed = 0

    async def stat(self):
        return Stat(0o040755, self.id, st_size=self.size, st_mtime_ns=self.times)

    async def readdir(self, who):
        self.listed += 1
        return [DirEntry(name, number, 0o100000) for number, name in enumerate(self.names)]


@pytest.fixture
def directory():
    return Steady(5, ["a", "b"])


def names(root, listings=None):
    wire = Wire(root, listings=listings or Listings()).attach()
    wire.open(1, "")
    return wire.names(1)


def test_an_unchanged_directory_is_listed_once_for_all_connections(directory):
    listings = Listings()
    for _ in range(3):
        assert names(directory, listings) == [".", "..", "a", "b"]
    assert directory.listed == 1


def test_a_change_shows_at_once(directory):
    listings = Listings()
    names(directory, listings)
    directory.names.append("c")
    directory.times += 1
    assert names(directory, listings) == [".", "..", "a", "b", "c"]


def test_a_directory_that_changed_just_now_is_not_kept(directory):
    directory.times = time.time_ns()
    listings = Listings()
    names(directory, listings)
    directory.names.append("c")  # within the same tick of the filesystem's clock
    assert names(directory, listings) == [".", "..", "a", "b", "c"]


def test_a_directory_without_a_size_is_made_on_the_fly_and_not_kept(directory):
    directory.size = 0
    listings = Listings()
    names(directory, listings)
    names(directory, listings)
    assert directory.listed == 2


def test_a_directory_that_promises_nothing_is_not_kept(directory):
    directory.__class__ = type("Unsteady", (Steady,), {"steady": False})
    listings = Listings()
    names(directory, listings)
    names(directory, listings)
    assert directory.listed == 2


def test_only_so_much_is_kept_and_the_longest_unused_goes_first(monkeypatch):
    monkeypatch.setattr(listing, "MAX_KEPT", 600)
    one, two, three = (Steady(number, ["n" * 20]) for number in (11, 12, 13))
    listings = Listings()
    for directory in (one, two, one, three, one, two):
        names(directory, listings)
    assert (one.listed, two.listed, three.listed) == (1, 2, 1)
    assert 0 < listings._bytes <= 600


def test_a_host_directory_shows_every_change_between_two_listings(tmp_path):
    root = HostTree(tmp_path, label="h").root
    listings = Listings()
    for number in range(5):
        (tmp_path / f"f{number}").touch()
        old = time.time_ns() - 10**10 + number  # as if the change lay long back
        os.utime(tmp_path, ns=(old, old))
        for _ in range(2):
            assert sorted(names(root, listings)) == sorted([".", "..", *os.listdir(tmp_path)])
    (tmp_path / "f0").rename(tmp_path / "g0")
    assert "g0" in names(root, listings)
