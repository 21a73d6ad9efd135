"""vfs.pipes: end of file, EPIPE, back-pressure and cancellation, as a kernel pipe's users know them."""

import errno
import fcntl
import os
import select

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from vfs.inline import PENDING, resume, start
from vfs.node import HANGUP, READABLE, ROOT, WRITABLE, SetStat
from vfs.pipes import MAX_QUEUED, Broadcast, Duplex, Pipe

BLOCKED = trio.testing.wait_all_tasks_blocked


@pytest.fixture
def pipe():
    before = set(os.listdir("/proc/self/fd"))
    pipe = Pipe()
    yield pipe
    pipe.close()
    assert set(os.listdir("/proc/self/fd")) == before


def opened(node, flags):
    return start(node.open(flags, ROOT))


def errno_of(operation):
    with pytest.raises(OSError) as caught:
        start(operation)
    return errno.errorcode[caught.value.errno]


def run(main):
    async def bounded():
        with trio.fail_after(20):
            await main()

    trio.run(bounded)


def test_readers_who_come_before_the_first_writer_wait(pipe):
    async def main():
        reader = opened(pipe.reader, os.O_RDONLY)
        got = []

        async def read():
            got.append(await reader.read(100, 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await BLOCKED()
            assert got == []
            writer = opened(pipe.writer, os.O_WRONLY)
            assert start(writer.write(b"hello", 0)) == 5
        assert got == [b"hello"]
        writer.close()
        assert start(reader.read(100, 0)) == b""
        reader.close()

    run(main)


def test_writers_who_come_before_the_first_reader_fill_the_buffer(pipe):
    writer = opened(pipe.writer, os.O_WRONLY)
    assert start(writer.write(b"early", 0)) == 5
    writer.close()
    reader = opened(pipe.reader, os.O_RDONLY)
    assert start(reader.read(100, 0)) == b"early"
    assert start(reader.read(100, 0)) == b""
    reader.close()


def test_end_of_file_comes_when_the_last_writer_goes_wherever_it_is(pipe):
    reader = opened(pipe.reader, os.O_RDONLY)
    writer = opened(pipe.writer, os.O_WRONLY)
    elsewhere = pipe.take_writer()
    writer.close()
    assert errno_of(reader.read(1, 0, nonblock=True)) == "EAGAIN"
    os.write(elsewhere, b"x")
    os.close(elsewhere)
    assert start(reader.read(9, 0)) == b"x"
    assert start(reader.read(9, 0)) == b""
    reader.close()


def test_the_write_end_opens_again_only_while_a_writer_is_left(pipe):
    first = opened(pipe.writer, os.O_WRONLY)
    second = opened(pipe.writer, os.O_WRONLY)
    first.close()
    third = opened(pipe.writer, os.O_WRONLY)
    second.close()
    third.close()
    assert errno_of(pipe.writer.open(os.O_WRONLY, ROOT)) == "EPIPE"
    with pytest.raises(BrokenPipeError):
        pipe.take_writer()


def test_a_write_without_readers_is_epipe(pipe):
    writer = opened(pipe.writer, os.O_WRONLY)
    opened(pipe.reader, os.O_RDONLY).close()
    assert errno_of(writer.write(b"x", 0)) == "EPIPE"
    writer.close()


def test_each_end_opens_one_way_only(pipe):
    for flags in (os.O_WRONLY, os.O_RDWR):
        assert errno_of(pipe.reader.open(flags, ROOT)) == "EACCES"
    for flags in (os.O_RDONLY, os.O_RDWR):
        assert errno_of(pipe.writer.open(flags, ROOT)) == "EACCES"
    reader, writer = opened(pipe.reader, os.O_RDONLY), opened(pipe.writer, os.O_WRONLY)
    assert errno_of(reader.write(b"x", 0)) == "EBADF"
    assert errno_of(writer.read(1, 0)) == "EBADF"
    reader.close()
    writer.close()


def test_a_full_pipe_holds_the_writer_back_until_there_is_room(pipe):
    async def main():
        writer, reader = opened(pipe.writer, os.O_WRONLY), opened(pipe.reader, os.O_RDONLY)
        data = bytearray(os.urandom(200_000))
        sent = bytes(data)
        work = writer.write(memoryview(data), 0)
        assert start(work) is PENDING
        data[:] = bytes(len(data))  # the caller's buffer is its own again once the write waits
        done = []

        async def finish():
            done.append(await resume(work))

        got = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish)
            await BLOCKED()
            assert done == []
            while len(got) < len(sent):
                got += await reader.read(1 << 20, 0)
        assert done == [len(sent)]
        assert got == sent
        writer.close()
        reader.close()

    run(main)


def test_a_read_returns_what_is_there_and_never_waits_to_fill(pipe):
    writer, reader = opened(pipe.writer, os.O_WRONLY), opened(pipe.reader, os.O_RDONLY)
    start(writer.write(b"one", 0))
    assert start(reader.read(1 << 20, 0)) == b"one"
    writer.close()
    reader.close()


def test_a_nonblocking_write_takes_what_fits_then_is_eagain(pipe):
    writer, reader = opened(pipe.writer, os.O_WRONLY | os.O_NONBLOCK), opened(pipe.reader, os.O_RDONLY)
    assert start(writer.write(bytes(200_000), 0)) == 65536
    assert errno_of(writer.write(b"x", 0)) == "EAGAIN"
    assert len(start(reader.read(4096, 0))) == 4096
    assert start(writer.write(bytes(4096), 0)) == 4096
    writer.close()
    reader.close()


def test_a_small_write_is_taken_whole_or_waits(pipe):
    writer = opened(pipe.writer, os.O_WRONLY | os.O_NONBLOCK)
    start(writer.write(bytes(65536 - 4096), 0))
    assert start(writer.write(bytes(4095), 0)) == 4095
    assert errno_of(writer.write(bytes(4096), 0)) == "EAGAIN"
    writer.close()


def test_a_cancelled_write_reports_what_was_taken_and_nothing_taken_stays_cancelled(pipe):
    async def main():
        writer, reader = opened(pipe.writer, os.O_WRONLY), opened(pipe.reader, os.O_RDONLY)

        async def cancelled(data):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def write():
                        results.append(await writer.write(data, 0))

                    nursery.start_soon(write)
                    await BLOCKED()
                    scope.cancel()

        results = []
        await cancelled(bytes(100_000))
        assert results == [65536]
        await cancelled(b"more")
        assert results == [65536]
        assert len(start(reader.read(1 << 20, 0))) == 65536
        writer.close()
        reader.close()

    run(main)


def test_a_write_cut_short_by_the_last_reader_reports_what_was_taken(pipe):
    async def main():
        writer, reader = opened(pipe.writer, os.O_WRONLY), opened(pipe.reader, os.O_RDONLY)
        results = []

        async def write():
            results.append(await writer.write(bytes(100_000), 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await BLOCKED()
            reader.close()
        assert results == [65536]
        assert errno_of(writer.write(b"x", 0)) == "EPIPE"
        writer.close()

    run(main)


def test_many_readers_may_wait_on_one_open_file_and_each_byte_goes_to_one(pipe):
    async def main():
        writer, reader = opened(pipe.writer, os.O_WRONLY), opened(pipe.reader, os.O_RDONLY)
        got = []

        async def read():
            got.append(await reader.read(1, 0))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(read)
            await BLOCKED()
            start(writer.write(b"abcde", 0))
        assert sorted(got) == [b"a", b"b", b"c", b"d", b"e"]
        writer.close()
        reader.close()

    run(main)


def test_poll_and_watch_follow_the_pipe(pipe):
    async def main():
        writer, reader = opened(pipe.writer, os.O_WRONLY), opened(pipe.reader, os.O_RDONLY)
        assert reader.poll() == 0
        assert writer.poll() == WRITABLE
        woken = trio.Event()
        reader.watch(woken.set)
        await BLOCKED()
        assert not woken.is_set()
        start(writer.write(b"x", 0))
        await woken.wait()
        assert reader.poll() == READABLE
        start(reader.read(1, 0))
        hung_up = trio.Event()
        reader.watch(hung_up.set)
        writer.close()
        await hung_up.wait()
        assert reader.poll() & HANGUP
        reader.close()

    run(main)


def test_closing_a_watched_handle_ends_the_watch_without_a_call(pipe):
    async def main():
        calls = []
        waiting, queued, unstarted = (opened(pipe.reader, os.O_RDONLY) for _ in range(3))
        waiting.watch(lambda: calls.append("waiting"))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queued.read, 1, 0)
                await BLOCKED()
                queued.watch(lambda: calls.append("queued"))  # behind the read, which holds the descriptor
                await BLOCKED()
                scope.cancel()
        queued.close()
        unstarted.watch(lambda: calls.append("unstarted"))
        unstarted.close()
        waiting.close()
        await BLOCKED()
        assert calls == []

    run(main)


def test_descriptors_for_tasks_block_and_are_their_owners(pipe):
    reader, writer = pipe.take_reader(), pipe.take_writer()
    assert os.get_blocking(reader)
    assert os.get_blocking(writer)
    handle = opened(pipe.reader, os.O_RDONLY)
    assert os.get_blocking(reader), "a handle's non-blocking mode is its own"
    os.write(writer, b"kernel to kernel")
    assert os.read(reader, 100) == b"kernel to kernel"
    assert fcntl.fcntl(reader, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    handle.close()
    os.close(reader)
    os.close(writer)


def test_a_pipe_adopted_by_another_server_goes_on_where_it_was():
    first = Pipe()
    task = first.take_writer()
    os.write(task, b"unread")
    kept = first.keep()
    first.close()
    second = Pipe.from_fds(*kept)
    assert second.reader.id == first.reader.id
    reader = opened(second.reader, os.O_RDONLY)
    assert start(reader.read(100, 0)) == b"unread"
    assert errno_of(reader.read(1, 0, nonblock=True)) == "EAGAIN"
    os.close(task)
    assert start(reader.read(1, 0)) == b""
    assert errno_of(second.writer.open(os.O_WRONLY, ROOT)) == "EPIPE"
    reader.close()
    second.close()


def test_a_removed_pipe_opens_no_more_but_its_open_ends_go_on(pipe):
    writer, reader = opened(pipe.writer, os.O_WRONLY), opened(pipe.reader, os.O_RDONLY)
    pipe.close()
    assert errno_of(pipe.reader.open(os.O_RDONLY, ROOT)) == "EPIPE"
    start(writer.write(b"still", 0))
    assert start(reader.read(9, 0)) == b"still"
    writer.close()
    reader.close()


def test_a_pipe_that_is_dropped_leaves_no_descriptor():
    before = set(os.listdir("/proc/self/fd"))
    Pipe()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_capacity_the_kernel_refuses_leaves_no_descriptor():
    before = set(os.listdir("/proc/self/fd"))
    for capacity in (0, -1, 1 << 31, 1 << 40):
        with pytest.raises(OSError):
            Pipe(capacity)
    assert set(os.listdir("/proc/self/fd")) == before


def test_truncation_means_nothing_and_other_attributes_are_fixed(pipe):
    start(pipe.writer.setstat(SetStat(size=0), ROOT))
    assert errno_of(pipe.writer.setstat(SetStat(mode=0o777), ROOT)) == "EPERM"


def test_a_duplex_carries_both_ways_and_each_way_ends_by_itself():
    duplex = Duplex()
    left, right = opened(duplex.data, os.O_RDWR), opened(duplex.data1, os.O_RDWR)
    start(left.write(b"ping", 0))
    assert start(right.read(9, 0)) == b"ping"
    start(right.write(b"pong", 0))
    assert left.poll() == READABLE | WRITABLE
    assert start(left.read(9, 0)) == b"pong"
    left.close()
    assert start(right.read(9, 0)) == b""
    assert errno_of(right.write(b"x", 0)) == "EPIPE"
    right.close()
    only_reader = errno_of(duplex.data.open(os.O_RDWR, ROOT))
    assert only_reader == "EPIPE"
    duplex.close()


def test_a_duplex_watch_wakes_once():
    async def main():
        duplex = Duplex()
        left, right = opened(duplex.data, os.O_RDWR), opened(duplex.data1, os.O_RDWR)
        calls = []
        left.watch(lambda: calls.append(1))
        await BLOCKED()  # the writing side is ready at once
        start(right.write(b"x", 0))
        await BLOCKED()
        assert calls == [1]
        left.close()
        right.close()
        duplex.close()

    run(main)


def test_a_broadcast_gives_every_open_reader_each_record_once():
    async def main():
        signal = Broadcast()
        early, late = opened(signal, os.O_RDONLY), opened(signal, os.O_RDONLY)
        writer = opened(signal, os.O_WRONLY)
        got = []

        async def read():
            got.append(await early.read(100, 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await BLOCKED()
            start(writer.write(b"one\n", 0))
        start(writer.write(b"two\n", 0))
        assert got == [b"one\n"]
        assert start(early.read(100, 0)) == b"two\n"
        assert [start(late.read(2, 0)) for _ in range(3)] == [b"on", b"e\n", b"tw"]
        newcomer = opened(signal, os.O_RDONLY)
        assert errno_of(newcomer.read(100, 0, nonblock=True)) == "EAGAIN"
        for handle in (early, late, newcomer):
            handle.close()
        start(writer.write(b"nobody hears\n", 0))

    run(main)


def test_a_slow_broadcast_reader_is_told_what_it_lost_and_holds_nobody_back():
    signal = Broadcast()
    slow = opened(signal, os.O_RDONLY)
    for number in range(100):
        signal.send(b"%5d" % number + bytes(60_000))
    lost = start(slow.read(1 << 20, 0))
    kept = []
    while slow.poll() & READABLE:
        kept.append(int(start(slow.read(1 << 20, 0))[:5]))
    assert lost == b"# lost %d records\n" % (100 - len(kept))
    assert kept == list(range(100 - len(kept), 100))
    assert 0 < len(kept) <= MAX_QUEUED // 60_000
    assert errno_of(opened(signal, os.O_WRONLY).write(bytes(65537), 0)) == "EMSGSIZE"


# Any order of opens, writes, reads and closes against a queue of bytes

STEPS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from("rw")),
    st.tuples(st.just("close"), st.sampled_from("rw"), st.integers(0, 5)),
    st.tuples(st.just("write"), st.integers(0, 5), st.sampled_from([1, 100, 4096, 5000, 70_000])),
    st.tuples(st.just("read"), st.integers(0, 5), st.sampled_from([1, 4096, 100_000])),
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(STEPS, max_size=40))
def test_a_pipe_behaves_as_a_queue_of_bytes(steps):
    pipe = Pipe()
    ends = {"r": [], "w": []}
    come = {"r": False, "w": False}
    queue = bytearray()
    written = 0

    def alive(end):
        return bool(ends[end]) or not come[end]

    try:
        for step in steps:
            match step:
                case "open", end:
                    node, flags = (pipe.reader, os.O_RDONLY) if end == "r" else (pipe.writer, os.O_WRONLY)
                    if end == "w" and not alive("w"):
                        assert errno_of(node.open(flags, ROOT)) == "EPIPE"
                    else:
                        ends[end].append(opened(node, flags))
                        come[end] = True
                case "close", end, index:
                    if index < len(ends[end]):
                        ends[end].pop(index).close()
                case "write", index, size:
                    if index >= len(ends["w"]):
                        continue
                    data = bytes((written + i) % 251 for i in range(size))
                    try:
                        taken = start(ends["w"][index].write(data, 0, nonblock=True))
                    except BrokenPipeError:
                        assert not alive("r")
                        continue
                    except BlockingIOError:
                        assert queue
                        continue
                    assert alive("r")
                    assert taken == size or size > select.PIPE_BUF
                    queue += data[:taken]
                    written += taken
                case "read", index, size:
                    if index >= len(ends["r"]):
                        continue
                    try:
                        got = start(ends["r"][index].read(size, 0, nonblock=True))
                    except BlockingIOError:
                        assert not queue
                        assert alive("w")
                        continue
                    assert got == queue[:size]
                    assert got or (not queue and not alive("w"))
                    del queue[: len(got)]
    finally:
        for handle in ends["r"] + ends["w"]:
            handle.close()
        pipe.close()
