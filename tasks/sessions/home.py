"""A session's home on the host: made once, and put in order before each start of its agent.

Its owner may be hostile: nothing in it is reached through a symlink, and only what is plainly the owner's own is
touched.
"""

import os
import shutil
import stat as statmod
from contextlib import suppress
from pathlib import Path

from tasks.model import User

SESSION_FILE = "session.json"
WORK = "work"
BLOCK = 1 << 16


def furnish(home: Path, user: User, template: Path | None) -> None:
    """Fill a new home: a copy of `template`, if there is one, and the work directory. All of it becomes the user's."""
    if template is not None:
        shutil.copytree(template, home, symlinks=True, dirs_exist_ok=True, copy_function=shutil.copy)
    (home / WORK).mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        for folder, folders, files in os.walk(home):
            for name in (*folders, *files):
                os.chown(os.path.join(folder, name), user.uid, user.gid, follow_symlinks=False)
    home.chmod(0o700)


def belongs_to_another(folder: Path, user: User) -> bool:
    """Tell whether a folder of the host is some third user's, and can so be shown as the session's own."""
    try:
        owner = folder.stat().st_uid
    except OSError:
        return False  # whoever binds it will say so
    return os.geteuid() == 0 and owner not in (0, user.uid)


def tidy(home: Path, user: User) -> int:
    """Make a home fit for its agent's start; return how many bytes of a torn last line were cut off its session file.

    The agent loses what it remembers where the last line is not whole, as a kill in the middle of a write leaves it.
    """
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with suppress(FileExistsError):
            os.mkdir(WORK, 0o700, dir_fd=folder)
            if os.geteuid() == 0:
                os.chown(WORK, user.uid, user.gid, dir_fd=folder, follow_symlinks=False)
        try:
            file = os.open(
                SESSION_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder
            )
        except OSError:
            return 0  # none yet, or nothing that an agent made: the agent's own affair
        try:
            return _mend(file, user)
        finally:
            os.close(file)
    finally:
        os.close(folder)


def _mend(file: int, user: User) -> int:
    st = os.fstat(file)
    if not statmod.S_ISREG(st.st_mode) or st.st_uid != user.uid or st.st_nlink != 1:
        return 0
    end = st.st_size
    while end:
        start = max(0, end - BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < st.st_size:
        os.ftruncate(file, end)
    return st.st_size - end
