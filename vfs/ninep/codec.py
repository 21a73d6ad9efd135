"""Frames from the table of messages: `encode` and `decode` for every message, driven by `messages.MESSAGES`.

Decoding is total: a message or `ProtocolError`, whatever the bytes. Nothing is copied or allocated for a length
before that length is known to lie inside the frame. Values are positional, in the table's order: integers are `int`,
`[s]` is str (surrogateescape), a qid 13 bytes (`qid`, `qid_parts`), `[d]` a memoryview into the frame, lists tuples.
"""

import struct
from collections.abc import Callable
from itertools import groupby
from typing import Any, Final, NamedTuple

from vfs.ninep.messages import HEADER_SIZE, MESSAGES, NUMBER, QTDIR, QTFILE, QTSYMLINK, Message

Buffer = bytes | bytearray | memoryview
Values = tuple[Any, ...]

HEADER: Final = struct.Struct("<IBH")
_QID: Final = struct.Struct("<BIQ")
_COUNT2: Final = struct.Struct("<H")
_COUNT4: Final = struct.Struct("<I")
_FIXED: Final = {"1": "B", "2": "H", "4": "I", "8": "Q", "13": "13s"}
_COUNTED: Final = {"d": "I", "13*": "H"}
_QID_SIZE: Final = _QID.size
DIRENT: Final = struct.Struct("<BIQQBH")
"""One entry of Rreaddir's data before its name: qid (in parts), offset, d_type, length of the name."""


class ProtocolError(Exception):
    """Bytes that are no 9P2000.L frame."""


def qid(mode: int, path: int) -> bytes:
    """Return the qid of a file with this `st_mode` and node id.

    Its version is always 0: Linux takes a file whose qid.version changes for another file.
    """
    kind = mode & 0o170000
    return _QID.pack(QTDIR if kind == 0o040000 else QTSYMLINK if kind == 0o120000 else QTFILE, 0, path)


def qid_parts(raw: bytes) -> tuple[int, int, int]:
    """Return the (type, version, path) of a qid."""
    return _QID.unpack(raw)


# A message body is read and written in runs: fixed fields together by one Struct, the others one by one.
# A reader takes (buffer, position, end), appends values to a list and returns the position after them.

Reader = Callable[[Buffer, int, int, list[Any]], int]
Writer = Callable[[list[bytes], Values, int], int]


def _read_fixed(fields: struct.Struct) -> Reader:
    unpack, size = fields.unpack_from, fields.size

    def read(buffer: Buffer, at: int, end: int, values: list[Any]) -> int:
        if at + size > end:
            raise ProtocolError("frame too short")
        values += unpack(buffer, at)
        return at + size

    return read


def _span(buffer: Buffer, at: int, end: int, width: struct.Struct, item: int = 1) -> tuple[int, int]:
    """Return where the counted content begins and ends, once its count is known to fit."""
    start = at + width.size
    if start > end:
        raise ProtocolError("frame too short")
    stop: int = start + width.unpack_from(buffer, at)[0] * item
    if stop > end:
        raise ProtocolError("length beyond the frame")
    return start, stop


def _read_string(buffer: Buffer, at: int, end: int, values: list[Any]) -> int:
    start, stop = _span(buffer, at, end, _COUNT2)
    values.append(str(buffer[start:stop], "utf-8", "surrogateescape"))
    return stop


def _read_data(buffer: Buffer, at: int, end: int, values: list[Any]) -> int:
    start, stop = _span(buffer, at, end, _COUNT4)
    values.append(memoryview(buffer)[start:stop])
    return stop


