"""A task's root: the mounts that make its namespace, built by its own child before it becomes the task.

The server says what goes where, as steps in the order of mounting. What a
step needs of the host is opened first, while the host's root is still ours:
that may wait for a server, ours even, and so happens in no process but this one.

The root, `/dev` and files with a text of their own lie on one small tmpfs (the
store); all else are private bind mounts, each of one mount alone.
"""

import os
import stat
from collections.abc import Callable
from errno import EINVAL, ENOENT, ESTALE
from functools import partial

from tasks.taskd import syscalls
from tasks.taskd.protocol import Message, integer, text
from tasks.taskd.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)

MAX_STEPS = 1 << 16
MAX_PATH = 4096
MAX_TEXT = 1 << 16
STAGE = "/proc"  # a directory that is there for certain; covered in the child's own mount namespace only
STORE = {"size": "64m", "nr_inodes": "64k", "mode": "755"}
PLAIN = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
READ_ONLY_PROC = ("sys", "sysrq-trigger", "irq", "bus", "fs")
HIDDEN_PROC = ("kcore", "keys", "kallsyms", "timer_list", "sched_debug")


class Root:
    """The root that mounts are attached in, and the store, which may grow mountpoints."""

    def __init__(self, directory: int, store: int) -> None:
        self.directory = directory
        self.store = store
        self._store_device = os.fstat(store).st_dev
        self._files = 0

    def look(self, path: str) -> int:
        """Return an O_PATH descriptor of `path`, its symlinks kept inside the root."""
        return syscalls.openat2(self.directory, path, os.O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)

    def reach(self, path: str, *, directory: bool) -> int:
        """Return an O_PATH descriptor of `path`, made if need be. ENOENT where it is missing in what is bound above."""
        try:
            return self.look(path)
        except FileNotFoundError:
            pass
        above, _, name = path.rpartition("/")
        parent = self.reach(above or "/", directory=True)
        try:
            if os.fstat(parent).st_dev != self._store_device:
                raise OSError(ENOENT, "does not exist in what is bound above it")
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=parent))
        finally:
            os.close(parent)
        return self.look(path)

    def attach(self, mount: int, path: str, *, directory: bool) -> None:
        """Mount a detached mount at `path`; closes it."""
        place = self.reach(path, directory=directory)
        try:
            syscalls.move_mount(mount, place)
        finally:
            os.close(place)
            os.close(mount)

    def written(self, text: str) -> int:
        """Return a detached mount of a new read-only file."""
        self._files += 1
        name = f".file{self._files}"
        with open(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=self.store), "wb") as file:
            file.write(os.fsencode(text))
        return self.stored(name, PLAIN | MOUNT_ATTR_RDONLY)

    def stored(self, name: str, attributes: int) -> int:
        """Return a detached mount of a file or directory of the store."""
        return _clone(self.store, name, attributes)


class Step:
    """One thing to be mounted at the path `at`."""

    def __init__(self, at: str, message: Message) -> None:
        self.at = at

    def open(self) -> None:
        """Open what is needed of the host."""

    def attach(self, root: Root) -> None:
        raise NotImplementedError


class Bind(Step):
    """A file or directory of the host, alone, without what is mounted below it.

    `inode` (with `device`) is what it must be, and then no symlink leads there: a path may mean something else by
    now (ESTALE).
    """

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self._path = text(message, "path", MAX_PATH)
        self._attributes = PLAIN | (MOUNT_ATTR_RDONLY if message.get("readonly") else 0)
        self._identity: tuple[int, int] | None = None
        if "inode" in message:
            self._identity = (integer(message, "device", 0, 1 << 64), integer(message, "inode", 0, 1 << 64))
        self._mount = -1
        self._directory = True

    def open(self) -> None:
        resolve = RESOLVE_NO_MAGICLINKS | (RESOLVE_NO_SYMLINKS if self._identity else 0)
        source = syscalls.openat2(syscalls.AT_FDCWD, self._path, os.O_PATH, resolve)
        st = os.fstat(source)
        if self._identity not in (None, (st.st_dev, st.st_ino)):
            raise OSError(ESTALE, "what was bound is no longer there")
        self._directory = stat.S_ISDIR(st.st_mode)
        self._mount = _clone(source, "", self._attributes)
        os.close(source)

    def take(self) -> int:
        """Return the detached mount, for the root itself."""
        return self._mount

    def attach(self, root: Root) -> None:
        root.attach(self._mount, self.at, directory=self._directory)


class File(Step):
    """A read-only file with a text of its own."""

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self._text = text(message, "text", MAX_TEXT)

    def attach(self, root: Root) -> None:
        root.attach(root.written(self._text), self.at, directory=False)


class Mask(Step):
    """Nothing, in place of what would be seen at a path: an empty file or directory of mode 0."""

    def attach(self, root: Root) -> None:
        try:
            place = root.look(self.at)
        except (FileNotFoundError, NotADirectoryError):
            return  # there is nothing to hide
        directory = stat.S_ISDIR(os.fstat(place).st_mode)
        os.close(place)
        root.attach(
            root.stored(NO_DIRECTORY if directory else NO_FILE, MOUNT_ATTR_RDONLY), self.at, directory=directory
        )


