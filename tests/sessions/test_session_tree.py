"""`/sessions`: what a session is and has done as files, to the administrator whole, to its own tasks to read."""

import json
import os
from contextlib import asynccontextmanager
from errno import E2BIG, EACCES, EBUSY, EINVAL, ENOENT

import pytest
import trio
from sessions_node import SECONDS, node

from tasks.sessions.model import MAX_MESSAGE
from vfs.access import READ, WRITE, check
from vfs.node import ROOT, Caller
from vfs.walk import open_path, walk

SCRIPT = "bind #task /task\nbind #sessions /sessions\n"
SENSELESS = (
    "open A",
    "open a model",
    "open a nonsense 1",
    "open a agent x run y",
    "open a thinking enormously",
    "open a parallel 0",
    "open a bind x",
    "open a timeout -1",
    "fly a",
)


class Files:
    """The shell's verbs on one view's tree."""

    def __init__(self, root, who=ROOT):
        self.root = root
        self.who = who

    async def cat(self, path):
        _, handle = await open_path(self.root, path, os.O_RDONLY, self.who)
        try:
            data = b""
            while piece := await handle.read(65536, len(data)):
                data += piece
            return data.decode()
        finally:
            handle.close()

    async def echo(self, text, path):
        _, handle = await open_path(self.root, path, os.O_WRONLY, self.who)
        try:
            data = text.encode() + b"\n"
            for at in range(0, len(data), 32768):
                await handle.write(data[at : at + 32768], at)
            await handle.flush()
        finally:
            handle.close()

    async def ls(self, path):
        return [entry.name for entry in await (await walk(self.root, path, self.who)).readdir(self.who)]


@asynccontextmanager
async def served(tmp_path, **options):
    async with node(tmp_path, script=SCRIPT, **options) as one:
        yield one, Files(one.house.views.admin.namespace.root)


def run(test, tmp_path):
    async def main():
        async with served(tmp_path) as (one, files):
            with trio.fail_after(SECONDS):
                await test(one, files)

    trio.run(main)


async def refused(errno, awaitable):
    with pytest.raises(OSError) as info:
        await awaitable
    assert info.value.errno == errno, info.value


async def worked_off(one, text=b"the answer"):
    """Let the run that waits answer and end."""
    task = await one.started(len(one.driver.tasks) + len(one.driver.forgotten) or 1)
    one.driver.write(task, 1, text)
    one.driver.finish(task, 0)


def test_a_session_is_made_asked_and_read_with_files_alone(tmp_path):
    async def test(one, files):
        await files.echo("open a run /bin/cat model m thinking low", "/sessions/ctl")
        assert await files.ls("/sessions") == ["ctl", "active", "events", "a"]
        assert await files.cat("/sessions/a/state") == "ready\n"
        await files.echo("switch a", "/sessions/ctl")
        assert await files.cat("/sessions/active") == "a\n"
        await files.echo("what is it?", "/sessions/a/prompt")
        await worked_off(one)
        await one.until(lambda: one.sessions.turn(1).state.ended)
        assert await files.ls("/sessions/a/history") == ["1"]
        shown = {
            name: await files.cat(f"/sessions/a/history/1/{name}") for name in ("prompt", "output", "state", "exit")
        }
        assert shown == {"prompt": "what is it?\n", "output": "the answer\n", "state": "completed\n", "exit": "0\n"}
        metadata = json.loads(await files.cat("/sessions/a/metadata.json"))
        assert (metadata["id"], metadata["model"], metadata["thinking"]) == ("a", "m", "low")
        said = [(one["role"], one["text"]) for one in json.loads(await files.cat("/sessions/a/conversation.json"))]
        assert said == [("user", "what is it?"), ("assistant", "the answer")]
        (line,) = (await files.cat("/sessions/a/tasks.jsonl")).splitlines()
        assert json.loads(line)["state"] == "completed"
        assert "opened" in await files.cat("/sessions/a/log")

    run(test, tmp_path)


