"""The FUSE kernel protocol as tables: opcodes, flags, struct layouts, and what each request carries.

Source: the kernel's include/uapi/linux/fuse.h, protocol 7.31 (Linux 5.4) to 7.45. Numbers are in the byte order of
the machine; both sides run on the same one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from errno import EINVAL
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Any

from vfs.node import StatFs, StatResult, check_name

MAJOR = 7
MINOR_MIN = 31
MINOR = 45
ROOT_ID = 1
RESENT = 1 << 63
"""Bit of `unique` in a request that the kernel sends again; the reply echoes it."""
MAX_IO = 1 << 20
"""Bytes of one read or write at the most: max_pages (256) pages of 4 KiB."""


class Op(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class Notify(IntEnum):
    """Codes of the messages that a server sends unasked."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


class Init:
    """Flags of INIT. Those from bit 32 on travel in `flags2`, and only with EXT."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    HANDLE_KILLPRIV_V2 = 1 << 28
    EXT = 1 << 30
    EXPIRE_ONLY = 1 << 35
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39


class Fopen:
    """Flags of a reply to OPEN, CREATE and OPENDIR."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


class Fattr:
    """Bits of `valid` in SETATTR."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    KILL_SUIDGID = 1 << 11


OPEN_KILL_SUIDGID = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
FSYNC_DATASYNC = 1 << 0
LOCK_FLOCK = 1 << 0
POLL_SCHEDULE_NOTIFY = 1 << 0
ENTRY_EXPIRES = 1 << 0
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

IN_HEADER = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
IN_CALLER = Struct("=III")  # uid gid pid
IN_BRIEF = Struct(f"=IIQQ{IN_CALLER.size}s4x")  # the same, with the caller as bytes that a table is kept by
OUT_HEADER = Struct("=IiQ")  # len error unique

# Fields that nothing is done with are left out of the layouts below (x).
NOTHING = Struct("=")
U64 = Struct("=Q")
TWO_U32 = Struct("=II")
READ_IN = Struct("=QQI12xI4x")  # fh offset size, flags of the open file
SETATTR_IN = Struct("=I12xQ8xqq8xII4xI4xII4x")  # valid size atime mtime atimensec mtimensec mode uid gid
RELEASE_IN = Struct("=Q4xIQ")  # fh release_flags lock_owner
FSYNC_IN = Struct("=QI4x")  # fh flags
LK_IN = Struct("=QQQQIII4x")  # fh owner start end type pid lk_flags

ATTR = Struct("=QQQqqqIIIIIIIIII")  # ino size blocks, times, their ns, mode nlink uid gid rdev blksize flags
ATTR_HEAD = Struct("=QII")  # valid valid_nsec dummy, then an attr
ENTRY_HEAD = Struct("=QQQQII")  # nodeid generation entry_valid attr_valid and their nsec, then an attr
OPEN_OUT = Struct("=QIi")  # fh open_flags backing_id
INIT_OUT = Struct("=IIIIHHIIHHII24x")
STATFS_OUT = Struct("=QQQQQIII28x")
DIRENT = Struct("=QQII")  # ino offset namelen type, then the name padded to 8 bytes
LK_OUT = Struct("=QQII")
INVAL_INODE = Struct("=Qqq")  # nodeid offset length
INVAL_ENTRY = Struct("=QII")  # parent namelen flags, then the name and a NUL
FORGET_ONE = Struct("=QQ")  # nodeid nlookup

ATTR_SECONDS, ATTR_NANOSECONDS = slice(24, 32), slice(36, 40)
"""Where an entry's head says how long its attributes are good."""
ENTRY_SIZE = ENTRY_HEAD.size + ATTR.size
NO_ENTRY = bytes(ENTRY_SIZE)
"""What READDIRPLUS carries where it tells the kernel nothing about an entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What follows the header of a request: fixed fields, entry names, one more string, and a rest of plain bytes."""

    body: Struct = NOTHING
    names: int = 0
    text: bool = False
    data: bool = False


