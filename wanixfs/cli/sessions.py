"""`session`: agents that live and remember, made, asked and watched through the files of `/sessions`."""

import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vfs.words import quote
from wanixfs.cli.options import Target
from wanixfs.cli.session import over_tree
from wanixfs.cli.stdio import STDIN, STDOUT, chunks, printable, show, write_fd
from wanixfs.cli.tree import CHUNK, Tree, each, naming, write_all

WIDE = 4096
"""Columns of a table that no terminal will wrap."""
PIECE = 1 << 15
ENDS = 4096
"""A write of fewer bytes ends a message."""
CTL = "/sessions/ctl"


@click.group()
def session() -> None:
    """Agents that live and remember: sessions, their tasks, their history."""


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON value.")
ID = click.argument("id", metavar="ID")


async def steer(tree: Tree, *words: str, as_json: bool = False) -> None:
    """Write one command about the session that its second word names, and tell what it is then."""
    await tree.write(CTL, " ".join(map(quote, words)) + "\n")
    if as_json:
        show(await tree.text(f"/sessions/{words[1]}/metadata.json"))


@session.command("open")
@ID
@click.option("--model", metavar="M", help="The agent's model.")
@click.option("--thinking", metavar="LEVEL", help="How much it thinks.")
@click.option("--folder", metavar="DIR", help="A directory of the server's machine that `work` is kept in step with.")
@click.option("--live", is_flag=True, help="Bind the folder instead of copying it.")
@click.option("--agent", metavar="CMD", help="The agent's command, one quoted word.")
@click.option("--run", metavar="CMD", help="Instead of an agent: a command run for each prompt, one quoted word.")
@click.option("--type", metavar="TYPE", help="What kind of task the agent is.")
@click.option("--net", metavar="NET", help="none, host or 'allow HOST:PORT...'.")
@click.option("--timeout", metavar="S", help="End a task after that many seconds; 0: never.")
@click.option("--parallel", metavar="N", help="How many commands may run at a time.")
@click.option("--env", multiple=True, metavar="K=V", help="A variable of the agent's; may be repeated.")
@click.option("--bind", multiple=True, metavar="NEW:OLD[:FLAGS]", help="A bind of the agent's; may be repeated.")
@JSON
@click.pass_obj
def open_session(target: Target, /, id: str, as_json: bool, live: bool, **given: Any) -> None:
    """Make a session, or take it up again; end when it can work."""
    words = ["open", id]
    for name, value in given.items():
        for one in value if isinstance(value, tuple) else [value]:
            words += [name, one] if one is not None else []
    words += ["live", "yes"] if live else []
    over_tree(target, partial(steer_words, words, as_json))


async def steer_words(words: list[str], as_json: bool, tree: Tree) -> None:
    await steer(tree, *words, as_json=as_json)


@session.command("switch")
@ID
@JSON
@click.pass_obj
def switch_session(target: Target, id: str, as_json: bool) -> None:
    """Make a session the active one; end when it can work."""
    over_tree(target, partial(steer_words, ["switch", id], as_json))


@session.command("stop")
@ID
@JSON
@click.pass_obj
def stop_session(target: Target, id: str, as_json: bool) -> None:
    """End a session's agent and its tasks; a prompt starts it again."""
    over_tree(target, partial(steer_words, ["stop", id], as_json))


@session.command("archive")
@ID
@JSON
@click.pass_obj
def archive_session(target: Target, id: str, as_json: bool) -> None:
    """Stop a session and keep it until it is opened again."""
    over_tree(target, partial(steer_words, ["archive", id], as_json))


@session.command("rm")
@ID
@click.pass_obj
def remove_session(target: Target, id: str) -> None:
    """Take a session away, with its home and its history."""
    over_tree(target, partial(steer_words, ["remove", id], False))


@session.command("cancel")
@ID
@click.argument("task", required=False, default="")
@click.pass_obj
def cancel(target: Target, id: str, task: str) -> None:
    """End one task of a session, or every one that is not over."""
    over_tree(target, lambda tree: tree.write(f"/sessions/{id}/ctl", f"cancel {task}\n"))


@session.command("ls")
@JSON
@click.pass_obj
def list_sessions(target: Target, as_json: bool) -> None:
    """List sessions."""
    over_tree(target, partial(show_sessions, as_json=as_json))


