"""The workspaces of all sessions: what the sessions ask of a folder of the host, done by syncs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tasks.sessions.model import Session
from tasks.sessions.ports import Tell
from tasks.workspace.manifest import forget, load_conflicts
from tasks.workspace.passes import Progress
from tasks.workspace.workspace import Workspace


class Folders:
    """Keeps what is remembered of each session's folder below `state`, out of the sessions' reach."""

    def __init__(self, state: Path) -> None:
        self._state = state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def sync(self, session: Session, work: Path, tell: Tell) -> None:
        """Bring a session's folder, if it has one, and `work` in step; see `Workspace.sync`."""
        if not session.spec.folder or session.spec.live:
            return
        workspace = Workspace(
            folder=Path(session.spec.folder),
            work=work,
            record=self._record(session.id),
            uid=session.user.uid,
            gid=session.user.gid,
        )
        report = await workspace.sync(partial(_pass_on, tell))
        tell("done", report.into + report.out + report.removed, report.into + report.out + report.removed)

    def conflicts(self, session: str) -> Sequence[str]:
        """Return where the versions of a session are that conflicted, and of what, one line each."""
        return [f"{each.kept} ({each.path}: {each.why})" for each in load_conflicts(self._record(session))]

    def forget(self, session: str) -> None:
        forget(self._record(session))

    def _record(self, session: str) -> Path:
        return self._state / f"{session}.json"


def _pass_on(tell: Tell, progress: Progress) -> None:
    tell(progress.phase, progress.files, progress.total)
