"""The client and the remote tree: pipelining, cancellation, servers that die, lie or say nothing."""

import gc
import os
import socket
from errno import EACCES, EAGAIN, ECONNRESET, EINVAL, EIO, EMSGSIZE, ENOSPC, EPROTO, ETIMEDOUT, EXDEV

import pytest
import trio
import trio.testing
from ninepkit import ALICE, Slow, SlowHandle, join, running_server

from vfs.conformance import FEATURES, check_tree
from vfs.directory import Dir
from vfs.host import HostTree
from vfs.inline import PENDING, start
from vfs.memory import MemoryTree
from vfs.ninep import client as client_module
from vfs.ninep import remote as remote_module
from vfs.ninep.address import Address, listen
from vfs.ninep.client import FLUSH_SECONDS, HANDSHAKE_SECONDS, connect
from vfs.ninep.codec import DIRENT, decode, encode, qid
from vfs.ninep.messages import NOTAG, NUMBER
from vfs.ninep.server import serve
from vfs.node import ROOT, SetStat
from vfs.walk import walk

DEADLINE = 60
UNSUPPORTED = {"exchange", "noreplace", "fallocate", "holes"}
"""What 9P2000.L has no messages for."""
ROOTS = {"chown", "setgid"}
"""What only root may do, where modes are checked: give files to other users and groups."""


def features(who):
    return FEATURES - UNSUPPORTED - (ROOTS if who.uid else set())


def run(scenario, root=None, who=ROOT, **options):
    """Run `scenario(client, server)` on a connection to a server of `root`."""

    async def main():
        with trio.fail_after(DEADLINE):
            async with running_server() as server:
                tree = root or MemoryTree(label="t", mode=0o777).root
                async with connect(join(server, tree, who), **options) as client:
                    await scenario(client, server)

    trio.run(main)


def session(server):
    return next(iter(server._connections.values())).session


async def until(condition):
    while not condition():
        await trio.lowlevel.checkpoint()


# The tree


@pytest.mark.parametrize("who", [ROOT, ALICE], ids=["root", "alice"])
@pytest.mark.parametrize("msize", [4120, 1 << 20])
def test_a_remote_memory_tree_keeps_every_promise_that_9p_can_carry(who, msize):
    tree = MemoryTree(label="m", uid=who.uid, gid=who.gid)
    used = tree.used

    async def scenario(client, server):
        report = await check_tree(client.root, who=who, features=features(who))
        report.check()
        assert len(report.passed) > 25
        await client.root.stat()  # takes the last dropped fids along
        gc.collect()
        await until(lambda: len(session(server).operations.fids) == 1)
        await client.wait_unused()

    run(scenario, tree.root, who, msize=msize)
    assert tree.used == used


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
@pytest.mark.parametrize("who", [ROOT, ALICE], ids=["root", "alice"])
def test_a_remote_host_tree_keeps_every_promise_that_9p_can_carry(who, tmp_path):
    os.chown(tmp_path, who.uid, who.gid)

    async def scenario(client, server):
        (await check_tree(client.root, who=who, features=features(who))).check()

    before = len(os.listdir("/proc/self/fd"))
    run(scenario, HostTree(tmp_path, label="h").root, who)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_tree_served_twice_over_is_still_the_tree(tmp_path):
    async def scenario(client, server):
        async with connect(join(server, client.root, ROOT), msize=8192) as second:
            report = await check_tree(second.root, who=ROOT, features=features(ROOT))
            report.check()
            with pytest.raises(FileNotFoundError):
                await walk(second.root, "none", ROOT)

    run(scenario)


def test_a_file_has_the_same_id_through_every_client_of_one_identity(tmp_path):
    async def scenario(client, server):
        node = await client.root.mkdir("d", 0o755, ROOT)
        assert (await client.root.lookup("d", ROOT)).id == node.id
        tree = MemoryTree(label="t", mode=0o777)
        async with (
            connect(join(server, tree.root), identity="x") as one,
            connect(join(server, tree.root), identity="x") as two,
        ):
            assert one.root.id == two.root.id
        async with connect(join(server, tree.root)) as one, connect(join(server, tree.root)) as two:
            assert one.root.id != two.root.id

    run(scenario)


