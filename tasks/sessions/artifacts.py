"""What a turn leaves behind for others: copies of the files in its home's `artifacts`, which no agent can change later.

The home's owner may be hostile: directories are walked by descriptor, nothing is reached through a symlink, and how
much is copied is bounded.
"""

import os
import shutil
import stat as statmod
from contextlib import suppress
from pathlib import Path

NAME = "artifacts"
MAX_FILES = 1000
MAX_BYTES = 256 << 20
MAX_DEPTH = 16


def collect(home: Path, into: Path, *, since: float) -> tuple[int, str]:
    """Copy the regular files below `home`/artifacts that changed after `since` (Unix seconds) to the directory `into`.

    Returns how many, and what was left out for its size or number ("" for nothing). Runs in a thread.
    """
    count = size = 0
    try:
        root = os.open(home / NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0, ""
    try:
        for folder, folders, files, fd in os.fwalk(".", dir_fd=root):
            if folder.count("/") >= MAX_DEPTH:
                folders.clear()
            for name in files:
                source = _open(name, fd, since)
                if source < 0:
                    continue
                with open(source, "rb") as file:
                    size += os.fstat(source).st_size
                    if count >= MAX_FILES or size > MAX_BYTES:
                        return count, os.path.normpath(os.path.join(folder, name))
                    place = into / folder / name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with place.open("wb") as copy:
                        _copy(file.fileno(), copy.fileno(), os.fstat(source).st_size)
                        os.fchmod(copy.fileno(), 0o444)
                    count += 1
    finally:
        os.close(root)
    return count, ""


def _open(name: str, folder: int, since: float) -> int:
    """Return a descriptor of a regular file that changed after `since`, -1 for all else."""
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
        st = os.fstat(fd)
        if statmod.S_ISREG(st.st_mode) and st.st_ctime > since:
            return fd
        os.close(fd)
    return -1


def _copy(source: int, target: int, size: int) -> None:
    """Copy what the file held when it was measured, however it grows meanwhile."""
    done = 0
    while done < size and (sent := os.sendfile(target, source, done, size - done)):
        done += sent


def forget(into: Path) -> None:
    """Remove what was collected. Runs in a thread."""
    shutil.rmtree(into, ignore_errors=True)
