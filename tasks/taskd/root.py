"""A task's root: the mounts that make its namespace, built by its own child before it becomes the task.

The server says what goes where, as steps in the order of mounting. What a step
mounts is first prepared in full, detached, while the host's root is still
ours: that may wait for a server, ours even, and so happens in no process but
this one. The root, `/dev` and files with a text of their own lie on one small
tmpfs (the store); all else are private bind mounts, each of one mount alone.
"""

import os
import stat
from collections.abc import Callable, Mapping
from errno import EINVAL, ENOENT, ESTALE
from functools import partial

from tasks.taskd import syscalls
from tasks.taskd.protocol import Message, integer, text, texts
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
STORE = {"size": "16m", "nr_inodes": "64k", "mode": "755"}
SHARED_MEMORY = {"size": "64m", "nr_inodes": "64k", "mode": "1777"}
PLAIN = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
READ_ONLY_PROC = ("sys", "sysrq-trigger", "irq", "bus", "fs")
HIDDEN_PROC = ("kcore", "keys", "kallsyms", "timer_list", "sched_debug")


class Root:
    """The root that mounts are attached in. Where it is the store's (`grows`) it makes missing mountpoints."""

    def __init__(self, directory: int, *, grows: bool) -> None:
        self._directory = directory
        self._grown = os.fstat(directory).st_dev if grows else -1

    def look(self, path: str) -> int:
        """Return an O_PATH descriptor of `path`, its symlinks kept inside the root."""
        return syscalls.openat2(self._directory, path, os.O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)

    def reach(self, path: str, *, directory: bool) -> int:
        """Return an O_PATH descriptor of `path`, made if need be. ENOENT where it is missing in what is bound above."""
        try:
            return self.look(path)
        except FileNotFoundError:
            pass
        above, _, name = path.rpartition("/")
        parent = self.reach(above or "/", directory=True)
        try:
            if os.fstat(parent).st_dev != self._grown:
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

    def detach(self, path: str) -> None:
        """Unmount what is at `path`, and remove mountpoints that are no longer needed."""
        above, _, name = path.rpartition("/")
        parent = self.look(above or "/")
        os.fchdir(parent)
        try:
            syscalls.umount(name, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in (EINVAL, ENOENT):  # nothing is mounted: there was nothing to mask
                raise
        try:
            while name and os.fstat(parent).st_dev == self._grown:
                if stat.S_ISDIR(os.lstat(name).st_mode):
                    os.rmdir(name)
                else:
                    os.unlink(name)
                above, _, name = above.rpartition("/")
                os.close(parent)
                parent = self.look(above or "/")
                os.fchdir(parent)
        except OSError:
            pass  # it leads to other mounts, or is one
        finally:
            os.close(parent)


class Store:
    """A tmpfs for what has no place elsewhere, mounted over the host's root: unseen there, but ours to clone from."""

    def __init__(self) -> None:
        self.fd = syscalls.new_mount("tmpfs", PLAIN, **STORE)
        syscalls.move_mount(self.fd, syscalls.AT_FDCWD, "/")
        self._files = 0

    def file(self, text: str, mode: int) -> int:
        """Return a detached read-only mount of a new file."""
        self._files += 1
        name = str(self._files)
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode, dir_fd=self.fd)
        with open(fd, "wb") as file:
            file.write(os.fsencode(text))
        return _clone(self.fd, name, PLAIN | MOUNT_ATTR_RDONLY)

    def directory(self, mode: int, attributes: int, links: Mapping[str, str]) -> int:
        """Return a detached mount of a new directory that holds these symlinks."""
        self._files += 1
        name = str(self._files)
        os.mkdir(name, mode, dir_fd=self.fd)
        for link, target in links.items():
            os.symlink(target, f"{name}/{link}", dir_fd=self.fd)
        return _clone(self.fd, name, attributes)


class Step:
    """One thing to be mounted at the path `at`."""

    def __init__(self, at: str, message: Message) -> None:
        self.at = at

    def prepare(self, store: Store, terminal: int) -> None:
        """Make ready what is to be mounted. `terminal` is the task's, or -1."""

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
        self.mount = -1
        self._directory = True

    def prepare(self, store: Store, terminal: int) -> None:
        resolve = RESOLVE_NO_MAGICLINKS | (RESOLVE_NO_SYMLINKS if self._identity else 0)
        source = syscalls.openat2(syscalls.AT_FDCWD, self._path, os.O_PATH, resolve)
        st = os.fstat(source)
        if self._identity not in (None, (st.st_dev, st.st_ino)):
            raise OSError(ESTALE, "what was bound is no longer there")
        self._directory = stat.S_ISDIR(st.st_mode)
        self.mount = _clone(source, "", self._attributes)
        os.close(source)

    def attach(self, root: Root) -> None:
        root.attach(self.mount, self.at, directory=self._directory)


class File(Step):
    """A read-only file with a text of its own."""

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self._text = text(message, "text", MAX_TEXT)
        self._mount = -1

    def prepare(self, store: Store, terminal: int) -> None:
        self._mount = store.file(self._text, 0o644)

    def attach(self, root: Root) -> None:
        root.attach(self._mount, self.at, directory=False)


