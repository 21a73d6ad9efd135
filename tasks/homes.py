"""Users and homes of tasks: each task of the administrator gets a uid and a private directory of its own."""

import os
import pwd
import threading
from errno import EINVAL, ENOSPC
from pathlib import Path
from uuid import uuid4

import structlog

from tasks.model import User
from tasks.quotas import Quotas
from vfs.host import HostTree
from vfs.node import Node

log = structlog.get_logger("tasks")


class Homes:
    """Homes below `root`, uids from `first` to `last`.

    Without privilege every task runs as the server's own user; homes are separate all the same. `roots` tells whether
    tasks have roots of their own.
    """

    def __init__(self, root: Path, *, first: int, last: int, privileged: bool, roots: bool = True) -> None:
        self._root = root
        self._first = first
        self._count = last - first + 1
        self._privileged = privileged
        self._roots = roots
        self._retired = root / "retired"
        self._sweeping = threading.Lock()
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._retired.mkdir(mode=0o700, exist_ok=True)
        self.shadowed = False
        """Whether something else is bound at `/home`."""
        self._taken: set[int] = set()
        self.quotas = Quotas(root.with_name(f"{root.name}.quotas"))
        self.quotas.resume(root)
        self.sweep()
        self._taken = {entry.stat().st_uid for entry in os.scandir(root)} | self._retired_uids()

    def inside(self, user: User) -> str:
        """Return where a task of `user` finds its home: at `/home/<user>`, or "/" where `shadowed` or not there.

        Where there are no roots of tasks' own, it is where the host has it.
        """
        if not self._roots:
            return str(self.path(user))
        return "/" if self.shadowed or not self.path(user).is_dir() else f"/home/{user.name}"

    def path(self, user: User) -> Path:
        """Return the home directory of `user` on the host."""
        return Path(user.home) if os.path.isabs(user.home) else self._root / user.home

    def new(self, task: int) -> User:
        """Return a new user with an empty home, 0700. ENOSPC when every uid still has a home."""
        return self.make(str(task), f"pw-{task}", task)

    def make(self, home: str, name: str, seed: int) -> User:
        """Return a new user called `name` with an empty home of that name; `seed` is where the search for a uid begins.

        EEXIST if there is such a home.
        """
        place = self._root / home
        uid, gid = os.getuid(), os.getgid()
        if self._privileged:
            uid = gid = self._free_uid(seed)
        place.mkdir(mode=0o700)
        if self._privileged:
            os.chown(place, uid, gid)
            self._taken.add(uid)
        return User(name=name, uid=uid, gid=gid, home=home)

    def _free_uid(self, seed: int) -> int:
        for step in range(self._count):
            uid = self._first + (seed + step) % self._count
            if uid not in self._taken:
                return uid
        raise OSError(ENOSPC, "every uid of the range still has a home")

    def limit(self, user: User, size: int) -> None:
        """Hold the home of `user`, made by `new` and empty, to a size. Blocks; errors are those of `Quotas.limit`."""
        self.quotas.limit(self.path(user), size, user.uid, user.gid)

    def suspend(self) -> None:
        """Leave no mount behind, until the next server."""
        self.quotas.suspend(self._root)

    def exists(self, home: str) -> bool:
        """Tell whether `new` has made this home, which is named as its user says it."""
        return (self._root / home).exists()

    def remove(self, home: str) -> None:
        """Take a home made by `new` away. It is deleted, and its uid given again, by a later `sweep`."""
        path = self._root / home
        self.quotas.drop(path)
        path.rename(self._retired / f"{path.stat().st_uid}-{uuid4().hex}")

    def sweep(self) -> None:
        """Delete what was removed. May take long: a home holds what its task liked, and as deep. Safe in a thread.

        Directories are moved up and deleted in their turn, so that depth costs neither stack nor descriptors.
        """
        with self._sweeping:
            stuck: set[str] = set()
            retired = self._retired_uids()
            while names := set(os.listdir(self._retired)) - stuck:
                for name in names:
                    try:
                        self._delete(name)
                    except OSError as error:
                        stuck.add(name)
                        log.warning("a removed home is left", path=str(self._retired / name), error=str(error))
            self._taken -= retired - self._retired_uids()

    def _retired_uids(self) -> set[int]:
        return {int(name.partition("-")[0]) for name in os.listdir(self._retired)}

    def _delete(self, name: str) -> None:
        place = self._retired / name
        if os.geteuid():  # without privilege a home's modes stand in the way
            place.chmod(0o700)
        uid = name.partition("-")[0]
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for entry in list(os.scandir(folder)):
                if entry.is_dir(follow_symlinks=False):
                    if os.geteuid():
                        os.chmod(entry.name, 0o700, dir_fd=folder)
                    os.rename(entry.name, self._retired / f"{uid}-{uuid4().hex}", src_dir_fd=folder)
                else:
                    os.unlink(entry.name, dir_fd=folder)
        finally:
            os.close(folder)
        place.rmdir()

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
