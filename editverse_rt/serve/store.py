"""Jobs on disk: a folder with a lock, an SQLite table that is the queue, and the jobs' files.

    lock              held by the one server that uses the folder
    jobs.sqlite3      WAL, synchronous FULL: what a method has returned survives a kill and a loss of power
    in/<id>/          uploads, synced before the row is inserted
    out/<id>/         the result, renamed into place before the row says that it is there

Files without a row, and files that a row does not mention, are left by a kill and removed at the next start.
Names of files are made here; none comes from a request.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from editverse_rt.serve.folder import DataFolder, remove, sync_file, sync_folder
from editverse_rt.serve.job import MAX_DEATHS, Job
from editverse_rt.serve.problems import HttpError, died_error
from editverse_rt.serve.submission_keys import SubmissionKeys
from editverse_rt.serve.table import JobTable, job_from, values_from

__all__ = ["JobStore"]

_DAY_S = 86_400.0
ROWS_KEPT_S = 7 * _DAY_S
"""How long the row of an expired job, a tombstone and an idempotency key are kept."""


class JobStore:
    """The jobs of one server; several threads may call it. Use it as a context manager, or close() it."""

    def __init__(
        self,
        folder: Path,
        *,
        keep_s: float = _DAY_S,
        max_bytes: int = 10 << 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or create the folder, take its lock, and put right what a kill has left.

        keep_s, max_bytes: how long finished jobs keep their files, and how much all files may take.
        Raises RequestError (`serve.data`) if another server has the folder, or it cannot be used.
        """
        self._keep_s, self._max_bytes, self._clock = keep_s, max_bytes, clock
        self._data = DataFolder(folder)
        self.folder = folder
        try:
            self._table = JobTable(folder / "jobs.sqlite3")
        except BaseException:
            self._data.close()
            raise
        self.keys = SubmissionKeys(self._table)
        self._recover()

    def __enter__(self) -> JobStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the table and give the lock back; safe to call twice."""
        with self._table.turn:
            self._table.close()
            self._data.close()

    # --- files --------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """A new job's id, which cannot be guessed."""
        return f"job_{secrets.token_hex(12)}"

    def input_folder(self, job: str) -> Path:
        return self.folder / "in" / job

    def output_folder(self, job: str) -> Path:
        return self.folder / "out" / job

    def input_path(self, job: Job, name: str) -> Path:
        return self.input_folder(job.id) / job.inputs[name].file

    def content_path(self, job: Job, variant: str) -> Path | None:
        """The file of a finished job: its "result", or the "source" as the model saw it; None if absent."""
        name = (job.result or {}).get("files", {}).get(variant)
        return None if name is None else self.output_folder(job.id) / name

    def discard(self, job: str) -> None:
        """Remove the files of a job that has no row, such as an upload that was refused."""
        for parent in ("in", "out"):
            shutil.rmtree(self.folder / parent / job, ignore_errors=True)

    # --- reading ------------------------------------------------------------------------------------------

    def get(self, job: str, owner: str | None = None) -> Job | None:
        """A job by its id; with owner, only one of theirs."""
        row = self._table.one("SELECT * FROM jobs WHERE id = ?", job)
        found = None if row is None else job_from(row)
        return found if found is not None and owner in (None, found.owner) else None

    def page(
        self,
        owner: str,
        *,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
        views: Iterable[str] = ("native", "video", "image"),
    ) -> tuple[list[Job], bool]:
        """Up to `limit` jobs of an owner that follow the job `after`, and whether there are more."""
        names = list(views)
        query = f"SELECT * FROM jobs WHERE owner = ? AND view IN ({','.join('?' * len(names))})"
        values: list[Any] = [owner, *names]
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        if after is not None:
            query += f" AND (created_at, id) {sign} (SELECT created_at, id FROM jobs WHERE id = ?)"
            values.append(after)
        query += f" ORDER BY created_at {order}, id {order} LIMIT ?"
        jobs = [job_from(row) for row in self._table.all(query, *values, limit + 1)]
        return jobs[:limit], len(jobs) > limit

    def queued(self) -> list[Job]:
        """The jobs that wait, those that came first first."""
        return [
            job_from(row)
            for row in self._table.all("SELECT * FROM jobs WHERE state = 'queued' ORDER BY created_at, id")
        ]

    def num_waiting(self, owner: str) -> int:
        return int(
            self._table.one("SELECT count(*) AS n FROM jobs WHERE state = 'queued' AND owner = ?", owner)["n"]
        )

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return {
            row["state"]: row["n"]
            for row in self._table.all("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        }

    def num_bytes(self) -> int:
        """Bytes of all files that rows mention."""
        return int(self._table.one("SELECT coalesce(sum(num_bytes), 0) AS n FROM jobs")["n"])

    def is_deleted(self, job: str) -> bool:
        return self._table.one("SELECT id FROM tombstones WHERE id = ?", job) is not None

    # --- a job's life -------------------------------------------------------------------------------------

    def find_replay(self, owner: str, key: str, digest: str) -> Job | None:
        """The job that this key has made, or None for a new key.

        digest: of the request's body. Raises HttpError: 409 for another body and for a key that was withdrawn, 410 for
        a job that was deleted.
        """
        found = self.keys.job_of(owner, key, digest)
        if found is None:
            return None
        job = self.get(found, owner)
        if job is None:
            raise HttpError(
                410, "the job of this Idempotency-Key was deleted", hint="send a new key", code="serve.gone"
            )
        return job

    def withdraw(self, owner: str, key: str) -> str | None:
        """The id of the job that a key has made; where it has made none, it never will."""
        return self.keys.withdraw(owner, key, self._clock())

    def add(self, job: Job, key: str | None = None, digest: str = "") -> Job:
        """Insert a job whose files are in place and synced; what it returns will be run.

        With a key that has made a job already, that job is returned, and the new one's files are removed.
        """
        with self._table.turn:
            if key is not None and (earlier := self.find_replay(job.owner, key, digest)) is not None:
                self.discard(job.id)
                return earlier
            if job.inputs:
                sync_folder(self.input_folder(job.id))
                sync_folder(self.folder / "in")
            job = replace(
                job,
                queued_at=job.created_at,
                num_bytes=sum(stored.num_bytes for stored in job.inputs.values()),
            )
            values = values_from(job)
            with self._table.transaction():
                self._table.execute(
                    f"INSERT INTO jobs ({','.join(values)}) VALUES ({','.join('?' * len(values))})",
                    list(values.values()),
                )
                if key is not None:
                    self.keys.keep(job.owner, key, digest, job.id, self._clock())
            return job

    def begin(self, job: str) -> Job | None:
        """Take a job out of the queue; None if it no longer waits."""
        with self._table.turn:
            changed = self._change(
                "state = 'in_progress', runs = runs + 1, started_at = ?", [self._clock()], job, "queued"
            )
            return self.get(job) if changed else None

    def finish(self, job: str, run: int, parts: Mapping[str, Path], result: Mapping[str, Any]) -> bool:
        """Take the files of a run, by variant, and complete its job; False, without the files, if it is over.

        parts: in the job's output folder, under the run's own names. It may be called again where it has raised.
        """
        files = {variant: f"{variant}-{run}{part.suffix}" for variant, part in parts.items()}
        num_bytes = 0
        is_written = bool(files)
        try:
            for variant, part in parts.items():
                target = part.with_name(files[variant])
                if not target.exists():
                    sync_file(part)
                    os.replace(part, target)
                num_bytes += target.stat().st_size
            sync_folder(self.output_folder(job))
            sync_folder(self.folder / "out")
        except FileNotFoundError:  # deleted meanwhile, with its folder
            is_written = False
        with self._table.turn:
            changed = is_written and self._end(
                job, run, "completed", num_bytes=num_bytes, result={**result, "files": files}
            )
            found = self.get(job)
            if found is None:
                self.discard(job)
            elif not changed:
                # A run that is told twice has one set of files, which its job keeps.
                kept = (found.result or {}).get("files", {}).values()
                for name in set(files.values()).difference(kept):
                    remove(self.output_folder(job) / name)
            return changed

    def fail(self, job: str, run: int, error: Mapping[str, Any]) -> bool:
        """End a run's job with an error, as JSON; False if it is over."""
        with self._table.turn:
            changed = self._end(job, run, "failed", error=error)
        self._drop_output(job, changed)
        return changed

    def cancel(self, job: str) -> str | None:
        """Cancel a job that waits, or mark one that runs, which survives a restart; return its state."""
        with self._table.turn:
            if not self._change("state = 'cancelled', finished_at = ?", [self._clock()], job, "queued"):
                self._change("is_cancelling = 1", [], job, "in_progress")
            found = self.get(job)
            return None if found is None else found.state

    def end_cancelled(self, job: str, run: int) -> bool:
        """A run's process says that it has stopped."""
        with self._table.turn:
            changed = self._end(job, run, "cancelled")
        self._drop_output(job, changed)
        return changed

    def give_back(self, job: str, run: int, *, died: bool) -> str | None:
        """Put the job of a run that ended unfinished back into the queue; return its new state, None if over.

        died: its process ended because of it, or nobody knows why; after MAX_DEATHS of these it has failed. One
        that was being cancelled is cancelled.
        """
        with self._table.turn:
            found = self.get(job)
            if found is None or found.state != "in_progress" or found.runs != run:
                return None
            if found.is_cancelling:
                self._end(job, run, "cancelled")
            elif died and found.deaths + 1 >= MAX_DEATHS:
                self._change("deaths = deaths + 1", [], job, "in_progress")
                self._end(job, run, "failed", error=died_error(found.deaths + 1))
            else:
                self._change(
                    "state = 'queued', started_at = NULL, queued_at = ?, deaths = deaths + ?",
                    [self._clock(), int(died)],
                    job,
                    "in_progress",
                )
            found = self.get(job)
        self._drop_output(job, True)
        return None if found is None else found.state

    def delete(self, job: str) -> bool:
        """Remove a job's row for good, and its files unless it runs: its process writes there until it stops.

        A report about it that comes later changes nothing.
        """
        with self._table.turn:
            found = self.get(job)
            if found is None:
                return False
            with self._table.transaction():
                self._table.execute("DELETE FROM jobs WHERE id = ?", (job,))
                self._table.execute(
                    "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)", (job, found.owner, self._clock())
                )
        if found.state != "in_progress":
            self.discard(job)
        return True

    def sweep(self) -> list[str]:
        """Expire finished jobs that are too old, then the oldest while all files take too much; their ids."""
        now = self._clock()
        with self._table.turn:
            total = self.num_bytes()
            expired = []
            rows = self._table.all(
                "SELECT id, finished_at, num_bytes FROM jobs WHERE state IN ('completed', 'failed', 'cancelled') "
                "ORDER BY finished_at, id"
            )
            for row in rows:
                if row["finished_at"] + self._keep_s > now and total <= self._max_bytes:
                    break
                total -= row["num_bytes"]
                expired.append(row["id"])
            with self._table.transaction():
                for job in expired:
                    self._table.execute(
                        "UPDATE jobs SET state = 'expired', num_bytes = 0 WHERE id = ?", (job,)
                    )
                before = (now - self._keep_s - ROWS_KEPT_S,)
                self._table.execute("DELETE FROM jobs WHERE state = 'expired' AND finished_at < ?", before)
                self._table.execute("DELETE FROM tombstones WHERE deleted_at < ?", before)
                self._table.execute("DELETE FROM keys WHERE created_at < ?", before)
        for job in expired:
            self.discard(job)
        return expired

    def expires_at(self, job: Job) -> float | None:
        return None if job.finished_at is None else job.finished_at + self._keep_s

    # --- learnt speeds ------------------------------------------------------------------------------------

    def speeds(self) -> dict[str, float]:
        """Operations a second that were reached, by name."""
        return {row["name"]: row["flops_per_s"] for row in self._table.all("SELECT * FROM speeds")}

    def keep_speed(self, name: str, flops_per_s: float) -> None:
        with self._table.turn:
            self._table.execute("INSERT OR REPLACE INTO speeds VALUES (?, ?)", (name, flops_per_s))

    # --- inside -------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """After a start: what ran is queued again, and files that no row mentions go."""
        with self._table.turn:
            for row in self._table.all("SELECT id, runs FROM jobs WHERE state = 'in_progress'"):
                self.give_back(row["id"], row["runs"], died=True)
            rows = {row["id"]: job_from(row) for row in self._table.all("SELECT * FROM jobs")}
        for parent in ("in", "out"):
            for folder in list((self.folder / parent).iterdir()):
                job = rows.get(folder.name)
                if job is None or job.state == "expired":
                    shutil.rmtree(folder, ignore_errors=True)
                elif parent == "out":
                    known = set((job.result or {}).get("files", {}).values())
                    for file in list(folder.iterdir()):
                        if file.name not in known:
                            remove(file)

    def _drop_output(self, job: str, is_over: bool) -> None:
        """Remove what an unfinished run has written, and all files of a job that was deleted meanwhile."""
        if is_over:
            shutil.rmtree(self.output_folder(job), ignore_errors=True)
        elif self.get(job) is None:
            self.discard(job)

    def _end(self, job: str, run: int, state: str, *, num_bytes: int = 0, **values: Any) -> bool:
        assignments = ["state = ?", "finished_at = ?", "num_bytes = num_bytes + ?"]
        given: list[Any] = [state, self._clock(), num_bytes]
        for name, value in values.items():
            assignments.append(f"{name} = ?")
            given.append(json.dumps(value))
        return self._change(", ".join(assignments), given, job, "in_progress", run)

    def _change(
        self, assignments: str, values: list[Any], job: str, state: str, run: int | None = None
    ) -> bool:
        query = f"UPDATE jobs SET {assignments} WHERE id = ? AND state = ?"
        where: list[Any] = [job, state]
        if run is not None:
            query += " AND runs = ?"
            where.append(run)
        return self._table.execute(query, [*values, *where]) == 1
