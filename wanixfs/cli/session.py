"""One command's connection to the server, ended in order by whatever signal ends the command."""

import os
import pwd
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import click
import trio

from vfs.ninep.client import Client, connect
from wanixfs.cli.failure import no_server
from wanixfs.cli.options import Target
from wanixfs.cli.tree import Tree

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Action = Callable[[Tree], Awaitable[int | None]]


@asynccontextmanager
async def attached(target: Target) -> AsyncIterator[Client]:
    """Attach to the server's tree as the user who runs this. Failure in one line when nobody answers."""
    uid = os.geteuid()
    aname = f"/?{target.token}" if target.token else "/"
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(
                connect(target.address, aname=aname, uname=user_name(uid), uid=uid)
            )
        except OSError as error:
            raise no_server(target.address, error) from error
        yield client


def user_name(uid: int) -> str:
    """Return the name of a user of this machine, or the number of one it does not know."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


async def until_signal(action: Callable[[], Awaitable[int | None]]) -> int:
    """Run `action`; a signal that ends programs cancels it, and with it (Tflush) what it waits for at the server.

    Returns its exit status (None: 0), or 128+N after signal N.
    """
    status = 0

    async def watch(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        nonlocal status
        with trio.open_signal_receiver(*ENDING) as signals:
            task_status.started()
            async for number in signals:
                status = 128 + number
                scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch, nursery.cancel_scope)
        done = await action()
        status = status or done or 0
        nursery.cancel_scope.cancel()
    return status


def over_tree(target: Target, action: Action, *, interruptible: bool = True) -> None:
    """Run a command's `action` over a connection and end with its exit status.

    `interruptible=False` leaves every signal to the action.
    """

    async def act() -> int | None:
        async with attached(target) as client:
            return await action(Tree(client.root))

    async def main() -> int:
        return await until_signal(act) if interruptible else await act() or 0

    click.get_current_context().exit(trio.run(main))
