"""The bytes of a file in memory: holes cost nothing, and every byte kept is charged before it is allocated."""

from collections.abc import Callable, Iterable, Iterator
from errno import EFBIG, EINVAL, ENXIO, EOPNOTSUPP

CHUNK = 1 << 16
CHUNK_COST = 256
"""What a chunk is charged besides its bytes: otherwise a file of many one-byte chunks would cost next to nothing."""
MAX_SIZE = (1 << 63) - 1
MAX_READ = 1 << 24
"""The most that one read returns, whatever it asks for: holes cost nothing to store, but to read."""

KEEP_SIZE = 0x01  # FALLOC_FL_*, fallocate(2)
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10


class Sparse:
    """Bytes from 0 to `size`, kept in chunks; what no chunk holds reads as zeros.

    A chunk may be shorter than CHUNK, its rest is zeros; bytes kept past `size` are zeros.
    `charge(n)` is called with the bytes about to be taken (negative: given back) and refuses by raising OSError.
    """

    __slots__ = ("_charge", "_chunks", "kept", "size")

    def __init__(self, charge: Callable[[int], None]) -> None:
        self._charge = charge
        self._chunks: dict[int, bytearray] = {}
        self.size = 0
        self.kept = 0
        """Bytes charged so far."""

    def read(self, size: int, offset: int) -> bytes:
        """Return the bytes there, up to the end and to 16 MiB."""
        check_range(offset, size)
        if size > self.size - offset or size > MAX_READ:
            size = min(self.size - offset, MAX_READ)
        if size <= 0:
            return b""
        index, start = divmod(offset, CHUNK)
        if start + size <= CHUNK and len(chunk := self._chunks.get(index, b"")) >= start + size:
            return bytes(memoryview(chunk)[start : start + size])
        pieces = []
        for index, start, stop in _spans(offset, offset + size):
            piece = bytes(self._chunks.get(index, b"")[start:stop])
            pieces.append(piece if len(piece) == stop - start else piece.ljust(stop - start, b"\0"))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes | memoryview, offset: int) -> int:
        """Put `data` there and return how much of it there was room for; the charge's error if for none."""
        end = offset + len(data)
        check_range(offset, len(data))
        done = 0
        for index, start, stop in _spans(offset, end):
            length = stop - start
            try:
                self._room(index, stop)[start:stop] = data[done : done + length]
            except OSError:
                if not done:
                    raise
                break
            done += length
            self.size = max(self.size, offset + done)
        return done

    def truncate(self, size: int) -> None:
        """Set the size: bytes beyond it are gone, new ones are a hole."""
        check_range(size, 0)
        if size < self.size or self.kept:
            self._clear(size, MAX_SIZE + 1)
        self.size = size

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2) with KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE. EOPNOTSUPP for other modes."""
        if length <= 0:
            raise OSError(EINVAL, "length must be positive")
        check_range(offset, length)
        end = offset + length
        if mode & ~KEEP_SIZE not in (0, PUNCH_HOLE, ZERO_RANGE) or mode == PUNCH_HOLE:
            raise OSError(EOPNOTSUPP, "fallocate mode not supported")
        if mode & PUNCH_HOLE:
            self._clear(offset, end)
            return
        self._reserve(offset, end)
        if mode & ZERO_RANGE:
            for index, start, stop in _spans(offset, end):
                self._chunks[index][start:stop] = bytes(stop - start)
        if not mode & KEEP_SIZE:
            self.size = max(self.size, end)

    def seek_data(self, offset: int) -> int:
        """Return the first kept byte from `offset` on. ENXIO if only a hole follows."""
        first = self._within(offset)
        index = min((i for i in self._chunks if i >= first and i * CHUNK < self.size), default=None)
        if index is None:
            raise OSError(ENXIO, "no data beyond")
        return max(offset, index * CHUNK)

    def seek_hole(self, offset: int) -> int:
        """Return the start of the first hole from `offset` on; the end of the file counts as one."""
        index = self._within(offset)
        while index in self._chunks:
            index += 1
        return min(max(offset, index * CHUNK), self.size)

    def _within(self, offset: int) -> int:
        if not 0 <= offset < self.size:
            raise OSError(ENXIO, "beyond the end")
        return offset // CHUNK

    def _take(self, amount: int) -> None:
        self._charge(amount)
        self.kept += amount

    def _room(self, index: int, stop: int) -> bytearray:
        """Return the chunk `index`, at least `stop` bytes long."""
        chunk = self._chunks.get(index)
        if chunk is None:
            self._take(stop + CHUNK_COST)
            chunk = self._chunks[index] = bytearray(stop)
        elif len(chunk) < stop:
            self._take(stop - len(chunk))
            chunk.extend(bytes(stop - len(chunk)))
        return chunk

    def _reserve(self, offset: int, end: int) -> None:
        """Keep every byte of a range. ENOSPC leaves what was kept before, as on most filesystems."""
        missing = max(0, end - offset - sum(map(len, self._chunks.values())))
        self._charge(missing)  # what can't fit is refused before any of it is allocated
        self._charge(-missing)
        for index, _, stop in _spans(offset, end):
            self._room(index, stop)

    def _clear(self, offset: int, end: int) -> None:
        """Turn a range into a hole: whole chunks are given back, parts of chunks zeroed."""
        first, last = offset // CHUNK, (end - 1) // CHUNK
        for index in [i for i in self._chunks if first <= i <= last]:
            chunk = self._chunks[index]
            start, stop = max(0, offset - index * CHUNK), min(len(chunk), end - index * CHUNK)
            if stop < len(chunk):
                chunk[start:stop] = bytes(max(0, stop - start))
            elif start:
                self._take(-len(chunk[start:]))
                del chunk[start:]
            else:
                self._take(-len(chunk) - CHUNK_COST)
                del self._chunks[index]


def check_range(offset: int, length: int) -> None:
    """Refuse a range that no file can have: EINVAL below 0, EFBIG past 2**63 - 1."""
    if offset < 0 or length < 0:
        raise OSError(EINVAL, "negative offset or length")
    if offset + length > MAX_SIZE:
        raise OSError(EFBIG, "past the largest file size")


def _spans(offset: int, end: int) -> Iterable[tuple[int, int, int]]:
    """Cut a range into (chunk index, start, stop within it)."""
    index, start = divmod(offset, CHUNK)
    if 0 < end - offset <= CHUNK - start:  # nearly always; a generator would cost more than the read
        return ((index, start, start + end - offset),)
    return _cut(offset, end)


def _cut(offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    while offset < end:
        index, start = divmod(offset, CHUNK)
        stop = min(CHUNK, start + end - offset)
        yield index, start, stop
        offset += stop - start
