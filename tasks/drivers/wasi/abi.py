"""WASI preview 1 in numbers: its functions, errnos, rights, flags and the layouts of what lies in a module's memory.

Source: WebAssembly/WASI, phases/snapshot/witx/wasi_snapshot_preview1.witx and typenames.witx.
"""

import errno
import stat as statmod
from enum import IntFlag
from struct import Struct
from typing import Final

MODULE: Final = "wasi_snapshot_preview1"

_FUNCTIONS = """
    args_get pp                 args_sizes_get pp           environ_get pp              environ_sizes_get pp
    clock_res_get up            clock_time_get uLp          random_get pu               sched_yield -
    fd_advise uLLu              fd_allocate uLL             fd_close u                  fd_datasync u
    fd_fdstat_get up            fd_fdstat_set_flags uu      fd_fdstat_set_rights uLL    fd_filestat_get up
    fd_filestat_set_size uL     fd_filestat_set_times uLLu  fd_pread upuLp              fd_prestat_dir_name upu
    fd_prestat_get up           fd_pwrite upuLp             fd_read upup                fd_readdir upuLp
    fd_renumber uu              fd_seek uSup                fd_sync u                   fd_tell up
    fd_write upup               path_create_directory upu   path_filestat_get uupup
    path_filestat_set_times uupuLLu                         path_link uupuupu           path_open uupuuLLup
    path_readlink upupup        path_remove_directory upu   path_rename upuupu          path_symlink puupu
    path_unlink_file upu        poll_oneoff ppup            proc_exit u                 proc_raise u
    sock_accept uup             sock_recv upuupp            sock_send upuup             sock_shutdown uu
"""
SIGNATURES: Final[dict[str, str]] = {
    name: "" if kinds == "-" else kinds for name, kinds in zip(*[iter(_FUNCTIONS.split())] * 2, strict=True)
}
"""Every function and its parameters: u and p are 32 bits (p points into memory), L and S 64 (S is signed).

All return an errno, but `proc_exit`, which does not return.
"""

_ERRNOS = """
    E2BIG EACCES EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EALREADY EBADF EBADMSG EBUSY ECANCELED ECHILD
    ECONNABORTED ECONNREFUSED ECONNRESET EDEADLK EDESTADDRREQ EDOM EDQUOT EEXIST EFAULT EFBIG EHOSTUNREACH EIDRM
    EILSEQ EINPROGRESS EINTR EINVAL EIO EISCONN EISDIR ELOOP EMFILE EMLINK EMSGSIZE EMULTIHOP ENAMETOOLONG ENETDOWN
    ENETRESET ENETUNREACH ENFILE ENOBUFS ENODEV ENOENT ENOEXEC ENOLCK ENOLINK ENOMEM ENOMSG ENOPROTOOPT ENOSPC
    ENOSYS ENOTCONN ENOTDIR ENOTEMPTY ENOTRECOVERABLE ENOTSOCK ENOTSUP ENOTTY ENXIO EOVERFLOW EOWNERDEAD EPERM EPIPE
    EPROTO EPROTONOSUPPORT EPROTOTYPE ERANGE EROFS ESPIPE ESRCH ESTALE ETIMEDOUT ETXTBSY EXDEV
"""
ERRNO: Final = {getattr(errno, name): number for number, name in enumerate(_ERRNOS.split(), 1)}
"""From this machine's errno to WASI's."""
NOTCAPABLE: Final = 76
ENOTCAPABLE: Final = -NOTCAPABLE
"""What an OSError carries for NOTCAPABLE, which no machine has."""


def errno_of(error: OSError) -> int:
    """Return WASI's number for an error; EIO for one it has no number for."""
    if error.errno == ENOTCAPABLE:
        return NOTCAPABLE
    return ERRNO.get(error.errno or errno.EIO, ERRNO[errno.EIO])


