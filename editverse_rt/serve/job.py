"""A job as data: what is stored of one request to the server, and the states that it goes through.

    queued ──> in_progress ──> completed ──> expired
      │  ^         │  │ └────> failed ─────> expired
      │  └─────────┘  └──────> cancelled ──> expired
      └──────────────────────> cancelled

An in_progress job goes back to queued when its process ends before it does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["FINISHED", "MAX_DEATHS", "PHASES", "STATES", "Job", "StoredInput"]

STATES = ("queued", "in_progress", "completed", "failed", "cancelled", "expired")
FINISHED = frozenset({"completed", "failed", "cancelled", "expired"})
PHASES = ("read", "encode", "denoise", "decode", "write")
MAX_DEATHS = 3
"""A job during which a process ended this many times is given up as `worker_died`."""


@dataclass(frozen=True)
class StoredInput:
    """An uploaded file: its name in the job's folder, its bytes and their sha256."""

    file: str
    num_bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "bytes": self.num_bytes, "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StoredInput:
        return cls(value["file"], value["bytes"], value["sha256"])


@dataclass(frozen=True)
class Job:
    """One row of the store.

    owner: the name of the key that submitted it. view: the interface that did, "native", "video" or "image".
    request: JSON of the edit request without inputs; inputs: by tag. estimate: what checking it gave (size,
    frames, steps, memory, operations). runs: how often it was begun; a process that reports about another
    run is not believed. deaths: runs whose process ended. is_cancelling: cancelled while it runs. Times are
    seconds since 1970; num_bytes: of its files.
    """

    id: str
    owner: str
    view: str
    model: str
    format: str
    request: dict[str, Any]
    inputs: dict[str, StoredInput]
    estimate: dict[str, Any]
    deadline_s: float
    created_at: float
    state: str = "queued"
    runs: int = 0
    deaths: int = 0
    is_cancelling: bool = False
    queued_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    num_bytes: int = 0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def num_windows(self) -> int:
        """In how many windows a long video is done."""
        return int(self.estimate["num_windows"])
