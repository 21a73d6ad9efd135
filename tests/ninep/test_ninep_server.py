"""The server on sockets: pieces of frames, slow and dying clients, limits, many connections."""

import os
import select
import socket
from errno import EMFILE

import pytest
import trio
import trio.testing
from ninepkit import Raw, Slow, attach_to, join, running_server

from vfs.directory import Dir
from vfs.memory import MemoryTree
from vfs.ninep import server as server_module
from vfs.ninep.address import Address, listen
from vfs.ninep.client import connect
from vfs.ninep.codec import encode
from vfs.ninep.messages import MAX_MSIZE, NOTAG
from vfs.ninep.operations import MAX_FIDS
from vfs.ninep.server import Server, serve
from vfs.ninep.session import OUT_LIMIT
from vfs.node import ROOT

DEADLINE = 60


def run(scenario, **options):
    """Run `scenario(server, tree)`; nothing may take for ever, or stay."""

    async def main():
        tree = MemoryTree(label="t", mode=0o777)
        with trio.fail_after(DEADLINE):
            async with running_server(**options) as server:
                await scenario(server, tree)

    trio.run(main)


async def until(condition):
    """Let the others run until `condition()` holds (their end is seen by no event of ours)."""
    while not condition():
        await trio.lowlevel.checkpoint()


def connection(server):
    [found] = server._connections.values()
    return found


@pytest.mark.parametrize("piece", [1, 3, 7, 4096])
def test_frames_arrive_in_any_pieces(piece):
    async def scenario(server, tree):
        async with join(server, tree.root) as stream:
            raw = await Raw(stream).attach()
            frames = b"".join(
                (
                    encode("Tmkdir", 1, 0, "d", 0o755, 0),
                    encode("Twalk", 2, 0, 1, ()),
                    encode("Tlcreate", 3, 1, "f", 2, 0o644, 0),
                    encode("Twrite", 4, 1, 0, b"x" * 9000),
                    encode("Tgetattr", 5, 1, 0),
                )
            )
            for at in range(0, len(frames), piece):
                await stream.send_all(frames[at : at + piece])
                await trio.lowlevel.checkpoint()
            names = [(await raw.next())[0] for _ in range(5)]
            assert names == ["Rmkdir", "Rwalk", "Rlcreate", "Rwrite", "Rgetattr"]

    run(scenario)


def test_the_largest_frames_pass_both_ways_among_small_ones():
    async def scenario(server, tree):
        async with join(server, tree.root) as stream:
            raw = await Raw(stream).attach(1 << 31)
            await raw.ask("Twalk", 0, 1, ())
            await raw.ask("Tlcreate", 1, "f", 2, 0o644, 0)
            data = os.urandom(MAX_MSIZE - 24)
            frames = encode("Twrite", 2, 1, 0, data) + encode("Tgetattr", 3, 1, 0)
            frames += encode("Tread", 4, 1, 0, 1 << 31) + encode("Tread", 5, 1, 5, 10)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, frames * 3)
                for _ in range(3):
                    assert await raw.next() == ("Rwrite", 2, (len(data),))
                    assert (await raw.next())[0] == "Rgetattr"
                    _, _, [got] = await raw.next()
                    assert got == data
                    assert (await raw.next())[2] == (data[5:15],)
        await until(lambda: not server._connections)
        assert len(server._spare) <= server_module._SPARE_BUFFERS

    run(scenario)


def test_an_idle_connection_holds_no_buffer_of_its_own():
    async def scenario(server, tree):
        async with join(server, tree.root) as stream:
            raw = await Raw(stream).attach()
            one = connection(server)
            await stream.send_all(encode("Tgetattr", 1, 0, 0)[:10])
            await until(lambda: one._buffer is not server.buffer)
            await stream.send_all(encode("Tgetattr", 1, 0, 0)[10:])
            assert (await raw.next())[0] == "Rgetattr"
            assert one._buffer is server.buffer

    run(scenario)