class Proc(Step):
    """proc(5) of the task's own pid namespace.

    `guarded` takes away what concerns the whole machine; a task without privileges has no power over it anyway.
    """

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self._guarded = bool(message.get("guarded"))

    def attach(self, root: Root) -> None:
        root.attach(syscalls.new_mount("proc", PLAIN | MOUNT_ATTR_NOEXEC), self.at, directory=True)
        if not self._guarded:
            return
        for name in READ_ONLY_PROC:
            path = f"{self.at}/{name}"
            try:
                place = root.look(path)
            except FileNotFoundError:
                continue
            root.attach(_clone(place, "", PLAIN | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY), path, directory=True)
            os.close(place)
        for name in HIDDEN_PROC:
            Mask(f"{self.at}/{name}", {}).attach(root)


class Dev(Step):
    """A minimal /dev: the memory devices, terminals of its own, shared memory, and `console`, the task's terminal."""

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self.terminal = -1
        self._mounts: dict[str, int] = {}

    def open(self) -> None:
        sources = {name: f"/dev/{name}" for name in DEVICES}
        if self.terminal >= 0:
            sources["console"] = os.ttyname(self.terminal)
        self._mounts = {
            name: _clone(syscalls.AT_FDCWD, path, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
            for name, path in sources.items()
        }

    def attach(self, root: Root) -> None:
        root.attach(root.stored(DEV, MOUNT_ATTR_NOSUID), self.at, directory=True)
        for name, mount in self._mounts.items():
            root.attach(mount, f"{self.at}/{name}", directory=False)
        terminals = syscalls.new_mount("devpts", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, ptmxmode="0666", mode="0620")
        root.attach(terminals, f"{self.at}/pts", directory=True)


KINDS: dict[str, type[Step]] = {"bind": Bind, "file": File, "mask": Mask, "proc": Proc, "dev": Dev}
NO_FILE, NO_DIRECTORY, DEV, EMPTY_ROOT = ".no-file", ".no-directory", ".dev", ".root"


class Plan:
    """A root as the server described it: {"steps": [{"kind": KIND, "at": PATH, ...}, ...]}."""

    def __init__(self, message: Message) -> None:
        steps = message.get("steps")
        if not isinstance(steps, list) or len(steps) > MAX_STEPS:
            raise OSError(EINVAL, f"steps: not a list of at most {MAX_STEPS}")
        self._steps = [_parse(step) for step in steps]

    def build(self, terminal: int) -> None:
        """Make this the root of the calling process, which has a mount namespace of its own.

        `terminal` is the task's terminal or -1. The error of a step names its path.
        """
        os.umask(0o022)
        for step in self._steps:
            if isinstance(step, Dev):
                step.terminal = terminal
            self._at(step, step.open)
        host = os.open("/", os.O_PATH | os.O_DIRECTORY)
        syscalls.mount_setattr(host, 0, recursive=True)
        root = self._pivot()
        for step in self._steps:
            if step.at != "/":
                self._at(step, partial(step.attach, root))
        os.fchdir(host)
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")

    def _pivot(self) -> Root:
        """Make the store, and of it or of what is bound at / the root; the host's root stays mounted on top of it."""
        syscalls.move_mount(syscalls.new_mount("tmpfs", PLAIN, **STORE), syscalls.AT_FDCWD, STAGE)
        store = os.open(STAGE, os.O_PATH | os.O_DIRECTORY)
        os.close(os.open(NO_FILE, os.O_CREAT | os.O_WRONLY, 0, dir_fd=store))
        for name, mode in ((NO_DIRECTORY, 0), (DEV, 0o755), (EMPTY_ROOT, 0o755)):
            os.mkdir(name, mode, dir_fd=store)
        for name, target in LINKS.items():
            os.symlink(target, f"{DEV}/{name}", dir_fd=store)
        os.mkdir(f"{DEV}/shm", dir_fd=store)
        os.chmod(f"{STAGE}/{DEV}/shm", 0o1777)
        whole = next((step for step in self._steps if step.at == "/" and isinstance(step, Bind)), None)
        mount = whole.take() if whole else _clone(store, EMPTY_ROOT, PLAIN)
        syscalls.move_mount(mount, syscalls.AT_FDCWD, f"{STAGE}/{EMPTY_ROOT}")
        os.chdir(f"{STAGE}/{EMPTY_ROOT}")
        root = Root(os.open(".", os.O_PATH | os.O_DIRECTORY), store)
        syscalls.pivot_root(".", ".")
        return root

    @staticmethod
    def _at(step: Step, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            raise OSError(error.errno, f"bind at {step.at}: {error.strerror}") from None


def _parse(message: object) -> Step:
    if not isinstance(message, dict):
        raise OSError(EINVAL, "not a step")
    at = text(message, "at", MAX_PATH)
    kind = KINDS.get(text(message, "kind", 16))
    if kind is None or not at.startswith("/") or (at == "/" and kind is not Bind):
        raise OSError(EINVAL, f"not a step: {at!r}")
    return kind(at, message)


def _clone(directory: int, path: str, attributes: int) -> int:
    """Return a detached, private mount of one file or directory alone; an empty `path` is the descriptor itself."""
    mount = syscalls.open_tree(directory, path, syscalls.OPEN_TREE_CLONE | (0 if path else syscalls.AT_EMPTY_PATH))
    syscalls.mount_setattr(mount, attributes)
    return mount
