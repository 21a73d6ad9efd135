"""The command group: options that every command shares, and the one place where failures meet the user."""

import os
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from wanixfs.cli.failure import BROKEN_PIPE, INTERRUPTED, Failure, OutputGone, cause, describe
from wanixfs.cli.options import Target
from wanixfs.config import default_address

COMMANDS = {
    "serve": "machine",
    "run": "running",
    "shell": "running",
    "ps": "processes",
    "logs": "processes",
    "attach": "running",
    "wait": "processes",
    "kill": "processes",
    "ls": "files",
    "cat": "files",
    "write": "files",
    "stat": "files",
    "cp": "copying",
    "session": "sessions",
    "control": "control",
    "submit": "control",
    "tasks": "control",
    "task": "control",
    "cancel": "control",
    "output": "control",
    "mount": "mounting",
    "umount": "mounting",
    "doctor": "machine",
    "completion": "machine",
    "version": "machine",
}
"""Every command and the module that holds it, in the order in which the help tells them."""


class Program(click.Group):
    """A command group that imports a command when it is asked for, and whose failures are one line and a status."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"wanixfs.cli.{COMMANDS[name]}"), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (click.exceptions.Exit, click.UsageError):
            raise
        except BaseException as error:
            if context.params["debug"]:
                traceback.print_exc()
            context.exit(report(cause(error)))


def report(error: BaseException) -> int:
    """Tell the user about `error` and return the exit status for it. What is no failure of ours is raised again."""
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED
        case OutputGone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
            return BROKEN_PIPE
        case Failure():
            click.echo(f"wanixfs: {error.message}", err=True)
            return error.status
        case Exception():
            click.echo(f"wanixfs: {describe(error)}", err=True)
            return 1
    raise error


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--addr", metavar="ADDR", help="The server: unix!PATH or tcp!HOST!PORT. [env: WANIXFS_ADDR]")
@click.option(
    "--token", envvar="WANIXFS_TOKEN", metavar="TOKEN", help="What a server on TCP asks for. [env: WANIXFS_TOKEN]"
)
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
@click.pass_context
def cli(context: click.Context, addr: str | None, token: str | None, debug: bool) -> None:
    """A task manager whose whole interface is a file tree."""
    context.obj = Target(addr or default_address(os.environ, os.geteuid()), token)


def main() -> None:
    """The `wanixfs` program."""
    cli(prog_name="wanixfs")
