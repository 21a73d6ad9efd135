"""vfs.access against the kernel: every mode and every kind of caller, with the system's own answer as control."""

import errno
import os
import stat
from contextlib import contextmanager

import pytest

from vfs.access import EXECUTE, READ, WRITE, check, check_setstat, check_sticky, permitted, wanted
from vfs.node import Caller, SetStat, Stat

OWNER, GROUP = 1000, 50
CALLERS = {
    "owner": Caller(OWNER, 99),
    "group": Caller(2000, GROUP),
    "supplementary": Caller(2000, 99, frozenset({7, GROUP})),
    "owner and group": Caller(OWNER, GROUP),
    "other": Caller(2000, 99, frozenset({7})),
    "root": Caller(0, 0),
}
CASES = pytest.mark.parametrize("who", CALLERS.values(), ids=CALLERS.keys())
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users")


@contextmanager
def acting(who):
    """Make the whole process act as `who` for file access."""
    groups = os.getgroups()
    os.setgroups(sorted(who.groups))
    os.setegid(who.gid)
    os.seteuid(who.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def place():
    """A directory that every user can reach, unlike those of pytest."""
    path = f"/dev/shm/wanixfs-access-{os.getpid()}"
    os.mkdir(path)
    os.chmod(path, 0o777)
    yield path
    for name in os.listdir(path):
        (os.rmdir if os.path.isdir(f"{path}/{name}") else os.unlink)(f"{path}/{name}")
    os.rmdir(path)


def attempt(call, *args):
    """Return the name of the errno that a call fails with, or None."""
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


@AS_ROOT
@CASES
def test_every_mode_means_what_it_means_to_the_kernel(place, who):
    paths = (f"{place}/file", f"{place}/dir")
    os.close(os.open(paths[0], os.O_CREAT))
    os.mkdir(paths[1])
    wants = {READ: os.R_OK, WRITE: os.W_OK, EXECUTE: os.X_OK, READ | WRITE: os.R_OK | os.W_OK, 7: 7}
    for path in paths:
        os.chown(path, OWNER, GROUP)
        for mode in range(0o1000):
            os.chmod(path, mode)
            st = os.stat(path)
            with acting(who):
                system = {want: os.access(path, bits, effective_ids=True) for want, bits in wants.items()}
            assert {want: permitted(st, who, want) for want in wants} == system, (path, oct(mode))


@AS_ROOT
@CASES
def test_changes_of_attributes_are_allowed_as_the_kernel_allows_them(place, who):
    path = f"{place}/file"
    changes = [
        (SetStat(mode=0o600), lambda: os.chmod(path, 0o600)),
        (SetStat(uid=OWNER), lambda: os.chown(path, OWNER, -1)),
        (SetStat(uid=2000), lambda: os.chown(path, 2000, -1)),
        (SetStat(uid=0, gid=0), lambda: os.chown(path, 0, 0)),
        *((SetStat(gid=gid), lambda gid=gid: os.chown(path, -1, gid)) for gid in (GROUP, 99, 7, 0)),
        (SetStat(size=0), lambda: os.truncate(path, 0)),
        (SetStat(mtime_ns=5, atime_ns=5), lambda: os.utime(path, ns=(5, 5))),
    ]
    for mode in (0o600, 0o666, 0o000):
        for change, act in changes:
            with open(path, "w"):
                os.chown(path, OWNER, GROUP)
                os.chmod(path, mode)
            st = os.stat(path)
            with acting(who):
                system = attempt(act)
            assert attempt(check_setstat, st, who, change) == system, (oct(mode), change)
            os.unlink(path)


@AS_ROOT
@CASES
def test_a_sticky_directory_keeps_files_as_the_kernel_does(place, who):
    directory, path = f"{place}/dir", f"{place}/dir/file"
    for mode in (0o1777, 0o777):
        for directory_owner in (OWNER, 3000):
            for file_owner in (OWNER, 3000):
                os.mkdir(directory)
                os.chmod(directory, mode)
                os.chown(directory, directory_owner, 0)
                os.close(os.open(path, os.O_CREAT))
                os.chown(path, file_owner, 0)
                parent, victim = os.stat(directory), os.stat(path)
                with acting(who):
                    system = attempt(os.unlink, path)
                assert attempt(check_sticky, parent, victim, who) == system
                if system:
                    os.unlink(path)
                os.rmdir(directory)


def test_open_flags_ask_for_what_they_do():
    assert wanted(os.O_RDONLY) == READ
    assert wanted(os.O_WRONLY) == WRITE
    assert wanted(os.O_RDWR) == READ | WRITE
    assert wanted(os.O_RDONLY | os.O_TRUNC) == READ | WRITE
    assert wanted(os.O_ACCMODE) == 0


def test_check_raises_eacces_and_only_where_not_permitted():
    st = Stat(stat.S_IFREG | 0o640, st_uid=OWNER, st_gid=GROUP)
    check(st, CALLERS["group"], READ)
    assert attempt(check, st, CALLERS["group"], WRITE) == "EACCES"
    assert attempt(check, st, CALLERS["other"], READ) == "EACCES"
