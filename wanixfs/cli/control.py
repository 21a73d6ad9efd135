"""`control`, `submit`, `tasks`, `task`, `cancel`, `output`: a control plane, and what its clients ask of it.

They need the extra `control`, which nothing else does: what is in it is imported when one of them runs.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanixfs.cli.failure import Failure
from wanixfs.cli.machine import log_to_stderr
from wanixfs.cli.options import ASSIGNMENT
from wanixfs.cli.stdio import show
from wanixfs.config import default_state

if TYPE_CHECKING:
    from wanixfs.control.client import Client

CALL_SECONDS = 30.0
PATH = click.types.FuncParamType(Path)

AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON, one object on each line.")
PLANE = click.option(
    "--plane",
    type=PATH,
    metavar="FILE",
    envvar="WANIXFS_PLANE",
    help="The profile of a control plane. [env: WANIXFS_PLANE; default: that of this machine's own]",
)


def home(state: Path | None = None) -> Path:
    return (state or default_state(os.environ, os.geteuid())) / "control"


@contextmanager
def the_extra() -> Iterator[None]:
    """Say in one line that the extra is not installed."""
    try:
        yield
    except ImportError as error:
        raise Failure(
            f"a control plane needs the extra `control` (pipx install 'wanixfs[control]'): {error}"
        ) from error


@contextmanager
def calling(profile: Path | None) -> Iterator["Client"]:
    """Give a client of the plane of a profile."""
    with the_extra():
        from wanixfs.control.client import connected
        from wanixfs.control.place import Profile
    with connected(Profile.read(profile or home() / "admin.json")) as client:
        yield client


def shown(message: Any) -> dict[str, Any]:
    """Return a message as JSON has it, its statuses as their plain words."""
    from google.protobuf.json_format import MessageToDict

    words: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    for part in (words, *words.get("runs", ())):
        part["status"] = part["status"].partition("STATUS_")[2]
    return words


def tell(message: Any, as_json: bool, *names: str) -> None:
    """Print a message: as JSON, or these of its fields."""
    words = shown(message)
    show(json.dumps(words, ensure_ascii=False) if as_json else "  ".join(str(words.get(name, "-")) for name in names))


@click.group()
def control() -> None:
    """Run a control plane, admit workers and revoke them."""


@control.command("serve")
@click.option("--state", type=PATH, metavar="DIR", envvar="WANIXFS_STATE", help="What outlives it.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen at.")
@click.option("--worker-port", default=50051, show_default=True, metavar="PORT", help="For workers, with certificates.")
@click.option("--client-port", default=50053, show_default=True, metavar="PORT", help="For clients, with tokens.")
@click.option("--enroll-port", default=50054, show_default=True, metavar="PORT", help="For those who become workers.")
def serve_plane(state: Path | None, host: str, worker_port: int, client_port: int, enroll_port: int) -> None:
    """Serve a control plane until SIGTERM or Ctrl-C."""
    log_to_stderr()
    with the_extra():
        import asyncio

        from wanixfs.control.place import Place
        from wanixfs.control.program import serve
        from wanixfs.control.service.server import Ports, Serving

    def ready(serving: Serving) -> None:
        given = serving.ports
        show(f"workers {host}:{given.workers}\nclients {host}:{given.clients}\nenrollment {host}:{given.enrollment}")

    ports = Ports(workers=worker_port, clients=client_port, enrollment=enroll_port)
    asyncio.run(serve(Place(home(state)), host=host, ports=ports, ready=ready))


@control.command()
@click.argument("role", type=click.Choice(["enroll", "read", "submit", "admin"]))
@click.argument("name")
@click.option("--life", type=float, default=0.0, metavar="S", help="Seconds that it holds. [default: 3600 for enroll]")
@PLANE
def token(role: str, name: str, life: float, plane: Path | None) -> None:
    """Print a new token: to enroll the worker NAME, or for the client NAME."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        asked = pb.IssueTokenRequest(role=pb.Role.Value(f"ROLE_{role.upper()}"), name=name, life_ms=int(life * 1_000))
        show(client.access.IssueToken(asked, metadata=client.metadata, timeout=CALL_SECONDS).token)


