"""`serve`, `doctor`, `completion`, `version`: the program and the machine it runs on."""

import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import click
import structlog
import trio
from click.shell_completion import get_completion_class

from tasks.sessions.policy import Policy as SessionPolicy
from wanixfs import doctor as checks
from wanixfs.cli.failure import Failure
from wanixfs.cli.options import SIZE, Target
from wanixfs.cli.stdio import show
from wanixfs.config import Config, ConfigError, default_socket, default_state

PATH = click.types.FuncParamType(Path)
"""Not click.Path, which looks whether the path exists: on a mount whose server was killed that never ends."""


class UidRange(click.ParamType[tuple[int, int]]):
    name = "FIRST-LAST"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        first, dash, last = str(value).partition("-")
        if not (dash and first.isdecimal() and last.isdecimal()):
            self.fail(f"{value!r} is not FIRST-LAST", param, context)
        return int(first), int(last)


@click.command()
@click.option("--mount", type=PATH, metavar="DIR", help="Mount the tree here for this machine's programs.")
@click.option("--listen", multiple=True, metavar="ADDR", help="Serve 9P here: unix!PATH or tcp!HOST!PORT. Repeatable.")
@click.option("--rpc", metavar="ADDR", help="Serve the sessions' RPC here: unix!PATH or tcp!127.0.0.1!PORT.")
@click.option("--http", metavar="ADDR", help="Serve HTTP and the page here: tcp!127.0.0.1!PORT.")
@click.option("--http-name", multiple=True, metavar="NAME", help="A further host name of the HTTP server. Repeatable.")
@click.option("--allow-remote", is_flag=True, help="Let a TCP address be another than loopback.")
@click.option(
    "--state", type=PATH, metavar="DIR", envvar="WANIXFS_STATE", help="What outlives the server. [env: WANIXFS_STATE]"
)
@click.option("--namespace", type=PATH, metavar="FILE", help="Script of the init namespace instead of the shipped one.")
@click.option("--sessions", type=PATH, metavar="FILE", help="What sessions are given and may cost (TOML).")
@click.option("--group", metavar="NAME", help="Let members of this group make tasks.")
@click.option(
    "--keep-tasks",
    type=int,
    default=Config.keep_tasks,
    show_default=True,
    metavar="N",
    help="Exited tasks kept at the most.",
)
@click.option(
    "--keep-seconds",
    type=float,
    default=Config.keep_seconds,
    show_default=True,
    metavar="S",
    help="How long exited tasks are kept.",
)
@click.option(
    "--grace",
    type=float,
    default=Config.grace_seconds,
    show_default=True,
    metavar="S",
    help="How long an unused task is kept.",
)
@click.option(
    "--spool-limit",
    type=SIZE,
    default=Config.spool_limit,
    show_default="64M",
    help="Newest output kept of each stream.",
)
@click.option(
    "--uids",
    type=UidRange(),
    default=f"{Config.first_uid}-{Config.last_uid}",
    show_default=True,
    help="Uids for tasks.",
)
@click.option(
    "--user-namespace/--no-user-namespace",
    default=None,
    help="As a plain user, isolate tasks in a user namespace: on unless --mount is given, which it would hide.",
)
@click.pass_obj
def serve(
    target: Target,
    mount: Path | None,
    listen: tuple[str, ...],
    rpc: str | None,
    http: str | None,
    http_name: tuple[str, ...],
    allow_remote: bool,
    state: Path | None,
    namespace: Path | None,
    sessions: Path | None,
    group: str | None,
    keep_tasks: int,
    keep_seconds: float,
    grace: float,
    spool_limit: int,
    uids: tuple[int, int],
    user_namespace: bool | None,
) -> None:
    """Serve the tree.

    SIGTERM and Ctrl-C end the server and its tasks; SIGHUP replaces the server and keeps them.
    """
    log_to_stderr()  # before what it configures is imported, which may bind its logger there and then
    from wanixfs.program import serve as serve_tree  # the one command that needs the whole house
    from wanixfs.userns import enter as enter_user_namespace

    state = (state or default_state(os.environ, os.geteuid())).absolute()
    try:
        config = Config(
            state=state,
            listen=listen or (f"unix!{default_socket(os.environ, os.geteuid(), state)}",),
            rpc=rpc,
            http=http,
            http_names=http_name,
            allow_remote=allow_remote,
            mount=mount and mount.absolute(),
            namespace=namespace and namespace.absolute(),
            sessions=session_policy(sessions),
            group=group,
            token=target.token,
            keep_tasks=keep_tasks,
            keep_seconds=keep_seconds,
            grace_seconds=grace,
            spool_limit=spool_limit,
            first_uid=uids[0],
            last_uid=uids[1],
        )
    except ConfigError as error:
        raise Failure(str(error), 2) from error
    if user_namespace is None:
        user_namespace = mount is None and os.geteuid() != 0
    if user_namespace and os.geteuid() != 0:
        try:
            enter_user_namespace(state)
        except OSError as error:
            structlog.get_logger("wanixfs").warning("tasks are not isolated", reason=error.strerror)
    trio.run(serve_tree, config)


def session_policy(file: Path | None) -> SessionPolicy:
    """Return what a file says of sessions. ConfigError where it cannot be read or makes no sense."""
    if file is None:
        return SessionPolicy()
    try:
        return SessionPolicy.from_toml(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"sessions: {file}: {error}") from error


def log_to_stderr() -> None:
    """Log lines for a person where stderr is a terminal, JSON for a collector elsewhere."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_obj
def doctor(target: Target, as_json: bool) -> None:
    """Tell what this machine can do and lacks.

    Exits with 1 when the server could not run here.
    """
    findings = checks.examine(target.address, default_state(os.environ, os.geteuid()))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for line in checks.report(findings):
            click.echo(line)
    click.get_current_context().exit(checks.status(findings))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    Put `eval "$(wanixfs completion bash)"` into the shell's start-up file.
    """
    root = click.get_current_context().find_root().command
    maker = get_completion_class(shell)
    assert maker is not None  # the choices are click's own
    show(maker(root, {}, "wanixfs", "_WANIXFS_COMPLETE").source())


@click.command()
def version() -> None:
    """Print the version."""
    show(f"wanixfs {installed('wanixfs')} (Python {platform.python_version()}, Linux {platform.release()})")
