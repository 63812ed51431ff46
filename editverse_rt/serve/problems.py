"""Errors of the server as HTTP answers, in the project's form and in OpenAI's."""

from __future__ import annotations

import errno
import sqlite3
from typing import Any

from editverse_rt.errors import (
    BackendError,
    EditVerseError,
    MediaError,
    QueueFull,
    RequestCancelled,
    RequestError,
)

__all__ = [
    "HttpError",
    "RefusedError",
    "died_error",
    "disk_full",
    "error_json",
    "is_disk_full",
    "not_kept",
    "status_of",
    "too_many_frames",
    "too_many_inputs",
]


class HttpError(EditVerseError):
    """An error that has an HTTP status of its own. retry_after_s: when to come back, for 429 and 503."""

    default_code = "serve"

    def __init__(self, status: int, found: str, *, retry_after_s: float | None = None, **parts: Any) -> None:
        self.status, self.retry_after_s = status, retry_after_s
        super().__init__(found, **parts)


def status_of(error: EditVerseError) -> int:
    """The HTTP status of an error of the runtime."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, (RequestError, MediaError)):
        return 400
    if isinstance(error, QueueFull):
        return 429
    if isinstance(error, RequestCancelled):
        return 409
    return 503 if isinstance(error, BackendError) and error.code == "backend.unavailable" else 500


def error_json(facts: dict[str, Any], status: int) -> dict[str, Any]:
    """The body of an answer: what `EditVerseError.to_json` gives, with the `type` and `param` of OpenAI's form."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {**facts, "type": kind, "param": facts.get("field") or None}}


_OWN_FAULTS = {"serve.disk": 507, "serve.deadline": 500}
"""Codes of the server that no request is to blame for, and their statuses."""


class RefusedError(HttpError):
    """A worker's error, as it told it. Its status is 400 where the request is to blame."""

    def __init__(self, facts: dict[str, str]) -> None:
        code = facts["code"]
        is_theirs = code.startswith(("request", "media", "serve", "queue"))
        super().__init__(_OWN_FAULTS.get(code, 400 if is_theirs else 500), facts["found"])
        for part in ("code", "field", "found", "expected", "hint"):
            setattr(self, part, facts[part])
        self._facts = dict(facts)

    def to_json(self) -> dict[str, str]:
        return dict(self._facts)


def died_error(deaths: int) -> dict[str, str]:
    """The error of a job whose process ended too often."""
    return HttpError(
        500,
        f"the process that ran this job ended {deaths} times",
        expected="a result",
        hint="make the request smaller, or look for the reason in the server's log",
        code="worker_died",
    ).to_json()


def disk_full() -> HttpError:
    """The error of whatever cannot be kept because the disk, or a quota of it, is full."""
    return HttpError(
        507, "the server's disk is full", hint="try again later, or delete jobs", code="serve.disk"
    )


def not_kept(error: OSError) -> HttpError:
    """The error of a result whose files cannot be put into their place."""
    if is_disk_full(error):
        return disk_full()
    return HttpError(
        500, "the result cannot be kept", hint="look for the reason in the server's log", code="serve.disk"
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # Before Python 3.11 SQLite's code of an error cannot be read.
        if isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error):
            return True
        error = error.__cause__
    return False


def too_many_inputs(found: int, most: int) -> RequestError:
    """The error of a request with more inputs than a server takes."""
    return RequestError(
        f"{found} inputs are given", expected=f"{most} or fewer", code="request.too_large", field="inputs"
    )


def too_many_frames(found: str, most: int) -> RequestError:
    """The error of a result that is longer than a worker keeps. found: how many frames it has."""
    return RequestError(
        f"the result has {found} frames",
        expected=f"{most} or fewer",
        hint="set num_frames, or send the video in parts",
        code="request.too_large",
        field="num_frames",
    )
