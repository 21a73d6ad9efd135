"""Walk a path through a tree, following symlinks inside it."""

import os
import stat as statmod
from collections.abc import Iterable
from errno import EEXIST, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from vfs.access import EXECUTE, WRITE, check, wanted
from vfs.node import Caller, Handle, Node, StatResult, check_name

MAX_SYMLINKS = 40
MAX_PATH = 4096


def split(path: str) -> list[str]:
    """Return the elements of `path` without empty ones and ".". ENOENT for a NUL, ENAMETOOLONG past 4096 characters."""
    if len(path) > MAX_PATH:
        raise OSError(ENAMETOOLONG, "path longer than 4096")
    if "\0" in path:
        raise OSError(ENOENT, "NUL in path")
    return [part for part in path.split("/") if part not in ("", ".")]


async def walk(
    root: Node,
    path: str | Iterable[str],
    who: Caller,
    *,
    follow: bool = True,
    checked: bool = True,
) -> Node:
    """Return the node at `path` below `root`; ".." at the root stays, absolute symlinks start at `root` again.

    `follow` says whether a symlink as the last element is followed; `checked` whether search permission of each
    directory is checked for `who`. ENOENT, ENOTDIR, EACCES, ELOOP (more than 40 links), ENAMETOOLONG.
    """
    chain = await walk_chain(root, path, who, follow=follow, checked=checked)
    return chain[-1][1]


async def walk_chain(
    root: Node,
    path: str | Iterable[str],
    who: Caller,
    *,
    follow: bool = True,
    checked: bool = True,
) -> list[tuple[str, Node]]:
    """Like `walk`, but return every step as (name, node) from the root ("", root) on: the real path, links resolved."""
    todo = split(path) if isinstance(path, str) else list(path)
    wants_dir = isinstance(path, str) and path.endswith(("/", "/."))
    todo.reverse()
    chain: list[tuple[str, Node]] = [("", root)]
    links = 0
    st: StatResult = await root.stat()
    while todo:
        name = todo.pop()
        here = chain[-1][1]
        if not statmod.S_ISDIR(st.st_mode):
            raise OSError(ENOTDIR, f"not a directory: {chain[-1][0]!r}")
        if name == "..":
            if len(chain) > 1:
                chain.pop()
                st = await chain[-1][1].stat()
            continue
        if checked:
            check(st, who, EXECUTE)
        node = await here.lookup(name, who)
        st = await node.stat()
        if statmod.S_ISLNK(st.st_mode) and (follow or todo or wants_dir):
            links += 1
            if links > MAX_SYMLINKS:
                raise OSError(ELOOP, "too many symbolic links")
            target = await node.readlink()
            if target.startswith("/"):
                del chain[1:]
            st = await chain[-1][1].stat()
            todo.extend(reversed(split(target)))
            continue
        chain.append((name, node))
    if wants_dir and not statmod.S_ISDIR(st.st_mode):
        raise OSError(ENOTDIR, f"not a directory: {chain[-1][0]!r}")
    return chain


async def open_path(root: Node, path: str, flags: int, who: Caller, *, mode: int = 0o666) -> tuple[Node, Handle]:
    """Open the file at `path` below `root` as open(2) does: O_CREAT, O_EXCL, O_TRUNC and permissions included.

    Returns the node and its handle. EISDIR for a directory, and what `walk` and the node raise.
    """
    try:
        node = await walk(root, path, who)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
        *above, name = split(path) or [""]
        parent = await walk(root, above, who)
        check(await parent.stat(), who, WRITE | EXECUTE)
        return await parent.create(check_name(name), flags, mode, who)
    if flags & os.O_CREAT and flags & os.O_EXCL:
        raise OSError(EEXIST, f"exists: {path!r}")
    st = await node.stat()
    if statmod.S_ISDIR(st.st_mode):
        raise OSError(EISDIR, f"is a directory: {path!r}")
    check(st, who, wanted(flags))
    return node, await node.open(flags & ~(os.O_CREAT | os.O_EXCL), who)
