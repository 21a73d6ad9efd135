"""Users and homes of tasks: each task of the administrator gets a uid and a private directory of its own."""

import os
import pwd
import shutil
from errno import EINVAL, ENOSPC
from pathlib import Path

from tasks.model import User
from vfs.host import HostTree
from vfs.node import Node


class Homes:
    """Homes below `root`, uids from `first` to `last`.

    Without privilege every task runs as the server's own user; homes are separate all the same.
    """

    def __init__(self, root: Path, *, first: int, last: int, privileged: bool) -> None:
        self._root = root
        self._first = first
        self._count = last - first + 1
        self._privileged = privileged
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._taken = {entry.stat().st_uid for entry in os.scandir(root)}

    def path(self, user: User) -> Path:
        """Return the home directory of `user` on the host."""
        return Path(user.home) if os.path.isabs(user.home) else self._root / user.home

    def new(self, task: int) -> User:
        """Return a new user with an empty home, 0700. ENOSPC when every uid still has a home."""
        home = self._root / str(task)
        uid, gid = os.getuid(), os.getgid()
        if self._privileged:
            uid = gid = self._free_uid(task)
        home.mkdir(mode=0o700)
        if self._privileged:
            os.chown(home, uid, gid)
            self._taken.add(uid)
        return User(name=f"pw-{task}", uid=uid, gid=gid, home=str(task))

    def _free_uid(self, task: int) -> int:
        for step in range(self._count):
            uid = self._first + (task + step) % self._count
            if uid not in self._taken:
                return uid
        raise OSError(ENOSPC, "every uid of the range still has a home")

    def remove(self, user: User) -> None:
        """Delete a home made by `new`; its uid may then be given again."""
        if os.path.isabs(user.home):
            return
        shutil.rmtree(self._root / user.home, ignore_errors=True)
        if not (self._root / user.home).exists():
            self._taken.discard(user.uid)

    def known(self, name: str) -> User:
        """Return the user of this machine called `name`. EINVAL if there is none."""
        try:
            return _user(pwd.getpwnam(name))
        except (KeyError, ValueError):
            raise OSError(EINVAL, f"no such user: {name[:64]!r}") from None

    def by_uid(self, uid: int) -> User:
        """Return the user of this machine with that uid. EINVAL if there is none."""
        try:
            return _user(pwd.getpwuid(uid))
        except KeyError:
            raise OSError(EINVAL, f"no user has the uid {uid}") from None

    def node(self, user: User) -> Node:
        """Return the home directory of `user` as a node."""
        path = self.path(user)
        return HostTree(path, label=f"home/{user.home}").root


def _user(entry: pwd.struct_passwd) -> User:
    return User(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=os.path.abspath(entry.pw_dir))