def test_operations_leave_the_inline_path_before_they_wait():
    async def scenario(client, server):
        waits = client.root.stat()
        assert start(waits) is PENDING
        waits.close()

    run(scenario)


def test_times_before_1970_and_devices_survive_the_way():
    async def scenario(client, server):
        node = await client.root.mknod("null", 0o20666, os.makedev(1, 3), ROOT)
        await node.setstat(SetStat(mtime_ns=-1_500_000_000, atime_ns=1), ROOT)
        st = await node.stat()
        assert (st.st_mtime_ns, st.st_atime_ns, st.st_rdev) == (-1_500_000_000, 1, os.makedev(1, 3))

    run(scenario)


def test_what_9p_cannot_do_is_refused():
    async def scenario(client, server):
        node = await client.root.mkdir("d", 0o755, ROOT)
        with pytest.raises(OSError) as caught:
            await client.root.rename("d", client.root, "e", 1, ROOT)
        assert caught.value.errno == EINVAL
        async with connect(join(server, MemoryTree(label="o").root)) as other:
            for attempt in (other.root.link(node, "x", ROOT), client.root.rename("d", other.root, "d", 0, ROOT)):
                with pytest.raises(OSError) as caught:
                    await attempt
                assert caught.value.errno == EXDEV

    run(scenario)


def test_fids_of_garbage_nodes_are_clunked_soon():
    async def scenario(client, server):
        nodes = [await client.root.mkdir(f"d{number}", 0o755, ROOT) for number in range(50)]
        assert len(session(server).operations.fids) == 51
        del nodes
        gc.collect()
        await until(lambda: len(session(server).operations.fids) == 1)
        await client.wait_unused()
        await client.root.lookup("d1", ROOT)
        assert client._next_fid <= 53  # numbers are used again

    run(scenario)


def test_closing_a_handle_closes_the_remote_file_at_once():
    slow = Slow()

    async def scenario(client, server):
        node = await client.root.lookup("slow", ROOT)
        handle = await node.open(os.O_RDWR, ROOT)
        assert slow.open_handles == 1
        handle.close()
        await until(lambda: not slow.open_handles)

    run(scenario, Dir({"slow": slow}, mode=0o755, id=5))


def test_clunking_a_handle_tells_the_error_of_its_close():
    class Late(SlowHandle):
        async def flush(self):
            raise OSError(ENOSPC, "late")

    class Unsaved(Slow):
        async def open(self, flags, who):
            return Late(self)

    unsaved = Unsaved()

    async def scenario(client, server):
        handle = await (await client.root.lookup("f", ROOT)).open(os.O_WRONLY, ROOT)
        with pytest.raises(OSError) as caught:
            await handle.clunk()
        assert caught.value.errno == ENOSPC
        handle.close()
        assert unsaved.open_handles == 0
        await client.root.stat()

    run(scenario, Dir({"f": unsaved}, mode=0o755, id=5))


# Requests under way


def test_many_tasks_share_one_connection():
    async def scenario(client, server):
        _, handle = await client.root.create("f", os.O_RDWR, 0o644, ROOT)

        async def use(number):
            for _ in range(20):
                await handle.write(bytes([number]) * 100, number * 100)
                assert await handle.read(100, number * 100) == bytes([number]) * 100

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(use, number)
        handle.close()

    run(scenario)


