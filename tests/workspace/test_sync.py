"""Two folders are brought in step: real files, both ways, and what must never be lost."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.workspace import __main__ as program
from tasks.workspace.manifest import load
from tasks.workspace.passes import sync
from tasks.workspace.side import Changed, Side
from tasks.workspace.workspace import Workspace


class Folders:
    """A host's folder and a session's, and their record."""

    def __init__(self, top):
        self.host, self.work, self.record = top / "host", top / "work", top / "record"
        self.host.mkdir()
        self.work.mkdir()

    def sync(self, owner=None):
        left, right = Side(self.host), Side(self.work, owner)
        try:
            return sync(left, right, self.record, lambda progress: None)
        finally:
            left.close()
            right.close()

    def both(self):
        """Return what both folders hold: they must be the same."""
        host, work = contents(self.host), contents(self.work)
        assert host == work
        return host


def contents(top):
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        else:
            found[name] = None if path.is_dir() else path.read_text()
    return found


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_first_sync_merges_both_folders(folders):
    write(folders.host / "src/a.c", "a")
    write(folders.work / "notes", "n")
    (folders.host / "link").symlink_to("src/a.c")
    report = folders.sync()
    assert folders.both() == {"link": "-> src/a.c", "notes": "n", "src": None, "src/a.c": "a"}
    assert (report.into, report.out, report.removed) == (3, 1, 0)


def test_nothing_is_done_when_nothing_changed(folders):
    write(folders.host / "a", "a")
    folders.sync()
    report = folders.sync()
    assert (report.into, report.out, report.removed, report.conflicts) == (0, 0, 0, [])


def test_changes_go_to_the_other_side(folders):
    write(folders.host / "a", "1")
    write(folders.host / "b", "1")
    folders.sync()
    write(folders.host / "a", "22")
    write(folders.work / "b", "33")
    folders.sync()
    assert folders.both() == {"a": "22", "b": "33"}


def test_deletions_go_to_the_other_side(folders):
    for name in ("d/x", "d/y", "e/z"):
        write(folders.host / name, name)
    folders.sync()
    for name in ("d/x", "d/y"):
        (folders.work / name).unlink()
    (folders.work / "d").rmdir()
    (folders.host / "e/z").unlink()
    report = folders.sync()
    assert folders.both() == {"e": None}
    assert report.removed == 4


def test_renamed_file_keeps_its_inode_on_the_other_side(folders):
    write(folders.host / "big", "x" * 100000)
    folders.sync()
    inode = (folders.work / "big").stat().st_ino
    (folders.host / "sub").mkdir()
    (folders.host / "big").rename(folders.host / "sub/large")
    folders.sync()
    assert folders.both() == {"sub": None, "sub/large": "x" * 100000}
    assert (folders.work / "sub/large").stat().st_ino == inode


def test_modes_and_times_go_along(folders):
    write(folders.host / "run", "#!/bin/sh")
    (folders.host / "run").chmod(0o755)
    os.utime(folders.host / "run", ns=(1, 123456789))
    (folders.host / "closed").mkdir(mode=0o700)
    folders.sync()
    status = (folders.work / "run").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o755, 123456789)
    (folders.work / "run").chmod(0o644)
    (folders.work / "closed").chmod(0o750)
    folders.sync()
    assert stat.S_IMODE((folders.host / "run").stat().st_mode) == 0o644
    assert stat.S_IMODE((folders.host / "closed").stat().st_mode) == 0o750


def test_setuid_bit_is_not_copied(folders):
    write(folders.work / "tool", "x")
    (folders.work / "tool").chmod(0o4755)
    folders.sync()
    assert stat.S_IMODE((folders.host / "tool").stat().st_mode) == 0o755


def test_conflict_keeps_both_versions(folders):
    write(folders.host / "doc.txt", "one")
    folders.sync()
    write(folders.host / "doc.txt", "the host's")
    write(folders.work / "doc.txt", "the session's")
    (conflict,) = folders.sync().conflicts
    assert conflict.path == "doc.txt" and conflict.kept.startswith("doc.conflict-") and conflict.kept.endswith(".txt")
    assert folders.both() == {"doc.txt": "the host's", conflict.kept: "the session's"}
    assert folders.sync().conflicts == [conflict], "it stays listed"
    (folders.work / conflict.kept).unlink()
    assert folders.sync().conflicts == []
    assert folders.both() == {"doc.txt": "the host's"}


def test_same_change_on_both_sides_is_no_conflict(folders):
    write(folders.host / "a", "1")
    folders.sync()
    write(folders.host / "a", "2")
    write(folders.work / "a", "2")
    assert folders.sync().conflicts == []
    assert folders.sync().into == 0


def test_change_wins_over_deletion_and_is_told(folders):
    write(folders.host / "a", "1")
    write(folders.host / "b", "1")
    folders.sync()
    (folders.host / "a").unlink()
    write(folders.work / "a", "kept")
    (folders.work / "b").unlink()
    write(folders.host / "b", "kept too")
    report = folders.sync()
    assert folders.both() == {"a": "kept", "b": "kept too"}
    assert sorted(each.path for each in report.conflicts) == ["a", "b"]


def test_directory_against_file_keeps_both(folders):
    write(folders.host / "x", "1")
    folders.sync()
    (folders.work / "x").unlink()
    write(folders.work / "x/inner", "new")
    write(folders.host / "x", "changed")
    (conflict,) = folders.sync().conflicts
    assert folders.both() == {"x": "changed", conflict.kept: None, f"{conflict.kept}/inner": "new"}


def test_file_becomes_directory_and_back(folders):
    write(folders.host / "x", "1")
    folders.sync()
    (folders.host / "x").unlink()
    write(folders.host / "x/inner", "new")
    folders.sync()
    assert folders.both() == {"x": None, "x/inner": "new"}
    (folders.work / "x/inner").unlink()
    (folders.work / "x").rmdir()
    write(folders.work / "x", "file again")
    folders.sync()
    assert folders.both() == {"x": "file again"}


def test_change_that_hides_in_size_and_time_is_seen(folders):
    write(folders.host / "a", "one")
    folders.sync()
    before = (folders.work / "a").stat()
    write(folders.work / "a", "two")
    os.utime(folders.work / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    folders.sync()
    assert folders.both() == {"a": "two"}


def test_symlinks_are_never_followed(folders, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    write(secret / "key", "s3cret")
    (folders.work / "out").symlink_to(secret)
    (folders.work / "key").symlink_to(secret / "key")
    report = folders.sync()
    assert contents(folders.host) == {}
    assert set(report.problems) == {"out", "key"}


def test_work_directory_that_is_a_symlink_is_refused(folders, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    write(folders.host / "a", "1")
    folders.work.rmdir()
    folders.work.symlink_to(victim)
    with pytest.raises(NotADirectoryError):
        folders.sync(owner=(os.getuid(), os.getgid()))
    assert list(victim.iterdir()) == []


def test_directory_swapped_for_a_symlink_leads_nowhere(folders, tmp_path):
    """A session that replaces a directory between look and copy does not get the copy written elsewhere."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (folders.work / "d").mkdir()
    side = Side(folders.work)
    source = Side(folders.host)
    write(folders.host / "file", "payload")
    entry = source.look("file")
    fd = source.open("file", entry)
    (folders.work / "d").rmdir()
    (folders.work / "d").symlink_to(victim)
    with pytest.raises(Changed):
        side.put_file("d/file", fd, entry, None)
    os.close(fd)
    side.close()
    source.close()
    assert list(victim.iterdir()) == []


