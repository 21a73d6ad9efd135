"""What every writable tree promises, as a suite that any tree can be held against: `check_tree`, `check_mount`.

Each case is written once against `Files`, a handful of POSIX calls on paths. `NodeFiles` makes them on nodes (memory,
host, remote over 9P), `MountFiles` through the operating system, so that a real filesystem is the control.
A tree that lacks something by design is checked with fewer features.
"""

import contextlib
import errno
import os
import stat as statmod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vfs.inline import start
from vfs.node import Caller, DirEntry, Handle, Node, SetStat, StatFs, StatResult, is_dir
from vfs.syscalls import AT_FDCWD, fallocate, renameat2
from vfs.walk import walk

NOREPLACE, EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE = 1, 2

FEATURES = frozenset(
    {
        "append",  # O_APPEND is honoured by the server, not by the client's offset
        "chown",  # the caller may give files away
        "dir_nlink",  # a directory counts its subdirectories
        "exchange",  # RENAME_EXCHANGE
        "fallocate",
        "holes",  # sparse files, SEEK_DATA and SEEK_HOLE
        "link",
        "mknod",  # fifos and sockets
        "noreplace",  # RENAME_NOREPLACE
        "setgid",  # directories pass on their group
        "symlink",
        "unlinked",  # an open file outlives its name
        "xattr",
    }
)


class OpenFile(Protocol):
    """An open file of `Files`."""

    async def read(self, size: int, offset: int) -> bytes: ...
    async def write(self, data: bytes, offset: int) -> int: ...
    async def seek(self, offset: int, whence: int) -> int: ...
    async def allocate(self, mode: int, offset: int, length: int) -> None: ...
    async def fsync(self) -> None: ...
    def close(self) -> None: ...


class Files(Protocol):
    """POSIX calls on paths relative to the tree; a symlink as the last element is never followed."""

    who: Caller

    async def open(self, path: str, flags: int, mode: int = 0o644) -> OpenFile: ...
    async def stat(self, path: str) -> StatResult: ...
    async def setstat(self, path: str, change: SetStat) -> None: ...
    async def statfs(self, path: str) -> StatFs: ...
    async def readdir(self, path: str) -> list[DirEntry]: ...
    async def readlink(self, path: str) -> str: ...
    async def mkdir(self, path: str, mode: int = 0o755) -> None: ...
    async def symlink(self, target: str, path: str) -> None: ...
    async def mknod(self, path: str, mode: int) -> None: ...
    async def link(self, path: str, new: str) -> None: ...
    async def unlink(self, path: str) -> None: ...
    async def rmdir(self, path: str) -> None: ...
    async def rename(self, path: str, new: str, flags: int = 0) -> None: ...
    async def listxattr(self, path: str) -> list[str]: ...
    async def getxattr(self, path: str, name: str) -> bytes: ...
    async def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None: ...
    async def removexattr(self, path: str, name: str) -> None: ...


class NodeFiles:
    """`Files` on the tree below a node, on behalf of `who`."""

    def __init__(self, root: Node, who: Caller) -> None:
        self.root = root
        self.who = who

    async def node(self, path: str, *, follow: bool = False) -> Node:
        return await walk(self.root, [part for part in path.split("/") if part], self.who, follow=follow, checked=False)

    async def _parent(self, path: str) -> tuple[Node, str]:
        above, _, name = path.rpartition("/")
        parent = await self.node(above, follow=True)
        if not is_dir(await parent.stat()):
            raise OSError(errno.ENOTDIR, f"not a directory: {above!r}")
        return parent, name

    async def open(self, path: str, flags: int, mode: int = 0o644) -> OpenFile:
        if flags & os.O_CREAT:
            parent, name = await self._parent(path)
            try:
                return _NodeFile((await parent.create(name, flags, mode, self.who))[1])
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
        return _NodeFile(await (await self.node(path)).open(flags & ~os.O_CREAT, self.who))

    async def stat(self, path: str) -> StatResult:
        return await (await self.node(path)).stat()

    async def setstat(self, path: str, change: SetStat) -> None:
        await (await self.node(path)).setstat(change, self.who)

    async def statfs(self, path: str) -> StatFs:
        return await (await self.node(path)).statfs()

    async def readdir(self, path: str) -> list[DirEntry]:
        return list(await (await self.node(path)).readdir(self.who))

    async def readlink(self, path: str) -> str:
        return await (await self.node(path)).readlink()

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        parent, name = await self._parent(path)
        await parent.mkdir(name, mode, self.who)

    async def symlink(self, target: str, path: str) -> None:
        parent, name = await self._parent(path)
        await parent.symlink(name, target, self.who)

    async def mknod(self, path: str, mode: int) -> None:
        parent, name = await self._parent(path)
        await parent.mknod(name, mode, 0, self.who)

    async def link(self, path: str, new: str) -> None:
        node = await self.node(path)
        parent, name = await self._parent(new)
        await parent.link(node, name, self.who)

    async def unlink(self, path: str) -> None:
        parent, name = await self._parent(path)
        await parent.unlink(name, self.who)

    async def rmdir(self, path: str) -> None:
        parent, name = await self._parent(path)
        await parent.rmdir(name, self.who)

    async def rename(self, path: str, new: str, flags: int = 0) -> None:
        parent, name = await self._parent(path)
        new_parent, new_name = await self._parent(new)
        await parent.rename(name, new_parent, new_name, flags, self.who)

    async def listxattr(self, path: str) -> list[str]:
        return list(await (await self.node(path)).listxattr())

    async def getxattr(self, path: str, name: str) -> bytes:
        return await (await self.node(path)).getxattr(name)

    async def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        await (await self.node(path)).setxattr(name, value, flags, self.who)

    async def removexattr(self, path: str, name: str) -> None:
        await (await self.node(path)).removexattr(name, self.who)


