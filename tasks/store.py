"""The journal: everything that ever happened to a task, in one append-only table. What is shown is derived from it.

SQLite in WAL mode with synchronous=NORMAL: a killed server loses nothing, a
power failure at most the last moments. One row is about 15 microseconds, so
rows are written inline.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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

    def close(self) -> None:
        self._db.close()

    def append(
        self, task: int, kind: str, data: Mapping[str, object] | None = None, state: Mapping[str, object] | None = None
    ) -> None:
        """Add a row."""
        row = (time.time(), task, kind, json.dumps(data or {}), json.dumps(state) if state is not None else None)
        cursor = self._db.execute("INSERT INTO journal (at, task, kind, data, state) VALUES (?, ?, ?, ?, ?)", row)
        self.last_seq = cursor.lastrowid or self.last_seq

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
        self._db.execute("BEGIN")
        self._db.executemany("DELETE FROM journal WHERE task = ?", [(task,) for task in tasks])
        self._db.execute("COMMIT")

    def next(self, counter: str) -> int:
        """Return the next number of a counter, from 1; never the same twice."""
        row = self._db.execute(
            "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
            (counter,),
        ).fetchone()
        return int(row[0])


_SELECT = "SELECT seq, at, task, kind, data, coalesce(state, '') FROM journal "


def _record(row: tuple[int, float, int, str, str, str]) -> Record:
    return Record(*row)