@pytest.mark.parametrize("step", ["replace", "remove"])
def test_file_changed_after_the_look_is_left_alone(folders, step):
    write(folders.work / "a", "seen")
    write(folders.host / "a", "the other")
    side, source = Side(folders.work), Side(folders.host)
    seen, other = side.look("a"), source.look("a")
    write(folders.work / "a", "written meanwhile")
    with pytest.raises(Changed):
        if step == "remove":
            side.remove("a", seen)
        else:
            fd = source.open("a", other)
            try:
                side.put_file("a", fd, other, seen)
            finally:
                os.close(fd)
    assert contents(folders.work) == {"a": "written meanwhile"}
    side.close()
    source.close()


def test_sockets_and_fifos_are_told_not_copied(folders):
    os.mkfifo(folders.work / "pipe")
    write(folders.work / "a", "1")
    report = folders.sync()
    assert contents(folders.host) == {"a": "1"}
    assert list(report.problems) == ["pipe"]


def test_replaced_folder_deletes_nothing(folders, tmp_path):
    """A folder that is not the one of the last sync (an unmounted disk) is merged, its absences are no deletions."""
    write(folders.host / "a", "1")
    folders.sync()
    folders.host.rename(tmp_path / "elsewhere")
    folders.host.mkdir()
    folders.sync()
    assert folders.both() == {"a": "1"}


