"""Every function of WASI preview 1, over the descriptors of a task.

A method has the function's name; it takes the parameters of `abi.SIGNATURES`
as non-negative numbers (`S` apart), writes its results to memory, and raises
OSError for the errno that the module sees.
"""

import heapq
import os
import signal
import time
from collections.abc import Mapping, Sequence
from errno import EBADF, EEXIST, EINVAL, EISDIR, ELOOP, EMFILE, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTSOCK, ENOTSUP
from typing import NoReturn

import wasmtime

from tasks.drivers.wasi import hostcalls, paths
from tasks.drivers.wasi.abi import (
    ALL_RIGHTS,
    APPEND,
    ATIM,
    ATIM_NOW,
    CREATE,
    DIRECTORY,
    DIRENT,
    DSYNC,
    ENOTCAPABLE,
    EXCLUSIVE,
    FDSTAT,
    FILE_RIGHTS,
    FILESTAT,
    FOLLOW,
    MTIM,
    MTIM_NOW,
    NONBLOCK,
    PRESTAT,
    READING,
    RSYNC,
    SIGNATURES,
    SYNC,
    TRUNCATE,
    U64,
    WRITING,
    Rights,
)
from tasks.drivers.wasi.client import PAYLOAD, Client
from tasks.drivers.wasi.descriptors import (
    MAX_OFFSET,
    NOW,
    Descriptor,
    HostFile,
    PassedFile,
    TreeDirectory,
    TreeFile,
    allocate,
    open_flags,
    set_times,
    stat_of,
)
from tasks.drivers.wasi.memory import Memory
from tasks.drivers.wasi.paths import Place
from tasks.drivers.wasi.polling import poll
from vfs.ninep.messages import QTDIR

PREOPENED = 3
"""The number of the namespace's root."""
MAX_DESCRIPTORS = 65536
MAX_RANDOM = 1 << 20
CLOCKS = (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_PROCESS_CPUTIME_ID, time.CLOCK_THREAD_CPUTIME_ID)
_FLAGS = APPEND | DSYNC | NONBLOCK | RSYNC | SYNC