class _NodeFile:
    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.close = handle.close

    async def read(self, size: int, offset: int) -> bytes:
        return bytes(await self._handle.read(size, offset))

    async def write(self, data: bytes, offset: int) -> int:
        return await self._handle.write(data, offset)

    async def seek(self, offset: int, whence: int) -> int:
        return await self._handle.seek(offset, whence)

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        await self._handle.allocate(mode, offset, length)

    async def fsync(self) -> None:
        await self._handle.fsync()


class MountFiles:
    """`Files` below a directory, through the operating system and as this process. Nothing in it ever waits in trio."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._root = os.fspath(path)
        self.who = Caller(os.geteuid(), os.getegid(), frozenset(os.getgroups()))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    async def open(self, path: str, flags: int, mode: int = 0o644) -> OpenFile:
        return _MountFile(os.open(self._at(path), flags | os.O_NOFOLLOW, mode))

    async def stat(self, path: str) -> StatResult:
        return os.lstat(self._at(path))

    async def setstat(self, path: str, change: SetStat) -> None:
        at = self._at(path)
        if change.size is not None:
            os.truncate(at, change.size)
        if change.uid is not None or change.gid is not None:
            os.lchown(at, -1 if change.uid is None else change.uid, -1 if change.gid is None else change.gid)
        if change.mode is not None:
            os.chmod(at, change.mode)
        if change.atime_ns is not None or change.mtime_ns is not None:
            st = os.lstat(at)
            atime = st.st_atime_ns if change.atime_ns is None else change.atime_ns
            mtime = st.st_mtime_ns if change.mtime_ns is None else change.mtime_ns
            os.utime(at, ns=(atime, mtime), follow_symlinks=False)

    async def statfs(self, path: str) -> StatFs:
        v = os.statvfs(self._at(path))
        return StatFs(
            bsize=v.f_frsize,
            blocks=v.f_blocks,
            bfree=v.f_bfree,
            bavail=v.f_bavail,
            files=v.f_files,
            ffree=v.f_ffree,
            namelen=v.f_namemax,
        )

    async def readdir(self, path: str) -> list[DirEntry]:
        with os.scandir(self._at(path)) as entries:
            return [DirEntry(e.name, e.inode(), statmod.S_IFMT(e.stat(follow_symlinks=False).st_mode)) for e in entries]

    async def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(self._at(path), mode)

    async def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    async def mknod(self, path: str, mode: int) -> None:
        os.mknod(self._at(path), mode)

    async def link(self, path: str, new: str) -> None:
        os.link(self._at(path), self._at(new), follow_symlinks=False)

    async def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    async def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    async def rename(self, path: str, new: str, flags: int = 0) -> None:
        renameat2(AT_FDCWD, self._at(path), AT_FDCWD, self._at(new), flags)

    async def listxattr(self, path: str) -> list[str]:
        return os.listxattr(self._at(path), follow_symlinks=False)

    async def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    async def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    async def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)


class _MountFile:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)

    async def write(self, data: bytes, offset: int) -> int:
        return os.pwrite(self._fd, data, offset)

    async def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self._fd, offset, whence)

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        fallocate(self._fd, mode, offset, length)

    async def fsync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


# The suite


class Violation(AssertionError):
    """A promise that was not kept."""


@dataclass(frozen=True, slots=True)
class Report:
    """Which cases held, which did not (with what was seen), and which were left out for want of a feature."""

    passed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    skipped: tuple[str, ...]

    def check(self) -> None:
        """Raise Violation unless every case held."""
        if self.failed:
            raise Violation("\n".join(f"{name}: {what}" for name, what in self.failed))


Case = Callable[[Files, str], Awaitable[None]]
_Needs = tuple[Case, frozenset[str]]
_CASES: dict[str, _Needs] = {}


def _case(*needs: str) -> Callable[[Case], Case]:
    def add(run: Case) -> Case:
        _CASES[run.__name__] = (run, frozenset(needs))
        return run

    return add


async def check_tree(root: Node, *, who: Caller, features: Iterable[str] = FEATURES) -> Report:
    """Run every case in a directory of its own below `root`, which `who` can write to, and remove it again.

    `who` is the server's client: over 9P, the user that the connection attached as.
    """

    async def promises(files: Files, here: str) -> None:
        await _node_promises(root, await root.lookup(here, who), who)

    return await _check(NodeFiles(root, who), frozenset(features), {"node_promises": (promises, frozenset())})


def check_mount(path: str | Path, *, features: Iterable[str] = FEATURES) -> Report:
    """Run every case through the operating system in the directory `path`, as this process (umask 0 meanwhile)."""
    umask = os.umask(0)
    try:
        report = start(_check(MountFiles(path), frozenset(features), {}))
    finally:
        os.umask(umask)
    assert isinstance(report, Report)
    return report


async def _check(files: Files, features: frozenset[str], more: Mapping[str, _Needs]) -> Report:
    if unknown := features - FEATURES:
        raise ValueError(f"unknown features: {sorted(unknown)}")
    passed, failed, skipped = [], [], []
    for name, (run, needs) in {**_CASES, **more}.items():
        if needs - features:
            skipped.append(name)
            continue
        here = f"case-{name}"
        problem = await _problem(_make_here, files, here) or await _problem(run, files, here)
        left = await _problem(remove_tree, files, here)
        if what := problem or left:
            failed.append((name, what))
        else:
            passed.append(name)
    return Report(tuple(passed), tuple(failed), tuple(skipped))


async def _make_here(files: Files, here: str) -> None:
    await files.mkdir(here)


async def _problem(act: Case, files: Files, here: str) -> str | None:
    """Return how `act` failed, or None."""
    try:
        await act(files, here)
    except (Violation, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


async def remove_tree(files: Files, path: str) -> None:
    """Remove a directory with all that is in it."""
    for entry in await files.readdir(path):
        inner = f"{path}/{entry.name}"
        if statmod.S_ISDIR((await files.stat(inner)).st_mode):
            await remove_tree(files, inner)
        else:
            await files.unlink(inner)
    await files.rmdir(path)


def expect(seen: object, wanted: object, what: str) -> None:
    """Raise Violation unless both are equal."""
    if seen != wanted:
        shown = [repr(value) if len(repr(value)) < 200 else f"{repr(value)[:200]}..." for value in (seen, wanted)]
        raise Violation(f"{what}: {shown[0]} instead of {shown[1]}")


@contextlib.contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """Raise Violation unless the block is refused with one of these errnos."""
    wanted = " or ".join(errno.errorcode[number] for number in numbers)
    try:
        yield
    except OSError as error:
        if error.errno in numbers:
            return
        raise Violation(f"{errno.errorcode.get(error.errno or 0)} ({error}) instead of {wanted}") from error
    raise Violation(f"allowed instead of {wanted}")


async def all_refused(number: int, *attempts: Coroutine[Any, Any, object]) -> None:
    """Raise Violation unless each of these is refused with this errno."""
    try:
        for attempt in attempts:
            with refused(number):
                await attempt
    finally:
        for attempt in attempts:
            attempt.close()


async def put(files: Files, path: str, data: bytes = b"", mode: int = 0o644) -> None:
    """Make a file with this content."""
    file = await files.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        if data:
            expect(await file.write(data, 0), len(data), "bytes written")
    finally:
        file.close()


async def get(files: Files, path: str) -> bytes:
    """Return the content of a file."""
    file = await files.open(path, os.O_RDONLY)
    try:
        pieces, offset = [], 0
        while piece := await file.read(1 << 20, offset):
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)
    finally:
        file.close()


@contextlib.asynccontextmanager
async def _opened(files: Files, path: str, flags: int, mode: int = 0o644) -> AsyncIterator[OpenFile]:
    file = await files.open(path, flags, mode)
    try:
        yield file
    finally:
        file.close()


async def _names(files: Files, path: str) -> list[str]:
    return sorted(entry.name for entry in await files.readdir(path))


# Names

ODD_NAMES = (
    "a b",
    "new\nline",
    "\udcff\udcfe not utf-8",
    "ümläut",
    "日本語",
    "-rf",
    "...",
    "~",
    "#x",
    "\x01",
    "x" * 255,
)


@_case()
async def names_are_any_bytes(files: Files, here: str) -> None:
    for name in ODD_NAMES:
        await put(files, f"{here}/{name}", os.fsencode(name))
    expect(await _names(files, here), sorted(ODD_NAMES), "names listed")
    for name in ODD_NAMES:
        expect(await get(files, f"{here}/{name}"), os.fsencode(name), f"content of {name!r}")
        await files.rename(f"{here}/{name}", f"{here}/moved")
        expect(await _names(files, here), sorted({*ODD_NAMES, "moved"} - {name}), "names listed")
        await files.rename(f"{here}/moved", f"{here}/{name}")


@_case()
async def names_past_255_bytes_are_refused(files: Files, here: str) -> None:
    await put(files, f"{here}/f")
    for name in ("x" * 256, "ü" * 128):
        path = f"{here}/{name}"
        await all_refused(
            errno.ENAMETOOLONG,
            put(files, path),
            files.mkdir(path),
            files.stat(path),
            files.rename(f"{here}/f", path),
            files.unlink(path),
        )


@_case()
async def names_that_are_missing_are_enoent(files: Files, here: str) -> None:
    await put(files, f"{here}/f")
    attempts = (
        files.stat(f"{here}/no"),
        files.open(f"{here}/no", os.O_RDONLY),
        files.open(f"{here}/no/f", os.O_CREAT | os.O_WRONLY),
        files.mkdir(f"{here}/no/d"),
        files.unlink(f"{here}/no"),
        files.rmdir(f"{here}/no"),
        files.rename(f"{here}/no", f"{here}/x"),
        files.rename(f"{here}/f", f"{here}/no/x"),
        files.setstat(f"{here}/no", SetStat(mode=0o600)),
    )
    await all_refused(errno.ENOENT, *attempts)


@_case()
async def names_below_a_file_are_enotdir(files: Files, here: str) -> None:
    await put(files, f"{here}/f")
    await put(files, f"{here}/g")
    attempts = (
        files.stat(f"{here}/f/x"),
        files.mkdir(f"{here}/f/x"),
        files.open(f"{here}/f/x", os.O_RDONLY),
        files.rename(f"{here}/g", f"{here}/f/x"),
        files.rmdir(f"{here}/f"),
    )
    await all_refused(errno.ENOTDIR, *attempts)


@_case()
async def names_in_use_are_eexist(files: Files, here: str) -> None:
    await put(files, f"{here}/f", b"kept")
    await files.mkdir(f"{here}/d")
    for taken in (f"{here}/f", f"{here}/d"):
        await all_refused(errno.EEXIST, files.open(taken, os.O_CREAT | os.O_EXCL | os.O_WRONLY), files.mkdir(taken))
    expect(await get(files, f"{here}/f"), b"kept", "content of the file in the way")


# Content


@_case()
async def data_written_is_read_back(files: Files, here: str) -> None:
    async with _opened(files, f"{here}/f", os.O_CREAT | os.O_EXCL | os.O_RDWR) as file:
        expect(await file.read(10, 0), b"", "a new file")
        expect(await file.write(b"hello world", 0), 11, "bytes written")
        expect(await file.write(b"J", 0), 1, "bytes written")
        expect(await file.read(5, 0), b"Jello", "a part")
        expect(await file.read(100, 6), b"world", "up to the end")
        expect(await file.read(100, 11), b"", "at the end")
        expect(await file.read(100, 1 << 40), b"", "far past the end")
        expect(await file.read(0, 0), b"", "nothing asked")
        expect(await file.write(b"", 5), 0, "nothing written")
        await file.fsync()
    expect((await files.stat(f"{here}/f")).st_size, 11, "size")
    expect(await get(files, f"{here}/f"), b"Jello world", "content after closing")


@_case()
async def data_larger_than_any_buffer_is_kept_exactly(files: Files, here: str) -> None:
    block = bytes(range(251)) * 4177  # 1 MiB less a bit, so that blocks and pages never line up
    async with _opened(files, f"{here}/f", os.O_CREAT | os.O_EXCL | os.O_RDWR) as file:
        for number in range(3):
            done = 0
            while done < len(block):
                done += await file.write(block[done:], number * len(block) + done)
    expect((await files.stat(f"{here}/f")).st_size, 3 * len(block), "size")
    expect(await get(files, f"{here}/f") == block * 3, True, "content equal")


@_case()
async def open_files_are_read_or_written_as_opened(files: Files, here: str) -> None:
    await put(files, f"{here}/f", b"data")
    async with _opened(files, f"{here}/f", os.O_RDONLY) as file:
        with refused(errno.EBADF):
            await file.write(b"x", 0)
    async with _opened(files, f"{here}/f", os.O_WRONLY) as file:
        with refused(errno.EBADF):
            await file.read(1, 0)
    expect(await get(files, f"{here}/f"), b"data", "content")


@_case()
async def open_files_see_each_others_writes(files: Files, here: str) -> None:
    await put(files, f"{here}/f", b"old")
    async with _opened(files, f"{here}/f", os.O_RDWR) as one, _opened(files, f"{here}/f", os.O_RDWR) as two:
        await one.write(b"new", 0)
        expect(await two.read(9, 0), b"new", "as the other reads")
        await two.write(b"er", 3)
        expect(await one.read(9, 0), b"newer", "as the one reads")


@_case()
async def open_of_a_directory_is_eisdir(files: Files, here: str) -> None:
    with refused(errno.EISDIR):
        await files.open(here, os.O_WRONLY)


@_case()
async def open_creates_a_file_writable_whatever_its_mode(files: Files, here: str) -> None:
    await put(files, f"{here}/f", b"written", 0o400)
    expect(await get(files, f"{here}/f"), b"written", "content")


@_case()
async def truncation_cuts_and_extends_with_zeros(files: Files, here: str) -> None:
    await put(files, f"{here}/f", b"0123456789")
    await files.setstat(f"{here}/f", SetStat(size=4))
    expect(await get(files, f"{here}/f"), b"0123", "cut")
    await files.setstat(f"{here}/f", SetStat(size=8))
    expect(await get(files, f"{here}/f"), b"0123\0\0\0\0", "extended")
    (await files.open(f"{here}/f", os.O_WRONLY | os.O_TRUNC)).close()
    expect((await files.stat(f"{here}/f")).st_size, 0, "size after O_TRUNC")
    with refused(errno.EISDIR):
        await files.setstat(here, SetStat(size=0))


@_case("append")
async def appending_goes_to_the_end_whatever_the_offset(files: Files, here: str) -> None:
    await put(files, f"{here}/f", b"start")
    async with _opened(files, f"{here}/f", os.O_WRONLY | os.O_APPEND) as file:
        await file.write(b" one", 0)
        async with _opened(files, f"{here}/f", os.O_WRONLY | os.O_APPEND) as other:
            await other.write(b" two", 0)
        await file.write(b" three", 2)
    expect(await get(files, f"{here}/f"), b"start one two three", "content")


@_case("holes")
async def holes_read_as_zeros_and_cost_nothing(files: Files, here: str) -> None:
    far = 1 << 33
    async with _opened(files, f"{here}/f", os.O_CREAT | os.O_EXCL | os.O_RDWR) as file:
        await file.write(b"begin", 0)
        await file.write(b"end", far)
        expect(await file.read(10, far - 7), b"\0\0\0\0\0\0\0end", "end of the hole")
        expect(await file.read(5, far // 2), bytes(5), "inside the hole")
        st = await files.stat(f"{here}/f")
        expect(st.st_size, far + 3, "size")
        expect(st.st_blocks < 4096, True, "blocks below 2 MiB")
        expect(await file.seek(0, os.SEEK_DATA), 0, "first data")
        hole = await file.seek(0, os.SEEK_HOLE)
        expect(5 <= hole < far, True, "first hole lies between")
        data = await file.seek(hole, os.SEEK_DATA)
        expect(hole < data <= far, True, "then data again")
        expect(await file.seek(far, os.SEEK_HOLE), far + 3, "the end counts as a hole")
        with refused(errno.ENXIO):
            await file.seek(far + 3, os.SEEK_DATA)


@_case("fallocate")
async def allocation_extends_keeps_or_punches(files: Files, here: str) -> None:
    async with _opened(files, f"{here}/f", os.O_CREAT | os.O_EXCL | os.O_RDWR) as file:
        await file.write(b"x" * 300_000, 0)
        await file.allocate(KEEP_SIZE, 0, 400_000)
        expect((await files.stat(f"{here}/f")).st_size, 300_000, "size kept")
        await file.allocate(0, 0, 400_000)
        expect((await files.stat(f"{here}/f")).st_size, 400_000, "size extended")
        await file.allocate(KEEP_SIZE | PUNCH_HOLE, 65_000, 140_000)
        expect(await file.read(10, 64_995), b"x" * 5 + bytes(5), "start of the hole punched")
        expect(await file.read(10, 204_995), bytes(5) + b"x" * 5, "its end")
        expect((await files.stat(f"{here}/f")).st_size, 400_000, "size after punching")
        with refused(errno.EINVAL):
            await file.allocate(0, 0, 0)


@_case("unlinked")
async def unlinked_files_live_while_they_are_open(files: Files, here: str) -> None:
    await put(files, f"{here}/f", b"still here")
    async with _opened(files, f"{here}/f", os.O_RDWR) as file:
        await files.unlink(f"{here}/f")
        expect(await _names(files, here), [], "names")
        expect(await file.read(100, 0), b"still here", "content")
        await file.write(b"!", 10)
        await put(files, f"{here}/f", b"another")
        expect(await file.read(100, 0), b"still here!", "content beside a new file of the name")
    expect(await get(files, f"{here}/f"), b"another", "the new file")


# Directories


@_case()
async def directories_list_all_names_once_with_inode_and_type(files: Files, here: str) -> None:
    wanted = {f"{number:04}" for number in range(300)}
    for name in wanted:
        await put(files, f"{here}/{name}")
    await files.mkdir(f"{here}/sub")
    first, second = await files.readdir(here), await files.readdir(here)
    expect(sorted(entry.name for entry in first), sorted({*wanted, "sub"}), "names")
    expect(first, second, "a second listing")
    for entry in (first[0], first[-1], *(entry for entry in first if entry.name == "sub")):
        st = await files.stat(f"{here}/{entry.name}")
        expect(entry.ino, st.st_ino, "inode listed")
        expect(entry.type in (0, statmod.S_IFMT(st.st_mode)), True, "type listed is right or unknown")
    for name in wanted:
        await files.unlink(f"{here}/{name}")
    expect(await _names(files, here), ["sub"], "names left")
    await put(files, f"{here}/file")
    with refused(errno.ENOTDIR):
        await files.readdir(f"{here}/file")


@_case()
async def directories_are_removed_empty_only_and_by_rmdir_only(files: Files, here: str) -> None:
    await files.mkdir(f"{here}/d")
    await put(files, f"{here}/d/f")
    with refused(errno.ENOTEMPTY):
        await files.rmdir(f"{here}/d")
    with refused(errno.EISDIR):
        await files.unlink(f"{here}/d")
    await files.unlink(f"{here}/d/f")
    await files.rmdir(f"{here}/d")
    with refused(errno.ENOENT):
        await files.stat(f"{here}/d")


@_case()
async def directories_nest_deeply(files: Files, here: str) -> None:
    path = here
    for _ in range(60):
        path += "/d"
        await files.mkdir(path)
    await put(files, f"{path}/f", b"deep")
    expect(await get(files, f"{path}/f"), b"deep", "content at the bottom")


@_case("dir_nlink")
async def directories_count_their_subdirectories(files: Files, here: str) -> None:
    expect((await files.stat(here)).st_nlink, 2, "links of an empty directory")
    await files.mkdir(f"{here}/a")
    await files.mkdir(f"{here}/a/b")
    expect((await files.stat(f"{here}/a")).st_nlink, 3, "links of the one with one inside")
    await files.rename(f"{here}/a/b", f"{here}/b")
    expect((await files.stat(f"{here}/a")).st_nlink, 2, "links after it moved out")
    expect((await files.stat(here)).st_nlink, 4, "links where it moved to")
    await files.rename(f"{here}/b", f"{here}/a")
    expect((await files.stat(here)).st_nlink, 3, "links after one replaced the other")


# Links


@_case("symlink")
async def symlinks_keep_their_text(files: Files, here: str) -> None:
    for name, target in (("dangling", "no/such"), ("odd", "a\nb \udcff"), ("up", "../.."), ("long", "x/" * 500)):
        await files.symlink(target, f"{here}/{name}")
        expect(await files.readlink(f"{here}/{name}"), target, "target")
        st = await files.stat(f"{here}/{name}")
        expect(statmod.S_ISLNK(st.st_mode), True, "shown as a symlink")
        expect(st.st_size, len(os.fsencode(target)), "size")
        with refused(errno.ELOOP):
            await files.open(f"{here}/{name}", os.O_RDONLY)
    with refused(errno.EEXIST):
        await files.symlink("x", f"{here}/up")
    await put(files, f"{here}/f")
    with refused(errno.EINVAL):
        await files.readlink(f"{here}/f")
    await files.unlink(f"{here}/dangling")


@_case("link")
async def hard_links_are_one_file(files: Files, here: str) -> None:
    await put(files, f"{here}/a", b"one")
    await files.mkdir(f"{here}/d")
    await files.link(f"{here}/a", f"{here}/d/b")
    one, two = await files.stat(f"{here}/a"), await files.stat(f"{here}/d/b")
    expect((one.st_ino, one.st_nlink), (two.st_ino, 2), "inode and links")
    async with _opened(files, f"{here}/d/b", os.O_WRONLY) as file:
        await file.write(b"two", 0)
    await files.setstat(f"{here}/d/b", SetStat(mode=0o640))
    expect(await get(files, f"{here}/a"), b"two", "content by the first name")
    expect((await files.stat(f"{here}/a")).st_mode & 0o777, 0o640, "mode by the first name")
    with refused(errno.EEXIST):
        await files.link(f"{here}/a", f"{here}/d/b")
    with refused(errno.EPERM):
        await files.link(f"{here}/d", f"{here}/e")
    await files.rename(f"{here}/a", f"{here}/d/b")
    expect(await _names(files, here), ["a", "d"], "rename between two names of one file does nothing")
    await files.unlink(f"{here}/a")
    expect((await files.stat(f"{here}/d/b")).st_nlink, 1, "links left")
    expect(await get(files, f"{here}/d/b"), b"two", "content left")


@_case("mknod")
async def special_files_show_their_type(files: Files, here: str) -> None:
    for name, kind in (("fifo", statmod.S_IFIFO), ("sock", statmod.S_IFSOCK), ("file", statmod.S_IFREG)):
        await files.mknod(f"{here}/{name}", kind | 0o640)
        expect((await files.stat(f"{here}/{name}")).st_mode, kind | 0o640, f"mode of the {name}")
        with refused(errno.EEXIST):
            await files.mknod(f"{here}/{name}", kind | 0o640)


# Renaming

RENAMES = (
    # what moves, what is there, errno (0: done)
    ("file", "none", 0),
    ("file", "file", 0),
    ("file", "empty", errno.EISDIR),
    ("file", "full", errno.EISDIR),
    ("empty", "none", 0),
    ("empty", "file", errno.ENOTDIR),
    ("empty", "empty", 0),
    ("empty", "full", errno.ENOTEMPTY),
    ("full", "none", 0),
    ("full", "file", errno.ENOTDIR),
    ("full", "empty", 0),
    ("full", "full", errno.ENOTEMPTY),
    ("none", "file", errno.ENOENT),
    ("none", "none", errno.ENOENT),
)


async def _make(files: Files, kind: str, path: str, text: bytes) -> None:
    if kind == "file":
        await put(files, path, text)
    elif kind != "none":
        await files.mkdir(path)
        if kind == "full":
            await put(files, f"{path}/inner", text)


@_case()
async def renames_replace_what_they_may(files: Files, here: str) -> None:
    for number, (moves, there, number_of) in enumerate(RENAMES):
        for across in (False, True):
            base = f"{here}/{number}{across}"
            await files.mkdir(base)
            await files.mkdir(f"{base}/other")
            source, target = f"{base}/source", f"{base}/other/target" if across else f"{base}/target"
            await _make(files, moves, source, b"moved")
            await _make(files, there, target, b"there")
            if number_of:
                with refused(number_of):
                    await files.rename(source, target)
                continue
            inode = (await files.stat(source)).st_ino
            await files.rename(source, target)
            expect((await files.stat(target)).st_ino, inode, f"inode after {moves} over {there}")
            with refused(errno.ENOENT):
                await files.stat(source)
            if moves == "full":
                expect(await get(files, f"{target}/inner"), b"moved", "content below the moved directory")
            if moves == "file":
                expect(await get(files, target), b"moved", "content of the moved file")


@_case()
async def renames_never_make_a_directory_its_own_ancestor(files: Files, here: str) -> None:
    await files.mkdir(f"{here}/a")
    await files.mkdir(f"{here}/a/b")
    for target in (f"{here}/a/x", f"{here}/a/b/x"):
        with refused(errno.EINVAL):
            await files.rename(f"{here}/a", target)
    with refused(errno.ENOTEMPTY):
        await files.rename(f"{here}/a/b", f"{here}/a")
    await files.rename(f"{here}/a", f"{here}/a")
    expect(await _names(files, f"{here}/a"), ["b"], "names below")


@_case()
async def renames_keep_open_files_and_what_is_below(files: Files, here: str) -> None:
    await files.mkdir(f"{here}/a")
    await files.mkdir(f"{here}/a/b")
    await put(files, f"{here}/a/b/f", b"text")
    async with _opened(files, f"{here}/a/b/f", os.O_RDWR) as file:
        await files.rename(f"{here}/a", f"{here}/z")
        await files.rename(f"{here}/z/b/f", f"{here}/g")
        await file.write(b"TEXT", 0)
        expect(await file.read(9, 0), b"TEXT", "content through the open file")
    expect(await get(files, f"{here}/g"), b"TEXT", "content by the new name")
    await put(files, f"{here}/z/b/new", b"below")
    expect(await get(files, f"{here}/z/b/new"), b"below", "content below the moved directory")


@_case("noreplace")
async def renames_may_refuse_to_replace(files: Files, here: str) -> None:
    await put(files, f"{here}/a", b"a")
    await put(files, f"{here}/b", b"b")
    with refused(errno.EEXIST):
        await files.rename(f"{here}/a", f"{here}/b", NOREPLACE)
    await files.rename(f"{here}/a", f"{here}/c", NOREPLACE)
    expect((await get(files, f"{here}/b"), await get(files, f"{here}/c")), (b"b", b"a"), "contents")
    with refused(errno.EINVAL):
        await files.rename(f"{here}/b", f"{here}/c", NOREPLACE | EXCHANGE)


@_case("exchange")
async def renames_may_exchange_any_two(files: Files, here: str) -> None:
    await put(files, f"{here}/f", b"file")
    await files.mkdir(f"{here}/d")
    await put(files, f"{here}/d/inner", b"inner")
    await files.rename(f"{here}/f", f"{here}/d", EXCHANGE)
    expect(await get(files, f"{here}/d"), b"file", "the file by the other name")
    expect(await get(files, f"{here}/f/inner"), b"inner", "the directory by the other name")
    with refused(errno.ENOENT):
        await files.rename(f"{here}/f", f"{here}/none", EXCHANGE)
    with refused(errno.EINVAL):
        await files.rename(f"{here}/f", f"{here}/f/inner", EXCHANGE)
    with refused(errno.EINVAL):
        await files.rename(f"{here}/f/inner", f"{here}/f", EXCHANGE)


# Attributes


@_case()
async def modes_are_exact(files: Files, here: str) -> None:
    for mode in (0o000, 0o777, 0o640, 0o4755):
        await put(files, f"{here}/f{mode:o}", mode=mode & 0o777)
        await files.mkdir(f"{here}/d{mode:o}", mode & 0o1777)
        await files.setstat(f"{here}/f{mode:o}", SetStat(mode=mode))
        expect((await files.stat(f"{here}/f{mode:o}")).st_mode, statmod.S_IFREG | mode, "mode of the file")
        wanted = statmod.S_IFDIR | mode & 0o1777
        expect((await files.stat(f"{here}/d{mode:o}")).st_mode, wanted, "mode of the directory")
        await files.setstat(f"{here}/d{mode:o}", SetStat(mode=0o1755))
        expect((await files.stat(f"{here}/d{mode:o}")).st_mode, statmod.S_IFDIR | 0o1755, "mode changed")


@_case()
async def new_files_belong_to_the_caller(files: Files, here: str) -> None:
    await put(files, f"{here}/f")
    await files.mkdir(f"{here}/d")
    for name in ("f", "d"):
        st = await files.stat(f"{here}/{name}")
        expect((st.st_uid, st.st_gid), (files.who.uid, files.who.gid), f"owner of {name}")


@_case("chown", "symlink")
async def owners_change_and_set_id_bits_go(files: Files, here: str) -> None:
    await put(files, f"{here}/f", mode=0o755)
    await files.symlink("f", f"{here}/l")
    await files.setstat(f"{here}/f", SetStat(mode=0o6755))
    await files.setstat(f"{here}/f", SetStat(uid=1234))
    st = await files.stat(f"{here}/f")
    expect((st.st_uid, st.st_gid, st.st_mode & 0o7777), (1234, files.who.gid, 0o755), "uid given away")
    await files.setstat(f"{here}/f", SetStat(uid=1, gid=2))
    await files.setstat(f"{here}/l", SetStat(uid=3, gid=4))
    st, link = await files.stat(f"{here}/f"), await files.stat(f"{here}/l")
    expect((st.st_uid, st.st_gid, link.st_uid, link.st_gid), (1, 2, 3, 4), "a symlink has owners of its own")


@_case("setgid", "chown")
async def setgid_directories_pass_on_their_group(files: Files, here: str) -> None:
    await files.setstat(here, SetStat(mode=0o2755))
    await files.setstat(here, SetStat(gid=4321))
    await put(files, f"{here}/f")
    await files.mkdir(f"{here}/d", 0o700)
    st = await files.stat(f"{here}/f")
    expect((st.st_gid, st.st_mode & 0o7777), (4321, 0o644), "group and mode of a file")
    st = await files.stat(f"{here}/d")
    expect((st.st_gid, st.st_mode & 0o7777), (4321, 0o2700), "group and mode of a directory")


@_case()
async def times_are_kept_to_the_nanosecond(files: Files, here: str) -> None:
    await put(files, f"{here}/f")
    await files.setstat(f"{here}/f", SetStat(atime_ns=1_000_000_001, mtime_ns=1_234_567_890_123_456_789))
    st = await files.stat(f"{here}/f")
    expect((st.st_atime_ns, st.st_mtime_ns), (1_000_000_001, 1_234_567_890_123_456_789), "atime and mtime")
    await files.setstat(f"{here}/f", SetStat(mtime_ns=5))
    st = await files.stat(f"{here}/f")
    expect((st.st_atime_ns, st.st_mtime_ns), (1_000_000_001, 5), "atime as it was")


@_case()
async def times_follow_what_happens(files: Files, here: str) -> None:
    async def touched(path: str, act: Awaitable[object]) -> bool:
        await files.setstat(path, SetStat(mtime_ns=10**9))
        await act
        return (await files.stat(path)).st_mtime_ns > 10**9

    file = f"{here}/f"
    expect(await touched(here, put(files, file, b"x")), True, "directory's mtime after create")
    async with _opened(files, file, os.O_WRONLY) as opened:
        expect(await touched(file, opened.write(b"y", 0)), True, "file's mtime after write")
    expect(await touched(file, files.setstat(file, SetStat(size=0))), True, "file's mtime after truncate")
    expect(await touched(file, files.setstat(file, SetStat(mode=0o600))), False, "file's mtime after chmod")
    expect(await touched(here, files.mkdir(f"{here}/d")), True, "directory's mtime after mkdir")
    expect(await touched(here, files.rename(file, f"{here}/g")), True, "directory's mtime after rename")
    expect(await touched(f"{here}/d", files.rename(f"{here}/g", f"{here}/d/g")), True, "mtime of where it moved to")
    expect(await touched(f"{here}/d", files.unlink(f"{here}/d/g")), True, "directory's mtime after unlink")
    expect(await touched(here, files.rmdir(f"{here}/d")), True, "directory's mtime after rmdir")


@_case("xattr")
async def attributes_are_kept_as_bytes(files: Files, here: str) -> None:
    await put(files, f"{here}/f")
    await files.mkdir(f"{here}/d")
    for path in (f"{here}/f", f"{here}/d"):
        with refused(errno.ENODATA):
            await files.getxattr(path, "user.no")
        with refused(errno.ENODATA):
            await files.removexattr(path, "user.no")
        with refused(errno.ENODATA):
            await files.setxattr(path, "user.a", b"", os.XATTR_REPLACE)
        await files.setxattr(path, "user.a", b"\0bin\xff")
        await files.setxattr(path, "user.empty", b"")
        with refused(errno.EEXIST):
            await files.setxattr(path, "user.a", b"", os.XATTR_CREATE)
        await files.setxattr(path, "user.long", b"v" * 2000, os.XATTR_CREATE)
        expect(await files.getxattr(path, "user.a"), b"\0bin\xff", "value")
        expect(await files.getxattr(path, "user.empty"), b"", "empty value")
        expect(await files.getxattr(path, "user.long"), b"v" * 2000, "long value")
        listed = sorted(name for name in await files.listxattr(path) if name.startswith("user."))
        expect(listed, ["user.a", "user.empty", "user.long"], "names")
        await files.removexattr(path, "user.a")
        with refused(errno.ENODATA):
            await files.getxattr(path, "user.a")
        with refused(errno.ERANGE):
            await files.setxattr(path, "user." + "n" * 251, b"")


@_case()
async def filesystem_figures_make_sense(files: Files, here: str) -> None:
    figures = await files.statfs(here)
    expect(figures.namelen, 255, "longest name")
    expect(figures.bsize > 0 and figures.bavail <= figures.bfree <= figures.blocks, True, "free <= all")


# What only a node can promise


async def _node_promises(root: Node, directory: Node, who: Caller) -> None:
    made, handle = await directory.create("f", os.O_RDWR, 0o644, who)
    handle.close()
    found = await directory.lookup("f", who)
    expect(found.id, made.id, "id of the same file looked up")
    other, handle = await directory.create("g", os.O_RDWR, 0o644, who)
    handle.close()
    expect(len({root.id, directory.id, made.id, other.id}), 4, "different ids")
    expect(all(1 < node.id < 1 << 63 for node in (root, directory, made)), True, "ids in their range")
    for name in ("", ".", "..", "a/b", "nul\0"):
        with refused(errno.EINVAL):
            await directory.create(name, os.O_RDWR, 0o644, who)
        with refused(errno.EINVAL, errno.ENOENT):
            await directory.lookup(name, who)
    with refused(errno.EXDEV):
        await directory.link(_Stranger(), "h", who)
    with refused(errno.EXDEV):
        await directory.rename("f", _Stranger(), "h", 0, who)
    await directory.rename("f", directory, "moved", 0, who)
    expect((await directory.lookup("moved", who)).id, made.id, "id after a rename")


class _Stranger(Node):
    """A node of no tree under test."""

    __slots__ = ()
