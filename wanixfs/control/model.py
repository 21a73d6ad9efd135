"""What a control plane knows: Task, Run, Worker, Agent, ModelBackend. Plain values, free of network and storage.

Times are Unix milliseconds, 0 where there is none.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from errno import EINVAL
from typing import Any, NewType

TaskId = NewType("TaskId", str)
RunId = NewType("RunId", str)
WorkerId = NewType("WorkerId", str)

MAX_NAME = 256
MAX_INPUT = 1 << 20
MAX_LABELS = 64
MAX_FAN_OUT = 256
MAX_ATTEMPTS = 100


class TaskStatus(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class RunStatus(StrEnum):
    PENDING = "PENDING"
    ASSIGNED = "ASSIGNED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class WorkerStatus(StrEnum):
    IDLE = "IDLE"
    BUSY = "BUSY"
    DRAINING = "DRAINING"
    ERROR = "ERROR"


class RunEventType(StrEnum):
    EXECUTION_STARTED = "EXECUTION_STARTED"
    SESSION_INITIALIZED = "SESSION_INITIALIZED"
    TOOL_REQUESTED = "TOOL_REQUESTED"
    TOOL_COMPLETED = "TOOL_COMPLETED"
    OUTPUT_GENERATED = "OUTPUT_GENERATED"
    EXECUTION_COMPLETED = "EXECUTION_COMPLETED"
    EXECUTION_FAILED = "EXECUTION_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBackend:
    """A model behind an agent, of any provider."""

    provider: str
    model_name: str
    context_window: int = 0
    supports_streaming: bool = False
    modalities: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Logic that a worker can execute; the control plane knows its name only."""

    name: str
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    backends: tuple[ModelBackend, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A connected machine and what it can run. `draining` is the administrator's word, `status` its own."""

    id: WorkerId
    hostname: str = ""
    version: str = ""
    agents: tuple[Agent, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    status: WorkerStatus = WorkerStatus.IDLE
    max_concurrent_runs: int = 10
    last_heartbeat_ms: int = 0
    draining: bool = False

    @property
    def takes_runs(self) -> bool:
        return not self.draining and self.status in (WorkerStatus.IDLE, WorkerStatus.BUSY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a worker must have to be given a run; an empty word asks for nothing."""

    agent: str
    provider: str = ""
    model: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def met_by(self, worker: Worker) -> bool:
        return self.labels.items() <= worker.labels.items() and any(
            agent.name == self.agent
            and (not (self.provider or self.model) or any(map(self._served_by, agent.backends)))
            for agent in worker.agents
        )

    def _served_by(self, backend: ModelBackend) -> bool:
        return self.provider in ("", backend.provider) and self.model in ("", backend.model_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a lane of a task is run: again after the loss of a worker, after a failure only where `on_failure`."""

    max_attempts: int = 3
    on_failure: bool = False
    backoff_ms: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOut:
    """`runs` at once, of which `wanted` must complete: 1 is first, all of them all, any other number a quorum."""

    runs: int = 1
    wanted: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What a client asks for; it never changes. Submissions with one idempotency key are one if they are equal."""

    needs: Needs
    input_json: str = "{}"
    created_by: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    retry: Retry = Retry()
    fan_out: FanOut = FanOut()
    deadline_ms: int = 0
    idempotency_key: str = ""

    def check(self) -> None:
        """Raise EINVAL, and say why, for what no task can be made of."""
        if not self.needs.agent:
            raise OSError(EINVAL, "a task needs an agent_name")
        words = (self.needs.agent, self.needs.provider, self.needs.model, self.created_by, self.idempotency_key)
        if any(len(word) > MAX_NAME for word in words):
            raise OSError(EINVAL, f"a name is longer than {MAX_NAME} characters")
        for labels in (self.labels, self.needs.labels):
            check_labels(labels)
        if len(self.input_json) > MAX_INPUT or len(self.input_json.encode()) > MAX_INPUT:
            raise OSError(EINVAL, f"input_json is longer than {MAX_INPUT} bytes")
        try:
            json.loads(self.input_json)
        except (ValueError, RecursionError) as error:
            raise OSError(EINVAL, f"input_json is not JSON: {error}") from None
        if not 1 <= self.fan_out.wanted <= self.fan_out.runs <= MAX_FAN_OUT:
            raise OSError(EINVAL, f"fan-out: 1 <= wanted <= runs <= {MAX_FAN_OUT}")
        if not 1 <= self.retry.max_attempts <= MAX_ATTEMPTS or not 0 <= self.retry.backoff_ms <= 3_600_000:
            raise OSError(EINVAL, f"retry: 1 to {MAX_ATTEMPTS} attempts, a backoff of at most an hour")
        if not 0 <= self.deadline_ms < 1 << 62:
            raise OSError(EINVAL, "a deadline is Unix milliseconds")


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise EINVAL for more labels, or longer ones, than there may be."""
    if len(labels) > MAX_LABELS or any(not k or len(k) > MAX_NAME or len(v) > MAX_NAME for k, v in labels.items()):
        raise OSError(EINVAL, f"at most {MAX_LABELS} labels of 1 to {MAX_NAME} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of a task on one worker. A lane is one place of the task's fan-out; its runs follow one another.

    `stopping` holds why the worker is asked to stop it, until the run has ended. `next_seq` is the seq of the next
    output chunk; `output_bytes` are kept, `dropped_bytes` came after the limit.
    """

    id: RunId
    task_id: TaskId
    worker_id: WorkerId
    lane: int
    status: RunStatus = RunStatus.ASSIGNED
    issued_at_ms: int
    started_at_ms: int = 0
    finished_at_ms: int = 0
    backend_used: str = ""
    error_message: str = ""
    lost: bool = False
    stopping: str = ""
    next_seq: int = 0
    output_bytes: int = 0
    dropped_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A user's intent and everything that was done about it. No run is given out before `not_before_ms`."""

    id: TaskId
    spec: TaskSpec
    created_at_ms: int
    status: TaskStatus = TaskStatus.PENDING
    error_message: str = ""
    finished_at_ms: int = 0
    not_before_ms: int = 0
    runs: tuple[Run, ...] = ()

    def run(self, run_id: RunId) -> Run | None:
        return next((run for run in self.runs if run.id == run_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChunk:
    """A piece of a run's output; `seq` counts from 0 without gaps."""

    run_id: RunId
    seq: int
    content: str
    is_final: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened inside a run; `id` is the worker's, one for ever."""

    id: str
    run_id: RunId
    task_id: TaskId
    type: RunEventType
    timestamp_ms: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def dump(value: TaskSpec | Needs | Agent | Mapping[str, str]) -> str:
    """Return a value as canonical JSON: equal values give equal text."""
    plain = value if isinstance(value, Mapping) else asdict(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def load_spec(text: str) -> TaskSpec:
    """Return the spec that `dump` wrote."""
    words: dict[str, Any] = json.loads(text)
    needs, retry, fan_out = Needs(**words.pop("needs")), Retry(**words.pop("retry")), FanOut(**words.pop("fan_out"))
    return TaskSpec(needs=needs, retry=retry, fan_out=fan_out, **words)


def load_needs(text: str) -> Needs:
    """Return the needs that `dump` wrote."""
    return Needs(**json.loads(text))


def load_agent(text: str) -> Agent:
    """Return the agent that `dump` wrote."""
    words: dict[str, Any] = json.loads(text)
    backends = tuple(
        ModelBackend(**backend | {"modalities": tuple(backend["modalities"]), "tools": tuple(backend["tools"])})
        for backend in words.pop("backends")
    )
    return Agent(**words, backends=backends)
