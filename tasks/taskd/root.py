"""A task's root: the mounts that make its namespace, built by its own child before it becomes the task.

The server says what goes where, as steps in the order of mounting. What a step
takes from elsewhere is first made ready, detached, while the host's root is
still ours: that may wait for a server, ours even, and so happens in no process
but this one. What many tasks have in common, the same files of the host at the
same places, is made ready once, in a mount namespace of its own (a stock):
later roots begin as a copy of that namespace. The root itself, `/dev` and files
with a text of their own lie on a small tmpfs (the store), one for each task;
all else are private bind mounts, each of one mount alone.
"""

import os
import socket
import stat
from collections.abc import Callable, Mapping
from errno import EINVAL, ENOENT, ENOTDIR, ENOTSUP, ESTALE
from functools import partial

from tasks.taskd import syscalls
from tasks.taskd.idmap import OWNERS
from tasks.taskd.protocol import Message, ancillary, integer, received_fds, table, text, texts
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
MAX_ID = (1 << 32) - 2
STORE = {"size": "16m", "nr_inodes": "64k", "mode": "755"}
SHARED_MEMORY = {"size": "64m", "nr_inodes": "64k", "mode": "1777"}
STORE_PLACE = "store"
PLAIN = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
QUIET = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
READ_ONLY_PROC = ("sys", "sysrq-trigger", "irq", "bus", "fs")
MOVED = "what was bound is no longer there"
HIDDEN_PROC = ("kcore", "keys", "kallsyms", "timer_list", "sched_debug")


class Root:
    """The root that mounts are attached in. Where it is the store's (`grows`) it makes missing mountpoints.

    `empty` says that there is nothing in it yet: then it need not look before it makes one.
    """

    def __init__(self, directory: int, *, grows: bool, empty: bool = False) -> None:
        self._directory = directory
        self._grown = os.fstat(directory).st_dev if grows else -1
        self._bare = {""} if grows and empty else set()  # directories made here that nothing is mounted on

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

    def attach(self, mount: int, path: str, *, directory: bool, name: str = "") -> None:
        """Mount a detached mount at `path` and close it; or, with `name`, move the mount at that name in `mount`."""
        if path in self._bare:
            self._bare = {bare for bare in self._bare if bare != path and not bare.startswith(path + "/")}
        if self._make(path, directory=directory):
            syscalls.move_mount(mount, self._directory, path[1:], name=name)
        else:
            place = self.reach(path, directory=directory)
            try:
                syscalls.move_mount(mount, place, name=name)
            finally:
                os.close(place)
        if not name:
            os.close(mount)

    def _make(self, path: str, *, directory: bool) -> bool:
        """Make a mountpoint where only we have been, and so nothing can lead astray; False if it is not so."""
        above, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            return False
        if above not in self._bare:
            if not self._make(above, directory=True):
                return False
            self._bare.add(above)
        try:
            if directory:
                os.mkdir(path[1:], 0o755, dir_fd=self._directory)
            else:
                os.mknod(path[1:], 0o644 | stat.S_IFREG, dir_fd=self._directory)
        except FileExistsError:
            return False
        return True

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
    """A tmpfs for what has no place elsewhere, mounted on `directory` or at `place` in it, to be cloned from.

    On the root it is unseen.
    """

    def __init__(self, directory: int, place: str = "") -> None:
        self.fd = syscalls.new_mount("tmpfs", PLAIN, **STORE)
        syscalls.move_mount(self.fd, directory, place)
        self._files = 0

    def file(self, text: str, mode: int) -> int:
        """Return a detached read-only mount of a new file."""
        self._files += 1
        name = str(self._files)
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode, dir_fd=self.fd)
        try:
            os.write(fd, os.fsencode(text))
        finally:
            os.close(fd)
        return _clone(self.fd, name, PLAIN | MOUNT_ATTR_RDONLY)

    def device(self, kind: int, rdev: int, uid: int) -> int:
        """Return a detached mount of a new device node that `uid` may use."""
        self._files += 1
        name = str(self._files)
        os.mknod(name, kind | 0o600, rdev, dir_fd=self.fd)
        os.chown(name, uid, -1, dir_fd=self.fd)
        return _clone(self.fd, name, QUIET, lifted=MOUNT_ATTR_NODEV)

    def directory(self, mode: int, attributes: int, links: Mapping[str, str]) -> int:
        """Return a detached mount of a new directory that holds these symlinks."""
        self._files += 1
        name = str(self._files)
        os.mkdir(name, mode, dir_fd=self.fd)
        for link, target in links.items():
            os.symlink(target, f"{name}/{link}", dir_fd=self.fd)
        return _clone(self.fd, name, attributes)


