"""Descriptors of host files that are passed to a client which asked for that."""

import os
import socket
from fcntl import F_GETFL, fcntl

import trio
from ninepkit import attach_to, running_server

from vfs.host import HostTree
from vfs.ninep.codec import decode, encode
from vfs.ninep.messages import NOFID, NONUNAME, NOTAG


def ask(wire: socket.socket, name: str, *values: object, tag: int = 1) -> tuple[str, list[int]]:
    """Send a request; return the name of its reply and the descriptors beside it."""
    wire.sendall(encode(name, tag, *values))
    data, fds, _, _ = socket.recv_fds(wire, 1 << 16, 8)
    return decode(data)[0], fds


def open_file(wire: socket.socket, name: str, flags: int) -> list[int]:
    ask(wire, "Tversion", 1 << 16, "9P2000.L", tag=NOTAG)
    ask(wire, "Tattach", 0, NOFID, "", "", NONUNAME)
    ask(wire, "Twalk", 0, 1, (name,))
    reply, fds = ask(wire, "Tlopen", 1, flags)
    assert reply == "Rlopen"
    return fds


def test_descriptor_of_a_host_file_comes_beside_the_reply_with_the_access_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"content")

    def client(wire):
        with wire:
            [fd] = open_file(wire, "file", os.O_RDONLY)
            assert os.pread(fd, 100, 0) == b"content"
            try:
                os.write(fd, b"x")
            except OSError as error:
                assert error.errno == 9
            else:
                raise AssertionError("it was opened for reading")
            os.close(fd)
            ask(wire, "Twalk", 0, 2, ())
            reply, [new] = ask(wire, "Tlcreate", 2, "new", os.O_RDWR, 0o644, 0)
            os.write(new, b"written")
            os.close(new)
            assert reply == "Rlcreate" and (tmp_path / "new").read_bytes() == b"written"

    run(tmp_path, client, pass_files=True)


def test_nothing_is_passed_unless_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"content")

    def client(wire):
        with wire:
            assert open_file(wire, "file", os.O_RDONLY) == []

    run(tmp_path, client)


def test_client_that_leaves_before_its_replies_leaves_no_descriptor(tmp_path):
    (tmp_path / "file").write_bytes(b"content")

    def client(wire):
        with wire:
            os.close(*open_file(wire, "file", os.O_RDONLY))
            many = (encode("Twalk", 1, 0, fid, ("file",)) + encode("Tlopen", 1, fid, 0) for fid in range(2, 400))
            wire.sendall(b"".join(many))  # more than one message can carry

    run(tmp_path, client, pass_files=True)


def is_open(fd, path):
    try:
        return os.path.samestat(os.fstat(fd), path.stat()) and not fcntl(fd, F_GETFL) & os.O_PATH
    except OSError:
        return False  # it was the listing's own


def run(top, client, **options):
    async def main():
        async with running_server() as server:
            ours, theirs = socket.socketpair()
            tree = HostTree(top, label="t")
            connection = server.adopt(ours, attach_to(tree.root), **options)
            with trio.fail_after(60):
                await trio.to_thread.run_sync(client, theirs)
                while connection.session.operations.fids:
                    await trio.lowlevel.checkpoint()
        assert not [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_open(fd, top / "file")]

    trio.run(main)
