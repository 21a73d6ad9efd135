"""A session and its turns as values: what is journalled, shown in files, and sent to clients."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

from tasks.model import User
from tasks.sessions.states import State, TurnState
from tasks.values import invalid

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,27}", re.ASCII)
MAX_MESSAGE = 1 << 20
"""Bytes of one prompt at the most, E2BIG beyond."""
MAX_PARALLEL = 64
THINKING = ("", "off", "minimal", "low", "medium", "high", "xhigh")


def session_id(word: str) -> str:
    """Return `word` if a session can be called so: up to 28 of a-z, 0-9 and "-". EINVAL."""
    if _ID.fullmatch(word) is None:
        raise invalid(f"not a session's name: {word[:64]!r} (up to 28 of a-z, 0-9 and '-')")
    return word


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a session is to be; changed only by `replace`.

    `agent` speaks pi's RPC on its standard streams, and stays; `run` is a plain command, run once for each prompt,
    which it reads from its stdin. Both empty: the server's own agent. `type` is the kind of task that either is.
    `parallel` runs may work at a time.
    `folder` is a host directory: copied in and out (`live`: bound) at the session's `work`; `binds` are further lines
    of its namespace's script. `timeout` ends a turn after that many seconds.
    """

    agent: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    type: str = "auto"
    model: str = ""
    thinking: str = ""
    folder: str = ""
    live: bool = False
    net: str = ""
    timeout: float | None = None
    parallel: int = 1
    binds: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        return cls(**(fields | {name: tuple(fields[name]) for name in ("agent", "run", "binds")}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session at one moment. Times in Unix seconds; `task` is its agent's task, 0 for none."""

    id: str
    state: State
    error: str
    spec: Spec
    user: User
    created: float
    used: float
    task: int = 0

    def shown(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return {
            "id": self.id,
            "state": self.state.value,
            "error": self.error,
            "user": self.user.name,
            "uid": self.user.uid,
            "agent_task": str(self.task) if self.task else None,
            "created": self.created,
            "used": self.used,
            **{name: value for name, value in asdict(self.spec).items() if name != "env"},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One prompt and what came of it: the same record while it works and for ever after.

    `output` is the answer as text so far; `code` the exit code of a plain command's run; `usage` what the agent
    says it used; `key` the client's own name for it, unique, so that asking twice asks once.
    """

    id: int
    session: str
    state: TurnState
    reason: str = ""
    message: str = ""
    output: str = ""
    code: int | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    key: str = ""

    def shown(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return {"id": str(self.id), **{k: v for k, v in asdict(self).items() if k not in ("id", "key")}}


class Happening(NamedTuple):
    """One row of the chronicle: `seq` never repeats and only grows; `turn` is 0 where it is about the session."""

    seq: int
    at: float
    session: str
    turn: int
    kind: str
    data: str

    def shown(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        head: dict[str, Any] = {"seq": self.seq, "time": round(self.at, 6), "session": self.session}
        if self.turn:
            head["turn"] = str(self.turn)
        return {**head, "event": self.kind, **json.loads(self.data)}

    def line(self) -> str:
        return json.dumps(self.shown(), ensure_ascii=False) + "\n"
