"""The command group: options that every command shares, and the one place where failures meet the user."""

import os
import sys
import traceback
from typing import Any

import click

from wanixfs.cli import copying, files, machine, mounting, processes, running
from wanixfs.cli.failure import BROKEN_PIPE, INTERRUPTED, Failure, OutputGone, cause, describe
from wanixfs.cli.tree import Target
from wanixfs.config import default_address


class Program(click.Group):
    """A command group whose failures are one line and an exit status."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are told, not of the alphabet

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


for command in (
    machine.serve,
    running.run,
    running.shell,
    processes.ps,
    processes.logs,
    running.attach,
    processes.wait,
    processes.kill,
    files.ls,
    files.cat,
    files.write,
    files.stat,
    copying.cp,
    mounting.mount,
    mounting.umount,
    machine.doctor,
    machine.completion,
    machine.version,
):
    cli.add_command(command)


def main() -> None:
    """The `wanixfs` program."""
    cli(prog_name="wanixfs")