class Preview1:
    """The world of one module: its arguments, environment and descriptors, from `begin` on."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._client: Client
        self._args: list[bytes] = []
        self._env: list[bytes] = []
        self._table: dict[int, Descriptor] = {}
        self._next = PREOPENED
        self._free: list[int] = []

    def define(self, engine: wasmtime.Engine) -> wasmtime.Linker:
        """Return a linker that has all of the functions. It takes long, so it is done before there is a task."""
        linker = wasmtime.Linker(engine)
        for name, kinds in SIGNATURES.items():
            hostcalls.define(linker, self._memory, name, kinds, getattr(self, name))
        return linker

    def begin(
        self,
        store: wasmtime.Store,
        client: Client,
        *,
        root: int,
        args: Sequence[str],
        env: Mapping[str, str],
        given: Sequence[int],
    ) -> None:
        """Become the world of a task, once.

        `root` is the fid of the namespace's root, which takes the number 3; `given` are the descriptors of this process
        that are the task's.
        """
        self._memory.store = store
        self._client = client
        self._args = [os.fsencode(word) + b"\0" for word in args]
        self._env = [os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items()]
        self._table = {number: HostFile(number) for number in given}
        self._table[PREOPENED] = TreeDirectory(client, root, ALL_RIGHTS, ALL_RIGHTS, preopened=b"/")

    def close(self) -> None:
        """Close everything that the module left open, so that what it wrote takes effect."""
        for descriptor in self._table.values():
            if not isinstance(descriptor, HostFile):  # those have no server to be told
                try:
                    descriptor.close()
                except OSError:
                    pass  # nobody is left to be told

    # Descriptors

    def _get(self, number: int, rights: int) -> Descriptor:
        descriptor = self._table.get(number)
        if descriptor is None:
            raise OSError(EBADF, "no such descriptor")
        if rights & ~descriptor.rights:
            raise OSError(ENOTCAPABLE, "the descriptor lacks the right")
        return descriptor

    def _directory(self, number: int, rights: int) -> TreeDirectory:
        directory = self._get(number, 0)
        if not isinstance(directory, TreeDirectory):
            raise OSError(ENOTDIR, "not a directory")
        self._get(number, rights)
        return directory

    def _add(self, descriptor: Descriptor) -> int:
        """Put a descriptor at the lowest free number."""
        while self._free:
            number = heapq.heappop(self._free)
            if number not in self._table:
                break
        else:
            while self._next in self._table:
                self._next += 1
            number = self._next
        self._table[number] = descriptor
        return number

    def fd_close(self, number: int) -> None:
        descriptor = self._get(number, 0)
        del self._table[number]
        heapq.heappush(self._free, number)
        descriptor.close()

    def fd_renumber(self, number: int, to: int) -> None:
        descriptor = self._get(number, 0)
        replaced = self._get(to, 0)
        if replaced is descriptor:
            return
        del self._table[number]
        heapq.heappush(self._free, number)
        self._table[to] = descriptor
        replaced.close()

    def fd_fdstat_get(self, number: int, at: int) -> None:
        found = self._get(number, 0)
        self._memory.put(FDSTAT, at, found.type, found.flags, found.rights, found.inheriting)

    def fd_fdstat_set_flags(self, number: int, flags: int) -> None:
        descriptor = self._get(number, Rights.FD_FDSTAT_SET_FLAGS.value)
        if flags & ~_FLAGS:
            raise OSError(EINVAL, "no such flags")
        if flags & (DSYNC | RSYNC | SYNC):
            raise OSError(ENOTSUP, "no synchronous writes")
        if flags != descriptor.flags:
            descriptor.set_flags(flags)

    def fd_fdstat_set_rights(self, number: int, rights: int, inheriting: int) -> None:
        descriptor = self._get(number, 0)
        if rights & ~descriptor.rights or inheriting & ~descriptor.inheriting:
            raise OSError(ENOTCAPABLE, "rights can only be given up")
        descriptor.rights, descriptor.inheriting = rights, inheriting

    def fd_prestat_get(self, number: int, at: int) -> None:
        self._memory.put(PRESTAT, at, 0, len(self._preopened(number)))

    def fd_prestat_dir_name(self, number: int, at: int, size: int) -> None:
        name = self._preopened(number)
        if size < len(name):
            raise OSError(ENAMETOOLONG, "the name is longer")
        self._memory.put_bytes(at, name)

    def _preopened(self, number: int) -> bytes:
        directory = self._get(number, 0)
        if not isinstance(directory, TreeDirectory) or directory.preopened is None:
            raise OSError(EBADF, "not a preopened directory")
        return directory.preopened

    # Reading and writing

    def fd_read(self, number: int, vectors: int, count: int, at: int) -> None:
        self._read(self._get(number, READING), vectors, count, None, at)

    def fd_pread(self, number: int, vectors: int, count: int, offset: int, at: int) -> None:
        self._read(self._get(number, READING | Rights.FD_SEEK.value), vectors, count, _offset(offset), at)

    def _read(self, source: Descriptor, vectors: int, count: int, offset: int | None, at: int) -> None:
        parts = self._memory.vectors(vectors, count)
        self._memory.check(at, 4)
        self._memory.put_u32(at, source.read(parts, offset))

    def fd_write(self, number: int, vectors: int, count: int, at: int) -> None:
        self._write(self._get(number, Rights.FD_WRITE.value), vectors, count, None, at)

    def fd_pwrite(self, number: int, vectors: int, count: int, offset: int, at: int) -> None:
        right = Rights.FD_WRITE.value | Rights.FD_SEEK.value
        self._write(self._get(number, right), vectors, count, _offset(offset), at)

    def _write(self, sink: Descriptor, vectors: int, count: int, offset: int | None, at: int) -> None:
        parts = self._memory.vectors(vectors, count)
        self._memory.check(at, 4)
        self._memory.put_u32(at, sink.write(parts, offset))

    def fd_seek(self, number: int, offset: int, whence: int, at: int) -> None:
        moves = Rights.FD_SEEK.value if offset or whence != 1 else Rights.FD_TELL.value
        descriptor = self._get(number, moves)
        if whence > 2:
            raise OSError(EINVAL, "no such whence")
        self._memory.check(at, 8)
        self._memory.put(U64, at, descriptor.seek(offset, whence))

    def fd_tell(self, number: int, at: int) -> None:
        self._memory.put(U64, at, self._get(number, Rights.FD_TELL.value).seek(0, 1))

    def fd_advise(self, number: int, offset: int, size: int, advice: int) -> None:
        self._get(number, Rights.FD_ADVISE.value)
        if advice > 5 or offset + size > MAX_OFFSET:
            raise OSError(EINVAL, "no such advice")

    def fd_allocate(self, number: int, offset: int, size: int) -> None:
        allocate(self._get(number, Rights.FD_ALLOCATE.value), offset, size)

    def fd_sync(self, number: int) -> None:
        self._get(number, Rights.FD_SYNC.value).sync(data_only=False)

    def fd_datasync(self, number: int) -> None:
        self._get(number, Rights.FD_DATASYNC.value).sync(data_only=True)

    def fd_filestat_get(self, number: int, at: int) -> None:
        self._memory.put(FILESTAT, at, *self._get(number, Rights.FD_FILESTAT_GET.value).stat())

    def fd_filestat_set_size(self, number: int, size: int) -> None:
        self._get(number, Rights.FD_FILESTAT_SET_SIZE.value).set_size(_offset(size))

    def fd_filestat_set_times(self, number: int, atime: int, mtime: int, flags: int) -> None:
        self._get(number, Rights.FD_FILESTAT_SET_TIMES.value).set_times(*_times(atime, mtime, flags))

    def fd_readdir(self, number: int, buffer: int, size: int, cookie: int, at: int) -> None:
        directory = self._get(number, Rights.FD_READDIR.value)
        room = self._memory.slice(buffer, size)
        self._memory.check(at, 4)
        used = 0
        while used < size:
            entries = directory.readdir(cookie, min(size - used, PAYLOAD))
            if not entries:
                break
            for cookie, inode, kind, name in entries:
                raw = DIRENT.pack(cookie, inode, len(name), kind) + name
                raw = raw[: size - used]
                room[used : used + len(raw)] = raw
                used += len(raw)
        self._memory.put_u32(at, used)

    # Paths

    def _locate(self, number: int, right: int, at: int, size: int, *, follow: bool) -> Place:
        directory = self._directory(number, right)
        path = paths.decode(bytes(self._memory.slice(at, min(size, paths.MAX_PATH + 1))))
        return paths.locate(self._client, directory.fid, path, follow=follow, rooted=directory.preopened is not None)

    def _read_path(self, number: int, right: int, flags: int, at: int, size: int) -> Place:
        """Find what is to be looked at: a path that ends in a slash follows a symlink, whatever the flags."""
        if flags & ~FOLLOW:
            raise OSError(EINVAL, "no such lookup flags")
        slash = size > 0 and bytes(self._memory.slice(at, size)[-1:]) == b"/"
        return self._locate(number, right, at, size, follow=bool(flags & FOLLOW) or slash)

    def path_open(
        self,
        number: int,
        lookup: int,
        path: int,
        size: int,
        oflags: int,
        rights: int,
        inheriting: int,
        flags: int,
        at: int,
    ) -> None:
        if oflags & ~(CREATE | DIRECTORY | EXCLUSIVE | TRUNCATE) or flags & ~_FLAGS:
            raise OSError(EINVAL, "no such flags")
        if flags & (DSYNC | RSYNC | SYNC):
            raise OSError(ENOTSUP, "no synchronous writes")
        if oflags & CREATE and oflags & DIRECTORY:
            raise OSError(EINVAL, "directories are not created by opening")
        needed = Rights.PATH_OPEN.value
        if oflags & CREATE:
            needed |= Rights.PATH_CREATE_FILE.value
        if oflags & TRUNCATE:
            needed |= Rights.PATH_FILESTAT_SET_SIZE.value
        directory = self._directory(number, needed)
        rights, inheriting = rights & ALL_RIGHTS, inheriting & ALL_RIGHTS
        if (rights | inheriting) & ~directory.inheriting:
            raise OSError(ENOTCAPABLE, "more rights than the directory passes on")
        if len(self._table) >= MAX_DESCRIPTORS:
            raise OSError(EMFILE, "too many descriptors")
        self._memory.check(at, 4)
        if oflags & CREATE and oflags & EXCLUSIVE:
            lookup &= ~FOLLOW
        with self._read_path(number, needed, lookup, path, size) as place:
            opened = self._opened(place, oflags, rights, inheriting, flags)
        self._memory.put_u32(at, self._add(opened))

    def _opened(self, place: Place, oflags: int, rights: int, inheriting: int, flags: int) -> Descriptor:
        access = _access(rights)
        mode = access | open_flags(flags) | (os.O_TRUNC if oflags & TRUNCATE else 0)
        passed: list[int] = []
        if not place.fid and oflags & CREATE:
            if place.slash:
                raise OSError(EISDIR, "a directory's name")
            fid, place.parent = place.parent, 0
            try:
                exclusive = os.O_EXCL if oflags & EXCLUSIVE else 0
                self._client.create(fid, place.name, mode | exclusive, 0o644, passed)
                return self._file(fid, passed, access, rights, flags)
            except OSError:
                self._client.clunk(fid)
                raise
        place.found()
        if oflags & EXCLUSIVE and oflags & CREATE:
            raise OSError(EEXIST, "the file exists")
        if place.is_symlink:
            raise OSError(ELOOP, "is a symbolic link")
        if place.kind & QTDIR:
            if oflags & (CREATE | TRUNCATE) or access != os.O_RDONLY:
                raise OSError(EISDIR, "is a directory")
            return TreeDirectory(self._client, place.take(), rights, inheriting, flags=flags)
        if oflags & DIRECTORY:
            raise OSError(ENOTDIR, "not a directory")
        self._client.open(place.fid, mode, passed)
        return self._file(place.take(), passed, access, rights, flags)

    def _file(self, fid: int, passed: list[int], access: int, rights: int, flags: int) -> Descriptor:
        rights &= FILE_RIGHTS
        if passed:
            return PassedFile(self._client, fid, passed[0], rights, flags)
        return TreeFile(self._client, fid, stat_of(self._client, fid).type, access, rights, flags)

    def path_create_directory(self, number: int, path: int, size: int) -> None:
        with self._locate(number, Rights.PATH_CREATE_DIRECTORY.value, path, size, follow=False) as place:
            if place.fid:
                raise OSError(EEXIST, "the file exists")
            self._client.mkdir(place.parent, place.name, 0o755)

    def path_filestat_get(self, number: int, flags: int, path: int, size: int, at: int) -> None:
        with self._read_path(number, Rights.PATH_FILESTAT_GET.value, flags, path, size) as place:
            self._memory.put(FILESTAT, at, *stat_of(self._client, place.found()))

    def path_filestat_set_times(
        self, number: int, lookup: int, path: int, size: int, atime: int, mtime: int, flags: int
    ) -> None:
        times = _times(atime, mtime, flags)
        with self._read_path(number, Rights.PATH_FILESTAT_SET_TIMES.value, lookup, path, size) as place:
            set_times(self._client, place.found(), *times)

    def path_link(self, old: int, lookup: int, path: int, size: int, new: int, new_path: int, new_size: int) -> None:
        with (
            self._read_path(old, Rights.PATH_LINK_SOURCE.value, lookup, path, size) as source,
            self._locate(new, Rights.PATH_LINK_TARGET.value, new_path, new_size, follow=False) as target,
        ):
            source.found()
            _check_new(target)
            self._client.link(target.parent, source.fid, target.name)

    def path_readlink(self, number: int, path: int, size: int, buffer: int, room: int, at: int) -> None:
        with self._locate(number, Rights.PATH_READLINK.value, path, size, follow=False) as place:
            place.found()
            if not place.is_symlink:
                raise OSError(EINVAL, "not a symbolic link")
            target = os.fsencode(self._client.readlink(place.fid))[:room]
        self._memory.put_bytes(buffer, target)
        self._memory.put_u32(at, len(target))

    def path_remove_directory(self, number: int, path: int, size: int) -> None:
        with self._locate(number, Rights.PATH_REMOVE_DIRECTORY.value, path, size, follow=False) as place:
            place.found()
            if not place.parent:
                raise OSError(EINVAL, "the directory itself")
            if not place.is_directory:
                raise OSError(ENOTDIR, "not a directory")
            self._client.unlink(place.parent, place.name, directory=True)

    def path_rename(self, old: int, path: int, size: int, new: int, new_path: int, new_size: int) -> None:
        with (
            self._locate(old, Rights.PATH_RENAME_SOURCE.value, path, size, follow=False) as source,
            self._locate(new, Rights.PATH_RENAME_TARGET.value, new_path, new_size, follow=False) as target,
        ):
            source.found()
            if not source.parent or not target.parent:
                raise OSError(EINVAL, "the directory itself")
            if target.slash and not source.is_directory:
                raise OSError(ENOTDIR, "not a directory")
            self._client.rename(source.parent, source.name, target.parent, target.name)

    def path_symlink(self, target: int, target_size: int, number: int, path: int, size: int) -> None:
        text = paths.decode(bytes(self._memory.slice(target, min(target_size, paths.MAX_PATH + 1))))
        with self._locate(number, Rights.PATH_SYMLINK.value, path, size, follow=False) as place:
            _check_new(place)
            self._client.symlink(place.parent, place.name, text)

    def path_unlink_file(self, number: int, path: int, size: int) -> None:
        with self._locate(number, Rights.PATH_UNLINK_FILE.value, path, size, follow=False) as place:
            place.found()
            if place.is_directory:
                raise OSError(EISDIR, "is a directory")
            self._client.unlink(place.parent, place.name, directory=False)

    # The process

    def args_sizes_get(self, count: int, size: int) -> None:
        self._put_sizes(self._args, count, size)

    def args_get(self, pointers: int, buffer: int) -> None:
        self._put_strings(self._args, pointers, buffer)

    def environ_sizes_get(self, count: int, size: int) -> None:
        self._put_sizes(self._env, count, size)

    def environ_get(self, pointers: int, buffer: int) -> None:
        self._put_strings(self._env, pointers, buffer)

    def _put_sizes(self, strings: Sequence[bytes], count: int, size: int) -> None:
        self._memory.put_u32(count, len(strings))
        self._memory.put_u32(size, sum(map(len, strings)))

    def _put_strings(self, strings: Sequence[bytes], pointers: int, buffer: int) -> None:
        for index, string in enumerate(strings):
            self._memory.put_u32(pointers + 4 * index, buffer)
            self._memory.put_bytes(buffer, string)
            buffer += len(string)

    def clock_res_get(self, clock: int, at: int) -> None:
        self._memory.put(U64, at, max(1, round(time.clock_getres(_clock(clock)) * 1e9)))

    def clock_time_get(self, clock: int, precision: int, at: int) -> None:
        self._memory.put(U64, at, time.clock_gettime_ns(_clock(clock)))

    def random_get(self, at: int, size: int) -> None:
        room = self._memory.slice(at, size)
        for start in range(0, size, MAX_RANDOM):
            part = room[start : start + MAX_RANDOM]
            part[:] = os.urandom(len(part))

    def sched_yield(self) -> None:
        os.sched_yield()

    def proc_exit(self, code: int) -> NoReturn:
        self.close()
        os._exit(code & 0xFF)

    def proc_raise(self, number: int) -> None:
        """Send a signal to the task itself. WASI leaves out SIGSTKFLT, so those above 15 are one lower."""
        number += number > 15
        if number >= signal.SIGRTMIN or number == 29:
            raise OSError(EINVAL, "no such signal")
        os.kill(os.getpid(), number)

    def poll_oneoff(self, subscriptions: int, events: int, count: int, at: int) -> None:
        self._memory.check(at, 4)
        self._memory.put_u32(at, poll(self._memory, self._get, subscriptions, events, count, CLOCKS))

    # Sockets: a module has none

    def _refuse_socket(self, number: int) -> NoReturn:
        self._get(number, 0)
        raise OSError(ENOTSOCK, "not a socket")

    def sock_accept(self, number: int, flags: int, at: int) -> None:
        self._refuse_socket(number)

    def sock_recv(self, number: int, vectors: int, count: int, flags: int, at: int, flags_at: int) -> None:
        self._refuse_socket(number)

    def sock_send(self, number: int, vectors: int, count: int, flags: int, at: int) -> None:
        self._refuse_socket(number)

    def sock_shutdown(self, number: int, how: int) -> None:
        self._refuse_socket(number)


def _clock(number: int) -> int:
    if number >= len(CLOCKS):
        raise OSError(EINVAL, "no such clock")
    return CLOCKS[number]


def _offset(value: int) -> int:
    if value > MAX_OFFSET:
        raise OSError(EINVAL, "offset too large")
    return value


def _access(rights: int) -> int:
    """Return the access mode of open(2) that rights ask for."""
    if rights & WRITING:
        return os.O_RDWR if rights & READING else os.O_WRONLY
    return os.O_RDONLY


def _times(atime: int, mtime: int, flags: int) -> tuple[int | None, int | None]:
    """Return the times to set, in ns. EINVAL for flags that contradict each other."""
    if flags & ~(ATIM | ATIM_NOW | MTIM | MTIM_NOW) or flags & 3 == 3 or flags & 12 == 12:
        raise OSError(EINVAL, "no such flags")
    return (
        NOW if flags & ATIM_NOW else _offset(atime) if flags & ATIM else None,
        NOW if flags & MTIM_NOW else _offset(mtime) if flags & MTIM else None,
    )


def _check_new(place: Place) -> None:
    """Check that a place can get a name that is no directory's."""
    if place.fid:
        raise OSError(EEXIST, "the file exists")
    if place.slash:
        raise OSError(ENOENT, "a directory's name")
