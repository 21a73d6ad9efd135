"""The one access check: mode bits, owner, groups. For every server that the kernel does not check for (9P, HTTP)."""

import stat as statmod
from errno import EACCES, EPERM

from vfs.node import Caller, SetStat, StatResult

READ = 4
WRITE = 2
EXECUTE = 1


def permitted(st: StatResult, who: Caller, want: int) -> bool:
    """Tell whether `who` may do `want` (READ | WRITE | EXECUTE bits) by the rules of path_resolution(7).

    uid 0 may do all but execute a regular file that no one may execute.
    """
    mode = st.st_mode
    if who.uid == 0:
        return not want & EXECUTE or statmod.S_ISDIR(mode) or bool(mode & 0o111)
    if st.st_uid == who.uid:
        have = mode >> 6
    elif st.st_gid == who.gid or st.st_gid in who.groups:
        have = mode >> 3
    else:
        have = mode
    return have & want == want


def check(st: StatResult, who: Caller, want: int) -> None:
    """Raise EACCES unless `permitted`."""
    if not permitted(st, who, want):
        raise OSError(EACCES, "permission denied")


def wanted(flags: int) -> int:
    """Return the access bits that these open(2) flags ask for (O_TRUNC needs WRITE)."""
    want = (READ, WRITE, READ | WRITE, 0)[flags & 3]
    return want | WRITE if flags & 0o1000 else want


def check_sticky(parent: StatResult, victim: StatResult, who: Caller) -> None:
    """Raise EPERM where a sticky directory keeps `who` from removing or renaming another's file."""
    if parent.st_mode & statmod.S_ISVTX and who.uid not in (0, parent.st_uid, victim.st_uid):
        raise OSError(EPERM, "sticky directory: not the owner")


def check_setstat(st: StatResult, who: Caller, change: SetStat) -> None:
    """Raise EPERM or EACCES unless `who` may make this change (chmod(2), chown(2), utimensat(2), truncate(2)).

    Explicit times need the owner; this function cannot tell them from "now", so a
    server that can lets a writer through for "now" before asking.
    """
    if who.uid == 0:
        return
    owner = who.uid == st.st_uid
    if change.size is not None:
        check(st, who, WRITE)
    if (change.mode is not None or change.atime_ns is not None or change.mtime_ns is not None) and not owner:
        raise OSError(EPERM, "not the owner")
    if change.uid is not None and (not owner or change.uid != st.st_uid):
        raise OSError(EPERM, "only root gives files away")
    if change.gid is not None and not (owner and (change.gid in (st.st_gid, who.gid) or change.gid in who.groups)):
        raise OSError(EPERM, "not the owner, or not a member of that group")
