"""A session's home is its own: no other session's user can read it, whatever is bound for it."""

import os

import pytest
import trio
from sessions_node import linux_node

from tasks.sessions.home import WORK
from tasks.sessions.states import TurnState

pytestmark = pytest.mark.root


def test_no_session_can_read_anothers_home_even_where_it_is_bound(tmp_path):
    async def main():
        async with linux_node(tmp_path) as node:
            homes = tmp_path / "state/homes"
            for name, other in ("ab", "ba"):
                bind = f"bind #host{homes}/session.{other} /other"
                await node.sessions.open(name, run=("/bin/sh",), binds=(bind,) if name == "b" else ())
                told = await node.ended(node.sessions.prompt(name, f"echo secret-{name} >$HOME/work/kept"))
                assert told.state is TurnState.COMPLETED, told
            await node.sessions.open("a", binds=(f"bind #host{homes}/session.b /other",))
            for name in "ab":
                look = f"cat /other/{WORK}/kept; ls /other; ls /home; cat /home/pw-{name}/{WORK}/kept; id -u"
                seen = await node.ended(node.sessions.prompt(name, look))
                uid = node.sessions.get(name).user.uid
                assert seen.output.split() == [f"pw-{name}", f"secret-{name}", str(uid)]
                log = [row.shown()["text"] for row in node.chronicle.since(0, name, 1000) if row.kind == "log"]
                assert log[-1].count("Permission denied") == 2

    trio.run(main)


def test_homes_are_private_and_users_differ(tmp_path):
    async def main():
        async with linux_node(tmp_path) as node:
            users = [(await node.sessions.open(name, run=("/bin/sh",))).user for name in "ab"]
            assert len({user.uid for user in users}) == 2
            for user in users:
                home = node.house.homes.path(user).stat()
                assert (home.st_mode & 0o7777, home.st_uid) == (0o700, user.uid)
            await node.sessions.remove("a")
            assert not node.house.homes.path(users[0]).exists()

    trio.run(main)


def test_a_folder_bound_live_is_the_sessions_own_inside_and_its_owners_outside(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir(mode=0o700)
    (folder / "there").write_text("before\n")
    for path in (folder, folder / "there"):
        os.chown(path, 4321, 4321)

    async def main():
        async with linux_node(tmp_path) as node:
            await node.sessions.open("s", run=("/bin/sh",), folder=str(folder), live=True)
            told = await node.ended(node.sessions.prompt("s", "cat there; stat -c %u . there; echo made >made"))
            assert told.state is TurnState.COMPLETED, told
            uid = str(node.sessions.get("s").user.uid)
            assert told.output.split() == ["before", uid, uid]
            made = (folder / "made").stat()
            assert (made.st_uid, made.st_gid, (folder / "made").read_text()) == (4321, 4321, "made\n")

    trio.run(main)