class View:
    """The directory in which the server shows the task's namespace, opened when first asked for."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def open(self) -> int:
        """Return its descriptor."""
        if self._fd < 0:
            resolve = RESOLVE_NO_MAGICLINKS
            self._fd = syscalls.openat2(syscalls.AT_FDCWD, self._path, os.O_PATH | os.O_DIRECTORY, resolve)
        return self._fd


class Step:
    """One thing to be mounted at the path `at`."""

    def __init__(self, at: str, message: Message) -> None:
        self.at = at

    def prepare(self, view: View, terminal: int) -> None:
        """Make ready what is taken from elsewhere, as it is found on the host. `terminal` is the task's, or -1."""

    def make(self, store: Store) -> None:
        """Make ready what lies on the store."""

    def attach(self, root: Root) -> None:
        raise NotImplementedError


class Bind(Step):
    """A file or directory of the host, alone, without what is mounted below it.

    `owners` (from_uid, uid, from_gid, gid) has its files appear as another's. `inode` (with `device`) is what it must
    be, and then no symlink leads there: a path may mean something else by
    now (ESTALE).
    """

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self._attributes = PLAIN | (MOUNT_ATTR_RDONLY if message.get("readonly") else 0)
        self._identity: tuple[int, int] | None = None
        if "inode" in message:
            self._identity = (integer(message, "device", 0, 1 << 64), integer(message, "inode", 0, 1 << 64))
        self._path = self._source(message)
        self._owners = -1
        if "owners" in message:
            owners = table(message, "owners")
            names = ("from_uid", "uid", "from_gid", "gid")
            self._owners = OWNERS.namespace(*(integer(owners, name, 0, MAX_ID) for name in names))
        self.mount = -1
        self.name = ""
        """Where the mount is below `mount`, if it is not that one itself."""
        self.directory = True

    def _source(self, message: Message) -> str:
        return text(message, "path", MAX_PATH)

    def open(self, view: View) -> int:
        """Return an O_PATH descriptor of what is to be bound."""
        if not self._identity:
            return syscalls.openat2(syscalls.AT_FDCWD, self._path, os.O_PATH, RESOLVE_NO_MAGICLINKS)
        try:
            resolve = RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
            return syscalls.openat2(syscalls.AT_FDCWD, self._path, os.O_PATH, resolve)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                raise
            raise OSError(ESTALE, MOVED) from error

    def prepare(self, view: View, terminal: int) -> None:
        source = self.open(view)
        st = os.fstat(source)
        if self._identity not in (None, (st.st_dev, st.st_ino)):
            raise OSError(ESTALE, MOVED)
        self.directory = stat.S_ISDIR(st.st_mode)
        self.mount = _clone(source, "", self._attributes, self._owners)
        os.close(source)

    def attach(self, root: Root) -> None:
        root.attach(self.mount, self.at, directory=self.directory, name=self.name)


