"""The SQLite table of jobs: WAL, synchronous FULL, a connection that writes and one that reads, shared by threads."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from editverse_rt.errors import RequestError
from editverse_rt.serve.job import Job, StoredInput

__all__ = ["JobTable", "job_from", "values_from"]

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, view TEXT NOT NULL, model TEXT NOT NULL, format TEXT NOT NULL,
    request TEXT NOT NULL, inputs TEXT NOT NULL, estimate TEXT NOT NULL, deadline_s REAL NOT NULL,
    created_at REAL NOT NULL, state TEXT NOT NULL, runs INTEGER NOT NULL, deaths INTEGER NOT NULL,
    is_cancelling INTEGER NOT NULL, queued_at REAL NOT NULL, started_at REAL, finished_at REAL,
    num_bytes INTEGER NOT NULL, result TEXT, error TEXT, extra TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, created_at);
CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, created_at);
CREATE TABLE IF NOT EXISTS keys (
    owner TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, job TEXT NOT NULL, created_at REAL NOT NULL,
    PRIMARY KEY (owner, key));
CREATE TABLE IF NOT EXISTS tombstones (id TEXT PRIMARY KEY, owner TEXT NOT NULL, deleted_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS speeds (name TEXT PRIMARY KEY, flops_per_s REAL NOT NULL);
"""
_COLUMNS = tuple(field.name for field in fields(Job))
_JSON = frozenset({"request", "inputs", "estimate", "result", "error", "extra"})
_VERSION = 2
_CACHE_KIB = 200


class Turn:
    """A reentrant lock that says whether this thread holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._holder = None
        self._lock.release()

    @property
    def is_mine(self) -> bool:
        return self._holder == threading.get_ident()


class JobTable:
    """The connections. turn: hold it for what belongs together; what is read meanwhile is read in it as well.

    Reads outside of it do not wait for a write, which may take long where the disk is busy.
    """

    def __init__(self, path: Path) -> None:
        """Open or create it. Raises RequestError (`serve.data`) for a file that is no such table."""
        self.turn = Turn()
        self._reading = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, 1, _VERSION):
                raise sqlite3.DatabaseError(f"its version is {version}, not {_VERSION}")
            if version == 1:
                with self.transaction():
                    self._db.execute("ALTER TABLE jobs RENAME COLUMN plan TO estimate")
                    self._db.execute(f"PRAGMA user_version={_VERSION}")
            self._db.executescript(_TABLES)
            self._db.execute(f"PRAGMA user_version={_VERSION}")
            path.chmod(0o600)
            self._reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._reader.execute("PRAGMA query_only=ON")
            for connection in (self._db, self._reader):
                # SQLite would keep 2 MB of pages each, in pieces between which the heap does not shrink again. The
                # system keeps the file's pages in memory anyway.
                connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        except sqlite3.Error as error:
            raise RequestError(
                f"{path} cannot be read as a table of jobs ({error})",
                hint="move it away, or choose another data folder",
                code="serve.data",
                field="data",
            ) from error

    def close(self) -> None:
        with self._reading:
            self._reader.close()
        self._db.close()

    def execute(self, query: str, values: Sequence[Any] = ()) -> int:
        """Run a statement; how many rows it has changed."""
        with self.turn:
            return self._db.execute(query, values).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is executed inside, or nothing of it."""
        with self.turn:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def all(self, query: str, *values: Any) -> list[dict[str, Any]]:
        if self.turn.is_mine:
            return _rows(self._db.execute(query, values))
        with self._reading:
            return _rows(self._reader.execute(query, values))

    def one(self, query: str, *values: Any) -> Any:
        return next(iter(self.all(query, *values)), None)


def _rows(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def job_from(row: Mapping[str, Any]) -> Job:
    """The job of a row."""
    values = {
        name: json.loads(row[name]) if name in _JSON and row[name] is not None else row[name]
        for name in _COLUMNS
    }
    values["inputs"] = {name: StoredInput.from_json(value) for name, value in values["inputs"].items()}
    values["is_cancelling"] = bool(values["is_cancelling"])
    return Job(**values)


def values_from(job: Job) -> dict[str, Any]:
    """The columns of a job's row."""
    values: dict[str, Any] = {name: getattr(job, name) for name in _COLUMNS}
    values["inputs"] = {name: stored.to_json() for name, stored in job.inputs.items()}
    for name in _JSON:
        if values[name] is not None:
            values[name] = json.dumps(values[name])
    return values
