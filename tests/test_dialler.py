"""wanixfs.dialler: a connection lives as long as its users, and a little longer."""

import gc
import os
import socket
from contextlib import asynccontextmanager
from errno import EACCES, ECONNRESET, ETIMEDOUT

import pytest
import trio
import trio.testing

from vfs.memory import MemoryTree
from vfs.ninep import address
from vfs.ninep.client import HANDSHAKE_SECONDS
from vfs.ninep.server import Server
from vfs.node import ROOT
from wanixfs.dialler import LINGER_SECONDS, Dialler


class Peer:
    """A server elsewhere: `address` to dial, and how many connections it has."""

    def __init__(self, server, where, attached):
        self._server = server
        self.address = where
        self.attached = attached

    @property
    def connections(self):
        return len(self._server._connections)

    def drop(self):
        for connection in list(self._server._connections.values()):
            connection.close()


@asynccontextmanager
async def peer(tmp_path):
    where = address.Address("unix", path=f"{tmp_path}/9p")
    tree = MemoryTree(label="t")
    attached = []

    async def attach(uname, n_uname, aname, cred):
        if aname == "/refused":
            raise OSError(EACCES, "not you")
        attached.append((aname, n_uname))
        return tree.root, ROOT

    server = Server()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        server.listen(address.listen(where), attach)
        yield Peer(server, str(where), attached)
        nursery.cancel_scope.cancel()


def run(tmp_path, scenario, clock=None):
    """Run `scenario(dial, peer)` with a dialler of its own."""

    async def main():
        async with peer(tmp_path) as other, trio.open_nursery() as nursery:
            await scenario(Dialler(nursery).dial, other)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


async def until(condition):
    for _ in range(100):
        if condition():
            return
        await trio.testing.wait_all_tasks_blocked(0.01)
    raise AssertionError("it does not come to that")


async def settled():
    """Return when nothing happens by itself any more but what waits for the (virtual) time to pass."""
    for _ in range(3):  # what arrives on a socket moves tasks that seemed blocked
        await trio.testing.wait_all_tasks_blocked(0.05)


def test_users_of_one_tree_share_a_connection_and_others_have_their_own(tmp_path):
    async def scenario(dial, other):
        nodes = [await dial(other.address, "/", ROOT) for _ in range(3)]
        assert other.connections == 1
        assert len({node.id for node in nodes}) == 1
        nodes.append(await dial(other.address, "/else", ROOT))
        assert other.connections == 2
        assert {aname for aname, _ in other.attached} == {"/", "/else"}

    run(tmp_path, scenario)


def test_a_connection_ends_a_while_after_its_last_node_and_open_file(tmp_path):
    clock = trio.testing.MockClock()

    async def scenario(dial, other):
        root = await dial(other.address, "/", ROOT)
        node, handle = await root.create("f", os.O_RDWR, 0o600, ROOT)
        del root, node
        gc.collect()
        await settled()
        clock.jump(2 * LINGER_SECONDS)
        await settled()
        assert await handle.write(b"still there", 0) == 11
        handle.close()
        await settled()
        clock.jump(LINGER_SECONDS - 1)
        await settled()
        assert other.connections == 1
        clock.jump(2)
        await until(lambda: other.connections == 0)
        assert await (await (await dial(other.address, "/", ROOT)).lookup("f", ROOT)).stat()

    run(tmp_path, scenario, clock)


def test_a_connection_that_is_used_again_meanwhile_stays(tmp_path):
    clock = trio.testing.MockClock()

    async def scenario(dial, other):
        root = await dial(other.address, "/", ROOT)
        del root
        gc.collect()
        await settled()
        clock.jump(LINGER_SECONDS - 1)
        root = await dial(other.address, "/", ROOT)
        await settled()
        clock.jump(10 * LINGER_SECONDS)
        await settled()
        assert other.connections == 1
        assert (await root.stat()).st_nlink

    run(tmp_path, scenario, clock)


def test_a_connection_that_died_is_dialled_again(tmp_path):
    async def scenario(dial, other):
        lost = await dial(other.address, "/", ROOT)
        other.drop()
        with pytest.raises(OSError) as caught:
            await lost.stat()
        assert caught.value.errno == ECONNRESET
        again = await dial(other.address, "/", ROOT)
        assert again.id == lost.id
        assert await again.stat()
        assert other.connections == 1

    run(tmp_path, scenario)


def test_two_dials_at_once_of_a_server_that_dies_then(tmp_path):
    async def scenario(dial, other):
        nodes = []

        async def one():
            nodes.append(await dial(other.address, "/", ROOT))

        async with trio.open_nursery() as both:
            both.start_soon(one)
            both.start_soon(one)
        assert [bool(await node.stat()) for node in nodes] == [True, True]
        other.drop()
        await until(lambda: other.connections == 0)
        await settled()
        assert await (await dial(other.address, "/", ROOT)).stat()

    run(tmp_path, scenario)


def test_a_refusal_is_the_errno_of_the_dial_and_leaves_no_connection(tmp_path):
    async def scenario(dial, other):
        with pytest.raises(OSError) as caught:
            await dial(other.address, "/refused", ROOT)
        assert caught.value.errno == EACCES
        await until(lambda: other.connections == 0)
        with pytest.raises(FileNotFoundError):
            await dial(f"unix!{tmp_path}/nobody", "/", ROOT)

    run(tmp_path, scenario)


def test_a_peer_that_never_answers_is_etimedout_in_words(tmp_path):
    clock = trio.testing.MockClock(autojump_threshold=0.1)

    async def scenario(dial, other):
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(f"{tmp_path}/silent")
            silent.listen()
            begun = trio.current_time()
            with pytest.raises(OSError) as caught:
                await dial(f"unix!{tmp_path}/silent", "/", ROOT)
        assert caught.value.errno == ETIMEDOUT
        assert "no 9P answer" in str(caught.value)
        assert trio.current_time() - begun <= HANDSHAKE_SECONDS + 1

    run(tmp_path, scenario, clock)