def test_what_one_connection_has_half_sent_is_not_touched_by_another():
    async def scenario(server, tree):
        async with join(server, tree.root) as a, join(server, tree.root) as b:
            one, two = await Raw(a).attach(), await Raw(b).attach()
            for raw, name in ((one, "one"), (two, "two")):
                await raw.ask("Twalk", 0, 1, ())
                await raw.ask("Tlcreate", 1, name, 2, 0o644, 0)
            frame = encode("Twrite", 1, 1, 0, b"1" * 30_000)
            await a.send_all(frame[:20_000])
            await two.ask("Twrite", 1, 0, b"2" * 50_000)
            await a.send_all(frame[20_000:])
            assert (await one.next())[2] == (30_000,)
            assert (await one.ask("Tread", 1, 0, 40_000))[0] == b"1" * 30_000

    run(scenario)


def test_a_client_that_does_not_read_stops_only_itself():
    async def scenario(server, tree):
        async with join(server, tree.root) as a, join(server, tree.root) as b:
            lazy, busy = await Raw(a).attach(), await Raw(b).attach()
            await lazy.ask("Twalk", 0, 1, ())
            await lazy.ask("Tlcreate", 1, "f", 2, 0o644, 0)
            await lazy.ask("Twrite", 1, 0, b"x" * 60_000)
            one = next(iter(server._connections.values()))
            async with trio.open_nursery() as nursery:
                requests = b"".join(encode("Tread", tag, 1, 0, 60_000) for tag in range(500))
                nursery.start_soon(a.send_all, requests * 20)
                await until(lambda: one.session.out_size)
                for _ in range(100):
                    await busy.ask("Tgetattr", 0, 0)
                    assert one.session.out_size <= OUT_LIMIT + 60_011  # what it asked for waits in its own socket
                for number in range(10_000):
                    name, tag, [data] = await lazy.next()
                    assert (name, tag, len(data)) == ("Rread", number % 500, 60_000)
            await until(lambda: one._interest == select.EPOLLIN)  # else the server would spin

    run(scenario)


def test_a_server_with_nothing_to_do_sleeps():
    slow = Slow()

    async def scenario(server, tree):
        async with join(server, Dir({"slow": slow}, mode=0o755, id=5)) as stream:
            raw = await Raw(stream).attach(1 << 20)
            await raw.ask("Twalk", 0, 1, ("slow",))
            await raw.ask("Tlopen", 1, os.O_RDWR)
            await raw.send(encode("Tread", 1, 1, 0, 1 << 20))
            await until(lambda: connection(server).session.waiting)
            slow.feed(b"z" * 1_000_000)
            await until(lambda: connection(server)._interest == select.EPOLLOUT)  # the socket is full
            assert len((await raw.next())[2][0]) == 1_000_000
            await trio.testing.wait_all_tasks_blocked()  # never, if its socket's being writable kept the server busy
            assert connection(server)._interest == select.EPOLLIN

    run(scenario)


def test_a_client_that_asks_without_end_leaves_others_their_turn():
    async def scenario(server, tree):
        async with join(server, tree.root) as a, join(server, tree.root) as b:
            greedy, modest = await Raw(a).attach(), await Raw(b).attach()
            flood = encode("Tgetattr", 1, 0, 0) * 3000
            async with trio.open_nursery() as nursery:

                async def ask_on():
                    while True:
                        await a.send_all(flood)

                async def read_on():
                    while True:
                        await greedy.next()

                nursery.start_soon(ask_on)
                nursery.start_soon(read_on)
                for _ in range(200):
                    await modest.ask("Tgetattr", 0, 0)
                nursery.cancel_scope.cancel()

    run(scenario)


