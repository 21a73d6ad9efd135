"""vfs.files and vfs.directory: values made once per open, waits that wake, children that get what they left open."""

import os
import stat

import pytest
import trio
import trio.testing

from vfs.directory import Dir, LiveDir
from vfs.files import Allocator, Awaited, Device, Link, Text
from vfs.node import READABLE, ROOT, Caller, SetStat, no_entry
from vfs.waiting import Signal


def errno_of(excinfo):
    return os.strerror(excinfo.value.errno)


async def read_all(node, size=4096):
    handle = await node.open(os.O_RDONLY, ROOT)
    try:
        text = b""
        while data := await handle.read(size, len(text)):
            text += data
        return text
    finally:
        handle.close()


def test_a_value_gets_its_newline_and_is_made_once_per_open():
    async def main():
        made = []
        node = Text(lambda: made.append(1) or f"value {len(made)} " + "x" * 100)
        assert await read_all(node, 10) == b"value 1 " + b"x" * 100 + b"\n"
        handle = await node.open(os.O_RDONLY, ROOT)
        assert (await handle.read(7, 0)) == b"value 2"
        assert (await handle.read(7, 0)) == b"value 3"
        assert await read_all(Text(lambda: "")) == b""
        assert await read_all(Text(lambda: b"raw")) == b"raw"

    trio.run(main)


def test_a_value_is_replaced_whole_and_may_come_in_pieces():
    async def main():
        values = []
        node = Text(lambda: values[-1], values.append)
        handle = await node.open(os.O_WRONLY | os.O_TRUNC, ROOT)
        assert await handle.write(b"first long value\n", 0) == 17
        assert await handle.write(b"new\n", 0) == 4
        assert await handle.write(b"more\n", 4) == 5
        assert values == ["first long value", "new", "new\nmore"]
        with pytest.raises(OSError) as refused:
            await handle.write(b"x", 100)
        assert errno_of(refused) == "Operation not permitted"
        await node.setstat(SetStat(size=0, mtime_ns=1), ROOT)
        with pytest.raises(PermissionError):
            await node.setstat(SetStat(mode=0o777), ROOT)

    trio.run(main)


def test_a_refused_value_leaves_the_next_write_whole():
    async def main():
        def take(text):
            if text == "bad":
                raise OSError(22, "bad value")

        handle = await Text(None, take).open(os.O_WRONLY, ROOT)
        with pytest.raises(OSError, match="bad value"):
            await handle.write(b"bad\n", 0)
        assert await handle.write(b"good\n", 0) == 5

    trio.run(main)


def test_a_value_has_a_largest_size():
    async def main():
        handle = await Text(None, lambda text: None).open(os.O_WRONLY, ROOT)
        await handle.write(b"x" * (4 << 20), 0)
        with pytest.raises(OSError) as refused:
            await handle.write(b"x", 4 << 20)
        assert errno_of(refused) == "Argument list too long"

    trio.run(main)


def test_an_awaited_text_wakes_every_reader_and_polls():
    async def main():
        done = []
        signal = Signal()
        node = Awaited(lambda: bool(done), lambda: done[0], lambda: signal)
        handle = await node.open(os.O_RDONLY, ROOT)
        with pytest.raises(BlockingIOError):
            await handle.read(10, 0, True)
        assert handle.poll() == 0
        woken = []
        handle.watch(lambda: woken.append(1))
        results = []

        async def reader():
            results.append(await read_all(node))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            done.append("0")
            signal.notify()
        assert results == [b"0\n"] * 5
        assert woken == [1]
        assert handle.poll() == READABLE
        assert await handle.read(10, 0) == b"0\n"
        assert await handle.read(10, 2) == b""

    trio.run(main)


def test_an_allocating_file_gives_one_id_per_open():
    async def main():
        count = iter(range(1, 10))
        node = Allocator(lambda who: next(count))
        await node.stat()
        first = await node.open(os.O_RDONLY, ROOT)
        assert [await first.read(10, 0), await first.read(10, 0), await first.read(10, 2)] == [b"1\n", b"1\n", b""]
        assert await read_all(node) == b"2\n"

    trio.run(main)


def test_a_directory_gives_its_children_ids_and_owner():
    class Owner:
        uid, gid, changed_ns = 7, 8, 9

    async def main():
        tree = Dir(
            {"a": Text(lambda: "x"), "d": Dir({"b": Text(lambda: "y")}), "l": Link(lambda: "a")}, owner=Owner(), id=42
        )
        again = Dir({"a": Text(lambda: "x")}, owner=Owner(), id=42)
        a = await tree.lookup("a", ROOT)
        st = await a.stat()
        assert (st.st_uid, st.st_gid, st.st_mtime_ns) == (7, 8, 9)
        assert a.id == (await again.lookup("a", ROOT)).id
        b = await (await tree.lookup("d", ROOT)).lookup("b", ROOT)
        assert b.id not in (0, a.id)
        assert (await b.stat()).st_uid == 7
        entries = await tree.readdir(ROOT)
        assert [(e.name, e.type) for e in entries] == [("a", stat.S_IFREG), ("d", stat.S_IFDIR), ("l", stat.S_IFLNK)]
        assert entries[0].ino == a.id
        with pytest.raises(FileNotFoundError):
            await tree.lookup("nope", ROOT)
        with pytest.raises(NotADirectoryError):
            await a.lookup("x", ROOT)

    trio.run(main)


def test_a_live_directory_lists_without_making_nodes():
    async def main():
        made = []

        def child(name, who: Caller):
            if name not in "123":
                raise no_entry(name)
            made.append(name)
            return Text(lambda: name)

        tree = LiveDir(lambda: "123", child, fixed={"ctl": Text(lambda: "c")}, kind=stat.S_IFREG, id=5)
        assert [entry.name for entry in await tree.readdir(ROOT)] == ["ctl", "1", "2", "3"]
        assert made == []
        assert await read_all(await tree.lookup("2", ROOT)) == b"2\n"
        entry = (await tree.readdir(ROOT))[2]
        assert entry.ino == (await tree.lookup("2", ROOT)).id

    trio.run(main)


def test_devices_read_and_write_as_mem_4_says():
    async def main():
        zero = await Device(bytes).open(os.O_RDWR, ROOT)
        assert await zero.read(5, 0) == bytes(5)
        assert await zero.write(b"abc", 0) == 3
        full = await Device(bytes, refuse=28).open(os.O_RDWR, ROOT)
        with pytest.raises(OSError) as refused:
            await full.write(b"abc", 0)
        assert refused.value.errno == 28
        assert await read_all(Device(None)) == b""

    trio.run(main)
