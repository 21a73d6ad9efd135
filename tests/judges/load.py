"""Random file operations with a known right answer, after fsx and fsstress. Standard library only: runs in guests.

`exercise_file` holds one file against a model of its content. `compare_trees`
makes the same calls in two directories and demands the same outcomes, the first
being on a file system that is known to be right.
"""

import errno
import hashlib
import mmap
import os
import random
import stat
from collections.abc import Callable, Collection, Iterator

MAX_FILE = 256 << 10
PAGE = mmap.PAGESIZE
OLD = 2 * 10**9
"""The latest of the times that are set, and so compared. Nanoseconds; whole seconds, for v9fs knows no others."""


ACTIONS = ("append", "map", "mapwrite", "read", "read", "reopen", "size", "sync", "truncate", *3 * ("write",))


class Difference(AssertionError):
    """What a file system did is not what it should have done."""


def exercise_file(path: str, *, seed: int, count: int, maps: bool = True) -> None:
    """Make `count` random reads, writes, truncations and (with `maps`) memory-mapped accesses of a new file."""
    rng = random.Random(seed)
    model = bytearray()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)

    def span(limit: int) -> tuple[int, int]:
        start = rng.randrange(limit + 1)
        return start, rng.randrange(1, 1 + max(1, min(limit - start, rng.choice((16, 5000, 70000)))))

    def check(what: str, found: bytes, start: int, size: int) -> None:
        expected = bytes(model[start : start + size])
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found)) + start
            raise Difference(f"{path}: {what} of {size} at {start}: differs at {at}, {len(found)} bytes, step {step}")

    def store(start: int, data: bytes) -> None:
        model.extend(bytes(max(0, start + len(data) - len(model))))
        model[start : start + len(data)] = data

    for step in range(count):
        action = rng.choice(ACTIONS)
        if action == "read":
            start, size = span(len(model))
            check("read", os.pread(fd, size, start), start, size)
        elif action == "write":
            start, size = span(MAX_FILE)
            data = rng.randbytes(size)
            if os.pwrite(fd, data, start) != size:
                raise Difference(f"{path}: short write")
            store(start, data)
        elif action == "append" and len(model) < MAX_FILE:
            data = rng.randbytes(rng.randrange(1, 9000))
            with open(path, "ab", buffering=0) as file:
                file.write(data)
            store(len(model), data)
        elif action == "truncate":
            size = rng.randrange(MAX_FILE)
            os.ftruncate(fd, size)
            del model[size:]
            model.extend(bytes(size - len(model)))
        elif action in ("map", "mapwrite") and maps and model:
            start, size = span(len(model) - 1)
            size = min(size, len(model) - start)
            base = start // PAGE * PAGE
            with mmap.mmap(fd, start - base + size, offset=base) as view:
                if action == "map":
                    check("mapped read", view[start - base : start - base + size], start, size)
                else:
                    data = rng.randbytes(size)
                    view[start - base : start - base + size] = data
                    view.flush()
                    store(start, data)
        elif action == "reopen":
            os.close(fd)
            fd = os.open(path, os.O_RDWR)
        elif action == "sync":
            os.fsync(fd)
        elif action == "size" and (found := os.fstat(fd).st_size) != len(model):
            raise Difference(f"{path}: size {found}, not {len(model)}, step {step}")
    os.close(fd)
    with open(path, "rb") as file:
        check("last read", file.read(), 0, len(model) + 1)


FOLDERS = [f"a{number}" for number in range(3)]
NAMES = [*FOLDERS, *(f"b{number}" for number in range(3))]
XATTRS = [f"user.{name}" for name in ("one", "two")]
Outcome = object
Call = Callable[[str], Outcome]


def calls(seed: int, count: int, without: Collection[str] = ()) -> Iterator[tuple[str, Call]]:
    """Yield `count` random calls with their descriptions, none of the kinds `without`; each takes a directory."""
    rng = random.Random(seed)
    kinds = [kind for kind in KINDS if kind not in without]

    def path() -> str:
        above = [rng.choice(FOLDERS) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))]
        return "/".join([*above, rng.choice(NAMES)])

    for _ in range(count):
        kind = rng.choice(kinds)
        make, *shape = KINDS[kind]
        arguments = [
            path() if wanted == "path" else rng.choice(XATTRS) if wanted == "xattr" else rng.choice(wanted)
            for wanted in shape
        ]
        yield f"{kind} {arguments}", lambda top, make=make, arguments=arguments: make(top, *arguments)


def compare_trees(right: str, judged: str, *, seed: int, count: int, without: Collection[str] = ()) -> None:
    """Make the same `count` calls in both directories, which are empty, and compare every outcome and what is left."""
    done = []
    for what, call in calls(seed, count, without):
        expected, found = outcome(call, right), outcome(call, judged)
        done.append(f"{what} -> {expected}")
        if found != expected:
            story = "\n".join(done[-12:])
            raise Difference(f"{judged}: {what}: {found}, not {expected}; seed {seed}; before that:\n{story}")
    expected, found = snapshot(right), snapshot(judged)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise Difference(f"{judged}/{name}: {found.get(name)}, not {expected.get(name)}; seed {seed}")


