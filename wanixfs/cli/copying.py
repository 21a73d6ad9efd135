"""`cp`: files and directories into the tree and out of it."""

import os
import stat as statmod
from collections.abc import Awaitable, Callable
from errno import EEXIST, EISDIR
from functools import partial
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from vfs.node import check_name, is_dir
from wanixfs.cli.options import Target
from wanixfs.cli.session import over_tree
from wanixfs.cli.tree import CHUNK, Tree, naming, stream, write_all

Tell = Callable[[int, int], None]
"""Told how many more bytes are to be copied, and how many have been."""
Copy = Callable[[Tree, Tell], Awaitable[None]]


@click.command()
@click.option("-r", "--recursive", is_flag=True, help="Copy directories with all they hold.")
@click.argument("source")
@click.argument("destination")
@click.pass_obj
def cp(target: Target, recursive: bool, source: str, destination: str) -> None:
    """Copy into the tree or out of it.

    `wanixfs cp FILE :/path` copies in, `wanixfs cp :/path FILE` out.
    """
    if source.startswith(":") == destination.startswith(":"):
        raise click.UsageError("one of the two is a path of the tree, with a colon before it: FILE :/path, :/path FILE")
    if source.startswith(":"):
        copy: Copy = partial(copy_out, source[1:], Path(destination), recursive)
    else:
        copy = partial(copy_in, Path(source), destination[1:], recursive)
    over_tree(target, partial(with_progress, copy))


async def with_progress(copy: Copy, tree: Tree) -> None:
    """Run `copy` under a progress bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("copying", total=0)
        expected = 0

        def tell(more: int, done: int) -> None:
            nonlocal expected
            expected += more
            progress.update(bar, total=expected, advance=done)

        await copy(tree, tell)


async def copy_in(source: Path, destination: str, recursive: bool, tree: Tree, tell: Tell) -> None:
    """Copy a local file or directory into the tree: to `destination`, or into the directory which that is."""
    if source.is_dir() and not recursive:
        raise OSError(EISDIR, "a directory is copied with -r", str(source))
    try:
        if is_dir(await tree.stat(destination)):
            destination = f"{destination.rstrip('/')}/{source.absolute().name}"
    except FileNotFoundError:
        pass
    todo = [(source.resolve(), destination)]
    while todo:
        local, remote = todo.pop()
        st = local.lstat()
        if statmod.S_ISDIR(st.st_mode):
            await tree.mkdir(remote, statmod.S_IMODE(st.st_mode))
            todo.extend((local / name, f"{remote}/{name}") for name in sorted(os.listdir(local), reverse=True))
        elif statmod.S_ISLNK(st.st_mode):
            await tree.symlink(remote, os.readlink(local))
        elif statmod.S_ISREG(st.st_mode):
            tell(st.st_size, 0)
            await send(local, tree, remote, statmod.S_IMODE(st.st_mode), tell)
        else:
            skip(str(local))


async def send(local: Path, tree: Tree, remote: str, mode: int, tell: Tell) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    async with await trio.open_file(local, "rb") as file, tree.writing(remote, flags, mode) as handle:
        offset = 0
        while data := await file.read(CHUNK):
            offset = await write_all(handle, data, offset)
            tell(0, len(data))


async def copy_out(source: str, destination: Path, recursive: bool, tree: Tree, tell: Tell) -> None:
    """Copy a file or directory of the tree out of it: to `destination`, or into the directory which that is.

    The tree is not trusted: nothing below `destination` is written through a symbolic link.
    """
    top = await tree.stat(source)
    if is_dir(top) and not recursive:
        raise OSError(EISDIR, "a directory is copied with -r", source)
    if destination.is_dir():
        destination /= source.rstrip("/").rpartition("/")[2]
    todo = [(source, destination)]
    while todo:
        remote, local = todo.pop()
        nofollow = 0 if remote == source else os.O_NOFOLLOW
        node = await tree.node(remote, follow=not nofollow)
        with naming(remote):
            st = await node.stat()
            link = await node.readlink() if statmod.S_ISLNK(st.st_mode) else ""
        if statmod.S_ISDIR(st.st_mode):
            make_directory(local, statmod.S_IMODE(st.st_mode))
            names = [check_name(entry.name) for entry in await tree.names(remote)]
            todo.extend((f"{remote.rstrip('/')}/{name}", local / name) for name in reversed(names))
        elif link:
            os.symlink(link, local)
        elif statmod.S_ISREG(st.st_mode):
            tell(st.st_size, 0)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | nofollow
            await receive(tree, remote, os.open(local, flags, statmod.S_IMODE(st.st_mode)), tell)
        else:
            skip(remote)


async def receive(tree: Tree, remote: str, fd: int, tell: Tell) -> None:
    """Copy one file of the tree to `fd`, and close that."""
    async with await trio.open_file(fd, "wb", buffering=0) as file, tree.open(remote) as handle:

        async def keep(data: bytes | memoryview) -> None:
            view = memoryview(data)
            while view:
                view = view[await file.write(view) :]
            tell(0, len(data))

        with naming(remote):
            await stream(handle, keep)


def make_directory(path: Path, mode: int) -> None:
    """Make a directory that we can fill, unless there is one (a link to one is none)."""
    try:
        path.mkdir(mode | 0o700)
    except FileExistsError:
        if path.is_symlink() or not path.is_dir():
            raise OSError(EEXIST, "not a directory", str(path)) from None


def skip(path: str) -> None:
    """Say that something is not copied."""
    click.echo(f"wanixfs: {path}: not a file, directory or link: left out", err=True)
