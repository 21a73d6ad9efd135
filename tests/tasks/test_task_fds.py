"""A task's descriptors: stdin, spools for late readers, and where dup, file, pipe, close and inherit point them."""

import os
from errno import EAGAIN, EBUSY, EINVAL, EISDIR, ENOENT, EPIPE

import trio
import trio.testing
from tasks_household import refused, run

from vfs.node import ROOT
from vfs.walk import open_path, walk


class Keeping:
    """Makes a fake driver keep duplicates of what tasks are given, as a process would."""

    def __init__(self, driver):
        self.fds = {}
        start = driver.start

        async def keep(launch):
            self.fds[launch.id] = {number: os.dup(fd) for number, fd in launch.fds.items()}
            return await start(launch)

        driver.start = keep

    def close(self, id):
        for fd in self.fds.pop(id).values():
            os.close(fd)


def test_output_is_there_for_late_and_repeated_readers(tmp_path):
    async def test(node):
        id = await node.started()
        node.driver.write(id, 1, b"first\n")
        _, handle = await open_path(node.root(), f"/task/{id}/fd/1", os.O_RDONLY, ROOT)
        assert await handle.read(100, 0) == b"first\n"
        await refused(EAGAIN, handle.read(100, 6, True))
        got = []

        async def reader():
            got.append(await handle.read(100, 6))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            node.driver.write(id, 1, b"second\n")
        assert got == [b"second\n"]
        st = await (await walk(node.root(), f"/task/{id}/fd/1", ROOT)).stat()
        assert st.st_size == 13
        node.driver.finish(id, 0)
        for _ in range(2):
            assert await node.cat(f"/task/{id}/fd/1") == "first\nsecond\n"
        assert await node.cat(f"/task/{id}/fd/2") == ""

    run(tmp_path, test)


def test_dropped_output_is_told_and_reading_goes_on_at_the_oldest_kept(tmp_path):
    async def test(node):
        id = await node.started()
        node.driver.write(id, 1, bytes(range(256)) * 40)
        node.driver.finish(id, 0)
        assert len(os.fsencode(await node.cat(f"/task/{id}/fd/1", size=1000))) == 4096
        assert "dropped_bytes 6144" in await node.cat(f"/task/{id}/fd/ctl")
        assert '"dropped_bytes": 6144' in await node.cat(f"/task/{id}/events")

    run(tmp_path, test, spool_limit=4096)


def test_stdin_is_a_pipe_until_close(tmp_path):
    async def test(node):
        keep = Keeping(node.driver)
        id = await node.new("cmd /bin/cat")
        await node.echo("before start", f"/task/{id}/fd/0")
        await node.echo("start", f"/task/{id}/ctl")
        await node.echo("after start", f"/task/{id}/fd/0")
        read = keep.fds[id][0]
        assert os.read(read, 100) == b"before start\nafter start\n"
        assert os.get_blocking(read)
        await node.echo("close", f"/task/{id}/fd/0ctl")
        assert os.read(read, 100) == b""
        await refused(EPIPE, node.echo("late", f"/task/{id}/fd/0"))
        await refused(EPIPE, node.echo("close 0", f"/task/{id}/fd/ctl"))
        keep.close(id)
        node.driver.finish(id, 0)

    run(tmp_path, test)


def test_writers_to_a_full_stdin_wait_and_fail_when_the_task_is_gone(tmp_path):
    async def test(node):
        keep = Keeping(node.driver)
        id = await node.started()
        _, handle = await open_path(node.root(), f"/task/{id}/fd/0", os.O_WRONLY, ROOT)
        errors = []

        async def writer():
            try:
                await handle.write(b"x" * 65536, 0)
                await handle.write(b"x" * 65536, 0)
            except OSError as error:
                errors.append(error.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer)
            await trio.testing.wait_all_tasks_blocked()
            assert errors == []
            keep.close(id)
            node.driver.finish(id, 0)
        assert errors == [EPIPE]
        handle.close()

    run(tmp_path, test)