class Mask(Step):
    """Nothing, in place of what would be seen at a path: an empty file or directory of mode 0."""

    def prepare(self, store: Store, terminal: int) -> None:
        self._file = store.file("", 0)
        self._directory = store.directory(0, PLAIN | MOUNT_ATTR_RDONLY, {})

    def attach(self, root: Root) -> None:
        try:
            place = root.look(self.at)
        except (FileNotFoundError, NotADirectoryError):
            return  # there is nothing to hide
        directory = stat.S_ISDIR(os.fstat(place).st_mode)
        os.close(place)
        root.attach(self._directory if directory else self._file, self.at, directory=directory)


class Proc(Step):
    """proc(5) of the task's own pid namespace.

    `guarded` takes away what concerns the whole machine; a task without privileges has no power over it anyway.
    """

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self._masks = [Mask(f"{at}/{name}", {}) for name in HIDDEN_PROC] if message.get("guarded") else []

    def prepare(self, store: Store, terminal: int) -> None:
        for mask in self._masks:
            mask.prepare(store, terminal)

    def attach(self, root: Root) -> None:
        root.attach(syscalls.new_mount("proc", PLAIN | MOUNT_ATTR_NOEXEC), self.at, directory=True)
        if not self._masks:
            return
        for mask in self._masks:
            mask.attach(root)
        for name in READ_ONLY_PROC:
            path = f"{self.at}/{name}"
            try:
                place = root.look(path)
            except FileNotFoundError:
                continue
            root.attach(_clone(place, "", PLAIN | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY), path, directory=True)
            os.close(place)


class Dev(Step):
    """A minimal /dev: the memory devices, terminals of its own, shared memory, and `console`, the task's terminal."""

    def prepare(self, store: Store, terminal: int) -> None:
        sources = {name: f"/dev/{name}" for name in DEVICES}
        if terminal >= 0:
            sources["console"] = os.ttyname(terminal)
        quiet = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
        self._devices = {name: _clone(syscalls.AT_FDCWD, path, quiet) for name, path in sources.items()}
        self._directories = {
            "": store.directory(0o755, MOUNT_ATTR_NOSUID, LINKS),
            "/pts": syscalls.new_mount("devpts", quiet, ptmxmode="0666", mode="0620"),
            "/shm": syscalls.new_mount("tmpfs", PLAIN, **SHARED_MEMORY),
        }

    def attach(self, root: Root) -> None:
        for name, mount in self._directories.items():
            root.attach(mount, self.at + name, directory=True)
        for name, mount in self._devices.items():
            root.attach(mount, f"{self.at}/{name}", directory=False)


KINDS: dict[str, type[Step]] = {"bind": Bind, "file": File, "mask": Mask, "proc": Proc, "dev": Dev}


class Plan:
    """Mounts as the server described them: {"steps": [{"kind": KIND, "at": PATH, ...}, ...], "drop": [PATH, ...]}.

    `drop` is for a root that exists: what is unmounted there first.
    """

    def __init__(self, message: Message) -> None:
        steps = message.get("steps")
        if not isinstance(steps, list) or len(steps) > MAX_STEPS:
            raise OSError(EINVAL, f"steps: not a list of at most {MAX_STEPS}")
        self._steps = [_parse(step) for step in steps]
        self._drop = texts(message, "drop", MAX_PATH)
        self._grows = message.get("grows") is not False

    def build(self, terminal: int) -> None:
        """Make this the root of the calling process, which has a mount namespace of its own.

        `terminal` is the task's terminal or -1. The error of a step names its path.
        """
        host, store = self._prepare(terminal)
        whole = next((step for step in self._steps if step.at == "/" and isinstance(step, Bind)), None)
        mount = whole.mount if whole else store.directory(0o755, PLAIN, {})
        os.mkdir(".root", dir_fd=store.fd)
        syscalls.move_mount(mount, store.fd, ".root")
        os.fchdir(mount)
        syscalls.pivot_root(".", ".")
        os.fchdir(host)
        syscalls.umount(".", syscalls.MNT_DETACH)  # the store, which lies on top
        syscalls.umount(".", syscalls.MNT_DETACH)  # the host's root
        os.chdir("/")
        self._attach(Root(mount, grows=whole is None))

    def graft(self, task: int) -> None:
        """Change the root of the running task with the pidfd `task`. The caller has a mount namespace of its own.

        ESRCH if it has ended; otherwise an error means that nothing, or only some of it, is done.
        """
        self._prepare(-1)
        syscalls.setns(task, syscalls.CLONE_NEWNS)
        root = Root(os.open("/", os.O_PATH | os.O_DIRECTORY), grows=self._grows)
        for path in self._drop:
            _naming(path, partial(root.detach, path))
        self._attach(root)

    def _prepare(self, terminal: int) -> tuple[int, Store]:
        os.umask(0o022)
        host = os.open("/", os.O_PATH | os.O_DIRECTORY)
        syscalls.mount_setattr(host, 0, recursive=True)
        store = Store()
        for step in self._steps:
            _naming(step.at, partial(step.prepare, store, terminal))
        return host, store

    def _attach(self, root: Root) -> None:
        for step in self._steps:
            if step.at != "/":
                _naming(step.at, partial(step.attach, root))


def _naming(path: str, act: Callable[[], None]) -> None:
    try:
        act()
    except OSError as error:
        raise OSError(error.errno, f"bind at {path}: {error.strerror}") from None


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
