"""`run`, `shell`, `attach`: a task's streams, signals and exit code as if it were a child of ours."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from errno import EACCES, EBUSY, ENOENT, ENOEXEC, EPIPE, ESRCH
from functools import partial
from typing import Any, TextIO, TypeVar

import click
import trio

from ns.script import parse
from tasks.model import TYPES
from vfs.words import quote
from wanixfs.cli.failure import Failure, OutputGone, describe
from wanixfs.cli.options import ASSIGNMENT, BIND, SIZE, Bind, Target
from wanixfs.cli.session import over_tree
from wanixfs.cli.stdio import STDERR, STDIN, STDOUT, chunks, raw_terminal, show, terminal_size, write_fd
from wanixfs.cli.tree import Tree, naming, stream, write_all

NOT_RUN = 125
"""Exit status of `run` itself, where 126 and 127 are what shells say of a program (as env(1) and chroot(1) do)."""
FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)
REMOVE_SECONDS = 5.0
"""How long a task that could not be started may take to go."""
PATIENCE = 3
"""This many SIGINTs in a row become a SIGKILL."""
GONE = (ESRCH, EBUSY, EPIPE, ENOENT)
"""How a control file says that the task has ended, or been removed, meanwhile."""
DETACH = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A task to be made. `cwd`, `name`, `user`, `memlimit` (bytes) and `timeout` (seconds) where wanted.

    `namespace` is the text of a script that is run in the namespace it inherits, before its `binds`; `net` is `none`,
    `host` or HOST:PORTs.
    """

    argv: tuple[str, ...]
    type: str = "auto"
    namespace: str = ""
    binds: tuple[Bind, ...] = ()
    user: str | None = None
    net: tuple[str, ...] = ()
    env: Mapping[str, str]
    labels: Mapping[str, str]
    cwd: str | None = None
    name: str | None = None
    memlimit: int | None = None
    timeout: float | None = None
    pty: bool = False

    def verbs(self) -> str:
        """Return the lines for the task's ctl."""
        words = [("type", self.type)] if self.type != "auto" else []
        words += [("alias", self.name)] if self.name else []
        words += [("user", self.user)] if self.user else []
        words += [("net", *(() if self.net[0] in ("none", "host") else ("allow",)), *self.net)] if self.net else []
        words += [("label", f"{key}={value}") for key, value in self.labels.items()]
        words += [("memlimit", str(self.memlimit))] if self.memlimit else []
        words += [("timeout", f"{self.timeout:g}")] if self.timeout else []
        words += [("pty", terminal_size())] if self.pty else []
        return "".join(" ".join(map(quote, line)) + "\n" for line in words)


async def make(tree: Tree, order: Order) -> str:
    """Allocate, configure and start a task; return its id. Nothing is left of one that could not be started."""
    task = await tree.text("/task/new")
    home = f"/task/{task}"
    try:
        await configure(tree, home, order)
        try:
            await tree.write(f"{home}/ctl", "start\n")
        except OSError as error:
            status = {ENOENT: 127, EACCES: 126, ENOEXEC: 126}.get(error.errno or 0, NOT_RUN)
            raise Failure(f"{order.argv[0]}: {error.strerror}", status) from error
    except BaseException:
        with trio.CancelScope(deadline=trio.current_time() + REMOVE_SECONDS, shield=True):
            try:
                await tree.write(f"{home}/ctl", "remove\n")
            except OSError:
                pass  # an unused task is reaped in the end
        raise
    return task


async def configure(tree: Tree, home: str, order: Order) -> None:
    """Write what `order` says into the files of an allocated task. Failure with NOT_RUN."""
    files = {
        "ctl": order.verbs(),
        "ns/ctl": "".join(f"{bind.line()}\n" for bind in order.binds),
        "env": "".join(f"{key}={value}\n" for key, value in order.env.items()),
        "cwd": f"{order.cwd}\n" if order.cwd else "",
        "args": "".join(f"{word}\0" for word in order.argv),
    }
    for name, text in files.items():
        if name == "ns/ctl":
            await run_script(tree, f"{home}/{name}", order.namespace)
        try:
            if text:
                await tree.write(f"{home}/{name}", text)
        except OSError as error:
            raise Failure(describe(error), NOT_RUN) from error