def test_a_waiting_read_holds_up_nobody():
    slow = Slow()

    async def scenario(client, server):
        handle = await (await client.root.lookup("slow", ROOT)).open(os.O_RDWR, ROOT)
        got = []

        async def read():
            got.append(bytes(await handle.read(100, 0)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until(lambda: session(server).waiting)
            await client.root.stat()
            slow.feed(b"at last")
        assert got == [b"at last"]
        handle.close()

    run(scenario, Dir({"slow": slow}, mode=0o755, id=5))


def test_a_cancelled_request_is_flushed_and_takes_nothing():
    slow = Slow()

    async def scenario(client, server):
        handle = await (await client.root.lookup("slow", ROOT)).open(os.O_RDWR, ROOT)
        for _ in range(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle.read, 100, 0)
                await until(lambda: session(server).waiting)
                nursery.cancel_scope.cancel()
            assert not session(server).waiting
        slow.feed(b"kept")
        assert await handle.read(100, 0) == b"kept"
        assert client._next_tag < 5  # tags are used again
        assert not client._calls
        handle.close()

    run(scenario, Dir({"slow": slow}, mode=0o755, id=5))


def test_what_happened_in_spite_of_the_cancellation_is_returned():
    slow = Slow(stubborn=True)

    async def scenario(client, server):
        handle = await (await client.root.lookup("slow", ROOT)).open(os.O_RDWR, ROOT)
        got = []

        async def read():
            got.append(bytes(await handle.read(100, 0)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until(lambda: session(server).waiting)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await until(lambda: len(session(server).waiting) == 2)  # the read and its flush
            slow.feed(b"taken")
        assert got == [b"taken"]
        handle.close()

    run(scenario, Dir({"slow": slow}, mode=0o755, id=5))


def test_cancelled_walks_leave_no_fid():
    async def scenario(client, server):
        await client.root.mkdir("d", 0o755, ROOT)
        for delay in (0, 0, 0.0001, 0.0002):
            with trio.move_on_after(delay):
                while True:
                    await client.root.lookup("d", ROOT)
        gc.collect()
        await until(lambda: len(session(server).operations.fids) == 1)
        await client.wait_unused()

    run(scenario)


def test_reading_without_waiting_takes_what_is_there_and_nothing_else():
    slow = Slow()

    async def scenario(client, server):
        handle = await (await client.root.lookup("slow", ROOT)).open(os.O_RDWR, ROOT)
        for _ in range(3):
            with pytest.raises(BlockingIOError) as caught:
                await handle.read(100, 0, nonblock=True)
            assert caught.value.errno == EAGAIN
        slow.feed(b"one", b"two", room=3)
        assert await handle.read(100, 0, nonblock=True) == b"one"
        assert await handle.write(b"abc", 0, nonblock=True) == 3
        with pytest.raises(BlockingIOError):
            await handle.write(b"abc", 0, nonblock=True)
        assert await handle.read(100, 0) == b"two"
        assert slow.taken == [b"abc"]
        handle.close()

    run(scenario, Dir({"slow": slow}, mode=0o755, id=5))


def test_more_data_than_fits_a_message_is_written_and_read_in_parts():
    async def scenario(client, server):
        _, handle = await client.root.create("f", os.O_RDWR, 0o644, ROOT)
        data = os.urandom(20_000)
        done = 0
        while done < len(data):
            done += await handle.write(memoryview(data)[done:], done)
        assert done == len(data)
        assert await handle.read(1 << 20, 0) == data[: client.payload]
        assert client.payload == 4096
        handle.close()

    run(scenario, msize=4120)


# The connection


def test_an_attach_that_is_refused_raises_just_that(tmp_path):
    async def main():
        async def attach(uname, n_uname, aname, peer):
            raise OSError(EACCES, f"{uname} {n_uname} {aname}")

        address = Address("unix", path=str(tmp_path / "s"))
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, [listen(address)], attach)
            with pytest.raises(PermissionError):
                async with connect(address, aname="/x"):
                    pytest.fail("attached")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_is_attached_is_what_was_asked_for():
    asked = []

    async def attach(uname, n_uname, aname, peer):
        asked.append((uname, n_uname, aname))
        return MemoryTree(label="t").root, ROOT

    async def main():
        async with running_server() as server:
            ours, theirs = socket.socketpair()
            server.adopt(theirs, attach)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            async with connect(stream, aname="task/7", uname="me", uid=1234) as client:
                assert client.who.uid == 1234
                second = await client.attach("other", uid=5)
                assert (await second.stat()).st_nlink == 2
        assert asked == [("me", 1234, "task/7"), ("", 5, "other")]

    trio.run(main)


def test_an_error_in_the_block_comes_out_bare_and_the_connection_is_closed():
    async def main():
        async with running_server() as server:
            tree = MemoryTree(label="t")
            with pytest.raises(ZeroDivisionError):
                async with connect(join(server, tree.root)) as client:
                    raise ZeroDivisionError
            with pytest.raises(ConnectionResetError):
                await client.root.stat()
            await until(lambda: not server._connections)

    trio.run(main)


def test_cancelling_the_block_closes_the_connection():
    async def main():
        async with running_server() as server:
            with trio.move_on_after(0.01) as scope:
                async with connect(join(server, MemoryTree(label="t").root)):
                    await trio.sleep_forever()
            assert scope.cancelled_caught
            await until(lambda: not server._connections)

    trio.run(main)


def test_a_server_that_dies_fails_what_waits_and_everything_after():
    slow = Slow()

    async def scenario(client, server):
        handle = await (await client.root.lookup("slow", ROOT)).open(os.O_RDWR, ROOT)
        failed = []

        async def read():
            with pytest.raises(ConnectionResetError) as caught:
                await handle.read(100, 0)
            failed.append(caught.value.errno)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read)
            await until(lambda: len(session(server).waiting) == 3)
            next(iter(server._connections.values())).close()
        assert failed == [ECONNRESET] * 3
        assert "gone" in await client.wait_lost()
        for attempt in (client.root.stat(), client.root.lookup("x", ROOT), client.root.readdir(ROOT)):
            with pytest.raises(ConnectionResetError):
                await attempt
        handle.close()

    run(scenario, Dir({"slow": slow}, mode=0o755, id=5))


def test_a_cancelled_request_on_a_dying_connection_is_simply_cancelled():
    slow = Slow(stubborn=True)

    async def scenario(client, server):
        handle = await (await client.root.lookup("slow", ROOT)).open(os.O_RDWR, ROOT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.read, 100, 0)
            await until(lambda: session(server).waiting)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await until(lambda: len(session(server).waiting) == 2)  # the read and its flush
                next(iter(server._connections.values())).close()
        assert slow.open_handles == 1  # the server waits for the call that cannot be aborted
        slow.feed(b"")
        await until(lambda: not slow.open_handles)

    run(scenario, Dir({"slow": slow}, mode=0o755, id=5))


# Servers that lie


async def honest(frame):
    """Answer version and attach, as a server would; other requests get None."""
    name, tag, values = decode(frame)
    if name == "Tversion":
        return encode("Rversion", tag, *values)
    if name == "Tattach":
        return encode("Rattach", tag, qid(0o040755, 1))
    return None


async def frames_of(stream):
    held = b""
    async for chunk in stream:
        held += chunk
        while len(held) >= 4 and len(held) >= int.from_bytes(held[:4], "little"):
            size = int.from_bytes(held[:4], "little")
            yield held[:size]
            held = held[size:]


def against(answer, scenario, **options):
    """Run `scenario(client)` against a server that answers each frame with `answer(frame)` (None: as an honest one)."""

    async def serve_lies(stream):
        try:
            async for frame in frames_of(stream):
                reply = answer(decode(frame))
                if reply is None:
                    reply = await honest(frame)
                if reply:
                    await stream.send_all(reply)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def main():
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_lies, theirs)
            with trio.fail_after(DEADLINE):
                async with connect(ours, **options) as client:
                    await scenario(client)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def raises(errno, attempt):
    async def scenario(client):
        with pytest.raises(OSError) as caught:
            await attempt(client)
        assert caught.value.errno == errno, caught.value

    return scenario


async def nothing(client):
    pytest.fail("connected")


@pytest.mark.parametrize(
    "reply",
    [
        encode("Rversion", NOTAG, 8192, "unknown"),
        encode("Rversion", NOTAG, 8192, "9P2000"),
        encode("Rversion", NOTAG, 100, "9P2000.L"),
        encode("Rversion", NOTAG, 1 << 30, "9P2000.L"),
    ],
)
def test_a_peer_of_another_version_is_refused(reply):
    with pytest.raises(BaseExceptionGroup) as caught:
        against(lambda message: reply if message[0] == "Tversion" else None, nothing)
    assert caught.group_contains(OSError, match="offers")
    assert caught.value.exceptions[0].errno == EPROTO


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100), b"\xff" * 100, encode("Rattach", NOTAG, bytes(13)),
     encode("Rversion", 3, 8192, "9P2000.L"), (12).to_bytes(4, "little") + b"\x65\xff\xff" + bytes(5)],
)  # fmt: skip
def test_a_peer_that_speaks_something_else_is_refused(reply):
    with pytest.raises(BaseExceptionGroup) as caught:
        against(lambda message: reply, nothing)
    assert caught.value.exceptions[0].errno == ECONNRESET
    assert "protocol" in str(caught.value.exceptions[0])