@pytest.mark.parametrize("sent", [3, 7, 20, 5000])
def test_a_client_that_dies_in_the_middle_of_a_write_leaves_nothing(sent):
    slow = Slow()

    async def scenario(server, tree):
        stream = join(server, Dir({"slow": slow}, mode=0o755, id=5))
        raw = await Raw(stream).attach()
        await raw.ask("Twalk", 0, 1, ("slow",))
        await raw.ask("Tlopen", 1, os.O_RDWR)
        await stream.send_all(encode("Tread", 2, 1, 0, 100) + encode("Twrite", 3, 1, 0, b"x" * 10_000)[:sent])
        await until(lambda: slow.open_handles and connection(server).session.waiting)
        await trio.aclose_forcefully(stream)
        await until(lambda: not server._connections and not slow.open_handles)
        assert slow.taken == []

    run(scenario)


def test_replies_of_requests_that_waited_reach_a_client_whose_socket_was_full():
    slow = Slow()

    async def scenario(server, tree):
        async with join(server, Dir({"slow": slow}, mode=0o755, id=5)) as stream:
            raw = await Raw(stream).attach(1 << 20)
            await raw.ask("Twalk", 0, 1, ("slow",))
            await raw.ask("Tlopen", 1, os.O_RDWR)
            for tag in range(8):
                await stream.send_all(encode("Tread", tag, 1, 0, 1 << 20))
            one = connection(server)
            await until(lambda: len(one.session.waiting) == 8)
            slow.feed(*[b"z" * 500_000] * 8)
            await until(lambda: not one.session.waiting)
            assert one.session.out_size
            await stream.send_all(encode("Tgetattr", 9, 1, 0))
            replies = [await raw.next() for _ in range(9)]
            assert sorted(tag for _, tag, _ in replies) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
            assert replies[-1][0] == "Rgetattr"
            assert all(len(values[0]) == 500_000 for _, _, values in replies[:8])

    run(scenario)


def test_a_connection_that_breaks_the_protocol_is_dropped_and_no_other(monkeypatch):
    async def scenario(server, tree):
        logged = []
        monkeypatch.setattr(server_module.log, "warning", lambda event, **facts: logged.append(facts), raising=False)
        async with join(server, tree.root) as a, join(server, tree.root) as b:
            bad, good = await Raw(a).attach(), await Raw(b).attach()
            await a.send_all(encode("Tgetattr", 1, 0, 0) + bytes(20))
            assert (await bad.next())[0] == "Rgetattr"  # what came before is answered
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await bad.next()
            await good.ask("Tgetattr", 0, 0)
            assert len(server._connections) == 1
            assert "0 bytes" in logged[0]["reason"]

    run(scenario)


def test_no_more_connections_are_served_than_allowed_and_the_next_waits_its_turn(tmp_path):
    address = Address("unix", path=str(tmp_path / "s"))

    async def scenario(server, tree):
        server.listen(listen(address), attach_to(tree.root))
        first, second, third = [Raw(await trio.open_unix_socket(address.path)) for _ in range(3)]
        await first.attach()
        await second.attach()
        await third.send(encode("Tversion", NOTAG, 8192, "9P2000.L"))
        for _ in range(20):
            await second.ask("Tgetattr", 0, 0)
        assert len(server._connections) == 2
        await first.stream.aclose()
        assert (await third.next())[0] == "Rversion"
        for raw in (second, third):
            await raw.stream.aclose()

    run(scenario, max_connections=2)


def test_running_out_of_descriptors_stops_accepting_only_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "_RETRY_SECONDS", 0)
    monkeypatch.setattr(server_module.log, "error", lambda *words, **facts: None, raising=False)

    class Exhausted(socket.socket):
        left = 3

        def accept(self):
            if self.left:
                self.left -= 1
                raise OSError(EMFILE, "too many open files")
            return super().accept()

    async def scenario(server, tree):
        address = Address("unix", path=str(tmp_path / "s"))
        listener = listen(address)
        exhausted = Exhausted(fileno=listener.detach())
        server.listen(exhausted, attach_to(tree.root))
        async with await trio.open_unix_socket(address.path) as stream:
            await Raw(stream).attach()
            assert exhausted.left == 0

    run(scenario)


