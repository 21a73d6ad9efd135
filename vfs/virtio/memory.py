"""A guest's memory, as its machine shares it with us: where the guest's addresses lie in ours."""

import mmap
import os
from collections.abc import Iterable, Sequence
from errno import EFAULT, EINVAL
from typing import NamedTuple

_PAGE = mmap.ALLOCATIONGRANULARITY


class Region(NamedTuple):
    """A part of the guest's memory: `size` bytes at `guest`, `user` to the machine, from `offset` of a file."""

    guest: int
    size: int
    user: int
    offset: int


class Memory:
    """Regions of a guest's memory, mapped. What was sliced out of it stays mapped as long as someone holds it."""

    def __init__(self, regions: Iterable[tuple[Region, int]] = ()) -> None:
        """Map each region from its descriptor, which is the caller's to close. EINVAL if the file is too short."""
        self._mapped = [(region, _map(region, fd)) for region, fd in regions]
        self._mapped.sort(key=lambda mapped: -mapped[0].size)  # most buffers lie in the largest

    def guest(self, address: int, length: int) -> memoryview:
        """Return the bytes at an address of the guest. EFAULT unless they all lie in one region."""
        for region, view in self._mapped:
            start = address - region.guest
            if start >= 0 and start + length <= region.size:
                return view[start : start + length]
        raise OSError(EFAULT, f"no guest memory at {address:#x}+{length:#x}")

    def user(self, address: int, length: int) -> memoryview:
        """Return the bytes at an address of the machine's process. EFAULT unless they all lie in one region."""
        for region, view in self._mapped:
            start = address - region.user
            if start >= 0 and start + length <= region.size:
                return view[start : start + length]
        raise OSError(EFAULT, f"no shared memory at {address:#x}+{length:#x}")


def _map(region: Region, fd: int) -> memoryview:
    if not region.size or os.fstat(fd).st_size < region.offset + region.size:
        raise OSError(EINVAL, "a memory region is not as long as stated")
    before = region.offset % _PAGE
    mapped = mmap.mmap(fd, region.size + before, offset=region.offset - before)
    return memoryview(mapped)[before:]


def gather(buffers: Sequence[memoryview], limit: int) -> bytes:
    """Return the bytes of `buffers`, which the guest can change no more. EFAULT where they are more than `limit`."""
    if sum(map(len, buffers)) > limit:
        raise OSError(EFAULT, "a request is too long")
    return b"".join(buffers)


def room(buffers: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """Return what of `buffers` lies from byte `start` on, `length` bytes at the most."""
    found = []
    for buffer in buffers:
        size = len(buffer)
        if start >= size:
            start -= size
            continue
        if start or length < size:
            buffer = buffer[start : start + length]
            size = len(buffer)
            start = 0
        found.append(buffer)
        length -= size
        if not length:
            break
    return found


def scatter(parts: Sequence[bytes | memoryview], buffers: Sequence[memoryview]) -> int:
    """Copy `parts`, one after another, to `buffers`; returns how many bytes. EFAULT where there is no room for all."""
    done = 0
    for part in parts:
        size, at = len(part), 0
        for place in room(buffers, done, size) if done else buffers:
            end = at + len(place)
            if end >= size:
                place[: size - at] = part[at:] if at else part
                at = size
                break
            place[:] = part[at:end]
            at = end
        if at < size:
            raise OSError(EFAULT, "no room for a reply")
        done += size
    return done
