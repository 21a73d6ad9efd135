"""Messages on the wire: whole, in pieces, too long, and not messages at all."""

import os
import socket
from collections.abc import Callable, Sequence
from errno import EINVAL, EMSGSIZE, EPROTO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.taskd.channel import PacketChannel, StreamChannel
from tasks.taskd.protocol import (
    MAX_FDS,
    MAX_MESSAGE,
    MAX_PACKET,
    Frames,
    Message,
    decode,
    encode,
    frame,
    integer,
    pack,
    table,
    text,
    texts,
    unpack,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner),
    max_leaves=5,
)
messages = st.dictionaries(st.text(), values, max_size=5)


def code(error: "pytest.ExceptionInfo[OSError]") -> int | None:
    return error.value.errno


@given(messages)
def test_message_survives_encoding(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.lists(messages, max_size=5), st.integers(1, 7))
def test_frames_arrive_whole_in_pieces_of_any_size(sent: list[Message], size: int) -> None:
    stream = b"".join(map(frame, sent))
    for step in (size, len(stream) or 1):
        frames = Frames()
        received = [data for at in range(0, len(stream), step) for data in frames.feed(stream[at : at + step])]
        assert list(map(decode, received)) == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        assert isinstance(decode(data), dict)
    except OSError as error:
        assert error.errno == EPROTO


def test_frame_longer_than_allowed_is_refused_before_its_end() -> None:
    with pytest.raises(OSError) as raised:
        Frames().feed(bytes(MAX_MESSAGE + 1))
    assert code(raised) == EMSGSIZE


def test_nesting_without_end_is_a_protocol_error() -> None:
    with pytest.raises(OSError) as raised:
        decode(b'{"a":' + b"[" * 100_000)
    assert code(raised) == EPROTO


def test_text_that_is_not_utf8_keeps_its_bytes() -> None:
    name = os.fsdecode(b"\xff\xfe name")
    assert os.fsencode(text(decode(encode({"name": name})), "name", 20)) == b"\xff\xfe name"


def test_long_message_travels_in_memory_as_a_descriptor() -> None:
    message: Message = {"long": "x" * (MAX_PACKET + 1)}
    packet, fds, memory = pack(message, [0])
    assert (len(packet), fds) == (1, [0, memory])
    received, rest = unpack(packet, [os.dup(0), os.dup(memory)])
    assert (received, len(rest)) == (message, 1)
    os.close(memory)
    os.close(rest[0])


def test_what_does_not_fit_at_all_is_refused() -> None:
    for message, fds in (({"long": "x" * MAX_MESSAGE}, []), ({}, [0] * (MAX_FDS + 1))):
        with pytest.raises(OSError) as raised:
            pack(message, fds)
        assert code(raised) == EMSGSIZE


def test_memory_of_another_size_or_kind_is_refused() -> None:
    big = os.memfd_create("big")
    os.truncate(big, MAX_MESSAGE + 1)
    read, write = os.pipe()
    for fds, error in (([], EPROTO), ([big], EMSGSIZE), ([read], None)):
        with pytest.raises(OSError) as raised:
            unpack(b"@", fds)
        assert error is None or code(raised) == error
    for fd in (big, read, write):
        os.close(fd)


BAD_FIELDS = [
    lambda: integer({}, "n", 0, 9),
    lambda: integer({"n": "1"}, "n", 0, 9),
    lambda: integer({"n": True}, "n", 0, 9),
    lambda: integer({"n": 10}, "n", 0, 9),
    lambda: integer({"n": 1.0}, "n", 0, 9),
    lambda: text({}, "t", 9),
    lambda: text({"t": "a\0b"}, "t", 9),
    lambda: text({"t": "ten letters"}, "t", 9),
    lambda: texts({"t": "word"}, "t", 9),
    lambda: texts({"t": ["word", 1]}, "t", 9),
    lambda: table({"t": []}, "t"),
]


@pytest.mark.parametrize("read", BAD_FIELDS)
def test_field_of_the_wrong_kind_is_invalid(read: Callable[[], object]) -> None:
    with pytest.raises(OSError) as raised:
        read()
    assert code(raised) == EINVAL


def test_packet_channel_keeps_what_a_slow_reader_does_not_take() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender, reader = PacketChannel(ours), PacketChannel(theirs)
    count = 500
    got: list[object] = []

    def take(message: Message, fds: Sequence[int]) -> None:
        got.append(message["n"])
        assert os.fstat(fds[0])

    with open(os.devnull) as null:
        for number in range(count):
            sender.send({"n": number, "text": "x" * 5000}, [null.fileno()])
    assert not sender.clear
    while len(got) < count:
        while reader.receive(take):
            pass
        sender.flush()
    assert got == list(range(count)) and sender.clear
    sender.close()
    with pytest.raises(EOFError):
        reader.receive(take)
    reader.close()


def test_packet_channel_goes_on_after_a_malformed_packet() -> None:
    raw, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = PacketChannel(theirs)
    got: list[Message] = []
    before = len(os.listdir("/proc/self/fd"))
    for packet in (b"not json", b"[]", b"@", b"{" * 70_000, b'{"n":1'):
        socket.send_fds(raw, [packet], [0, 1])
        with pytest.raises(OSError):
            channel.receive(lambda message, _: got.append(message))
    raw.send(b'{"n":1}')
    assert channel.receive(lambda message, _: got.append(message))
    assert got == [{"n": 1}]
    assert len(os.listdir("/proc/self/fd")) == before
    raw.close()
    channel.close()


def test_stream_channel_carries_messages_both_ways() -> None:
    ours, theirs = socket.socketpair()
    one, two = StreamChannel(ours.detach()), StreamChannel(theirs.detach())
    got: list[Message] = []
    for number in range(3):
        one.send({"n": number})
    assert two.receive(lambda message, _: got.append(message))
    assert got == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert not two.receive(lambda *_: None)
    os.write(one.fileno(), frame({"n": 4}) + b"abc\n" + frame({"n": 5}))
    with pytest.raises(OSError):
        two.receive(lambda message, _: got.append(message))
    assert got[3:] == [{"n": 4}, {"n": 5}]
    with pytest.raises(OSError):
        one.send({}, [0])
    one.close()
    with pytest.raises(EOFError):
        two.receive(lambda *_: None)
    two.close()