async def show_sessions(tree: Tree, *, as_json: bool) -> None:
    fixed = {"ctl", "active", "events"}
    names = [entry.name for entry in await tree.names("/sessions") if entry.name not in fixed]
    found = await each(lambda name: tree.text(f"/sessions/{name}/metadata.json"), names)
    sessions = [json.loads(text) for text in found]
    if as_json:
        show(json.dumps(sessions, indent=2))
        return
    active = await tree.text("/sessions/active")
    laid = Table("", "ID", "STATE", "MODEL", "USED", "ERROR", box=None, pad_edge=False, header_style="")
    for one in sessions:
        used = datetime.fromtimestamp(one["used"]).isoformat(" ", timespec="seconds")
        cells = ["*" if one["id"] == active else "", one["id"], one["state"], one["model"], used, one["error"]]
        laid.add_row(*(Text(printable(cell), no_wrap=True, overflow="ellipsis") for cell in cells))
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    with console.capture() as drawn:
        console.print(laid)
    for line in drawn.get().splitlines():
        show(line.rstrip())


@session.command("prompt")
@ID
@click.argument("message", nargs=-1)
@click.option("-d", "--detach", is_flag=True, help="Print the task's id, and do not wait for the answer.")
@JSON
@click.pass_obj
def prompt(target: Target, id: str, message: tuple[str, ...], detach: bool, as_json: bool) -> None:
    """Have a session work off MESSAGE (or our stdin), and print the answer as it comes.

    Exits with 0 if the task was completed.
    """
    over_tree(target, partial(ask, id=id, message=" ".join(message), detach=detach, as_json=as_json))


async def ask(tree: Tree, *, id: str, message: str, detach: bool, as_json: bool) -> int:
    if not message:
        message = b"".join([data async for data in chunks(STDIN)]).decode("utf-8", "replace")
    home = f"/sessions/{id}"
    seq = json.loads(await tree.text(f"{home}/task.json"))["seq"]
    async with tree.open(f"{home}/prompt", os.O_RDWR) as handle:
        with naming(f"{home}/prompt"):
            data = message.encode("utf-8", "surrogateescape")
            whole = len(data) // PIECE * PIECE if len(data) % PIECE < ENDS else len(data) - 1
            for at in range(0, whole, PIECE):
                await write_all(handle, data[at : min(at + PIECE, whole)], at)
            await write_all(handle, data[whole:] or b"\n", whole)
            task = bytes(await handle.read(64, 0)).decode().strip()
    if detach:
        show(task)
        return 0
    state = ""
    async for row in rows(tree, f"{home}/events", seq):
        if row.get("turn") != task:
            continue
        if row["event"] == "output" and not as_json:
            await write_fd(STDOUT, row["text"].encode("utf-8", "replace"))
        elif row["event"] == "ended":
            state = row["state"]
            break
    if as_json:
        names = ("state", "reason", "output", "exit")
        texts = {name: await tree.text(f"{home}/history/{task}/{name}") for name in names}
        show(json.dumps({"id": task, **texts}, indent=2))
    else:
        await write_fd(STDOUT, b"\n")
        if state != "completed":
            click.echo(f"wanixfs: {state}: {await tree.text(f'{home}/history/{task}/reason')}", err=True)
    return 0 if state == "completed" else 1


async def rows(tree: Tree, path: str, since: int | None) -> AsyncIterator[dict[str, Any]]:
    """Yield what happens, from after the number `since` on; None: from where the file begins."""
    buffer = b""
    async with tree.open(path, os.O_RDWR) as handle:
        with naming(path):
            if since is not None:
                await handle.write(b"since %d\n" % since, 0)
            while data := await handle.read(CHUNK, 0):
                *lines, buffer = (buffer + bytes(data)).split(b"\n")
                for line in lines:
                    yield json.loads(line)


@session.command("log")
@ID
@click.pass_obj
def log(target: Target, id: str) -> None:
    """Show what happened to a session, and what its agent wrote on stderr."""

    async def action(tree: Tree) -> None:
        show(await tree.text(f"/sessions/{id}/log"))

    over_tree(target, action)


@session.command("events")
@click.argument("id", metavar="[ID]", required=False)
@click.option("--since", type=click.IntRange(0), metavar="SEQ", help="Begin after this number.")
@click.pass_obj
def events(target: Target, id: str | None, since: int | None) -> None:
    """Print what happens in a session, or in all, as JSON lines."""
    path = f"/sessions/{id}/events" if id else "/sessions/events"

    async def action(tree: Tree) -> None:
        async for row in rows(tree, path, since):
            await write_fd(STDOUT, json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    over_tree(target, action)