def test_ending_the_server_closes_every_connection_and_file(tmp_path):
    slow = Slow()
    address = Address("unix", path=str(tmp_path / "s"))

    async def main():
        async with trio.open_nursery() as nursery:
            root = Dir({"slow": slow}, mode=0o755, id=5)
            server = await nursery.start(serve, [listen(address)], attach_to(root))
            raw = await Raw(await trio.open_unix_socket(address.path)).attach()
            await raw.ask("Twalk", 0, 1, ("slow",))
            await raw.ask("Tlopen", 1, os.O_RDWR)
            await raw.send(encode("Tread", 2, 1, 0, 100))
            await until(lambda: connection(server).session.waiting)
            nursery.cancel_scope.cancel()
        assert slow.open_handles == 0
        assert await raw.stream.receive_some() == b""
        await raw.stream.aclose()
        with pytest.raises(ConnectionRefusedError):
            await trio.open_unix_socket(address.path)

    trio.run(main)


def test_two_clients_see_each_other_s_changes():
    async def scenario(server, tree):
        async with connect(join(server, tree.root)) as one, connect(join(server, tree.root)) as two:
            _, handle = await one.root.create("f", os.O_RDWR, 0o644, ROOT)
            await handle.write(b"from one", 0)
            node = await two.root.lookup("f", ROOT)
            other = await node.open(os.O_RDWR, ROOT)
            assert await other.read(100, 0) == b"from one"
            await other.write(b"two ", 5)
            assert await handle.read(100, 0) == b"from two "
            await one.root.unlink("f", ROOT)
            with pytest.raises(FileNotFoundError):
                await two.root.lookup("f", ROOT)
            for opened in (handle, other):
                opened.close()

    run(scenario)


def test_a_tcp_connection_has_no_peer_credentials_and_a_unix_one_has(tmp_path):
    async def main():
        tree = MemoryTree(label="t")
        peers = []

        async def attach(uname, n_uname, aname, peer):
            peers.append(peer and peer.uid)
            return tree.root, ROOT

        tcp = listen(Address("tcp", host="127.0.0.1", port=0))
        port = tcp.getsockname()[1]
        unix = Address("unix", path=str(tmp_path / "s"))
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, [tcp, listen(unix)], attach)
            for where in (str(unix), f"127.0.0.1:{port}"):
                async with connect(where) as client:
                    assert (await client.root.stat()).st_mode
            nursery.cancel_scope.cancel()
        assert peers == [os.geteuid(), None]

    trio.run(main)


def test_a_connection_taken_over_is_served_like_an_accepted_one():
    async def main():
        server = Server()
        tree = MemoryTree(label="t")
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            async with connect(join(server, tree.root)) as client:
                await client.root.mkdir("d", 0o755, ROOT)
                connection(server).close()
                with pytest.raises(ConnectionResetError):
                    await client.root.stat()
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_many_connections_at_once(count):
    async def scenario(server, tree):
        for name in range(10):
            await tree.root.mkdir(f"d{name}", 0o755, ROOT)
        done = 0

        async def use(number):
            nonlocal done
            async with join(server, tree.root) as stream:
                raw = await Raw(stream).attach()
                for _ in range(5):
                    await raw.ask("Twalk", 0, 1, (f"d{number % 10}",))
                    await raw.ask("Tgetattr", 1, 0)
                    await raw.ask("Tclunk", 1)
                done += 1
                await until(lambda: done == count)

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(use, number)
        assert done == count

    run(scenario)


@pytest.mark.long
def test_as_many_fids_as_allowed_on_one_connection():
    async def scenario(server, tree):
        async with join(server, tree.root) as stream:
            raw = await Raw(stream).attach()
            async with trio.open_nursery() as nursery:
                frames = b"".join(encode("Twalk", fid % 60000, 0, fid, ()) for fid in range(1, MAX_FIDS + 10))
                nursery.start_soon(stream.send_all, frames)
                replies = [(await raw.next())[0] for _ in range(1, MAX_FIDS + 10)]
            assert replies.count("Rwalk") == MAX_FIDS - 1
            assert set(replies[MAX_FIDS - 1 :]) == {"Rlerror"}

    run(scenario)
