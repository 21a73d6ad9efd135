"""`mount` and `umount`: a served tree, here or elsewhere, as a directory of this machine."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import click
import trio

from vfs.fuse import devfuse
from vfs.ninep.client import Client
from wanixfs.cli.failure import Failure
from wanixfs.cli.options import Target
from wanixfs.cli.session import attached, until_signal
from wanixfs.cli.stdio import STDERR

READY = b"ready\n"


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Return once it is mounted; `wanixfs umount DIR` ends it.")
@click.option("--ready-fd", type=int, hidden=True)
@click.argument("address", metavar="ADDR")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.pass_obj
def mount(target: Target, detach: bool, ready_fd: int | None, address: str, directory: Path) -> None:
    """Mount a served tree until Ctrl-C."""
    elsewhere = Target(address, target.token)
    directory = directory.absolute()
    if detach:
        start_detached(elsewhere, directory)
        return
    click.get_current_context().exit(trio.run(until_signal, partial(serve_mount, elsewhere, directory, ready_fd)))


async def serve_mount(target: Target, directory: Path, ready_fd: int | None) -> None:
    """Serve the remote tree on `directory` until it is unmounted or its server is gone."""
    async with attached(target) as client, devfuse.mounted(directory, client.root, allow_other=False) as mounted:
        if ready_fd is not None:
            os.write(ready_fd, READY)
            os.close(ready_fd)
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)  # whoever started us may wait for its end
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_lost, client)
            await mounted.gone.wait()
            nursery.cancel_scope.cancel()


async def fail_when_lost(client: Client) -> None:
    raise Failure(f"unmounted: {await client.wait_lost()}")


def start_detached(target: Target, directory: Path) -> None:
    """Start this command again in a session of its own and return when it has mounted. Failure when it has not."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "wanixfs.cli", "mount", "--ready-fd", str(write), target.address, str(directory)]
    environment = os.environ | ({"WANIXFS_TOKEN": target.token} if target.token else {})
    with open(read, "rb") as ready:
        child = subprocess.Popen(
            command,
            env=environment,
            pass_fds=(write,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(write)
        if ready.read() != READY:
            raise Failure(f"not mounted: {directory}", child.wait() or 1)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def umount(directory: Path) -> None:
    """Unmount a tree from DIR."""
    devfuse.unmount(directory.absolute())