def test_a_peer_that_says_nothing_is_given_up():
    async def main():
        ours, theirs = trio.testing.memory_stream_pair()
        begun = trio.current_time()
        with pytest.raises(OSError) as caught:
            async with connect(ours):
                pytest.fail("connected")
        assert caught.value.errno == ETIMEDOUT
        assert trio.current_time() - begun == pytest.approx(HANDSHAKE_SECONDS)
        await theirs.aclose()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_server_that_ignores_a_flush_is_given_up():
    async def scenario(client):
        begun = trio.current_time()
        with trio.move_on_after(1):
            await client.root.stat()
        assert trio.current_time() - begun == pytest.approx(1 + FLUSH_SECONDS)
        assert "flush" in await client.wait_lost()
        with pytest.raises(ConnectionResetError):
            await client.root.stat()

    against(lambda message: b"" if message[0] in ("Tgetattr", "Tflush") else None, scenario)


def test_a_second_reply_to_one_request_ends_the_connection():
    def answer(message):
        name, tag, _ = message
        if name == "Tstatfs":
            return encode("Rstatfs", tag, *range(9)) * 2
        return None

    async def scenario(client):
        await client.root.statfs()
        assert "protocol" in await client.wait_lost()

    against(answer, scenario)


@pytest.mark.parametrize(
    ("request_name", "reply", "attempt"),
    [
        ("Twalk", ("Rwalk", (bytes(13),) * 17), lambda client: client.root.lookup("x", ROOT)),
        ("Twalk", ("Rwalk", (bytes(13),) * 2), lambda client: client.root.open(0, ROOT)),
        ("Tread", ("Rread", b"x" * 101), lambda client: remote_module.RemoteHandle(client, 9).read(100, 0)),
        ("Twrite", ("Rwrite", 101), lambda client: remote_module.RemoteHandle(client, 9).write(b"x" * 100, 0)),
    ],
)
def test_a_server_that_gives_more_than_was_asked_for_is_not_believed(request_name, reply, attempt):
    def answer(message):
        name, tag, _ = message
        if name == request_name:
            return encode(reply[0], tag, *reply[1:])
        return encode("Rclunk", tag) if name == "Tclunk" else None

    against(answer, raises(EIO, attempt))


