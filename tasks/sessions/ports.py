"""What sessions need from outside: a workspace kept in step with a folder of the host."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tasks.sessions.model import Session

Tell = Callable[[str, int, int], None]
"""Is told how far a sync is: what it does, how much is done, and of how much."""


class Workspace(Protocol):
    """Keeps a session's `work` and its `folder` in step."""

    async def sync(self, session: Session, work: Path, tell: Tell) -> None:
        """Bring both sides to the same content; what changed on both is kept as a conflict. OSError where it cannot.

        Called before a turn, after it, at a switch and by the verb `sync`; never twice at a time for one session.
        """
        ...

    def conflicts(self, session: str) -> Sequence[str]:
        """Return the paths, below `work`, of what both sides had changed."""
        ...

    def forget(self, session: str) -> None:
        """The session is removed: drop what is remembered of it."""
        ...


class NoWorkspace:
    """A `Workspace` for sessions without folders."""

    async def sync(self, session: Session, work: Path, tell: Tell) -> None:
        return

    def conflicts(self, session: str) -> Sequence[str]:
        return ()

    def forget(self, session: str) -> None:
        return