def outcome(call: Call, top: str) -> Outcome:
    """Return what a call returned, or the name of its errno."""
    try:
        return call(top)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def described(path: str) -> Outcome:
    """Return what stat(2) says of a path, as far as it is the same on every file system."""
    st = os.lstat(path)
    common: tuple[object, ...] = (stat.filemode(st.st_mode), st.st_uid, st.st_gid)
    if stat.S_ISDIR(st.st_mode):
        return common
    return (*common, st.st_nlink, st.st_size, st.st_mtime_ns if st.st_mtime_ns <= OLD else None)


def snapshot(top: str) -> dict[str, Outcome]:
    """Return what is below a directory, by relative path, with digests of the files' contents."""
    found: dict[str, Outcome] = {}
    for directory, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(directory, name)
            content: object = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            found[os.path.relpath(path, top)] = described(path), content
    return found


# What each call does below the directory `top`


def _write(top: str, name: str, flags: int, size: int, offset: int) -> Outcome:
    fd = os.open(f"{top}/{name}", os.O_RDWR | flags, 0o640)
    try:
        os.pwrite(fd, bytes(index * 7 & 255 for index in range(size)), offset)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _read(top: str, name: str) -> Outcome:
    fd = os.open(f"{top}/{name}", os.O_RDONLY | os.O_NONBLOCK)  # it may be a FIFO
    with open(fd, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _write_unlinked(top: str, name: str) -> Outcome:
    """Use a file that has lost its name."""
    fd = os.open(f"{top}/{name}", os.O_RDWR)
    try:
        os.unlink(f"{top}/{name}")
        os.pwrite(fd, b"still here", 3)
        return os.pread(fd, 100, 0), os.fstat(fd).st_size
    finally:
        os.close(fd)


def _rename_open(top: str, name: str, new: str) -> Outcome:
    """Use a file whose name changes meanwhile."""
    fd = os.open(f"{top}/{name}", os.O_RDWR)
    try:
        os.rename(f"{top}/{name}", f"{top}/{new}")
        os.pwrite(fd, b"moved", 0)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


KINDS: dict[str, tuple[object, ...]] = {
    "mkdir": (lambda top, a, mode: os.mkdir(f"{top}/{a}", mode), "path", (0o755, 0o700, 0o1777)),
    "rmdir": (lambda top, a: os.rmdir(f"{top}/{a}"), "path"),
    "create": (_write, "path", (os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC), (0, 10, 5000), (0, 4090)),
    "write": (_write, "path", (0, os.O_TRUNC), (1, 4096, 20000), (0, 3, 100_000)),
    "append": (_write, "path", (os.O_APPEND,), (1, 3000), (0,)),
    "read": (_read, "path"),
    "unlink": (lambda top, a: os.unlink(f"{top}/{a}"), "path"),
    "rename": (lambda top, a, b: os.rename(f"{top}/{a}", f"{top}/{b}"), "path", "path"),
    "link": (lambda top, a, b: os.link(f"{top}/{a}", f"{top}/{b}", follow_symlinks=False), "path", "path"),
    "symlink": (lambda top, a, to: os.symlink(to, f"{top}/{a}"), "path", ("a0", "a1/b1", "nowhere", "x" * 300)),
    "readlink": (lambda top, a: os.readlink(f"{top}/{a}"), "path"),
    "list": (lambda top, a: sorted(os.listdir(f"{top}/{a}")), "path"),
    "chmod": (lambda top, a, mode: os.chmod(f"{top}/{a}", mode), "path", (0o600, 0o755, 0o4711, 0)),
    "chown": (lambda top, a, uid: os.lchown(f"{top}/{a}", uid, uid), "path", (0, 1000)),
    "truncate": (lambda top, a, size: os.truncate(f"{top}/{a}", size), "path", (0, 1, 50_000)),
    "utime": (lambda top, a, when: os.utime(f"{top}/{a}", ns=(when, when)), "path", (OLD, OLD // 2)),
    "stat": (lambda top, a: described(f"{top}/{a}"), "path"),
    "mkfifo": (lambda top, a: os.mkfifo(f"{top}/{a}", 0o644), "path"),
    "unlinked": (_write_unlinked, "path"),
    "renamed": (_rename_open, "path", "path"),
    "setxattr": (lambda top, a, x, v: os.setxattr(f"{top}/{a}", x, v), "path", "xattr", (b"", b"v" * 300)),
    "getxattr": (lambda top, a, x: os.getxattr(f"{top}/{a}", x), "path", "xattr"),
    "removexattr": (lambda top, a, x: os.removexattr(f"{top}/{a}", x), "path", "xattr"),
}
"""Each kind of call, and what its arguments are drawn from beside the directory."""
