"""What sessions may cost: how many agents live at a time, how long things may take, how long what is kept."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

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
