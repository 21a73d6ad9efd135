"""`ls`, `cat`, `write`, `stat`: files of the tree without any mount."""

import json
import os
import stat as statmod
import time
from functools import partial

import click

from vfs.node import StatResult, is_dir
from wanixfs.cli.options import Target
from wanixfs.cli.session import over_tree
from wanixfs.cli.stdio import STDIN, STDOUT, chunks, show, write_fd
from wanixfs.cli.tree import Tree, each, naming, stream, write_all

KINDS = {
    statmod.S_IFREG: "file",
    statmod.S_IFDIR: "directory",
    statmod.S_IFLNK: "symlink",
    statmod.S_IFIFO: "fifo",
    statmod.S_IFSOCK: "socket",
    statmod.S_IFCHR: "character device",
    statmod.S_IFBLK: "block device",
}


def described(path: str, st: StatResult) -> dict[str, str | int | float]:
    """Return the attributes of `path` by name: times in Unix seconds, the mode in octal."""
    return {
        "path": path,
        "type": KINDS.get(statmod.S_IFMT(st.st_mode), "unknown"),
        "mode": f"{statmod.S_IMODE(st.st_mode):04o}",
        "inode": st.st_ino,
        "links": st.st_nlink,
        "uid": st.st_uid,
        "gid": st.st_gid,
        "size": st.st_size,
        "modified": st.st_mtime_ns / 1e9,
        "changed": st.st_ctime_ns / 1e9,
    }


def long_line(name: str, st: StatResult, target: str | None) -> str:
    """Return the line that `ls -l` shows."""
    modified = time.strftime("%Y-%m-%d %H:%M", time.localtime(st.st_mtime_ns / 1e9))
    arrow = f" -> {target}" if target is not None else ""
    return (
        f"{statmod.filemode(st.st_mode)} {st.st_nlink:>3} {st.st_uid:>6} {st.st_gid:>6} {st.st_size:>10}"
        f" {modified} {name}{arrow}"
    )


@click.command()
@click.option("-l", "long", is_flag=True, help="Show modes, owners, sizes and times.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array with the attributes of each.")
@click.argument("path", default="/")
@click.pass_obj
def ls(target: Target, long: bool, as_json: bool, path: str) -> None:
    """List a directory of the tree."""
    over_tree(target, partial(list_names, path, long=long, as_json=as_json))


async def list_names(path: str, tree: Tree, *, long: bool, as_json: bool) -> None:
    if is_dir(await tree.stat(path)):
        found = [(entry.name, f"{path.rstrip('/')}/{entry.name}") for entry in await tree.names(path)]
    else:
        found = [(path, path)]
    if not (long or as_json):
        for name, _ in found:
            show(name)
        return

    async def attributes(full: str) -> tuple[StatResult, str | None]:
        node = await tree.node(full, follow=False)
        with naming(full):
            st = await node.stat()
            return st, await node.readlink() if statmod.S_ISLNK(st.st_mode) else None

    seen = await each(attributes, [full for _, full in found])
    if as_json:
        print(json.dumps([described(full, st) for (_, full), (st, _) in zip(found, seen, strict=True)], indent=2))
        return
    for (name, _), (st, link) in zip(found, seen, strict=True):
        show(long_line(name, st, link))


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_obj
def cat(target: Target, paths: tuple[str, ...]) -> None:
    """Write files of the tree to stdout.

    A stream is written as it comes, until it ends.
    """

    async def action(tree: Tree) -> None:
        for path in paths:
            async with tree.open(path) as handle:
                with naming(path):
                    await stream(handle, partial(write_fd, STDOUT))

    over_tree(target, action)


@click.command()
@click.option("-a", "--append", is_flag=True, help="Write after what is there.")
@click.argument("path")
@click.argument("words", metavar="[TEXT]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def write(target: Target, append: bool, path: str, words: tuple[str, ...]) -> None:
    """Write to a file of the tree.

    Writes TEXT and a newline, or all of stdin without TEXT. A file that does not exist is made where the tree lets it.
    """
    over_tree(target, partial(write_file, path, words, append=append))


async def write_file(path: str, words: tuple[str, ...], tree: Tree, *, append: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    async with tree.writing(path, flags) as handle:
        offset = (await tree.stat(path)).st_size if append else 0
        if words:
            await write_all(handle, os.fsencode(" ".join(words) + "\n"), offset)
            return
        async for data in chunks(STDIN):
            offset = await write_all(handle, data, offset)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@click.argument("path")
@click.pass_obj
def stat(target: Target, as_json: bool, path: str) -> None:
    """Show the attributes of a file of the tree."""

    async def action(tree: Tree) -> None:
        shown = described(path, await tree.stat(path, follow=False))
        if as_json:
            print(json.dumps(shown, indent=2))
        else:
            for key, value in shown.items():
                show(f"{key} {value}")

    over_tree(target, action)
