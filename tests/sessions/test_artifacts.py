"""What turns leave behind is copied where no agent can change it, whatever a hostile home holds."""

import os
import time

import trio
from sessions_node import linux_node

from tasks.sessions.artifacts import MAX_FILES, collect


def run(home, into, since=0.0):
    return collect(home, into, since=since)


def test_files_are_copied_with_their_folders_and_can_only_be_read(tmp_path):
    home, into = tmp_path / "home", tmp_path / "kept"
    (home / "artifacts/deep").mkdir(parents=True)
    (home / "artifacts/a").write_bytes(b"x" * 100_000)
    (home / "artifacts/deep/b").write_bytes(b"b")
    assert run(home, into) == (2, "")
    assert (into / "a").read_bytes() == b"x" * 100_000 and (into / "deep/b").read_bytes() == b"b"
    assert (into / "a").stat().st_mode & 0o777 == 0o444


def test_links_pipes_and_old_files_are_passed_over(tmp_path):
    home, into = tmp_path / "home", tmp_path / "kept"
    (home / "artifacts").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    os.symlink(tmp_path / "outside/secret", home / "artifacts/link")
    os.symlink(tmp_path / "outside", home / "artifacts/folder")
    os.mkfifo(home / "artifacts/pipe")
    assert run(home, into) == (0, "")
    (home / "artifacts/old").write_text("old")
    assert run(home, into, since=time.time() + 10) == (0, "")
    assert not into.exists()


def test_artifacts_that_is_a_link_is_nothing(tmp_path):
    home, into = tmp_path / "home", tmp_path / "kept"
    home.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    os.symlink(tmp_path / "outside", home / "artifacts")
    assert run(home, into) == (0, "")


def test_what_is_too_much_is_named(tmp_path):
    home, into = tmp_path / "home", tmp_path / "kept"
    (home / "artifacts").mkdir(parents=True)
    for number in range(MAX_FILES + 1):
        (home / f"artifacts/{number}").touch()
    count, left = run(home, into)
    assert count == MAX_FILES and left


def test_a_turn_leaves_its_own_and_a_session_takes_them_along_when_it_is_removed(tmp_path):
    async def main():
        async with linux_node(tmp_path) as node:
            await node.sessions.open("a", run=("/bin/sh",))
            make = "mkdir -p ../artifacts; echo $RANDOM{} >../artifacts/{}"
            turns = [await node.ended(node.sessions.prompt("a", make.format(name, name))) for name in ("one", "two")]
            kept = node.sessions.artifacts("a")
            assert [turn.reason for turn in turns] == ["", ""]
            assert [os.listdir(kept / str(turn.id)) for turn in turns] == [["one"], ["two"]]
            await node.sessions.remove("a")
            assert not kept.exists()

    trio.run(main)