@control.command()
@AS_JSON
@PLANE
def workers(as_json: bool, plane: Path | None) -> None:
    """List the workers: id, status, runs, host."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        for each in client.workers.ListWorkers(
            pb.ListWorkersRequest(), metadata=client.metadata, timeout=CALL_SECONDS
        ).workers:
            tell(each, as_json, "worker_id", "status", "active_runs", "hostname")


@control.command()
@click.argument("worker")
@click.option("--undo", is_flag=True, help="Give it runs again.")
@PLANE
def drain(worker: str, undo: bool, plane: Path | None) -> None:
    """Give a worker no more runs; those that it has go on."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        asked = pb.DrainWorkerRequest(worker_id=worker, undo=undo)
        client.workers.DrainWorker(asked, metadata=client.metadata, timeout=CALL_SECONDS)


@control.command()
@click.argument("worker")
@PLANE
def revoke(worker: str, plane: Path | None) -> None:
    """Revoke a worker's certificates; its runs are tried elsewhere."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        asked = pb.RevokeWorkerRequest(worker_id=worker)
        revoked = client.access.RevokeWorker(asked, metadata=client.metadata, timeout=CALL_SECONDS)
        show(f"{revoked.certificates} certificates revoked")


@click.command()
@click.argument("agent")
@click.argument("input_json", default="{}")
@click.option("--label", "labels", type=ASSIGNMENT, multiple=True, metavar="K=V", help="A label. Repeatable.")
@click.option("--key", default="", metavar="KEY", help="Submitted again with the same key, it is the same task.")
@click.option("--deadline", type=float, default=0.0, metavar="S", help="Seconds after which it has failed.")
@AS_JSON
@PLANE
def submit(
    agent: str,
    input_json: str,
    labels: tuple[tuple[str, str], ...],
    key: str,
    deadline: float,
    as_json: bool,
    plane: Path | None,
) -> None:
    """Make a task of a control plane: run AGENT with this input. Prints its id."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        asked = pb.CreateTaskRequest(
            agent_name=agent,
            input_json=input_json,
            labels=dict(labels),
            idempotency_key=key,
            deadline_ms=int((time.time() + deadline) * 1_000) if deadline else 0,
        )
        tell(client.tasks.CreateTask(asked, metadata=client.metadata, timeout=CALL_SECONDS), as_json, "id")


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, metavar="N", help="At the most."
)
@AS_JSON
@PLANE
def tasks(limit: int, as_json: bool, plane: Path | None) -> None:
    """List a control plane's tasks, newest first: id, status, agent."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        asked = pb.ListTasksRequest(limit=limit)
        for each in client.tasks.ListTasks(asked, metadata=client.metadata, timeout=CALL_SECONDS).tasks:
            tell(each, as_json, "id", "status", "agent_name")


@click.command()
@click.argument("task_id")
@AS_JSON
@PLANE
def task(task_id: str, as_json: bool, plane: Path | None) -> None:
    """Show a control plane's task: id, status, agent, error."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        found = client.tasks.GetTask(pb.GetTaskRequest(id=task_id), metadata=client.metadata, timeout=CALL_SECONDS)
        tell(found, as_json, "id", "status", "agent_name", "error_message")


@click.command()
@click.argument("task_id")
@PLANE
def cancel(task_id: str, plane: Path | None) -> None:
    """Cancel a control plane's task."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        client.tasks.CancelTask(pb.CancelTaskRequest(id=task_id), metadata=client.metadata, timeout=CALL_SECONDS)


@click.command()
@click.argument("task_id")
@click.option("-f", "--follow", is_flag=True, help="Until its last run is over.")
@PLANE
def output(task_id: str, follow: bool, plane: Path | None) -> None:
    """Print the output of the last run of a control plane's task."""
    with calling(plane) as client:
        from wanixfs.control.proto import taskrun_v1_pb2 as pb

        found = client.tasks.GetTask(pb.GetTaskRequest(id=task_id), metadata=client.metadata, timeout=CALL_SECONDS)
        if not found.runs:
            raise Failure("the task has no run yet")
        asked = pb.StreamOutputRequest(run_id=found.runs[-1].run_id, only_kept=not follow)
        for chunk in client.tasks.StreamOutput(asked, metadata=client.metadata):
            click.echo(chunk.content, nl=False)
