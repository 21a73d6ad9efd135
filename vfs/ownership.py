"""Whose a new file is, and which set-id bits survive a change: what Linux does for its own filesystems (inode(7))."""

from stat import S_ISDIR, S_ISGID, S_ISUID, S_IXGRP

from vfs.node import Caller


def member(gid: int, who: Caller) -> bool:
    """Tell whether `who` may act for the group: belongs to it or is root."""
    return who.uid == 0 or gid == who.gid or gid in who.groups


def for_new(parent_mode: int, parent_gid: int, mode: int, who: Caller, *, directory: bool = False) -> tuple[int, int]:
    """Return the permission bits and gid of what `who` makes with `mode` in a directory with these attributes.

    A setgid directory passes on its group, and its bit to directories; an executable setgid file only for members.
    """
    mode &= 0o1777 if directory else 0o7777
    if not parent_mode & S_ISGID:
        return mode, who.gid
    if directory:
        mode |= S_ISGID
    elif mode & S_IXGRP and not member(parent_gid, who):
        mode &= ~S_ISGID
    return mode, parent_gid


def for_chmod(gid: int, mode: int, who: Caller) -> int:
    """Return the permission bits that a chmod(2) to `mode` gives a file of group `gid`."""
    return mode & 0o7777 if member(gid, who) else mode & 0o7777 & ~S_ISGID


def unprivileged(mode: int) -> int:
    """Return `mode` without setuid, and without setgid where that means execution; directories keep theirs."""
    if S_ISDIR(mode):
        return mode
    return mode & ~(S_ISUID | S_ISGID if mode & S_IXGRP else S_ISUID)
