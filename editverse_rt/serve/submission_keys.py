"""The keys of submissions: which job an Idempotency-Key has made, and keys that must make none."""

from __future__ import annotations

from editverse_rt.serve.problems import HttpError
from editverse_rt.serve.table import JobTable

__all__ = ["SubmissionKeys"]

_NO_JOB = ""


class SubmissionKeys:
    """The rows of the table `keys`. Hold the table's turn over what belongs together."""

    def __init__(self, table: JobTable) -> None:
        self._table = table

    def job_of(self, owner: str, key: str, digest: str) -> str | None:
        """The id of the job that a key has made, None for a new key.

        digest: of the request's body. Raises HttpError: 409 for another body, and for a key that was withdrawn.
        """
        row = self._table.one("SELECT * FROM keys WHERE owner = ? AND key = ?", owner, key)
        if row is None:
            return None
        if row["job"] == _NO_JOB:
            raise HttpError(
                409,
                "the submission of this Idempotency-Key was cancelled",
                hint="send a new key",
                code="cancelled",
                field="Idempotency-Key",
            )
        if row["digest"] != digest:
            raise HttpError(
                409,
                "this Idempotency-Key came with another body",
                hint="send the same body, or a new key",
                code="serve.idempotency",
                field="Idempotency-Key",
            )
        return str(row["job"])

    def keep(self, owner: str, key: str, digest: str, job: str, now: float) -> None:
        """Remember which job a key has made."""
        self._table.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?)", (owner, key, digest, job, now))

    def withdraw(self, owner: str, key: str, now: float) -> str | None:
        """The id of the job that a key has made. Where it has made none, it never will: None."""
        with self._table.turn:
            row = self._table.one("SELECT job FROM keys WHERE owner = ? AND key = ?", owner, key)
            if row is None:
                self.keep(owner, key, "", _NO_JOB, now)
                return None
            return None if row["job"] == _NO_JOB else str(row["job"])