def test_killed_sync_leaves_nothing_behind(folders):
    write(folders.host / "a", "1")
    write(folders.work / ".wanixfs-sync-0123456789abcdef", "half")
    folders.sync()
    assert folders.both() == {"a": "1"}


def test_names_that_are_not_text_are_synced(folders):
    name = os.fsdecode(b"caf\xe9\n")
    write(folders.host / name, "1")
    folders.sync()
    assert folders.both() == {name: "1"}
    assert folders.sync().into == 0


def test_broken_record_is_no_deletion(folders):
    write(folders.host / "a", "1")
    folders.sync()
    folders.record.write_text('{"version": 1, "left"')
    (folders.work / "a").unlink()
    folders.sync()
    assert folders.both() == {"a": "1"}


@pytest.mark.root
def test_copies_belong_to_the_session_and_back_to_the_folder_owner(folders):
    write(folders.host / "in/a", "1")
    os.chown(folders.host, 1234, 1235)
    folders.sync(owner=(4321, 4322))
    status = (folders.work / "in/a").stat()
    assert (status.st_uid, status.st_gid) == (4321, 4322)
    assert (folders.work / "in").stat().st_uid == 4321
    write(folders.work / "out", "2")
    write(folders.work / "in/a", "changed")
    os.chown(folders.host / "in/a", 77, 78)
    folders.sync(owner=(4321, 4322))
    assert (folders.host / "out").stat().st_uid == 1234
    assert (folders.host / "in/a").stat().st_uid == 77, "who owns a file of the host goes on owning it"


@pytest.mark.root
def test_unreadable_files_are_told_and_what_is_below_stays(folders, tmp_path):
    """As a user who may not read all: what cannot be read is neither copied nor taken for deleted."""
    write(folders.host / "d/a", "1")
    write(folders.host / "b", "1")
    tmp_path.chmod(0o777)
    for path in (folders.host, folders.work, *folders.host.rglob("*")):
        os.chown(path, 1234, 1234)
        path.chmod(0o755)

    def as_user():
        child = os.fork()
        if not child:
            status = 1
            try:
                os.chdir(tmp_path)  # whose parents that user may not search
                folders.host, folders.work, folders.record = map(Path, ("host", "work", "record"))
                os.setresgid(1234, 1234, 1234)
                os.setresuid(1234, 1234, 1234)
                Path("report").write_text(json.dumps(sorted(folders.sync().problems)))
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        return json.loads((tmp_path / "report").read_text())

    assert as_user() == []
    (folders.host / "d").chmod(0)
    write(folders.host / "b", "22")
    os.chown(folders.host / "b", 0, 0)
    (folders.host / "b").chmod(0o600)
    assert as_user() == ["b", "d"]
    assert contents(folders.work) == {"b": "1", "d": None, "d/a": "1"}


class Restless(threading.Thread):
    """A session that, while a sync runs, swaps a directory for a symlink that leads out and back, again and again."""

    def __init__(self, work, victim):
        super().__init__()
        self._work = work
        self._victim = victim
        self._enough = threading.Event()
        self.swaps = 0

    def run(self):
        place, aside, trap = self._work / "d", self._work / "aside", self._work / "trap"
        trap.symlink_to(self._victim)
        while not self._enough.is_set():
            for one, other in ((place, aside), (trap, place), (place, trap), (aside, place)):
                with suppress(FileNotFoundError, NotADirectoryError, FileExistsError, OSError):
                    one.rename(other)
            self.swaps += 1

    def stop(self):
        self._enough.set()
        self.join()


