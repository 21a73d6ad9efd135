"""Addresses, sockets that listen on them, tokens, and who is at the other end."""

import os
import socket
import stat

import pytest
import trio

from vfs.ninep.access_token import authorised_path, split_aname
from vfs.ninep.address import Address, dial, listen, parse
from vfs.ninep.messages import NONUNAME
from vfs.ninep.peer import PeerCred, claimed_uid, peer_of


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix!/run/x.sock", Address("unix", path="/run/x.sock")),
        ("unix!relative", Address("unix", path="relative")),
        ("unix!/a!b", Address("unix", path="/a!b")),
        ("/run/x:1", Address("unix", path="/run/x:1")),
        ("./x", Address("unix", path="./x")),
        ("tcp!127.0.0.1!5640", Address("tcp", host="127.0.0.1", port=5640)),
        ("tcp!example.org", Address("tcp", host="example.org", port=564)),
        ("tcp!::1!5640", Address("tcp", host="::1", port=5640)),
        ("localhost:5640", Address("tcp", host="localhost", port=5640)),
        ("[::1]:5640", Address("tcp", host="::1", port=5640)),
        ("host:0", Address("tcp", host="host", port=0)),
    ],
)
def test_an_address_is_read_and_written(text, address):
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "name", "host:", ":5640", "host:65536", "host:-1", "host:²", "::1:5640", "tcp!", "tcp!!1", "tcp!h!", "unix!",
     "udp!h!1", "unix!a\0b", "unix!" + "x" * 108],
)  # fmt: skip
def test_what_names_no_address_is_refused(text):
    with pytest.raises(OSError, match=r"address|host|port|path|socket|network|IPv6"):
        parse(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_listening_beyond_loopback_needs_to_be_allowed(host):
    with pytest.raises(PermissionError):
        listen(Address("tcp", host=host, port=0))


def test_listening_beyond_loopback_can_be_allowed():
    listen(Address("tcp", host="0.0.0.0", port=0), allow_remote=True).close()


def test_a_unix_socket_has_the_mode_asked_for(tmp_path):
    address = Address("unix", path=str(tmp_path / "s"))
    for mode in (0o600, 0o666):
        listen(address, mode=mode).close()
        assert stat.S_IMODE(os.stat(address.path).st_mode) == mode


def test_a_socket_that_serves_is_not_replaced_and_one_left_behind_is(tmp_path):
    address = Address("unix", path=str(tmp_path / "s"))
    with listen(address), pytest.raises(OSError, match="in use"):
        listen(address)
    listen(address).close()


def test_a_file_in_the_way_is_never_removed(tmp_path):
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        listen(Address("unix", path=str(path)))
    assert path.read_text() == "precious"


def test_dialling_reaches_who_listens(tmp_path):
    async def main():
        for address in (Address("unix", path=str(tmp_path / "s")), Address("tcp", host="127.0.0.1", port=0)):
            with listen(address) as listener:
                if address.network == "tcp":
                    address = Address("tcp", host="127.0.0.1", port=listener.getsockname()[1])
                async with await dial(address) as stream:
                    await trio.lowlevel.wait_readable(listener)
                    accepted, _ = listener.accept()
                    with accepted:
                        peer = peer_of(accepted)
                    me = PeerCred(os.getpid(), os.geteuid(), os.getegid())
                    assert peer == (me if address.network == "unix" else None)
                    assert await stream.receive_some() == b""

    trio.run(main)


def test_dialling_nobody_fails(tmp_path):
    async def main():
        with pytest.raises(FileNotFoundError):
            await dial(Address("unix", path=str(tmp_path / "none")))
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                await dial(Address("tcp", host="127.0.0.1", port=unused.getsockname()[1]))

    trio.run(main)


def test_a_root_peer_attaches_as_anyone_and_all_others_as_themselves():
    root, user = PeerCred(1, 0, 0), PeerCred(2, 1000, 1000)
    assert claimed_uid(root, 1000) == 1000
    assert claimed_uid(root, NONUNAME) == 0
    assert claimed_uid(user, 1000) == claimed_uid(user, NONUNAME) == 1000
    for other in (0, 1001):
        with pytest.raises(PermissionError):
            claimed_uid(user, other)


def test_the_token_follows_the_last_question_mark():
    assert split_aname("/a?b?secret") == ("/a?b", "secret")
    assert split_aname("/a") == ("/a", "")
    assert split_aname("?t") == ("", "t")


def test_only_the_right_token_lets_in():
    assert authorised_path("/task?s3cret", "s3cret") == "/task"
    for aname in ("/task", "/task?", "/task?s3cre", "/task?s3cret ", "/task?S3CRET", "s3cret", "/?\udcff"):
        with pytest.raises(PermissionError):
            authorised_path(aname, "s3cret")


def test_without_an_expected_token_nobody_gets_in():
    for aname in ("/", "/?", "/?x"):
        with pytest.raises(PermissionError):
            authorised_path(aname, "")