def entry(name, offset):
    return DIRENT.pack(0, 0, 5, offset, 8, len(name)) + name


@pytest.mark.parametrize(
    ("data", "errno"),
    [
        (entry(b"a", 1)[:-1], EIO),
        (entry(b"a", 1)[:20], EIO),
        (entry(b"a", 0), EIO),
        (entry(b"a", 7) + entry(b"b", 7), EIO),
        (entry(b"../../etc", 7), EINVAL),
        (entry(b"", 7), EINVAL),
        (entry(b"nul\0", 7), EINVAL),
    ],
)
def test_a_listing_that_makes_no_sense_is_an_error(data, errno):
    def answer(message):
        name, tag, _ = message
        if name == "Treaddir":
            return encode("Rreaddir", tag, data)
        if name == "Twalk":
            return encode("Rwalk", tag, ())
        if name == "Tlopen":
            return encode("Rlopen", tag, bytes(13), 0)
        return encode("Rclunk", tag) if name == "Tclunk" else None

    against(answer, raises(errno, lambda client: client.root.readdir(ROOT)))


def test_a_listing_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(remote_module, "MAX_ENTRIES", 1000)
    sent = 0

    def answer(message):
        nonlocal sent
        name, tag, values = message
        if name == "Treaddir":
            sent += 1
            return encode("Rreaddir", tag, entry(b"again", values[1] + 1) if values[1] < 10**9 else b"")
        if name in ("Twalk", "Tlopen"):
            return encode("Rwalk", tag, ()) if name == "Twalk" else encode("Rlopen", tag, bytes(13), 0)
        return encode("Rclunk", tag) if name == "Tclunk" else None

    against(answer, raises(7, lambda client: client.root.readdir(ROOT)))
    assert sent == 1001


