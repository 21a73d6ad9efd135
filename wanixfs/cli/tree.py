"""The served tree as commands use it: paths in, bytes out, errors that name the path."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from errno import EAGAIN
from typing import TypeVar

import trio

from vfs.access import WRITE, wanted
from vfs.node import ROOT, DirEntry, Handle, Node, StatResult, check_name, is_dir
from vfs.walk import open_path, split, walk

CHUNK = 1 << 20
TEXT_MAX = 16 << 20
"""Bytes of a file that is read whole."""
AT_ONCE = 64
ASKER = ROOT
"""As whom we ask our own end, which must refuse nothing: who we are, and what we may do, the server decides."""

A = TypeVar("A")
T = TypeVar("T")


class Tree:
    """A served tree, reached through its root node. Errors are OSErrors whose `filename` is the path."""

    def __init__(self, root: Node) -> None:
        self.root = root

    async def node(self, path: str, *, follow: bool = True) -> Node:
        with naming(path):
            return await walk(self.root, path, ASKER, follow=follow)

    async def stat(self, path: str, *, follow: bool = True) -> StatResult:
        node = await self.node(path, follow=follow)
        with naming(path):
            return await node.stat()

    async def names(self, path: str) -> list[DirEntry]:
        """Return what the directory holds, sorted by name."""
        node = await self.node(path)
        with naming(path):
            return sorted(await node.readdir(ASKER), key=lambda entry: entry.name)

    @asynccontextmanager
    async def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o666) -> AsyncIterator[Handle]:
        """Open `path` by open(2) flags and close it in the end; with O_CREAT make it where it is missing."""
        with naming(path):
            _, handle = await open_path(self.root, path, flags, ASKER, mode=mode & ~umask())
        try:
            yield handle
            if wanted(flags) & WRITE:
                with naming(path):
                    await handle.flush()
        finally:
            handle.close()

    async def _parent(self, path: str) -> tuple[Node, str]:
        """Return the directory that holds, or would hold, the last name of `path`, and that name."""
        *parents, name = split(path) or [""]
        return await walk(self.root, parents, ASKER), check_name(name)

    async def mkdir(self, path: str, mode: int) -> None:
        """Make a directory unless there is one."""
        try:
            if is_dir(await self.stat(path)):
                return
        except FileNotFoundError:
            pass
        with naming(path):
            parent, name = await self._parent(path)
            await parent.mkdir(name, mode & ~umask(), ASKER)

    async def symlink(self, path: str, target: str) -> None:
        with naming(path):
            parent, name = await self._parent(path)
            await parent.symlink(name, target, ASKER)

    async def read(self, path: str) -> bytes:
        """Return the whole of a file that ends (up to TEXT_MAX)."""
        parts: list[bytes] = []
        async with self.open(path) as handle:
            size = 0
            with naming(path):
                while size < TEXT_MAX and (data := await handle.read(CHUNK, size)):
                    parts.append(bytes(data))
                    size += len(data)
        return b"".join(parts)

    async def text(self, path: str) -> str:
        """Return a value file's text without its final newline."""
        return os.fsdecode(await self.read(path)).removesuffix("\n")

    @asynccontextmanager
    async def writing(
        self, path: str, flags: int = os.O_WRONLY | os.O_TRUNC, mode: int = 0o666
    ) -> AsyncIterator[Handle]:
        """Like `open`, for writing: where a control file refuses a command, its own words go into the error."""
        try:
            async with self.open(path, flags, mode) as handle:
                with naming(path):
                    yield handle
        except OSError as error:
            if words := await self._refusal(path):
                raise OSError(error.errno, words, path) from error
            raise

    async def write(self, path: str, data: bytes | str) -> None:
        """Write `data` to a file that exists, replacing what it held."""
        async with self.writing(path) as handle:
            await write_all(handle, os.fsencode(data) if isinstance(data, str) else data)

    async def _refusal(self, path: str) -> str:
        """Return what a control file says about the command that it has just refused, "" where it says nothing."""
        if not path.endswith("ctl"):
            return ""
        try:
            first = (await self.text(path)).partition("\n")[0]
        except OSError:
            return ""
        return first.removeprefix("# error: ") if first.startswith("# error: ") else ""


async def write_all(handle: Handle, data: bytes | memoryview, offset: int = 0) -> int:
    """Write all of `data` from `offset` on; return the offset after it."""
    view = memoryview(data)
    while view:
        done = await handle.write(view[:CHUNK], offset)
        offset += done
        view = view[done:]
    return offset


async def stream(
    handle: Handle, sink: Callable[[bytes | memoryview], Awaitable[None]], *, offset: int = 0, wait: bool = True
) -> None:
    """Give `sink` everything from `offset` on until end of file; without `wait`, until nothing more is there yet."""
    while True:
        try:
            data = await handle.read(CHUNK, offset, not wait)
        except OSError as error:
            if error.errno == EAGAIN and not wait:
                return
            raise
        if not data:
            return
        offset += len(data)
        await sink(data)


async def each(function: Callable[[A], Awaitable[T]], items: Iterable[A]) -> list[T]:
    """Return `await function(item)` of every item, in order; up to AT_ONCE of them are under way at a time."""
    slots = trio.Semaphore(AT_ONCE)
    done: dict[int, T] = {}

    async def one(index: int, item: A) -> None:
        async with slots:
            done[index] = await function(item)

    async with trio.open_nursery() as nursery:
        for index, item in enumerate(items):
            nursery.start_soon(one, index, item)
    return [done[index] for index in sorted(done)]


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Give the OSErrors inside the path that they are about."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or not error.errno:
            raise
        raise OSError(error.errno, os.strerror(error.errno), path) from error


def umask() -> int:
    """Return this process's umask, which cannot be read without setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
