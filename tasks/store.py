"""The journal: everything that ever happened to a task, in one append-only table. What is shown is derived from it.

SQLite in WAL mode with synchronous=NORMAL: a killed server loses nothing, a
power failure at most the last moments. One row is about 15 microseconds, so
rows are written inline. What happened cannot be refused: on a full disk rows
wait in memory, and only what would need a new number fails.
"""

import json
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from errno import ENOSPC
from pathlib import Path
from typing import NamedTuple

import structlog

log = structlog.get_logger("tasks")

MAX_UNWRITTEN = 100_000
"""Statements that wait for a disk with space at the most; then the oldest are lost, and the log says so."""

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    task INTEGER NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL,     -- JSON, shown to whoever may read the task's events
    state TEXT              -- JSON, what a restarted server needs besides; never shown
);
CREATE INDEX IF NOT EXISTS journal_task ON journal (task, seq);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


class Record(NamedTuple):
    """One row: `at` in Unix seconds, `state` what only the server reads ("" where there is none)."""

    seq: int
    at: float
    task: int
    kind: str
    data: str
    state: str

    def line(self) -> str:
        """Return the row as `events` shows it: one JSON object."""
        shown = {"seq": self.seq, "time": round(self.at, 6), "task": str(self.task), "event": self.kind}
        return json.dumps(shown | json.loads(self.data), ensure_ascii=False) + "\n"


class Journal:
    """The journal in the file `path` (":memory:" for one that does not last)."""

    def __init__(self, path: Path | str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_SCHEMA)
        row = self._db.execute("SELECT max(seq) FROM journal").fetchone()
        self.last_seq: int = row[0] or 0
        self._unwritten: deque[tuple[str, tuple[object, ...]]] = deque(maxlen=MAX_UNWRITTEN)
        self._full = False

    def close(self) -> None:
        self._db.close()

    def append(
        self, task: int, kind: str, data: Mapping[str, object] | None = None, state: Mapping[str, object] | None = None
    ) -> None:
        """Add a row."""
        row = (time.time(), task, kind, json.dumps(data or {}), json.dumps(state) if state is not None else None)
        self._write("INSERT INTO journal (at, task, kind, data, state) VALUES (?, ?, ?, ?, ?)", row)

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        """Run a statement after those that could not be run yet, as soon as there is space."""
        self._unwritten.append((statement, values))
        try:
            while self._unwritten:
                cursor = self._db.execute(*self._unwritten[0])
                self._unwritten.popleft()
                self.last_seq = max(self.last_seq, cursor.lastrowid or 0)
        except sqlite3.OperationalError as error:
            if not self._full:
                log.error("the journal cannot be written", error=str(error))
        self._full = bool(self._unwritten)

    def since(self, seq: int, task: int | None = None, limit: int = 256) -> list[Record]:
        """Return up to `limit` rows after `seq`, of one task or of all, oldest first."""
        where, values = ("AND task = ?", (seq, task, limit)) if task is not None else ("", (seq, limit))
        return [
            _record(row) for row in self._db.execute(_SELECT + f"WHERE seq > ? {where} ORDER BY seq LIMIT ?", values)
        ]

    def replay(self, *, kinds: Sequence[str] = ()) -> Iterator[Record]:
        """Give every row, or every one of those kinds, oldest first."""
        where = f"WHERE kind IN ({', '.join('?' * len(kinds))}) " if kinds else ""
        return map(_record, self._db.execute(_SELECT + where + "ORDER BY seq", tuple(kinds)).fetchall())

    def forget(self, tasks: Iterable[int]) -> None:
        """Drop every row of these tasks."""
        numbers = json.dumps(list(tasks))
        self._write("DELETE FROM journal WHERE task IN (SELECT value FROM json_each(?))", (numbers,))

    def next(self, counter: str) -> int:
        """Return the next number of a counter, from 1; never the same twice. ENOSPC on a full disk."""
        try:
            row = self._db.execute(
                "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
                (counter,),
            ).fetchone()
        except sqlite3.OperationalError as error:
            raise OSError(ENOSPC, f"the journal cannot be written: {error}") from None
        return int(row[0])


_SELECT = "SELECT seq, at, task, kind, data, coalesce(state, '') FROM journal "


def _record(row: tuple[int, float, int, str, str, str]) -> Record:
    return Record(*row)