async def run_script(tree: Tree, path: str, script: str) -> None:
    """Run a namespace script line by line, so that what the host may lack is skipped. Failure names the line."""
    try:
        for line in parse(script):
            try:
                await tree.write(path, f"{line.command}\n")
            except OSError as error:
                if not (line.optional and error.errno == ENOENT):
                    raise Failure(f"line {line.number}: {line.command}: {describe(error)}", NOT_RUN) from error
    except OSError as error:
        raise Failure(f"the namespace script: {error.strerror}", NOT_RUN) from error


async def converse(tree: Tree, task: str, *, pty: bool, attached: bool = False) -> int:
    """Join a started task's streams and signals to ours; return its exit code once it and its output have ended.

    The end of our stdin closes the task's. A reader of ours that goes away is, for the task, the SIGPIPE it would
    have got as our child. To one that we only `attached` to neither happens, signals are ours, what it wrote before
    is not shown again, and 0 is returned when the user leaves it by DETACH.
    """
    home = f"/task/{task}"
    code = 0
    offsets = {number: (await tree.stat(f"{home}/fd/{number}")).st_size for number in (1, 2)} if attached else None
    async with trio.open_nursery() as nursery:
        leave = nursery.cancel_scope.cancel if attached else None
        if signals := (() if attached else FORWARDED) + ((signal.SIGWINCH,) if pty else ()):
            await nursery.start(forward_signals, tree, home, signals)
        nursery.start_soon(feed, tree, home, leave)
        try:
            await outputs(tree, home, pty=pty, offsets=offsets)
        except* OutputGone:
            if not attached:
                await command(tree, f"{home}/ctl", f"kill {signal.SIGPIPE}")
            raise OutputGone from None
        code = int(await tree.text(f"{home}/wait"))
        nursery.cancel_scope.cancel()
    return code


async def outputs(
    tree: Tree, home: str, *, pty: bool = False, offsets: Mapping[int, int] | None = None, wait: bool = True
) -> None:
    """Copy the task's output, from `offsets` on, to ours until it ends, or (no `wait`) as far as it goes now."""
    async with trio.open_nursery() as nursery:
        for ours, theirs in [(STDOUT, 1)] if pty else [(STDOUT, 1), (STDERR, 2)]:
            offset = offsets[theirs] if offsets else 0
            nursery.start_soon(partial(output, tree, f"{home}/fd/{theirs}", ours, offset=offset, wait=wait))


async def output(tree: Tree, path: str, ours: int, *, offset: int, wait: bool) -> None:
    async with tree.open(path, os.O_RDONLY | (0 if wait else os.O_NONBLOCK)) as handle:
        with naming(path):
            await stream(handle, partial(write_fd, ours), offset=offset, wait=wait)


async def feed(tree: Tree, home: str, leave: Callable[[], None] | None) -> None:
    """Copy our stdin to the task's. A task that reads no more is no failure.

    At our end its stdin is closed, unless we may `leave`: then DETACH from a terminal does that.
    """
    path = f"{home}/fd/0"
    try:
        async with tree.open(path, os.O_WRONLY) as handle:
            with naming(path):
                async for data in chunks(STDIN):
                    if leave and DETACH in data and os.isatty(STDIN):
                        leave()
                        return
                    await write_all(handle, data)
    except BrokenPipeError:
        return
    if leave is None:
        await command(tree, f"{home}/fd/0ctl", "close")