def test_a_prompt_gives_the_id_of_its_task_and_may_be_long(tmp_path):
    async def test(one, files):
        await files.echo("open a run /bin/cat", "/sessions/ctl")
        _, handle = await open_path(files.root, "/sessions/a/prompt", os.O_RDWR, ROOT)
        await handle.write(b"hello\n", 0)
        assert await handle.read(100, 0) == b"1\n" and await handle.read(100, 2) == b""
        handle.close()
        long = "x" * 100_000
        await files.echo(long, "/sessions/a/prompt")
        assert one.sessions.turn(2).message == long
        await refused(E2BIG, files.echo("x" * (MAX_MESSAGE + 1), "/sessions/a/prompt"))
        await refused(EINVAL, files.echo(" ", "/sessions/a/prompt"))
        await refused(EACCES, files.cat("/sessions/a/prompt"))
        await files.echo("archive a", "/sessions/ctl")
        await refused(EBUSY, files.echo("hello", "/sessions/a/prompt"))

    run(test, tmp_path)


def test_events_begin_with_the_first_and_can_be_moved(tmp_path):
    async def test(one, files):
        await files.echo("open a run /bin/cat", "/sessions/ctl")
        _, handle = await open_path(files.root, "/sessions/a/events", os.O_RDWR, ROOT)
        first = [json.loads(line) for line in bytes(await handle.read(65536, 0)).splitlines()]
        assert [row["event"] for row in first][:2] == ["opened", "state"]
        await handle.write(b"since %d\n" % first[0]["seq"], 0)
        again = [json.loads(line) for line in bytes(await handle.read(65536, 0)).splitlines()]
        assert again == first[1:]
        handle.close()

    run(test, tmp_path)


def test_what_cannot_be_is_the_error_of_the_write(tmp_path):
    async def test(one, files):
        for line in SENSELESS:
            await refused(EINVAL, files.echo(line, "/sessions/ctl"))
        for line in ("switch a", "stop a", "archive a", "remove a"):
            await refused(ENOENT, files.echo(line, "/sessions/ctl"))
        assert one.sessions.records() == []
        assert (await files.cat("/sessions/ctl")).startswith("# error: no such session")
        await files.echo("open a run /bin/cat", "/sessions/ctl")
        await refused(ENOENT, files.echo("cancel 7", "/sessions/a/ctl"))
        await refused(EINVAL, files.echo("timeout soon", "/sessions/a/ctl"))
        await refused(ENOENT, files.cat("/sessions/a/session.json"))
        await refused(ENOENT, files.cat("/sessions/a/history/7/output"))

    run(test, tmp_path)


def test_a_link_in_the_place_of_what_comes_from_the_home_is_not_followed(tmp_path):
    async def test(one, files):
        await files.echo("open a run /bin/cat", "/sessions/ctl")
        home = one.house.homes.path(one.sessions.get("a").user)
        (home / "session.json").symlink_to("/etc/shadow")
        (home / "work").rmdir()
        (home / "work").symlink_to("/etc")
        await refused(ENOENT, files.cat("/sessions/a/session.json"))
        await refused(ENOENT, files.ls("/sessions/a/work"))

    run(test, tmp_path)


def test_a_task_of_a_session_sees_its_own_session_and_cannot_steer_it(tmp_path):
    async def test(one, files):
        for name in "ab":
            await files.echo(f"open {name} run /bin/cat", "/sessions/ctl")
        await files.echo("switch b", "/sessions/ctl")
        await files.echo("hello", "/sessions/a/prompt")
        task = await one.started(1)
        user = one.sessions.get("a").user
        own = Files(one.house.task_root(task), Caller(user.uid, user.gid))
        assert await own.ls("/sessions") == ["ctl", "active", "events", "a"]
        assert await own.cat("/sessions/active") == ""
        assert "working" in await own.cat("/sessions/a/tasks.jsonl")
        await refused(ENOENT, own.ls("/sessions/b"))
        for path in ("/sessions/ctl", "/sessions/a/ctl", "/sessions/a/prompt"):
            with pytest.raises(PermissionError):
                await own.echo("stop a", path)
        if os.geteuid() == 0:  # else everyone has the one uid
            st = await (await walk(own.root, "/sessions/a/history/1/output", own.who)).stat()
            check(st, own.who, READ)
            with pytest.raises(OSError):
                check(st, own.who, WRITE)

    run(test, tmp_path)