REQUESTS: dict[Op, Layout] = {
    Op.LOOKUP: Layout(names=1),
    Op.FORGET: Layout(body=U64),  # nlookup
    Op.GETATTR: Layout(body=Struct("=16x")),
    Op.SETATTR: Layout(body=SETATTR_IN),
    Op.READLINK: Layout(),
    Op.SYMLINK: Layout(names=1, text=True),
    Op.MKNOD: Layout(body=Struct("=II8x"), names=1),  # mode rdev
    Op.MKDIR: Layout(body=Struct("=I4x"), names=1),  # mode
    Op.UNLINK: Layout(names=1),
    Op.RMDIR: Layout(names=1),
    Op.RENAME: Layout(body=U64, names=2),  # newdir
    Op.LINK: Layout(body=U64, names=1),  # oldnodeid
    Op.OPEN: Layout(body=TWO_U32),  # flags open_flags
    Op.READ: Layout(body=READ_IN),
    Op.WRITE: Layout(body=Struct("=QQII8xI4x"), data=True),  # fh offset size write_flags, flags of the open file
    Op.STATFS: Layout(),
    Op.RELEASE: Layout(body=RELEASE_IN),
    Op.FSYNC: Layout(body=FSYNC_IN),
    Op.SETXATTR: Layout(body=TWO_U32, text=True, data=True),  # size flags
    Op.GETXATTR: Layout(body=Struct("=I4x"), text=True),  # size
    Op.LISTXATTR: Layout(body=Struct("=I4x")),  # size
    Op.REMOVEXATTR: Layout(text=True),
    Op.FLUSH: Layout(body=Struct("=Q8xQ")),  # fh lock_owner
    Op.INIT: Layout(body=Struct("=IIII"), data=True),  # major minor max_readahead flags; then flags2 and zeroes
    Op.OPENDIR: Layout(body=Struct("=8x")),
    Op.READDIR: Layout(body=READ_IN),
    Op.RELEASEDIR: Layout(body=RELEASE_IN),
    Op.FSYNCDIR: Layout(body=FSYNC_IN),
    Op.GETLK: Layout(body=LK_IN),
    Op.SETLK: Layout(body=LK_IN),
    Op.SETLKW: Layout(body=LK_IN),
    Op.ACCESS: Layout(body=Struct("=I4x")),  # mask
    Op.CREATE: Layout(body=Struct("=II4xI"), names=1),  # flags mode open_flags
    Op.INTERRUPT: Layout(body=U64),  # unique of the request to interrupt
    Op.DESTROY: Layout(),
    Op.IOCTL: Layout(body=Struct("=32x"), data=True),
    Op.POLL: Layout(body=Struct("=QQII")),  # fh kh flags events
    Op.BATCH_FORGET: Layout(body=Struct("=8x"), data=True),  # FORGET_ONE each
    Op.FALLOCATE: Layout(body=Struct("=QQQI4x")),  # fh offset length mode
    Op.READDIRPLUS: Layout(body=READ_IN),
    Op.RENAME2: Layout(body=Struct("=QI4x"), names=2),  # newdir flags
    Op.LSEEK: Layout(body=Struct("=QQI4x")),  # fh offset whence
    Op.COPY_FILE_RANGE: Layout(body=Struct("=QQ8xQQQ8x")),  # fh offset, those of the target, length
}
"""The requests that are served. Any other is answered ENOSYS, on which the kernel falls back and never asks again."""

ON_HANDLE = frozenset(
    {Op.READ, Op.WRITE, Op.FSYNC, Op.FLUSH, Op.FALLOCATE, Op.LSEEK, Op.COPY_FILE_RANGE, Op.SETLK, Op.SETLKW}
)
"""The requests whose first field is an fh and that may wait."""
UNANSWERED = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.NOTIFY_REPLY})


COPIED = 1 << 16
"""Data up to so many bytes is copied out of its frame; more stays in it, so the frame belongs to who waits with it."""


def decoder(layout: Layout) -> Callable[[memoryview], tuple[Any, ...]]:
    """Return what decodes a whole request: its fields, names, string and data, as they follow the header.

    It raises EINVAL for a body that is too short or strings that are not as many, not ended or not file names, and
    ENAMETOOLONG for a name longer than 255 bytes.
    """
    header = IN_HEADER.size
    unpack = layout.body.unpack_from
    start = header + layout.body.size
    strings = layout.names + layout.text

    def fixed(frame: memoryview) -> tuple[Any, ...]:
        try:
            return unpack(frame, header)
        except StructError as error:
            raise OSError(EINVAL, "request is too short") from error

    def with_name(frame: memoryview) -> tuple[Any, ...]:
        return *fixed(frame), _name(frame[start:].tobytes())

    def name_only(frame: memoryview) -> tuple[Any, ...]:
        return (_name(frame[header:].tobytes()),)

    def with_data(frame: memoryview) -> tuple[Any, ...]:
        fields = fixed(frame)
        data = frame[start:]
        return *fields, bytes(data) if len(data) <= COPIED else data

    def with_strings(frame: memoryview) -> tuple[Any, ...]:
        fields = fixed(frame)
        *texts, tail = bytes(frame[start:]).split(b"\0", strings)
        if len(texts) != strings or (tail and not layout.data):
            raise OSError(EINVAL, "strings are not as many as they should be")
        decoded = [text.decode("utf-8", "surrogateescape") for text in texts]
        for name in decoded[: layout.names]:
            check_name(name)
        return (*fields, *decoded, tail) if layout.data else (*fields, *decoded)

    if strings == 1 and layout.names and not layout.data:
        return with_name if layout.body.size else name_only
    if strings:
        return with_strings
    return with_data if layout.data else fixed