async def forward_signals(
    tree: Tree,
    home: str,
    numbers: tuple[signal.Signals, ...],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Hand our signals on to the task, and our terminal's size; too many SIGINTs become a SIGKILL."""
    interrupts = 0
    with trio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        async for number in signals:
            interrupts += number == signal.SIGINT
            if number == signal.SIGWINCH:
                line = f"pty {terminal_size()}"
            else:
                line = f"kill {signal.SIGKILL if interrupts > PATIENCE else number}"
            await command(tree, f"{home}/ctl", line)


async def command(tree: Tree, path: str, line: str) -> None:
    """Write one control line; that the task ended just before is no failure."""
    try:
        await tree.write(path, f"{line}\n")
    except OSError as error:
        if error.errno not in GONE:
            raise


def task_options(function: F) -> F:
    """Add the options that describe a task, as `run` and `shell` take them."""
    for option in reversed(
        (
            click.option(
                "--namespace",
                type=click.File(),
                help="A script to make its namespace by, like those in examples/profiles.",
            ),
            click.option("--bind", "binds", type=BIND, multiple=True, help="Bind NEW at OLD in its namespace."),
            click.option("--env", type=ASSIGNMENT, multiple=True, help="Set an environment variable."),
            click.option("--label", "labels", type=ASSIGNMENT, multiple=True, help="Label it."),
            click.option("--user", metavar="NAME", help="Run as this user of the machine (administrator)."),
            click.option(
                "--net",
                multiple=True,
                metavar="none|host|HOST:PORT",
                help="The network it sees; HOST:PORT may be given several times.",
            ),
            click.option("--memlimit", type=SIZE, help="Memory at the most, e.g. 100M."),
            click.option("--name", metavar="ALIAS", help="A name besides its number: /task/ALIAS."),
            click.option("--cwd", metavar="DIR", help="Where it starts, in its namespace."),
        )
    ):
        function = option(function)
    return function


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--type", "kind", type=click.Choice(TYPES), default="auto", show_default=True, help="What runs it.")
@task_options
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="End it after this long.")
@click.option("-t", "--pty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Print its id and leave it running.")
@click.argument("argv", metavar="CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(
    target: Target,
    kind: str,
    namespace: TextIO | None,
    binds: tuple[Bind, ...],
    user: str | None,
    net: tuple[str, ...],
    env: tuple[tuple[str, str], ...],
    labels: tuple[tuple[str, str], ...],
    memlimit: int | None,
    name: str | None,
    cwd: str | None,
    timeout: float | None,
    pty: bool,
    detach: bool,
    argv: tuple[str, ...],
) -> None:
    """Run a program as a task.

    Its streams, signals and exit code are this command's. Exits with the task's code (128+N when signal N ended it),
    127 if the program is not in its namespace, 126 if it cannot be run, 125 if the task could not be made.
    """
    order = Order(
        argv=argv,
        type=kind,
        namespace=namespace.read() if namespace else "",
        binds=binds,
        user=user,
        net=net,
        env=terminal_env(pty) | dict(env),
        labels=dict(labels),
        cwd=cwd,
        name=name,
        memlimit=memlimit,
        timeout=timeout,
        pty=pty,
    )
    over_tree(target, partial(run_order, order, detach=detach), interruptible=False)


@click.command(context_settings={"allow_interspersed_args": False})
@task_options
@click.argument("argv", metavar="[CMD]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def shell(
    target: Target,
    namespace: TextIO | None,
    binds: tuple[Bind, ...],
    user: str | None,
    net: tuple[str, ...],
    env: tuple[tuple[str, str], ...],
    labels: tuple[tuple[str, str], ...],
    memlimit: int | None,
    name: str | None,
    cwd: str | None,
    argv: tuple[str, ...],
) -> None:
    """Open a shell inside the tree.

    It is a task that sees the init namespace, with /task at /task.
    """
    pty = os.isatty(STDIN)
    order = Order(
        argv=argv or ("/bin/sh",),
        type="linux",
        namespace=namespace.read() if namespace else "",
        binds=binds,
        user=user,
        net=net,
        env=terminal_env(pty) | dict(env),
        labels=dict(labels),
        cwd=cwd,
        name=name,
        memlimit=memlimit,
        pty=pty,
    )
    over_tree(target, partial(run_order, order), interruptible=False)


def terminal_env(pty: bool) -> dict[str, str]:
    """Return what a program on our terminal has to know about it."""
    return {"TERM": os.environ.get("TERM", "dumb")} if pty else {}


async def run_order(order: Order, tree: Tree, *, detach: bool = False) -> int:
    """Carry out `run` over a connection; return its exit status."""
    task = await make(tree, order)
    if detach:
        show(task)
        return 0
    with terminal_handed_over(order.pty):
        return await converse(tree, task, pty=order.pty)


@click.command()
@click.argument("task", metavar="ID")
@click.pass_obj
def attach(target: Target, task: str) -> None:
    """Join a running task's streams to this terminal.

    Ctrl-] leaves a task with a terminal, Ctrl-C one without; the task runs on.
    """
    over_tree(target, partial(attach_to, task))


async def attach_to(task: str, tree: Tree) -> int:
    """Carry out `attach` over a connection; return the task's exit code, or 0 when the user left before."""
    control = await tree.text(f"/task/{task}/fd/ctl")
    pty = "# 0 terminal" in control.splitlines()
    with terminal_handed_over(pty):
        return await converse(tree, task, pty=pty, attached=True)


def terminal_handed_over(pty: bool) -> AbstractContextManager[None]:
    """Return a context in which our terminal, if we have one, is the task's."""
    return raw_terminal(STDIN) if pty and os.isatty(STDIN) else nullcontext()
