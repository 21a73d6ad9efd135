"""The codec against frames written by hand, and against everything that is no frame."""

import struct

import pytest
from frames import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from vfs.ninep.codec import ProtocolError, decode, decode_body, encode, qid, qid_parts
from vfs.ninep.messages import MESSAGES, NUMBER

each_golden = pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.name}-{golden.frame.hex()[:8]}")


def test_every_message_of_the_protocol_is_in_the_corpus():
    assert {golden.name for golden in GOLDEN} == set(NUMBER)


def test_every_request_has_its_reply_one_number_above():
    for number, message in MESSAGES.items():
        if message.name.startswith("T"):
            assert MESSAGES[number + 1].name == "R" + message.name[1:]


@each_golden
def test_a_message_is_encoded_as_on_the_wire(golden):
    assert encode(golden.name, golden.tag, *golden.values).hex() == golden.frame.hex()


@each_golden
def test_a_frame_is_decoded_to_its_message(golden):
    for frame in (golden.frame, bytearray(golden.frame), memoryview(golden.frame)):
        name, tag, values = decode(frame)
        assert (name, tag) == (golden.name, golden.tag)
        assert tuple(bytes(v) if isinstance(v, memoryview) else v for v in values) == golden.values


@each_golden
def test_every_truncation_of_a_frame_is_refused(golden):
    for length in range(len(golden.frame)):
        with pytest.raises(ProtocolError):
            decode(golden.frame[:length])
        if length >= 7:  # a body that is too short for its message, in a frame that is whole
            with pytest.raises(ProtocolError):
                decode(struct.pack("<I", length) + golden.frame[4:length])


@each_golden
def test_bytes_after_the_last_field_are_refused(golden):
    size = len(golden.frame) + 1
    with pytest.raises(ProtocolError):
        decode(struct.pack("<I", size) + golden.frame[4:] + b"\0")
    with pytest.raises(ProtocolError):
        decode(golden.frame + b"\0")


@pytest.mark.parametrize("kind", ["s", "d", "s*", "13*"])
def test_a_length_beyond_the_frame_is_refused_before_anything_is_read(kind):
    for number, message in MESSAGES.items():
        kinds = [its_kind for _, its_kind in message.fields]
        if kind in kinds:
            widths = {"1": 1, "2": 2, "4": 4, "8": 8, "13": 13, "s": 2}
            before = sum(widths[its_kind] for its_kind in kinds[: kinds.index(kind)])
            count = b"\xff" * (4 if kind == "d" else 2)
            body = bytes(before) + count + bytes(40)
            with pytest.raises(ProtocolError):
                decode_body(number, body, 0, len(body))


@pytest.mark.parametrize("number", sorted(set(range(256)) - set(MESSAGES)))
def test_an_unknown_message_is_refused(number):
    with pytest.raises(ProtocolError):
        decode(struct.pack("<IBH", 7, number, 1))


_FIELD = {
    "1": st.integers(0, 0xFF),
    "2": st.integers(0, 0xFFFF),
    "4": st.integers(0, 0xFFFFFFFF),
    "8": st.integers(0, (1 << 64) - 1),
    "13": st.binary(min_size=13, max_size=13),
    "s": st.binary(max_size=300).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    "d": st.binary(max_size=5000),
    "s*": st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=20).map(tuple),
    "13*": st.lists(st.binary(min_size=13, max_size=13), max_size=20).map(tuple),
}
_MESSAGE = st.sampled_from(sorted(NUMBER)).flatmap(
    lambda name: st.tuples(st.just(name), st.tuples(*(_FIELD[kind] for _, kind in MESSAGES[NUMBER[name]].fields)))
)


@given(_MESSAGE, st.integers(0, 0xFFFF))
@settings(max_examples=300)
def test_what_is_encoded_is_decoded_again(message, tag):
    name, values = message
    assert decode(encode(name, tag, *values)) == (name, tag, values)


@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=200))
@settings(max_examples=1000)
def test_decoding_is_total(number, body):
    try:
        values = decode_body(number, body, 0, len(body))
    except ProtocolError:
        return
    assert encode(MESSAGES[number].name, 0, *values)[7:] == body


def test_a_message_with_the_wrong_number_of_values_is_not_encoded():
    with pytest.raises(ValueError, match="fields"):
        encode("Twalk", 1, 2, 3)
    with pytest.raises(ValueError, match="fields"):
        encode("Tclunk", 1)


def test_a_qid_tells_directories_and_links_and_its_version_never_changes():
    assert qid_parts(qid(0o040755, 5)) == (0x80, 0, 5)
    assert qid_parts(qid(0o120777, (1 << 63) - 1)) == (0x02, 0, (1 << 63) - 1)
    assert qid_parts(qid(0o100644, 2)) == qid_parts(qid(0o020666, 2)) == (0x00, 0, 2)
