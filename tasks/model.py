"""A task: the frozen description of what it is to be, and the record of what became of it."""

import json
import os
from dataclasses import dataclass, field, replace
from typing import Any, Self

from immutables import Map

from tasks.drivers.base import Exit, Limits
from tasks.transitions import State

TYPES = ("auto", "linux", "wasi", "vm", "remote")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """As whom a task runs: its name inside, its ids, and the task whose home it uses."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a task is to be. Copied to its children as Plan 9's rfork copies; changed only by `replace`."""

    user: User
    argv: tuple[str, ...] = ()
    env: Map[str, str] = field(default_factory=Map)
    cwd: str = "/"
    type: str = "auto"
    limits: Limits = field(default_factory=Limits)
    timeout: float | None = None
    net: str = "none"
    quota: int | None = None
    pty: tuple[int, int] | None = None
    labels: Map[str, str] = field(default_factory=Map)
    after: tuple[str, ...] = ()
    restarts: int = 0

    def for_child(self, user: User | None = None) -> Self:
        """Return what a new child starts with: namespace, environment, directory, user and limits, but no command."""
        return replace(
            self,
            user=user or self.user,
            argv=(),
            type="auto",
            timeout=None,
            pty=None,
            labels=Map(),
            after=(),
            restarts=0,
        )

    def to_json(self) -> str:
        fields: dict[str, Any] = {
            name: getattr(self, name) for name in ("cwd", "type", "timeout", "net", "quota", "restarts")
        }
        fields |= {name: list(getattr(self, name) or ()) for name in ("argv", "after", "pty")}
        fields |= {name: dict(getattr(self, name)) for name in ("env", "labels")}
        for name, value in (("user", self.user), ("limits", self.limits)):
            fields[name] = {slot: getattr(value, slot) for slot in value.__slots__}  # asdict copies deeply
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        fields |= {name: tuple(fields[name]) for name in ("argv", "after")}
        fields |= {name: Map(fields[name]) for name in ("env", "labels")}
        fields["pty"] = tuple(fields["pty"]) or None
        fields["user"] = User(**fields["user"])
        fields["limits"] = Limits(**fields["limits"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Times:
    """When what happened, in Unix seconds; None: not yet."""

    created: float
    started: float | None = None
    exited: float | None = None


def environment_size(env: Map[str, str]) -> int:
    """Return the bytes that execve(2) counts for these variables."""
    return sum(len(os.fsencode(key)) + len(os.fsencode(value)) + 2 for key, value in env.items())


__all__ = ["TYPES", "Exit", "Limits", "Spec", "State", "Times", "User", "environment_size"]