class Rights(IntFlag):
    FD_DATASYNC = 1 << 0
    FD_READ = 1 << 1
    FD_SEEK = 1 << 2
    FD_FDSTAT_SET_FLAGS = 1 << 3
    FD_SYNC = 1 << 4
    FD_TELL = 1 << 5
    FD_WRITE = 1 << 6
    FD_ADVISE = 1 << 7
    FD_ALLOCATE = 1 << 8
    PATH_CREATE_DIRECTORY = 1 << 9
    PATH_CREATE_FILE = 1 << 10
    PATH_LINK_SOURCE = 1 << 11
    PATH_LINK_TARGET = 1 << 12
    PATH_OPEN = 1 << 13
    FD_READDIR = 1 << 14
    PATH_READLINK = 1 << 15
    PATH_RENAME_SOURCE = 1 << 16
    PATH_RENAME_TARGET = 1 << 17
    PATH_FILESTAT_GET = 1 << 18
    PATH_FILESTAT_SET_SIZE = 1 << 19
    PATH_FILESTAT_SET_TIMES = 1 << 20
    FD_FILESTAT_GET = 1 << 21
    FD_FILESTAT_SET_SIZE = 1 << 22
    FD_FILESTAT_SET_TIMES = 1 << 23
    PATH_SYMLINK = 1 << 24
    PATH_REMOVE_DIRECTORY = 1 << 25
    PATH_UNLINK_FILE = 1 << 26
    POLL_FD_READWRITE = 1 << 27
    SOCK_SHUTDOWN = 1 << 28
    SOCK_ACCEPT = 1 << 29


# Plain integers: an IntFlag costs microseconds at every operation.
ALL_RIGHTS: Final = (1 << 30) - 1
FILE_RIGHTS: Final = sum(
    int(right) for right in Rights if right.name and not right.name.startswith(("PATH", "SOCK"))
) & (~int(Rights.FD_READDIR))
DIRECTORY_RIGHTS: Final = ALL_RIGHTS & ~int(
    Rights.FD_READ
    | Rights.FD_WRITE
    | Rights.FD_SEEK
    | Rights.FD_TELL
    | Rights.FD_ADVISE
    | Rights.FD_ALLOCATE
    | Rights.FD_FILESTAT_SET_SIZE
    | Rights.SOCK_SHUTDOWN
    | Rights.SOCK_ACCEPT
)
READING: Final = int(Rights.FD_READ)
WRITING: Final = int(Rights.FD_WRITE | Rights.FD_ALLOCATE)
SEEKING: Final = int(Rights.FD_SEEK | Rights.FD_TELL)

FOLLOW: Final = 1
"""The lookup flag."""
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
"""Flags of path_open."""
APPEND, DSYNC, NONBLOCK, RSYNC, SYNC = 1, 2, 4, 8, 16
"""Flags of a descriptor."""
ATIM, ATIM_NOW, MTIM, MTIM_NOW = 1, 2, 4, 8
ABSTIME: Final = 1
HANGUP: Final = 1
CLOCK, FD_READ, FD_WRITE = 0, 1, 2
"""Kinds of subscriptions and events."""

UNKNOWN, DIRECTORY_FILE, REGULAR_FILE, CHARACTER_DEVICE = 0, 3, 4, 2
_FILETYPES = {
    statmod.S_IFBLK: 1,
    statmod.S_IFCHR: CHARACTER_DEVICE,
    statmod.S_IFDIR: DIRECTORY_FILE,
    statmod.S_IFREG: REGULAR_FILE,
    statmod.S_IFSOCK: 6,
    statmod.S_IFLNK: 7,
}


def filetype(mode: int) -> int:
    """Return the file type of an st_mode; a FIFO has none in WASI."""
    return _FILETYPES.get(statmod.S_IFMT(mode), UNKNOWN)


U32: Final = Struct("<I")
U64: Final = Struct("<Q")
IOVEC: Final = Struct("<II")
FDSTAT: Final = Struct("<BxH4xQQ")
FILESTAT: Final = Struct("<QQB7xQQQQQ")
PRESTAT: Final = Struct("<B3xI")
DIRENT: Final = Struct("<QQIB3x")
SUBSCRIPTION: Final = Struct("<QB7xI4xQQH6x")
"""userdata, kind, clock id or descriptor, timeout, precision, clock flags."""
EVENT: Final = Struct("<QHB5xQH6x")
"""userdata, errno, kind, bytes that can be read, flags."""
assert (FDSTAT.size, FILESTAT.size, DIRENT.size, SUBSCRIPTION.size, EVENT.size) == (24, 64, 24, 48, 32)