class Seen(Bind):
    """What the task's view shows at the same path."""

    def _source(self, message: Message) -> str:
        return self.at

    def open(self, view: View) -> int:
        return syscalls.openat2(view.open(), self._path, os.O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


class Device(Bind):
    """A memory device of the host."""

    def _source(self, message: Message) -> str:
        self._attributes = QUIET
        name = text(message, "name", 16)
        if name not in DEVICES:
            raise OSError(EINVAL, f"not a device for tasks: {name!r}")
        return f"/dev/{name}"


class HostDevice(Step):
    """A device node of the task's own user, with these numbers: a device of the machine that it was given."""

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self._rdev = integer(message, "rdev", 0, 1 << 64)
        self._kind = stat.S_IFBLK if message.get("block") else stat.S_IFCHR
        self._uid = integer(message, "uid", 0, MAX_ID)
        self._mount = -1

    def make(self, store: Store) -> None:
        self._mount = store.device(self._kind, self._rdev, self._uid)

    def attach(self, root: Root) -> None:
        root.attach(self._mount, self.at, directory=False)


class File(Step):
    """A read-only file with a text of its own."""

    def __init__(self, at: str, message: Message) -> None:
        super().__init__(at, message)
        self._text = text(message, "text", MAX_TEXT)
        self._mount = -1

    def make(self, store: Store) -> None:
        self._mount = store.file(self._text, 0o644)

    def attach(self, root: Root) -> None:
        root.attach(self._mount, self.at, directory=False)


class Mask(Step):
    """Nothing, in place of what would be seen at a path: an empty file or directory of mode 0."""

    def make(self, store: Store) -> None:
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

    def prepare(self, view: View, terminal: int) -> None:
        # A user namespace lets mount one only where one is to be seen; and pid 1, which sees the host, is not to be.
        self._proc = syscalls.new_mount("proc", PLAIN | MOUNT_ATTR_NOEXEC, hidepid="ptraceable")

    def make(self, store: Store) -> None:
        for mask in self._masks:
            mask.make(store)

    def attach(self, root: Root) -> None:
        root.attach(self._proc, self.at, directory=True)
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
    """A minimal /dev without its devices: terminals of its own, shared memory, and `console`, the task's terminal."""

    def prepare(self, view: View, terminal: int) -> None:
        self._console = _clone(syscalls.AT_FDCWD, os.ttyname(terminal), QUIET) if terminal >= 0 else -1

    def make(self, store: Store) -> None:
        self._directories = {
            "": store.directory(0o755, MOUNT_ATTR_NOSUID, LINKS),
            "/pts": syscalls.new_mount("devpts", QUIET, ptmxmode="0666", mode="0620"),
            "/shm": syscalls.new_mount("tmpfs", PLAIN, **SHARED_MEMORY),
        }

    def attach(self, root: Root) -> None:
        for name, mount in self._directories.items():
            root.attach(mount, self.at + name, directory=True)
        if self._console >= 0:
            root.attach(self._console, f"{self.at}/console", directory=False)


KINDS: dict[str, type[Step]] = {
    "bind": Bind,
    "view": Seen,
    "device": Device,
    "host device": HostDevice,
    "file": File,
    "mask": Mask,
    "proc": Proc,
    "dev": Dev,
}


class Stock:
    """Binds that many roots have in common, and, once it is made, their namespace."""

    def __init__(self, steps: object) -> None:
        self.binds: list[Bind] = []
        for message in _list(steps, "stock"):
            bind = _parse(message)
            if not isinstance(bind, Bind) or isinstance(bind, Seen):
                raise OSError(EINVAL, "not what tasks could have in common")
            bind.name = str(len(self.binds))
            self.binds.append(bind)
        self._namespace = -1  # in whose root each bind is mounted at its number
        self._expected: socket.socket | None = None  # where the first child sends it
        self._offered: socket.socket | None = None  # and the end of that child

    def look(self) -> None:
        """Before a child is made: take the namespace, if one was made by now, or let the child make it."""
        if self._namespace >= 0:
            return
        if self._expected:
            try:
                self._receive(self._expected)
            except BlockingIOError:
                return  # another child is at it
            self._expected.close()
            self._expected = None
        if self._namespace < 0:
            self._expected, self._offered = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._expected.setblocking(False)

    def _receive(self, expected: socket.socket) -> None:
        kinds, extra, _, _ = expected.recvmsg(MAX_STEPS, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for fd in received_fds(extra):
            self._namespace = fd
        for bind, directory in zip(self.binds, kinds, strict=False):
            bind.directory = bool(directory)

    def unclasp(self) -> None:
        """After the child was made: what it has of the stock is its own."""
        if self._offered:
            self._offered.close()
            self._offered = None

    def enter(self) -> None:
        """Put the calling process, a child in the host's mount namespace, into one of its own that is like the stock's.

        Where there is none yet it is made, and offered to the supervisor.
        """
        if self._namespace >= 0:
            syscalls.setns(self._namespace, syscalls.CLONE_NEWNS)
        else:
            self._make()
        syscalls.unshare(syscalls.CLONE_NEWNS)

    def _make(self) -> None:
        for bind in self.binds:
            _naming(bind.at, partial(bind.prepare, View(""), -1))
        syscalls.unshare(syscalls.CLONE_NEWNS)
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        store = Store(_make_private("/"))
        os.mkdir(STORE_PLACE, dir_fd=store.fd)
        for bind in self.binds:
            if bind.directory:
                os.mkdir(bind.name, dir_fd=store.fd)
            else:
                os.mknod(bind.name, dir_fd=store.fd)
            syscalls.move_mount(bind.mount, store.fd, bind.name)
            os.close(bind.mount)
        syscalls.mount_setattr(store.fd, MOUNT_ATTR_RDONLY)  # it is everybody's
        _pivot(store.fd)
        if self._offered:
            kinds = bytes(bind.directory for bind in self.binds)
            self._offered.sendmsg([kinds or b"-"], ancillary([namespace]))
        os.close(namespace)

    def close(self) -> None:
        """Let go of the namespace. Roots made of it keep what they have."""
        if self._namespace >= 0:
            os.close(self._namespace)
        if self._expected:
            self._expected.close()
        self._namespace, self._expected = -1, None


class Plan:
    """Mounts as the server described them: {"steps": [{"kind": KIND, "at": PATH, ...}, ...], "drop": [PATH, ...]}.

    A step may be the number of one of the stock's instead. `view` is the path of the task's view, `drop` for a root
    that exists: what is unmounted there first.
    """

    def __init__(self, message: Message, stock: Stock | None = None) -> None:
        steps = _list(message.get("steps"), "steps")
        self.stock = stock or Stock([])
        self._own = [_parse(step) for step in steps if not isinstance(step, int)]
        own = iter(self._own)
        try:
            self._steps = [self.stock.binds[step] if isinstance(step, int) else next(own) for step in steps]
        except IndexError:
            raise OSError(EINVAL, "not a step of the stock") from None
        self._view = View(text(message, "view", MAX_PATH, ""))
        self._drop = texts(message, "drop", MAX_PATH)
        self._grows = message.get("grows") is not False

    def build(self, terminal: int) -> None:
        """Make this the root of the calling process, in a mount namespace of its own; it comes from the host's.

        `terminal` is the task's terminal or -1. The error of a step names its path.
        """
        os.umask(0o022)
        self._prepare(terminal)
        self.stock.enter()
        top = os.open("/", os.O_PATH | os.O_DIRECTORY)
        store = Store(top, STORE_PLACE)
        for bind in self.stock.binds:
            bind.mount = top
        self._make(store)
        os.mkdir(".root", dir_fd=store.fd)
        whole = next((step for step in self._steps if step.at == "/" and isinstance(step, Bind)), None)
        if whole:
            syscalls.move_mount(whole.mount, store.fd, ".root", name=whole.name)
        else:
            syscalls.move_mount(store.directory(0o755, PLAIN, {}), store.fd, ".root")
        root = os.open(".root", os.O_PATH | os.O_DIRECTORY, dir_fd=store.fd)
        self._attach(Root(root, grows=whole is None, empty=True))
        _pivot(root)

    def graft(self, task: int) -> None:
        """Change the root of the running task with the pidfd `task`. The caller has a mount namespace of its own.

        ESRCH if it has ended; otherwise an error means that nothing, or only some of it, is done.
        """
        os.umask(0o022)
        self._prepare(-1)
        self._make(Store(_make_private("/")))
        syscalls.setns(task, syscalls.CLONE_NEWNS)
        root = Root(os.open("/", os.O_PATH | os.O_DIRECTORY), grows=self._grows)
        for path in self._drop:
            _naming(path, partial(root.detach, path))
        self._attach(root)

    def _prepare(self, terminal: int) -> None:
        for step in self._own:
            _naming(step.at, partial(step.prepare, self._view, terminal))

    def _make(self, store: Store) -> None:
        for step in self._own:
            _naming(step.at, partial(step.make, store))

    def _attach(self, root: Root) -> None:
        for step in self._steps:
            if step.at != "/":
                _naming(step.at, partial(step.attach, root))


def _list(value: object, key: str) -> list[object]:
    if not isinstance(value, list) or len(value) > MAX_STEPS:
        raise OSError(EINVAL, f"{key}: not a list of at most {MAX_STEPS}")
    return value


def _make_private(path: str) -> int:
    """Make no mount below `path` share with another namespace what is mounted there; return its descriptor."""
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY)
    syscalls.mount_setattr(directory, 0, recursive=True)
    return directory


def _pivot(root: int) -> None:
    """Make a mount the calling process's root, in place of all that there was."""
    os.fchdir(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)  # the old one, which lies on top
    os.chdir("/")


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
    if kind is None or not at.startswith("/") or (at == "/" and not issubclass(kind, Bind)):
        raise OSError(EINVAL, f"not a step: {at!r}")
    return kind(at, message)


def _clone(directory: int, path: str, attributes: int, owners: int = -1, *, lifted: int = 0) -> int:
    """Return a detached, private mount of one file or directory alone; an empty `path` is the descriptor itself.

    It has the attributes of the mount it is of, less those `lifted`, and these.
    """
    mount = syscalls.open_tree(directory, path, syscalls.OPEN_TREE_CLONE | (0 if path else syscalls.AT_EMPTY_PATH))
    try:
        syscalls.mount_setattr(mount, attributes, lifted=lifted, owners=owners)
    except OSError as error:
        if owners >= 0 and error.errno == EINVAL:
            raise OSError(ENOTSUP, "its filesystem cannot show another owner") from None
        raise
    return mount
