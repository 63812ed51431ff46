"""Results as files: one JSON object a benchmark, with the machine, the versions, the command and the date."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

__all__ = ["FOLDER", "Results", "read_results", "write_results"]

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Results:
    """What one benchmark found. rows: flat objects, one a measurement. facts: what holds for all of them."""

    benchmark: str
    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    date: str = ""


def write_results(
    path: Path, benchmark: str, rows: list[dict[str, Any]], facts: dict[str, Any], arguments: Sequence[str]
) -> Results:
    """Write results with machine, command and date (UTC); the file is replaced in one step."""
    results = Results(
        benchmark=benchmark,
        rows=rows,
        facts=facts,
        machine=describe_machine(),
        command=" ".join(["python", "-m", f"benchmarks.{benchmark}", *arguments]),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    print(f"{path}", file=sys.stderr)
    return results


def read_results(path: Path) -> Results:
    """Read a file of results. Raises ValueError for what is none, FileNotFoundError for what is not there."""
    value = json.loads(path.read_text(encoding="utf-8"))
    wanted = set(Results.__dataclass_fields__)
    if not isinstance(value, dict) or set(value) != wanted:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{path} has {found}; expected the results of a benchmark with {sorted(wanted)}")
    return Results(**value)