@pytest.mark.parametrize("size", [1 << 40, 65537])
def test_an_attribute_that_is_too_large_is_not_fetched(size):
    def answer(message):
        name, tag, _ = message
        assert name != "Tread"
        if name == "Txattrwalk":
            return encode("Rxattrwalk", tag, size)
        return encode("Rclunk", tag) if name == "Tclunk" else None

    against(answer, raises(7, lambda client: client.root.getxattr("user.a")))


def test_an_error_without_a_number_is_an_io_error():
    def answer(message):
        return encode("Rlerror", message[1], 0) if message[0] == "Tgetattr" else None

    against(answer, raises(EIO, lambda client: client.root.stat()))


def test_requests_wait_while_much_lies_unsent(monkeypatch):
    monkeypatch.setattr(client_module, "_UNSENT", 100_000)

    async def scenario(client, server):
        _, handle = await client.root.create("f", os.O_RDWR, 0o644, ROOT)
        most = 0

        async def write(number):
            nonlocal most
            await handle.write(bytes(50_000), number * 50_000)
            most = max(most, client._unsent_bytes)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(write, number)
        assert most <= 200_000
        assert (await client.root.lookup("f", ROOT)).id
        handle.close()

    run(scenario)


def test_running_out_of_tags_is_an_error_and_not_a_hang(monkeypatch):
    monkeypatch.setattr(client_module, "NOTAG", 3)

    async def scenario(client, server):
        failed = []

        async def use():
            try:
                await client.root.stat()
            except BlockingIOError as error:
                failed.append(error.errno)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use)
        assert failed == [EAGAIN] * 7
        await client.root.stat()

    run(scenario)


def test_every_request_a_client_sends_is_in_the_table():
    sent = set()

    async def scenario(client, server):
        real = client.rpc

        async def rpc(name, *values, **options):
            sent.add(name)
            return await real(name, *values, **options)

        client.rpc = rpc
        await check_tree(client.root, who=ROOT, features=features(ROOT))

    run(scenario)
    assert sent <= set(NUMBER)


def test_values_that_fit_no_message_are_refused_and_cost_no_tag():
    async def scenario(client, server):
        _, handle = await client.root.create("f", os.O_RDWR, 0o644, ROOT)
        for _ in range(5):
            for attempt, errno in (
                (handle.read(10, -1), EINVAL),
                (handle.read(10, 1 << 64), EINVAL),
                (client.root.symlink("l", "x" * 70_000, ROOT), EINVAL),
                (client.root.symlink("l", "x" * 8_000, ROOT), EMSGSIZE),
            ):
                with pytest.raises(OSError) as caught:
                    await attempt
                assert caught.value.errno == errno
        await client.root.stat()
        assert client._next_tag < 5
        handle.close()

    run(scenario, msize=8000)