def _read_strings(buffer: Buffer, at: int, end: int, values: list[Any]) -> int:
    at, least = _span(buffer, at, end, _COUNT2, _COUNT2.size)  # every string has a length at least
    names: list[str] = []
    length = _COUNT2.unpack_from
    for _ in range((least - at) // 2):
        start = at + 2
        if start > end:
            raise ProtocolError("frame too short")
        at = start + length(buffer, at)[0]
        if at > end:
            raise ProtocolError("length beyond the frame")
        names.append(str(buffer[start:at], "utf-8", "surrogateescape"))
    values.append(tuple(names))
    return at


def _read_qids(buffer: Buffer, at: int, end: int, values: list[Any]) -> int:
    start, stop = _span(buffer, at, end, _COUNT2, _QID_SIZE)
    values.append(tuple(bytes(buffer[i : i + _QID_SIZE]) for i in range(start, stop, _QID_SIZE)))
    return stop


def _write_fixed(fields: struct.Struct, count: int) -> Writer:
    pack = fields.pack

    def write(out: list[bytes], values: Values, index: int) -> int:
        out.append(pack(*values[index : index + count]))
        return index + count

    return write


def _write_string(out: list[bytes], values: Values, index: int) -> int:
    text = values[index].encode("utf-8", "surrogateescape")
    out += (_COUNT2.pack(len(text)), text)
    return index + 1


def _write_strings(out: list[bytes], values: Values, index: int) -> int:
    names = values[index]
    out.append(_COUNT2.pack(len(names)))
    for i in range(len(names)):
        _write_string(out, names, i)
    return index + 1


_READERS: Final[dict[str, Reader]] = {"s": _read_string, "d": _read_data, "s*": _read_strings, "13*": _read_qids}
_WRITERS: Final[dict[str, Writer]] = {"s": _write_string, "s*": _write_strings}


class Layout(NamedTuple):
    """How one message is read and written.

    `whole` is its entire frame where every field is of fixed size, `upto` the frame up to the content of its last
    field where only that is of another size: data or a list of qids.
    """

    message: Message
    whole: struct.Struct | None
    upto: struct.Struct | None
    readers: tuple[Reader, ...]
    writers: tuple[Writer, ...]


def _layout(message: Message) -> Layout:
    readers: list[Reader] = []
    writers: list[Writer] = []
    for fixed, run in groupby((kind for _, kind in message.fields), _FIXED.__contains__):
        kinds = list(run)
        if fixed:
            fields = struct.Struct("<" + "".join(map(_FIXED.__getitem__, kinds)))
            readers.append(_read_fixed(fields))
            writers.append(_write_fixed(fields, len(kinds)))
        else:
            readers += map(_READERS.__getitem__, kinds)
            writers += [_WRITERS[kind] for kind in kinds if kind in _WRITERS]
    *first, last = [kind for _, kind in message.fields] or [""]
    whole = upto = None
    if all(kind in _FIXED for kind in first):
        head = "<IBH" + "".join(map(_FIXED.__getitem__, first))
        if last in _COUNTED:
            upto = struct.Struct(head + _COUNTED[last])
        elif last in _FIXED or not last:
            whole = struct.Struct(head + _FIXED.get(last, ""))
    return Layout(message, whole, upto, tuple(readers), tuple(writers))


LAYOUTS: Final = {number: _layout(message) for number, message in MESSAGES.items()}


def encode(name: str, tag: int, *values: Any) -> bytes:
    """Return the frame of the message called `name` (struct.error or ValueError where a value does not fit)."""
    return b"".join(pieces(NUMBER[name], tag, values)[0])


def pieces(number: int, tag: int, values: Values) -> tuple[list[bytes], int]:
    """Return the frame of message `number` in pieces, the payload of an Rread or Twrite uncopied, and its size."""
    layout = LAYOUTS[number]
    if len(values) != len(layout.message.fields):
        raise ValueError(f"{layout.message.name} has {len(layout.message.fields)} fields")
    if layout.whole is not None:
        size = layout.whole.size
        return [layout.whole.pack(size, number, tag, *values)], size
    if layout.upto is not None:
        *first, last = values
        content = b"".join(last) if isinstance(last, list | tuple) else last
        size = layout.upto.size + len(content)
        return [layout.upto.pack(size, number, tag, *first, len(last)), content], size
    out: list[bytes] = []
    index = 0
    for write in layout.writers:
        index = write(out, values, index)
    size = HEADER_SIZE + sum(map(len, out))
    out[0] = HEADER.pack(size, number, tag) + out[0]
    return out, size


def decode_body(number: int, buffer: Buffer, start: int, end: int) -> Values:
    """Return the values of the message `number` whose body is `buffer[start:end]`, all of it."""
    layout = LAYOUTS.get(number)
    if layout is None:
        raise ProtocolError(f"no such message: {number}")
    values: list[Any] = []
    for read in layout.readers:
        start = read(buffer, start, end, values)
    if start != end:
        raise ProtocolError("frame too long")
    return tuple(values)


def decode(frame: Buffer) -> tuple[str, int, Values]:
    """Return (name, tag, values) of the one frame that `frame` is."""
    if len(frame) < HEADER_SIZE:
        raise ProtocolError("frame too short")
    size, number, tag = HEADER.unpack_from(frame)
    if size != len(frame):
        raise ProtocolError("size is not the frame's")
    values = decode_body(number, frame, HEADER_SIZE, size)
    return MESSAGES[number].name, tag, values
