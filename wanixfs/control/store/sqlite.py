"""The embedded store: one SQLite file in WAL mode, nothing to install.

Statements run inline: each is some ten microseconds, less than handing it to a thread. A transaction's body awaits only
the transaction, so two never overlap on the one connection.
"""

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from errno import EINVAL
from operator import attrgetter
from pathlib import Path

from wanixfs.control.credentials import Certificate, Role, Token
from wanixfs.control.lifecycle import changed_runs, is_over, open_lanes
from wanixfs.control.model import (
    Needs,
    OutputChunk,
    Run,
    RunEvent,
    RunEventType,
    RunId,
    RunStatus,
    Task,
    TaskId,
    TaskSpec,
    TaskStatus,
    Worker,
    WorkerId,
    WorkerStatus,
    dump,
    load_agent,
    load_needs,
    load_spec,
)

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE tasks (
        ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        spec TEXT NOT NULL,             -- canonical JSON
        created_at_ms INTEGER NOT NULL,
        status TEXT NOT NULL,
        error_message TEXT NOT NULL,
        finished_at_ms INTEGER NOT NULL,
        not_before_ms INTEGER NOT NULL,
        agent TEXT NOT NULL,            -- the rest repeats what the spec and the runs say, to be looked up
        needs TEXT NOT NULL,
        created_by TEXT NOT NULL,
        idempotency_key TEXT,           -- NULL where there is none
        deadline_ms INTEGER NOT NULL,   -- 0 when there is none or it no longer matters
        is_open INTEGER NOT NULL        -- wants a run
    );
    CREATE UNIQUE INDEX tasks_by_key ON tasks (created_by, idempotency_key) WHERE idempotency_key IS NOT NULL;
    CREATE INDEX tasks_open ON tasks (needs, ordinal) WHERE is_open;
    CREATE INDEX tasks_deadline ON tasks (deadline_ms) WHERE deadline_ms > 0;
    CREATE INDEX tasks_by_status ON tasks (status, ordinal);
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        task_id TEXT NOT NULL REFERENCES tasks (id),
        worker_id TEXT NOT NULL,
        lane INTEGER NOT NULL,
        status TEXT NOT NULL,
        issued_at_ms INTEGER NOT NULL,
        started_at_ms INTEGER NOT NULL,
        finished_at_ms INTEGER NOT NULL,
        backend_used TEXT NOT NULL,
        error_message TEXT NOT NULL,
        lost INTEGER NOT NULL,
        stopping TEXT NOT NULL,
        next_seq INTEGER NOT NULL,
        output_bytes INTEGER NOT NULL,
        dropped_bytes INTEGER NOT NULL,
        live INTEGER NOT NULL
    );
    CREATE INDEX runs_of_task ON runs (task_id);
    CREATE INDEX runs_live ON runs (worker_id) WHERE live;
    CREATE TABLE workers (
        id TEXT PRIMARY KEY,
        hostname TEXT NOT NULL,
        version TEXT NOT NULL,
        agents TEXT NOT NULL,
        labels TEXT NOT NULL,
        status TEXT NOT NULL,
        max_concurrent_runs INTEGER NOT NULL,
        last_heartbeat_ms INTEGER NOT NULL,
        draining INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE output (
        run_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        content TEXT NOT NULL,
        is_final INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        timestamp_ms INTEGER NOT NULL,
        PRIMARY KEY (run_id, seq)
    ) WITHOUT ROWID;
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        run_id TEXT NOT NULL,
        task_id TEXT NOT NULL,
        type TEXT NOT NULL,
        timestamp_ms INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        UNIQUE (run_id, id)
    );
    CREATE INDEX events_of_task ON events (task_id, number);
    """,
    """
    CREATE TABLE tokens (
        digest TEXT PRIMARY KEY,
        role TEXT NOT NULL,
        name TEXT NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        used_at_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE certificates (
        serial TEXT PRIMARY KEY,
        worker_id TEXT NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        revoked INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX certificates_of_worker ON certificates (worker_id);
    """,
)
"""What each version of the schema adds to the one before; `user_version` counts those that were applied."""

_RUN_COLUMNS = tuple(field.name for field in fields(Run))
_run_row = attrgetter(*_RUN_COLUMNS)
_TASK = "SELECT id, spec, created_at_ms, status, error_message, finished_at_ms, not_before_ms FROM tasks "
_RUN = f"SELECT {', '.join(_RUN_COLUMNS)} FROM runs "
_PUT_TASK = """
    INSERT INTO tasks (id, spec, created_at_ms, status, error_message, finished_at_ms, not_before_ms, agent, needs,
                       created_by, idempotency_key, deadline_ms, is_open)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET
        status = excluded.status, error_message = excluded.error_message, finished_at_ms = excluded.finished_at_ms,
        not_before_ms = excluded.not_before_ms, deadline_ms = excluded.deadline_ms, is_open = excluded.is_open
"""
_PUT_RUN = f"""
    INSERT INTO runs ({", ".join(_RUN_COLUMNS)}, live) VALUES ({", ".join("?" * len(_RUN_COLUMNS))}, ?)
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in (*_RUN_COLUMNS, "live"))}
"""


class SQLiteStore:
    """A store in the file `path`; its own transaction, since there is never more than one.

    EINVAL: the file was written by a later version.
    """

    def __init__(self, path: Path | str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        # A task that was acknowledged is kept whatever happens, a power failure too.
        self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._migrate()
        except BaseException:
            self._db.close()
            raise

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise OSError(EINVAL, f"the store has schema {version}, this program knows {len(MIGRATIONS)}")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["SQLiteStore"]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    async def close(self) -> None:
        self._db.close()

    def _tasks(self, where: str, *values: object) -> list[Task]:
        return [self._task(row) for row in self._db.execute(_TASK + where, values).fetchall()]

    def _task(self, row: tuple[str, str, int, str, str, int, int]) -> Task:
        task_id, spec, created, status, error, finished, not_before = row
        runs = map(_run, self._db.execute(_RUN + "WHERE task_id = ? ORDER BY rowid", (task_id,)))
        return Task(
            id=TaskId(task_id),
            spec=load_spec(spec),
            created_at_ms=created,
            status=TaskStatus(status),
            error_message=error,
            finished_at_ms=finished,
            not_before_ms=not_before,
            runs=tuple(runs),
        )

    async def task(self, task_id: TaskId) -> Task | None:
        return next(iter(self._tasks("WHERE id = ?", task_id)), None)

    async def task_of_key(self, spec: TaskSpec) -> Task | None:
        found = self._tasks("WHERE created_by = ? AND idempotency_key = ?", spec.created_by, spec.idempotency_key)
        return next(iter(found), None)

    async def tasks(self, *, status: TaskStatus | None = None, agent: str = "", limit: int = 100) -> list[Task]:
        filters = {"status": status, "agent": agent}
        asked = {column: word for column, word in filters.items() if word}
        where = " AND ".join(f"{column} = ?" for column in asked) or "true"
        return self._tasks(f"WHERE {where} ORDER BY ordinal DESC LIMIT ?", *asked.values(), limit)

    async def put_task(self, task: Task, before: Task | None = None) -> None:
        spec = task.spec
        self._db.execute(
            _PUT_TASK,
            (
                *(task.id, dump(spec), task.created_at_ms, task.status, task.error_message, task.finished_at_ms),
                *(
                    task.not_before_ms,
                    spec.needs.agent,
                    dump(spec.needs),
                    spec.created_by,
                    spec.idempotency_key or None,
                ),
                *(0 if is_over(task.status) else spec.deadline_ms, bool(open_lanes(task))),
            ),
        )
        for run in changed_runs(task, before):
            await self.put_run(run)

    async def run(self, run_id: RunId) -> Run | None:
        row = self._db.execute(_RUN + "WHERE id = ?", (run_id,)).fetchone()
        return _run(row) if row else None

    async def put_run(self, run: Run) -> None:
        self._db.execute(_PUT_RUN, (*_run_row(run), not is_over(run.status)))

    async def waiting(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM tasks WHERE is_open").fetchone()[0])

    async def needs(self, now_ms: int) -> list[Needs]:
        rows = self._db.execute("SELECT DISTINCT needs FROM tasks WHERE is_open AND not_before_ms <= ?", (now_ms,))
        return [load_needs(text) for (text,) in rows]

    async def claimable(self, needs: Sequence[Needs], now_ms: int, limit: int) -> list[Task]:
        return self._tasks(
            "WHERE is_open AND not_before_ms <= ? AND needs IN (SELECT value FROM json_each(?))"
            " ORDER BY ordinal LIMIT ?",
            now_ms,
            json.dumps([dump(each) for each in needs]),
            limit,
        )

    async def overdue(self, now_ms: int) -> list[Task]:
        return self._tasks("WHERE deadline_ms > 0 AND deadline_ms <= ?", now_ms)

    async def runs_of(self, worker_id: WorkerId) -> list[Run]:
        rows = self._db.execute(_RUN + "WHERE worker_id = ? AND live ORDER BY rowid", (worker_id,))
        return [_run(row) for row in rows]

    async def worker(self, worker_id: WorkerId) -> Worker | None:
        row = self._db.execute("SELECT * FROM workers WHERE id = ?", (worker_id,)).fetchone()
        return _worker(row) if row else None

    async def workers(self) -> list[Worker]:
        return [_worker(row) for row in self._db.execute("SELECT * FROM workers ORDER BY id")]

    async def put_worker(self, worker: Worker) -> None:
        agents = json.dumps([dump(agent) for agent in worker.agents])
        self._db.execute(
            "INSERT OR REPLACE INTO workers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(worker.id, worker.hostname, worker.version, agents, dump(worker.labels), worker.status),
                *(worker.max_concurrent_runs, worker.last_heartbeat_ms, worker.draining),
            ),
        )

    async def add_output(self, chunk: OutputChunk) -> None:
        row = (chunk.run_id, chunk.seq, chunk.content, chunk.is_final, dump(chunk.metadata), chunk.timestamp_ms)
        self._db.execute("INSERT INTO output VALUES (?, ?, ?, ?, ?, ?)", row)

    async def output(self, run_id: RunId, *, since: int = 0, limit: int = 256) -> list[OutputChunk]:
        rows = self._db.execute(
            "SELECT * FROM output WHERE run_id = ? AND seq >= ? ORDER BY seq LIMIT ?", (run_id, since, limit)
        )
        return [
            OutputChunk(
                run_id=RunId(run),
                seq=seq,
                content=content,
                is_final=bool(final),
                metadata=json.loads(metadata),
                timestamp_ms=at,
            )
            for run, seq, content, final, metadata, at in rows
        ]

    async def add_event(self, event: RunEvent) -> bool:
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO events (id, run_id, task_id, type, timestamp_ms, metadata)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (event.id, event.run_id, event.task_id, event.type, event.timestamp_ms, dump(event.metadata)),
        )
        return cursor.rowcount > 0

    async def events(self, task_id: TaskId, *, since: int = 0, limit: int = 256) -> list[tuple[int, RunEvent]]:
        rows = self._db.execute(
            "SELECT * FROM events WHERE task_id = ? AND number > ? ORDER BY number LIMIT ?", (task_id, since, limit)
        )
        return [
            (
                number,
                RunEvent(
                    id=event_id,
                    run_id=RunId(run),
                    task_id=TaskId(task),
                    type=RunEventType(kind),
                    timestamp_ms=at,
                    metadata=json.loads(metadata),
                ),
            )
            for number, event_id, run, task, kind, at, metadata in rows
        ]

    async def token(self, digest: str) -> Token | None:
        row = self._db.execute("SELECT * FROM tokens WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        _, role, name, expires, used = row
        return Token(digest=digest, role=Role(role), name=name, expires_at_ms=expires, used_at_ms=used)

    async def put_token(self, token: Token) -> None:
        row = (token.digest, token.role, token.name, token.expires_at_ms, token.used_at_ms)
        self._db.execute("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?)", row)

    async def certificate(self, serial: str) -> Certificate | None:
        return next(self._certificates("serial", serial), None)

    async def certificates(self, worker_id: WorkerId) -> list[Certificate]:
        return list(self._certificates("worker_id", worker_id))

    def _certificates(self, column: str, value: str) -> Iterator[Certificate]:
        rows = self._db.execute(f"SELECT * FROM certificates WHERE {column} = ?", (value,)).fetchall()
        for serial, worker_id, expires, revoked in rows:
            yield Certificate(
                serial=serial, worker_id=WorkerId(worker_id), expires_at_ms=expires, revoked=bool(revoked)
            )

    async def put_certificate(self, certificate: Certificate) -> None:
        row = (certificate.serial, certificate.worker_id, certificate.expires_at_ms, certificate.revoked)
        self._db.execute("INSERT OR REPLACE INTO certificates VALUES (?, ?, ?, ?)", row)


def _run(row: tuple[object, ...]) -> Run:
    words = dict(zip(_RUN_COLUMNS, row, strict=True))
    return Run(**words | {"status": RunStatus(str(words["status"])), "lost": bool(words["lost"])})  # type: ignore[arg-type]


def _worker(row: tuple[str, str, str, str, str, str, int, int, int]) -> Worker:
    worker_id, hostname, version, agents, labels, status, most, heard, draining = row
    return Worker(
        id=WorkerId(worker_id),
        hostname=hostname,
        version=version,
        agents=tuple(map(load_agent, json.loads(agents))),
        labels=json.loads(labels),
        status=WorkerStatus(status),
        max_concurrent_runs=most,
        last_heartbeat_ms=heard,
        draining=bool(draining),
    )
