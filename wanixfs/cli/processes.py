"""`ps`, `logs`, `wait`, `kill`: tasks seen and steered through their files."""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial

import click
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tasks import values
from vfs.words import quote
from wanixfs.cli.failure import describe
from wanixfs.cli.options import SIGNAL, Target
from wanixfs.cli.running import outputs
from wanixfs.cli.session import over_tree
from wanixfs.cli.stdio import printable, show
from wanixfs.cli.tree import Tree, each, naming

TICK = 2.0
"""Seconds between refreshes of `ps --watch` when nothing happens."""
WIDE = 4096
"""Columns of a table that no terminal will wrap."""
ENDED = "exited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task as its files told: `times` are Unix seconds by name, `exitcode` is None before the end."""

    id: int
    parent: str
    type: str
    user: str
    status: str
    exitcode: int | None
    args: list[str]
    labels: dict[str, str] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def age(self, now: float) -> str:
        """Return how long it has run, or ran, as [[D-]HH:]MM:SS; "" if it never did."""
        started = self.times.get("started")
        if started is None:
            return ""
        seconds = max(0, int(self.times.get("exited", now) - started))
        days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
        head = f"{days}-{hours:02}:" if days else f"{hours:02}:" if hours else ""
        return f"{head}{minutes:02}:{seconds % 60:02}"


def timestamp(text: str) -> float:
    """Return the Unix seconds of an ISO 8601 time."""
    return datetime.fromisoformat(text).timestamp()


async def row(tree: Tree, task: str) -> Row | None:
    """Read one task's files; None for one that has just been removed."""
    names = ("parent", "type", "user", "status", "exitcode", "args", "labels", "times")
    try:
        texts = {name: await tree.text(f"/task/{task}/{name}") for name in names}
    except FileNotFoundError:
        return None
    return Row(
        id=int(task),
        parent=texts["parent"],
        type=texts["type"],
        user=texts["user"].partition(" ")[0],
        status=texts["status"],
        exitcode=int(texts["exitcode"]) if texts["exitcode"] else None,
        args=list(values.arguments(texts["args"])),
        labels=dict(line.split("=", 1) for line in texts["labels"].splitlines()),
        times={key: timestamp(value) for key, value in (line.split(" ", 1) for line in texts["times"].splitlines())},
    )


async def rows(tree: Tree, *, everything: bool) -> list[Row]:
    """Return the tasks in the order they were made; without `everything` those that have not ended."""
    tasks = [entry.name for entry in await tree.names("/task") if entry.name.isdigit()]
    found = [one for one in await each(partial(row, tree), tasks) if one is not None]
    return sorted((one for one in found if everything or one.status != ENDED), key=lambda one: one.id)


def table(shown: list[Row], *, labels: bool, now: float) -> Table:
    """Lay rows out in columns."""
    columns = ["ID", "TYPE", "USER", "STATUS", "EXIT", "TIME", *(["LABELS"] if labels else []), "COMMAND"]
    laid = Table(*columns, box=None, pad_edge=False, header_style="")
    for one in shown:
        cells = [str(one.id), one.type, one.user, one.status]
        cells += ["" if one.exitcode is None else str(one.exitcode), one.age(now)]
        cells += [",".join(f"{key}={value}" for key, value in one.labels.items())] if labels else []
        cells += [" ".join(map(quote, one.args))]
        laid.add_row(*(Text(printable(cell), no_wrap=True, overflow="ellipsis") for cell in cells))
    return laid


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Show the ended ones too.")
@click.option("-l", "--labels", is_flag=True, help="Show labels.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--watch", is_flag=True, help="Stay, and show changes as they happen.")
@click.pass_obj
def ps(target: Target, everything: bool, labels: bool, as_json: bool, watch: bool) -> None:
    """List tasks."""
    if watch and (as_json or not sys.stdout.isatty()):
        raise click.UsageError("--watch is for terminals; programs read /task/events")
    action = watch_rows if watch else partial(list_rows, as_json=as_json)
    over_tree(target, partial(action, everything=everything, labels=labels))


async def list_rows(tree: Tree, *, everything: bool, labels: bool, as_json: bool) -> None:
    found = await rows(tree, everything=everything)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    with console.capture() as drawn:
        console.print(table(found, labels=labels, now=time.time()))
    for line in drawn.get().splitlines():
        show(line.rstrip())


async def watch_rows(tree: Tree, *, everything: bool, labels: bool) -> None:
    """Redraw the table at every event of any task, and every TICK for the TIME column."""
    changed, wake = trio.open_memory_channel[None](1)[::-1]

    async def listen() -> None:
        async with tree.open("/task/events") as handle:
            with naming("/task/events"):
                while await handle.read(1 << 16, 0):
                    try:
                        wake.send_nowait(None)
                    except trio.WouldBlock:
                        pass  # a redraw is due already

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            while True:
                live.update(
                    table(await rows(tree, everything=everything), labels=labels, now=time.time()), refresh=True
                )
                with trio.move_on_after(TICK):
                    await changed.receive()


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Stay until the task has ended.")
@click.argument("task", metavar="ID")
@click.pass_obj
def logs(target: Target, follow: bool, task: str) -> None:
    """Show what a task has written."""
    over_tree(target, lambda tree: outputs(tree, f"/task/{task}", wait=follow))


@click.command()
@click.argument("task", metavar="ID")
@click.pass_obj
def wait(target: Target, task: str) -> None:
    """Wait for a task and exit with its code."""

    async def action(tree: Tree) -> int:
        return int(await tree.text(f"/task/{task}/wait"))

    over_tree(target, action)


@click.command()
@click.option("-s", "--signal", "number", type=SIGNAL, default="TERM", show_default=True, help="Name or number.")
@click.argument("tasks", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def kill(target: Target, number: int, tasks: tuple[str, ...]) -> None:
    """Send a signal to tasks."""

    async def action(tree: Tree) -> int:
        status = 0
        for task in tasks:
            try:
                await tree.write(f"/task/{task}/ctl", f"kill {number}\n")
            except OSError as error:
                click.echo(f"wanixfs: {describe(error)}", err=True)
                status = 1
        return status

    over_tree(target, action)
