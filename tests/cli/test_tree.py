"""Paths in, bytes out, errors that name the path: the client's view of a tree, over nodes in this process."""

import os
from collections.abc import Awaitable, Callable
from errno import EAGAIN, EINVAL, ENOENT

import pytest
import trio

from vfs.control import Control
from vfs.directory import Dir
from vfs.files import Text
from vfs.memory import MemoryTree
from vfs.node import Handle
from wanixfs.cli.tree import CHUNK, Tree, each, stream


def over(tree: Tree, action: Callable[[Tree], Awaitable[None]]) -> None:
    trio.run(action, tree)


def memory() -> Tree:
    return Tree(MemoryTree(label="test").root)


def test_write_creates_reads_back_and_replaces() -> None:
    async def action(tree: Tree) -> None:
        async with tree.open("/f", os.O_WRONLY | os.O_CREAT) as handle:
            await handle.write(b"long text", 0)
        await tree.write("/f", b"short\n")
        assert await tree.read("/f") == b"short\n"
        assert await tree.text("f") == "short"

    over(memory(), action)


def test_write_larger_than_one_request_arrives_whole() -> None:
    data = os.urandom(CHUNK * 2 + 17)

    async def action(tree: Tree) -> None:
        async with tree.open("/f", os.O_WRONLY | os.O_CREAT):
            pass
        await tree.write("/f", data)
        assert await tree.read("/f") == data

    over(memory(), action)


def test_errors_name_the_path() -> None:
    async def action(tree: Tree) -> None:
        for ask in (tree.read, tree.stat, tree.names):
            with pytest.raises(FileNotFoundError) as caught:
                await ask("/none/such")
            assert (caught.value.filename, caught.value.strerror) == ("/none/such", os.strerror(ENOENT))

    over(memory(), action)


def test_refused_command_is_reported_in_the_control_files_words() -> None:
    def jump(height: str) -> None:
        """as high as it says"""
        raise OSError(EINVAL, f"too high: {height}")

    async def action(tree: Tree) -> None:
        with pytest.raises(OSError) as caught:
            await tree.write("/ctl", "jump 3\n")
        error = caught.value
        assert (error.errno, error.strerror, error.filename) == (EINVAL, "too high: 3", "/ctl")

    over(Tree(Dir({"ctl": Control({"jump": jump})})), action)


def test_names_are_sorted_and_directories_and_links_are_made() -> None:
    async def action(tree: Tree) -> None:
        await tree.mkdir("/b", 0o755)
        await tree.mkdir("/b", 0o755)
        await tree.symlink("/a", "b")
        assert [entry.name for entry in await tree.names("/")] == ["a", "b"]
        assert await (await tree.node("/a", follow=False)).readlink() == "b"
        assert await tree.names("/a") == []

    over(memory(), action)


def test_value_file_is_read_as_text() -> None:
    async def action(tree: Tree) -> None:
        assert await tree.text("/answer") == "42"

    over(Tree(Dir({"answer": Text(lambda: "42")})), action)


class Drip(Handle):
    """Gives one byte a read, then has nothing yet."""

    async def read(self, size: int, offset: int, nonblock: bool = False) -> bytes:
        if offset == 3:
            assert nonblock
            raise OSError(EAGAIN, "nothing yet")
        return b"abc"[offset : offset + 1]


def test_stream_without_waiting_ends_where_nothing_more_is_there_yet() -> None:
    got: list[bytes] = []

    async def sink(data: bytes | memoryview) -> None:
        got.append(bytes(data))

    trio.run(lambda: stream(Drip(), sink, offset=1, wait=False))
    assert got == [b"b", b"c"]


def test_each_keeps_order_and_bounds_what_is_under_way() -> None:
    under_way = most = 0

    async def square(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.lowlevel.checkpoint()
        under_way -= 1
        return number * number

    assert trio.run(each, square, range(500)) == [number * number for number in range(500)]
    assert 1 < most <= 64