@lru_cache(4096)
def _name(raw: bytes) -> str:
    """Return the file name that `raw` is but for its NUL. EINVAL, ENAMETOOLONG; so only short ones are kept."""
    if raw[-1:] != b"\0":
        raise OSError(EINVAL, "name is not ended")
    return check_name(str(raw[:-1], "utf-8", "surrogateescape"))


def encode(name: str) -> bytes:
    """Return a name as the kernel has it."""
    return name.encode("utf-8", "surrogateescape")


def attr(st: StatResult, ino: int) -> bytes:
    """Pack attributes; `ino` is shown where `st` has none."""
    atime, mtime, ctime = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns
    return ATTR.pack(
        st.st_ino or ino,
        st.st_size,
        st.st_blocks,
        atime // 1_000_000_000,
        mtime // 1_000_000_000,
        ctime // 1_000_000_000,
        atime % 1_000_000_000,
        mtime % 1_000_000_000,
        ctime % 1_000_000_000,
        st.st_mode,
        st.st_nlink,
        st.st_uid,
        st.st_gid,
        st.st_rdev & 0xFFFF_FFFF,
        st.st_blksize,
        0,
    )


def attr_out(st: StatResult, ino: int, cache_seconds: float) -> bytes:
    """Pack the reply to GETATTR and SETATTR."""
    return _attr_head(cache_seconds) + attr(st, ino)


def attr_of_entry(entry: bytes) -> bytes:
    """Return the reply to GETATTR that says what `entry_out` said of the same attributes."""
    return entry[ATTR_SECONDS] + entry[ATTR_NANOSECONDS] + bytes(4) + entry[ENTRY_HEAD.size :]


def entry_out(st: StatResult, nodeid: int, ino: int, entry_seconds: float, attr_seconds: float) -> bytes:
    """Pack the reply to LOOKUP and to what makes nodes."""
    return U64.pack(nodeid) + _entry_tail(entry_seconds, attr_seconds) + attr(st, ino)


@lru_cache(16)
def _attr_head(cache_seconds: float) -> bytes:
    return ATTR_HEAD.pack(*_timeout(cache_seconds), 0)


@lru_cache(16)
def _entry_tail(entry_seconds: float, attr_seconds: float) -> bytes:
    """Pack what follows the nodeid in an entry's head."""
    name, attributes = _timeout(entry_seconds), _timeout(attr_seconds)
    return ENTRY_HEAD.pack(0, 0, name[0], attributes[0], name[1], attributes[1])[U64.size :]


def _timeout(seconds: float) -> tuple[int, int]:
    """Split a cache time into whole seconds and ns."""
    whole = int(seconds)
    return whole, int((seconds - whole) * 1_000_000_000)


def statfs_out(figures: StatFs) -> bytes:
    """Pack the reply to STATFS."""
    return STATFS_OUT.pack(
        figures.blocks,
        figures.bfree,
        figures.bavail,
        figures.files,
        figures.ffree,
        figures.bsize,
        figures.namelen,
        figures.bsize,
    )


def dirent(name: bytes, ino: int, offset: int, kind: int) -> bytes:
    """Pack one READDIR entry; `kind` is a `stat.S_IFMT` value, `offset` where reading goes on after it."""
    size = DIRENT.size + len(name)
    return DIRENT.pack(ino or 0xFFFF_FFFF, offset, len(name), kind >> 12) + name + bytes(-size % 8)


def dirent_size(name: bytes) -> int:
    """Return how many bytes `dirent` makes of `name`."""
    return DIRENT.size + len(name) + 7 & ~7


OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK
"""The open(2) flags that reach a node; the kernel has dealt with the others."""
