"""Find what a path names below a directory descriptor, and never above it.

The server walks plain names only; "..", symlinks and the ends of paths are
dealt with here, on the names that were walked so far. So nothing the tree
does meanwhile (a directory that becomes a symlink, say) can lead outside.
"""

from contextlib import suppress
from dataclasses import dataclass
from errno import EILSEQ, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from types import TracebackType

from tasks.drivers.wasi.abi import ENOTCAPABLE
from tasks.drivers.wasi.client import Client
from vfs.ninep.messages import QTDIR, QTSYMLINK

MAX_PATH = 4096
MAX_SYMLINKS = 40


@dataclass(slots=True)
class Place:
    """Where a path leads: a directory's fid, a name in it, and the fid of what is there (0: nothing).

    For the base directory itself the name is "." and `parent` its own fid. A context manager that gives the fids back.
    """

    client: Client
    parent: int
    name: str
    fid: int
    kind: int
    """The type of the qid."""
    slash: bool
    """Whether the path says that it names a directory."""

    @property
    def is_directory(self) -> bool:
        return bool(self.kind & QTDIR)

    @property
    def is_symlink(self) -> bool:
        return bool(self.kind & QTSYMLINK)

    def found(self) -> int:
        """Return the fid of what is there. ENOENT; ENOTDIR where the path says directory and it is none."""
        if not self.fid:
            raise OSError(ENOENT, f"no such file: {self.name!r}")
        if self.slash and not self.is_directory:
            raise OSError(ENOTDIR, f"not a directory: {self.name!r}")
        return self.fid

    def take(self) -> int:
        """Return the fid of what is there, the caller's from now on."""
        fid, self.fid = self.found(), 0
        return fid

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fid in (self.parent, self.fid):
            if fid:
                with suppress(OSError):
                    self.client.clunk(fid)


def decode(raw: bytes) -> str:
    """Return a path as text. EILSEQ where it is not UTF-8 or has a NUL, ENAMETOOLONG, ENOENT for an empty one."""
    if len(raw) > MAX_PATH:
        raise OSError(ENAMETOOLONG, "path too long")
    if not raw:
        raise OSError(ENOENT, "empty path")
    try:
        path = raw.decode()
    except UnicodeDecodeError as error:
        raise OSError(EILSEQ, "path is not UTF-8") from error
    if "\0" in path:
        raise OSError(EILSEQ, "NUL in path")
    return path


def locate(client: Client, base: int, path: str, *, follow: bool, rooted: bool) -> Place:
    """Find what `path` names below the directory `base`; `follow` says whether a symlink at its end is followed.

    With `rooted` an absolute symlink starts again at `base`, which is the root of all there is. ENOTCAPABLE for what
    leads above `base`; ENOENT, ENOTDIR, ELOOP, EACCES for what cannot be walked up to the last name.
    """
    if path.startswith("/"):
        raise OSError(ENOTCAPABLE, "absolute path")
    slash = path.endswith(("/", "/.", "/..")) or path in (".", "..")
    done: list[str] = []  # directories walked, no symlink among them
    todo = _split(path)
    links = 0
    while True:
        while todo and todo[0] == "..":
            if not done:
                raise OSError(ENOTCAPABLE, "path leads out of its directory")
            done.pop()
            del todo[0]
        if not done and not todo:
            return Place(client, 0, ".", client.clone(base), QTDIR, slash)
        run = todo.index("..") if ".." in todo else len(todo)
        names, todo = [*done, *todo[:run]], todo[run:]
        at, place = _reach(client, base, names, slash)
        ends = at == len(names) - 1 and not todo
        if ends and not (place.is_symlink and follow):
            return place
        with place:
            if not place.fid or not (place.is_symlink or place.is_directory):
                raise OSError(ENOTDIR if place.fid else ENOENT, place.name)
            if place.is_directory:
                done = names
                continue
            links += 1
            if links > MAX_SYMLINKS:
                raise OSError(ELOOP, "too many symlinks")
            target = client.readlink(place.fid)
        if target.startswith("/") and not rooted:
            raise OSError(ENOTCAPABLE, "absolute symlink")
        slash = slash or (ends and target.endswith("/"))
        done, todo = [] if target.startswith("/") else names[:at], [*_split(target), *names[at + 1 :], *todo]


def _split(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _reach(client: Client, base: int, names: list[str], slash: bool) -> tuple[int, Place]:
    """Walk `names` up to the last, or the first that is no directory: return its index and place."""
    parent, types = client.walk(base, names[:-1])
    if parent and (not types or types[-1] & QTDIR):
        fid, kind = _look(client, parent, names[-1])
        return len(names) - 1, Place(client, parent, names[-1], fid, kind, slash)
    if parent:
        client.clunk(parent)
    if types[-1] & QTDIR:
        types.append(0)  # it is the next that could not be walked to
    at = len(types) - 1
    parent, _ = client.walk(base, names[:at])
    fid, kind = _look(client, parent, names[at])
    return at, Place(client, parent, names[at], fid, kind, slash)


def _look(client: Client, parent: int, name: str) -> tuple[int, int]:
    """Return the fid and type of `name` in a directory, zeros if it is not there; other errors give `parent` back."""
    try:
        fid, types = client.walk(parent, [name])
    except FileNotFoundError:
        return 0, 0
    except OSError:
        client.clunk(parent)
        raise
    return fid, types[0]
