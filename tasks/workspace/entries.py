"""What a file is to a sync: enough to tell, without reading it, whether it has changed."""

import os
import stat as statmod
from typing import Literal, NamedTuple

Kind = Literal["f", "d", "l"]

TEMP_PREFIX = ".wanixfs-sync-"
"""How files under way are named; what a killed sync left of them is removed by the next."""


class Entry(NamedTuple):
    """One file, directory or symlink. Two equal entries of a path are the same content (ctime tells what mtime hides).

    Of a directory only kind and mode count, of a symlink only its target. Times in ns.
    """

    kind: Kind
    mode: int = 0
    size: int = 0
    mtime: int = 0
    ino: int = 0
    ctime: int = 0
    target: str = ""

    def same_file(self, other: "Entry") -> bool:
        """Tell whether both are one file with one content, renamed or not (a rename sets ctime)."""
        return self._replace(ctime=0) == other._replace(ctime=0)


def entry_of(st: os.stat_result, target: str = "") -> Entry | None:
    """Return the entry for what lstat(2) said, or None for what is not synced (sockets, fifos, devices).

    Set-id and sticky bits are left out: whoever gets a copy must not get its owner's powers.
    """
    mode = st.st_mode
    if statmod.S_ISREG(mode):
        return Entry("f", mode & 0o777, st.st_size, st.st_mtime_ns, st.st_ino, st.st_ctime_ns)
    if statmod.S_ISDIR(mode):
        return Entry("d", mode & 0o777)
    if statmod.S_ISLNK(mode):
        return Entry("l", target=target)
    return None


def leads_out(path: str, target: str) -> bool:
    """Tell whether a symlink at `path` (relative to the folder) may point outside the folder.

    Steps up count only at the target's beginning: after a name that is a symlink itself they cannot be told.
    """
    steps = target.split("/")
    up = 0
    while up < len(steps) and steps[up] in ("..", "."):
        up += 1
    return target.startswith("/") or ".." in steps[up:] or steps[:up].count("..") > path.count("/")
