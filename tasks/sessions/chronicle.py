"""The chronicle: sessions, their turns and all that happened, in one SQLite file. What is shown is derived from it.

WAL, and synchronous only where a client is told that its prompt is kept: a killed server loses nothing, a power
failure nothing that was acknowledged. A change is one transaction: its rows and its happening are there together or
not at all.
"""

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from errno import EEXIST, ENOENT, ENOSPC
from pathlib import Path
from typing import Any

from tasks.model import User
from tasks.sessions.model import Happening, Session, Spec, Turn
from tasks.sessions.states import State, TurnState
from vfs.waiting import Signal

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    error TEXT NOT NULL DEFAULT '',
    spec TEXT NOT NULL,                 -- JSON
    user TEXT NOT NULL,                 -- JSON
    created REAL NOT NULL,
    used REAL NOT NULL,
    task INTEGER NOT NULL DEFAULT 0,    -- its agent's
    place INTEGER NOT NULL DEFAULT 0    -- how much of that task's output is in here
);
CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL,
    output TEXT NOT NULL DEFAULT '',
    code INTEGER,
    usage TEXT NOT NULL DEFAULT '{}',
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    key TEXT,
    task INTEGER NOT NULL DEFAULT 0,    -- a plain command's run
    progress TEXT NOT NULL DEFAULT '{}' -- what a restarted server has to know of a turn under way
);
CREATE INDEX IF NOT EXISTS turns_session ON turns (session, id);
CREATE INDEX IF NOT EXISTS turns_open ON turns (state) WHERE state IN ('queued', 'working');
CREATE UNIQUE INDEX IF NOT EXISTS turns_key ON turns (session, key) WHERE key IS NOT NULL;
CREATE TABLE IF NOT EXISTS happenings (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    session TEXT NOT NULL,
    turn INTEGER NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL                  -- JSON
);
CREATE INDEX IF NOT EXISTS happenings_session ON happenings (session, seq);
CREATE INDEX IF NOT EXISTS happenings_turn ON happenings (turn, seq) WHERE turn > 0;
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_OPEN = (TurnState.QUEUED, TurnState.WORKING)


