"""Between the wire's messages and the plane's values. What is left out is a value's default; a bad one is EINVAL."""

from collections.abc import Iterable
from errno import EINVAL

from wanixfs.control.credentials import Role
from wanixfs.control.model import (
    Agent,
    FanOut,
    ModelBackend,
    Needs,
    OutputChunk,
    Retry,
    Run,
    RunEvent,
    RunEventType,
    RunId,
    RunStatus,
    Task,
    TaskId,
    TaskSpec,
    TaskStatus,
    Worker,
    WorkerId,
    WorkerStatus,
)
from wanixfs.control.plane import Assignment
from wanixfs.control.proto import taskrun_v1_pb2 as pb


def task_status(value: int) -> TaskStatus | None:
    """Return a status, or None for the one that says nothing. EINVAL: there is no such number."""
    return TaskStatus(_word(pb.TaskStatus.items(), value, "TASK_STATUS_")) if value else None


def run_status(value: int) -> RunStatus:
    """Return a status. EINVAL: there is no such number, or it says nothing."""
    return RunStatus(_word(pb.RunStatus.items(), value, "RUN_STATUS_"))


def worker_status(value: int) -> WorkerStatus | None:
    """Return a status, or None for the one that says nothing. EINVAL: there is no such number."""
    return WorkerStatus(_word(pb.WorkerStatus.items(), value, "WORKER_STATUS_")) if value else None


def _word(names: Iterable[tuple[str, int]], value: int, prefix: str) -> str:
    for name, number in names:
        if number == value != 0:
            return name.removeprefix(prefix)
    raise OSError(EINVAL, f"{value} is no {prefix.removesuffix('_')}")


def role(value: int) -> Role:
    """Return a role. EINVAL: there is no such number, or it says nothing."""
    return Role(_word(pb.Role.items(), value, "ROLE_").lower())


def run_status_to(status: RunStatus) -> pb.RunStatus.ValueType:
    return pb.RunStatus.Value(f"RUN_STATUS_{status}")


def spec(request: pb.CreateTaskRequest, created_by: str) -> TaskSpec:
    """Return what a client asks for, under the name that its credentials give it."""
    needs = Needs(
        agent=request.agent_name,
        provider=request.provider,
        model=request.model_name,
        labels=dict(request.worker_labels),
    )
    retry, fan_out = Retry(), FanOut()
    if request.HasField("retry"):
        asked = request.retry
        retry = Retry(max_attempts=asked.max_attempts, on_failure=asked.on_failure, backoff_ms=asked.backoff_ms)
    if request.HasField("fan_out"):
        fan_out = FanOut(runs=request.fan_out.runs, wanted=request.fan_out.wanted)
    return TaskSpec(
        needs=needs,
        input_json=request.input_json or "{}",
        created_by=created_by,
        labels=dict(request.labels),
        retry=retry,
        fan_out=fan_out,
        deadline_ms=request.deadline_ms,
        idempotency_key=request.idempotency_key,
    )


def task_to(task: Task) -> pb.Task:
    return pb.Task(
        id=task.id,
        agent_name=task.spec.needs.agent,
        input_json=task.spec.input_json,
        status=pb.TaskStatus.Value(f"TASK_STATUS_{task.status}"),
        created_by=task.spec.created_by,
        created_at_ms=task.created_at_ms,
        labels=task.spec.labels,
        runs=map(_summary_to, task.runs),
        error_message=task.error_message,
        finished_at_ms=task.finished_at_ms,
        deadline_ms=task.spec.deadline_ms,
    )


def _summary_to(run: Run) -> pb.RunSummary:
    return pb.RunSummary(
        run_id=run.id,
        worker_id=run.worker_id,
        status=run_status_to(run.status),
        started_at_ms=run.started_at_ms,
        finished_at_ms=run.finished_at_ms,
        backend_used=run.backend_used,
        error_message=run.error_message,
        output_bytes=run.output_bytes,
        dropped_bytes=run.dropped_bytes,
    )


def assignment_to(assignment: Assignment, nonce: str, now_ms: int) -> pb.RunAssignment:
    run, asked = assignment.run, assignment.spec
    return pb.RunAssignment(
        run_id=run.id,
        task_id=run.task_id,
        agent_name=asked.needs.agent,
        input_json=asked.input_json,
        labels=asked.labels,
        issued_at_ms=now_ms,
        deadline_ms=asked.deadline_ms,
        nonce=nonce,
    )


def worker(hello: pb.WorkerHello, worker_id: WorkerId) -> Worker:
    """Return what a worker says of itself, under the name that its certificate gives it."""
    info = hello.info
    return Worker(
        id=worker_id,
        hostname=info.hostname,
        version=info.version,
        agents=tuple(map(_agent, info.agents)),
        labels=dict(info.labels),
        max_concurrent_runs=hello.max_concurrent_runs or 10,
    )


def _agent(message: pb.AgentSpec) -> Agent:
    backends = tuple(
        ModelBackend(
            provider=each.provider,
            model_name=each.model_name,
            context_window=each.context_window,
            supports_streaming=each.supports_streaming,
            modalities=tuple(each.modalities),
            tools=tuple(each.tools),
            metadata=dict(each.metadata),
        )
        for each in message.backends
    )
    return Agent(name=message.name, description=message.description, labels=dict(message.labels), backends=backends)


def _agent_to(agent: Agent) -> pb.AgentSpec:
    backends = (
        pb.ModelBackend(
            provider=each.provider,
            model_name=each.model_name,
            context_window=each.context_window,
            supports_streaming=each.supports_streaming,
            modalities=each.modalities,
            tools=each.tools,
            metadata=each.metadata,
        )
        for each in agent.backends
    )
    return pb.AgentSpec(name=agent.name, description=agent.description, labels=agent.labels, backends=backends)


def worker_to(worker: Worker, active_runs: int) -> pb.Worker:
    shown = WorkerStatus.DRAINING if worker.draining else worker.status
    return pb.Worker(
        worker_id=worker.id,
        hostname=worker.hostname,
        version=worker.version,
        status=pb.WorkerStatus.Value(f"WORKER_STATUS_{shown}"),
        agents=map(_agent_to, worker.agents),
        labels=worker.labels,
        active_runs=active_runs,
        max_concurrent_runs=worker.max_concurrent_runs,
        last_heartbeat_ms=worker.last_heartbeat_ms,
    )


def chunk(message: pb.RunOutputChunk) -> OutputChunk:
    return OutputChunk(
        run_id=RunId(message.run_id),
        seq=message.seq,
        content=message.content,
        is_final=message.is_final,
        metadata=dict(message.metadata),
        timestamp_ms=message.timestamp_ms,
    )


def chunk_to(chunk: OutputChunk) -> pb.RunOutputChunk:
    return pb.RunOutputChunk(
        run_id=chunk.run_id,
        seq=chunk.seq,
        content=chunk.content,
        is_final=chunk.is_final,
        metadata=chunk.metadata,
        timestamp_ms=chunk.timestamp_ms,
    )


def event(message: pb.RunEvent) -> RunEvent:
    return RunEvent(
        id=message.id,
        run_id=RunId(message.run_id),
        task_id=TaskId(message.task_id),
        type=RunEventType(_word(pb.RunEventType.items(), message.event_type, "RUN_EVENT_TYPE_")),
        timestamp_ms=message.timestamp_ms,
        metadata=dict(message.metadata),
    )