def test_nothing_is_written_elsewhere_while_directories_are_swapped(folders, tmp_path):
    victim = tmp_path / "victim"
    write(victim / "3", "precious")
    (folders.work / "d").mkdir()
    session = Restless(folders.work, victim)
    session.start()
    try:
        for turn in range(30):
            for number in range(20):
                write(folders.host / f"d/{number}", f"{turn}.{number}")
            folders.sync()
    finally:
        session.stop()
    assert session.swaps > 100
    assert contents(victim) == {"3": "precious"}
    assert "precious" not in contents(folders.host).values(), "nor read"


NAMES = ["a", "b", "d/a", "d/b", "d/e/a", "x"]
ACTS = st.lists(
    st.tuples(st.sampled_from(["host", "work"]), st.sampled_from(["write", "remove", "move"]), st.sampled_from(NAMES)),
    max_size=6,
)


def act(top, what, name, text):
    path = top / name
    with suppress(OSError):
        if what == "write":
            write(path, text)
        elif what == "move":
            path.rename(top / "moved")
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@settings(max_examples=60)
@given(st.lists(ACTS, min_size=1, max_size=4))
def test_whatever_was_done_both_sides_end_alike_and_no_text_is_lost(rounds):
    """A text that one side wrote and neither removed or wrote over is on both sides afterwards, somewhere."""
    with tempfile.TemporaryDirectory() as name:
        folders = Folders(Path(name))
        count = 0
        for acts in rounds:
            before = contents(folders.host)
            for side, what, path in acts:
                count += 1
                act(getattr(folders, side), what, path, f"text {count}")
            here, there = contents(folders.host), contents(folders.work)
            folders.sync()
            after = folders.both()
            new = {text for text in (*here.values(), *there.values()) if text not in before.values()}
            assert new <= set(after.values())
            assert (folders.sync().into, folders.both()) == (0, after), "the next sync has nothing to do"


@pytest.mark.parametrize("after", [0.02, 0.05, 0.1, 0.2])
def test_killed_anywhere_the_next_sync_completes_it(folders, after):
    for number in range(1500):
        write(folders.host / f"{number % 11}/{number}", str(number))
    write(folders.work / "mine", "1")
    words = [folders.host, folders.work, folders.record, os.getuid(), os.getgid()]
    with subprocess.Popen([sys.executable, "-I", "-S", program.__file__, *map(str, words)], stdout=-3) as child:
        with suppress(subprocess.TimeoutExpired):
            child.wait(after)
        child.kill()
    folders.sync()
    assert len(folders.both()) == 1512
    assert folders.sync().into == 0


def test_program_reports_and_tells_of_progress(folders):
    for number in range(300):
        write(folders.host / f"{number % 7}/{number}", str(number))

    async def main():
        workspace = Workspace(
            folder=folders.host, work=folders.work, record=folders.record, uid=os.getuid(), gid=os.getgid()
        )
        report = await workspace.sync()
        assert report.into == 307
        assert workspace.conflicts() == []
        write(folders.work / "0/0", "mine")
        write(folders.host / "0/0", "yours")
        (conflict,) = (await workspace.sync()).conflicts
        assert workspace.conflicts() == [conflict]

    trio.run(main)
    assert len(folders.both()) == 308


def test_missing_folder_is_an_error_and_changes_nothing(folders, tmp_path):
    write(folders.work / "a", "1")

    async def main():
        workspace = Workspace(
            folder=tmp_path / "nowhere", work=folders.work, record=folders.record, uid=os.getuid(), gid=os.getgid()
        )
        with pytest.raises(FileNotFoundError):
            await workspace.sync()

    trio.run(main)
    assert contents(folders.work) == {"a": "1"}


def test_record_remembers_what_is_in_step(folders):
    write(folders.host / "a", "1")
    folders.sync()
    assert list(load(folders.record).base) == ["a"]
    assert time.time_ns() > load(folders.record).base["a"].left.mtime