class Chronicle:
    """The chronicle in the file `path` (":memory:" for one that does not last). `changed` is notified of changes."""

    def __init__(self, path: Path | str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.executescript(_SCHEMA)
        self.changed = Signal()
        self.last_seq: int = self._one("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'happenings'")
        """The sequence number of the newest happening there ever was."""

    def close(self) -> None:
        self._db.close()

    def _one(self, query: str, *values: object) -> Any:
        row = self._db.execute(query, values).fetchone()
        return row[0] if row else None

    @contextmanager
    def change(self, *, durable: bool = False) -> Iterator[None]:
        """Make what is done inside one transaction; tell everyone afterwards. ENOSPC where it cannot be written.

        `durable`: once this returns, not even a power failure takes it away.
        """
        if self._db.in_transaction:
            yield
            return
        try:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise OSError(ENOSPC, f"the chronicle cannot be written: {error}") from None
        finally:
            self.last_seq = self._one("SELECT seq FROM sqlite_sequence WHERE name = 'happenings'") or 0
        self.changed.notify()

    def happened(self, session: str, kind: str, data: Mapping[str, object] | None = None, *, turn: int = 0) -> None:
        """Add a happening."""
        with self.change():
            self._db.execute(
                "INSERT INTO happenings (at, session, turn, kind, data) VALUES (?, ?, ?, ?, ?)",
                (time.time(), session, turn, kind, json.dumps(data or {}, ensure_ascii=False)),
            )

    # Happenings

    def since(self, seq: int, session: str | None = None, limit: int = 256) -> list[Happening]:
        """Return up to `limit` happenings after `seq`, of one session or of all, oldest first."""
        where, values = ("AND session = ?", (seq, session, limit)) if session is not None else ("", (seq, limit))
        query = f"SELECT seq, at, session, turn, kind, data FROM happenings WHERE seq > ? {where} ORDER BY seq LIMIT ?"
        return [Happening(*row) for row in self._db.execute(query, values)]

    def newest(self, session: str, kinds: Collection[str], limit: int) -> list[Happening]:
        """Return the newest happenings of these kinds in one session, oldest first."""
        query = (
            "SELECT seq, at, session, turn, kind, data FROM happenings WHERE session = ?"
            f" AND kind IN ({', '.join('?' * len(kinds))}) ORDER BY seq DESC LIMIT ?"
        )
        return [Happening(*row) for row in self._db.execute(query, (session, *kinds, limit))][::-1]

    def oldest_seq(self) -> int:
        """Return the number of the oldest happening that is kept; one more than the newest where none is."""
        return self._one("SELECT min(seq) FROM happenings") or self.last_seq + 1

    def forget_happenings(self, keep: int) -> None:
        """Drop all but the newest `keep`, and none of a turn that is under way."""
        under_way = self._one(
            "SELECT min(seq) FROM happenings WHERE turn IN (SELECT id FROM turns WHERE state IN (?, ?))", *_OPEN
        )
        first = min(self.last_seq - keep, under_way or self.last_seq)
        with self.change():
            self._db.execute("DELETE FROM happenings WHERE seq < ?", (first,))

    # Sessions

    def sessions(self) -> list[Session]:
        """Return all sessions as they were last written, oldest first."""
        return [_session(row) for row in self._db.execute("SELECT * FROM sessions ORDER BY created, id")]

    def put(self, session: Session) -> None:
        """Write a session, new or not."""
        fields = {
            "id": session.id,
            "state": session.state,
            "error": session.error,
            "spec": session.spec.to_json(),
            "user": json.dumps(asdict(session.user)),
            "created": session.created,
            "used": session.used,
            "task": session.task,
        }
        names = ", ".join(fields)
        updates = ", ".join(f"{name} = excluded.{name}" for name in fields)
        with self.change():
            self._db.execute(
                f"INSERT INTO sessions ({names}) VALUES ({', '.join('?' * len(fields))})"
                f" ON CONFLICT (id) DO UPDATE SET {updates}",
                tuple(fields.values()),
            )

    def remove(self, session: str) -> None:
        """Drop a session, its turns and its happenings."""
        with self.change():
            for table, column in (("sessions", "id"), ("turns", "session"), ("happenings", "session")):
                self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (session,))

    def place(self, session: str) -> int:
        """Return how many bytes of its agent's output are taken in."""
        return int(self._one("SELECT place FROM sessions WHERE id = ?", session) or 0)

    def set_place(self, session: str, place: int) -> None:
        with self.change():
            self._db.execute("UPDATE sessions SET place = ? WHERE id = ?", (place, session))

    @property
    def active(self) -> str:
        """The session last switched to, "" for none."""
        return str(self._one("SELECT value FROM settings WHERE name = 'active'") or "")

    @active.setter
    def active(self, session: str) -> None:
        with self.change():
            self._db.execute("INSERT OR REPLACE INTO settings VALUES ('active', ?)", (session,))

    # Turns

    def add_turn(self, session: str, message: str, key: str = "") -> Turn:
        """Journal a prompt; when this returns it is kept. EEXIST where the session has one of that key."""
        try:
            with self.change(durable=True):
                number = self._db.execute(
                    "INSERT INTO turns (session, state, message, created, key) VALUES (?, ?, ?, ?, ?)",
                    (session, TurnState.QUEUED, message, time.time(), key or None),
                ).lastrowid
                assert number is not None
                self.happened(session, "prompt", {"message": message}, turn=number)
        except sqlite3.IntegrityError:
            raise OSError(EEXIST, f"a prompt of that key was given before: {key!r}") from None
        return self.turn(number)

    def turn(self, number: int) -> Turn:
        """Return a turn; the output of one under way is what has come so far. ENOENT."""
        row = self._db.execute("SELECT * FROM turns WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise OSError(ENOENT, f"no such turn: {number}")
        return self._turn(row)

    def turn_of_key(self, session: str, key: str) -> Turn | None:
        """Return the turn that a client calls `key`, if there is one."""
        row = self._db.execute("SELECT * FROM turns WHERE session = ? AND key = ?", (session, key)).fetchone()
        return self._turn(row) if row else None

    def turns(
        self, session: str | None = None, *, before: int | None = None, limit: int = 100, output: bool = True
    ) -> list[Turn]:
        """Return up to `limit` turns below the number `before`, of one session or of all, newest first.

        Without `output` theirs is left out.
        """
        where, values = ["id < ?"], [before if before is not None else 1 << 62]
        if session is not None:
            where.append("session = ?")
            values.append(session)  # type: ignore[arg-type]
        query = f"SELECT * FROM turns WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        return [self._turn(row, output) for row in self._db.execute(query, (*values, limit))]

    def open_turns(self, session: str | None = None) -> list[Turn]:
        """Return the turns that are queued or under way, of one session or of all, in the order they were asked."""
        rows = self._db.execute("SELECT * FROM turns WHERE state IN (?, ?) ORDER BY id", _OPEN).fetchall()
        return [self._turn(row) for row in rows if session in (None, row["session"])]

    def _turn(self, row: sqlite3.Row, output: bool = True) -> Turn:
        state = TurnState(row["state"])
        return Turn(
            id=row["id"],
            session=row["session"],
            state=state,
            reason=row["reason"],
            message=row["message"],
            output="" if not output else row["output"] if state.ended else self.output(row["id"]),
            code=row["code"],
            usage=json.loads(row["usage"]),
            created=row["created"],
            started=row["started"],
            ended=row["ended"],
            key=row["key"] or "",
        )

    def output(self, turn: int) -> str:
        """Return the text that a turn under way has answered so far."""
        query = "SELECT data FROM happenings WHERE turn = ? AND kind = 'output' ORDER BY seq"
        return "".join(json.loads(row[0])["text"] for row in self._db.execute(query, (turn,)))

    def begin_turn(self, turn: Turn, *, task: int = 0) -> None:
        """A turn is under way from now on; `task` is a plain command's run."""
        with self.change():
            self._db.execute(
                "UPDATE turns SET state = ?, started = ?, task = ? WHERE id = ?",
                (TurnState.WORKING, time.time(), task, turn.id),
            )
            self.happened(turn.session, "began", {"task": str(task)} if task else None, turn=turn.id)

    def end_turn(
        self,
        number: int,
        state: TurnState,
        reason: str = "",
        *,
        code: int | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> None:
        """A turn is over. One that was over before stays as it was."""
        turn = self.turn(number)
        if turn.state.ended:
            return
        with self.change():
            self._db.execute(
                "UPDATE turns SET state = ?, reason = ?, code = ?, usage = ?, ended = ?, output = ?, progress = '{}'"
                " WHERE id = ?",
                (state, reason, code, json.dumps(usage or {}), time.time(), turn.output, number),
            )
            self.happened(turn.session, "ended", {"state": state, "reason": reason, "code": code}, turn=number)

    def run_of(self, turn: int) -> int:
        """Return the task of a plain command's run, 0 for none."""
        return int(self._one("SELECT task FROM turns WHERE id = ?", turn) or 0)

    def progress(self, turn: int) -> dict[str, Any]:
        """Return what was kept of a turn under way."""
        return dict(json.loads(self._one("SELECT progress FROM turns WHERE id = ?", turn) or "{}"))

    def set_progress(self, turn: int, progress: Mapping[str, Any]) -> None:
        with self.change():
            self._db.execute("UPDATE turns SET progress = ? WHERE id = ?", (json.dumps(progress), turn))

    def forget_turns(self, *, keep: int, before: float) -> None:
        """Drop each session's ended turns that are older than `before` or not among its newest `keep`."""
        with self.change():
            self._db.execute(
                "DELETE FROM turns WHERE state NOT IN (?, ?) AND (ended < ? OR id IN (SELECT id FROM (SELECT id,"
                " row_number() OVER (PARTITION BY session ORDER BY id DESC) AS age FROM turns) WHERE age > ?))",
                (*_OPEN, before, keep),
            )


def _session(row: sqlite3.Row) -> Session:
    return Session(
        id=row["id"],
        state=State(row["state"]),
        error=row["error"],
        spec=Spec.from_json(row["spec"]),
        user=User(**json.loads(row["user"])),
        created=row["created"],
        used=row["used"],
        task=row["task"],
    )
