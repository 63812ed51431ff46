"""What reports of benchmarks are made of: Markdown tables, and figures with their units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["Row", "megabytes", "seconds", "spread", "table"]

Row = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def spread(row: Row, clock: str) -> str:
    low, high = row[f"{clock}_quartiles"]
    return f"{seconds(row[clock])} ({seconds(low)} to {seconds(high)})"


def megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.0f} MB"
