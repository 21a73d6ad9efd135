"""What sessions are given, and may cost: their agent, how many live at a time, how long things take and are kept."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

PI = (
    "pi",
    "--no-extensions",
    "--no-skills",
    "--no-prompt-templates",
    "--no-themes",
    "--no-context-files",
)
"""The agent of sessions that name none. It is called with `--mode rpc --session FILE` and what the session sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Seconds, counts. 0 in `archive_seconds` and `remove_seconds`: never."""

    agent: tuple[str, ...] = PI
    env: Mapping[str, str] = field(default_factory=lambda: {"PI_OFFLINE": "1", "PI_TELEMETRY": "0"})
    """What every agent finds in its environment."""
    net: str = "none"
    """The network of sessions that name none."""
    binds: tuple[str, ...] = ()
    """Lines of the namespace scripts of all sessions' tasks."""
    template: Path | None = None
    """A directory that is copied into every new home."""
    starts: int = max(2, os.cpu_count() or 1)
    """Agents that start at a time."""
    max_agents: int = 64
    """Agents that live at a time; the one that rested longest makes room for another."""
    ready_seconds: float = 30.0
    """From an agent's start to its first answer."""
    switch_seconds: float = 60.0
    """How long `open` and `switch` wait for a session to be ready."""
    idle_seconds: float = 900.0
    """How long an agent without work lives."""
    abort_seconds: float = 10.0
    """How long an agent has to end a turn that was cancelled, before it is killed."""
    retries: int = 5
    """Deaths of an agent in a row, without a turn completed, that are answered by a restart."""
    backoff_seconds: float = 0.5
    """Before the second restart in a row; doubles with each."""
    keep_happenings: int = 200_000
    keep_turns: int = 10_000
    """Ended turns kept of each session."""
    keep_turn_seconds: float = 365 * 86400.0
    archive_seconds: float = 0.0
    """After how long without use a session is archived."""
    remove_seconds: float = 0.0
    """After how long without use an archived session is removed."""

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Return the policy that a file sets: these names, a command as a list of words. ValueError, naming it."""
        given = tomllib.loads(text)
        known = {one.name: one for one in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"{name}: not a setting (they are: {', '.join(known)})")
            read = _READ.get(name, _whole if isinstance(known[name].default, int) else _number)
            given[name] = read(name, value)
        return cls(**given)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{name}: a number is needed, not {value!r}")
    return value


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: a whole number is needed, not {value!r}")
    return value


def _words(name: str, value: object) -> tuple[str, ...]:
    if not (isinstance(value, list) and value and all(isinstance(word, str) for word in value)):
        raise ValueError(f"{name}: a list of words is needed, not {value!r}")
    return tuple(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: a text is needed, not {value!r}")
    return value


def _table(name: str, value: object) -> dict[str, str]:
    if not (isinstance(value, dict) and all(isinstance(one, str) for one in value.values())):
        raise ValueError(f"{name}: a table of texts is needed, not {value!r}")
    return value


_READ: Mapping[str, Any] = {
    "agent": _words,
    "env": _table,
    "net": _text,
    "binds": _words,
    "template": lambda name, value: Path(_text(name, value)),
}