def test_dup_opens_with_the_writers_authority_at_once(tmp_path):
    async def test(node):
        keep = Keeping(node.driver)
        (tmp_path / "state/tmp/in").write_text("given\n")
        id = await node.new("cmd /bin/cat")
        await node.echo("dup /tmp/in", f"/task/{id}/fd/0ctl")
        await node.echo("dup /tmp/out", f"/task/{id}/fd/1ctl")
        await node.echo("open 5 /tmp/log a", f"/task/{id}/fd/ctl")
        assert (tmp_path / "state/tmp/out").exists()
        await refused(ENOENT, node.echo("dup /tmp/none/x", f"/task/{id}/fd/2ctl"))
        await refused(EISDIR, node.echo("dup /tmp", f"/task/{id}/fd/2ctl"))
        await refused(EINVAL, node.echo("open 256 /tmp/x", f"/task/{id}/fd/ctl"))
        await refused(EINVAL, node.echo("open 5 /tmp/x rx", f"/task/{id}/fd/ctl"))
        await refused(EINVAL, node.echo("inherit 1", f"/task/{id}/fd/ctl"))
        assert (await node.cat(f"/task/{id}/fd/ctl")).splitlines()[1:5] == [
            "# 0 dup /tmp/in r",
            "# 1 dup /tmp/out w",
            "# 2 spool 0 bytes",
            "# 5 file /tmp/log a",
        ]
        await node.echo("start", f"/task/{id}/ctl")
        fds = keep.fds[id]
        assert os.read(fds[0], 100) == b"given\n"
        os.write(fds[1], b"out")
        os.write(fds[5], b"log")
        assert (tmp_path / "state/tmp/out").read_text() == "out"
        assert (tmp_path / "state/tmp/log").read_text() == "log"
        assert await node.cat(f"/task/{id}/fd/1") == ""
        await refused(EPIPE, node.echo("x", f"/task/{id}/fd/0"))
        keep.close(id)

    run(tmp_path, test)


def test_a_pipe_between_tasks_is_the_kernels(tmp_path):
    async def test(node):
        keep = Keeping(node.driver)
        left, right = await node.new("cmd /bin/a"), await node.new("cmd /bin/b")
        await node.echo(f"pipe {left}/fd/1", f"/task/{right}/fd/0ctl")
        await refused(EINVAL, node.echo(f"pipe {left}/fd/0", f"/task/{right}/fd/0ctl"))
        await refused(EINVAL, node.echo("pipe 99/fd/1", f"/task/{right}/fd/0ctl"))
        await refused(EINVAL, node.echo("pipe nonsense", f"/task/{right}/fd/0ctl"))
        for id in (left, right):
            await node.echo("start", f"/task/{id}/ctl")
        os.write(keep.fds[left][1], b"through")
        assert os.read(keep.fds[right][0], 100) == b"through"
        keep.close(left)
        assert os.read(keep.fds[right][0], 100) == b""
        keep.close(right)
        other = await node.new("cmd /bin/c")
        await refused(EBUSY, node.echo(f"pipe {left}/fd/1", f"/task/{other}/fd/0ctl"))

    run(tmp_path, test)


def test_a_cap_pipe_connects_tasks_and_ends_with_its_last_writer(tmp_path):
    async def test(node):
        keep = Keeping(node.driver)
        cap = (await node.cat("/cap/new/pipe")).strip()
        left, right = await node.new("cmd /bin/a"), await node.new("cmd /bin/b")
        await node.echo(f"dup /cap/{cap}/w", f"/task/{left}/fd/1ctl")
        await node.echo(f"dup /cap/{cap}/r", f"/task/{right}/fd/0ctl")
        for id in (left, right):
            await node.echo("start", f"/task/{id}/ctl")
        os.write(keep.fds[left][1], b"data")
        assert os.read(keep.fds[right][0], 100) == b"data"
        keep.close(left)
        assert os.read(keep.fds[right][0], 100) == b""
        await refused(EPIPE, node.echo("x", f"/cap/{cap}/w"))
        keep.close(right)

    run(tmp_path, test)


def test_a_file_of_the_server_is_pumped(tmp_path):
    async def test(node):
        keep = Keeping(node.driver)
        target = await node.started()
        id = await node.new("cmd /bin/a")
        await node.echo(f"dup /task/{target}/fd/0", f"/task/{id}/fd/1ctl")
        await node.echo("dup /task/1/id", f"/task/{id}/fd/0ctl")
        await node.echo("start", f"/task/{id}/ctl")
        os.write(keep.fds[id][1], b"pumped")
        await trio.testing.wait_all_tasks_blocked()
        await trio.lowlevel.wait_readable(keep.fds[target][0])
        assert os.read(keep.fds[target][0], 100) == b"pumped"
        await trio.lowlevel.wait_readable(keep.fds[id][0])
        assert os.read(keep.fds[id][0], 100) == b"1\n"
        for each in (id, target):
            keep.close(each)
            node.driver.finish(each, 0)

    run(tmp_path, test)


def test_no_descriptor_is_left_when_tasks_are_gone(tmp_path):
    async def test(node):
        before = len(os.listdir("/proc/self/fd"))
        ids = []
        for _ in range(20):
            id = await node.new("cmd /bin/a")
            await node.echo("dup /tmp/x", f"/task/{id}/fd/1ctl")
            await node.echo("open 7 /dev/zero r", f"/task/{id}/fd/ctl")
            await node.echo("x", f"/task/{id}/fd/0")
            await node.echo("start", f"/task/{id}/ctl")
            ids.append(id)
        for id in ids:
            node.driver.finish(id, 0)
            await node.echo("remove", f"/task/{id}/ctl")
        await trio.testing.wait_all_tasks_blocked()
        assert len(os.listdir("/proc/self/fd")) <= before + 2

    run(tmp_path, test)
