"""Two runs item by item: what is different, what is chance; and our metrics beside published scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.metrics import METRICS
from editverse_rt.quality.statistics import LEVEL, PairedDifference, compare_paired

__all__ = ["Calibration", "calibrate", "compare_reports", "describe_calibration", "describe_comparison"]

_CSV_NAMES = {
    "pick_score_video_quality": "pick",
    "frame_text_alignment": "frame_text",
    "video_text_alignment": "video_text",
    "clip_temporal_consistency": "clip_temporal",
    "dino_temporal_consistency": "dino_temporal",
    "editing_vlm_evaluation": "judge",
}


def compare_reports(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[dict[str, PairedDifference], list[str]]:
    """Second minus first, by metric, and a line for each metric that cannot be compared.

    Raises RequestError for reports of different benchmarks.
    """
    if first["benchmark"] != second["benchmark"]:
        raise RequestError(
            f"found reports of {first['benchmark']} and {second['benchmark']}",
            expected="two of one benchmark",
            code="request.benchmark",
        )
    found, notices = {}, []
    for name in first["metrics"]:
        if name not in second["metrics"]:
            notices.append(f"{name}: only the first report has it")
            continue
        reason = _difference_of_protocols(name, first, second)
        if reason:
            notices.append(f"{name}: {reason}")
            continue
        try:
            found[name] = compare_paired(_values(first, name), _values(second, name))
        except RequestError as error:
            notices.append(f"{name}: {error}")
    notices += [
        f"{name}: only the second report has it" for name in second["metrics"] if name not in first["metrics"]
    ]
    return found, notices


def describe_comparison(differences: Mapping[str, PairedDifference], notices: list[str]) -> list[str]:
    """A line for each metric: the mean difference, its interval, and whether it may be chance."""
    lines = [f"second minus first, paired bootstrap over items, {LEVEL:.0%} interval"]
    for name, one in differences.items():
        verdict = (
            "no item differs"
            if one.mean == one.low == one.high == 0
            else f"the second is {'higher' if one.mean > 0 else 'lower'}"
            if one.excludes_zero
            else "may be chance"
        )
        lines.append(
            f"{name:<16}{one.mean:>+10.4f}  {one.low:+.4f} to {one.high:+.4f}  {one.count} items  {verdict}"
        )
    return [*lines, *notices]


@dataclass(frozen=True)
class Calibration:
    """Our scores beside published ones. largest: absolute difference, at the item `worst`."""

    count: int
    mean_difference: float
    largest: float
    worst: str


def calibrate(report: Mapping[str, Any], folder: Path) -> tuple[dict[str, Calibration], list[str]]:
    """Hold a report to the CSV of published scores in a folder, one row an item, as `eval.py` writes it.

    Temporal scores between 0 and 1 are taken times 100. Returns the metrics that both have, and a line for
    what could not be compared. Raises RequestError where there is not one CSV file, or it has no `id`.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.csv"))
    if len(files) != 1:
        raise RequestError(
            f"{folder}: found {len(files)} CSV files",
            expected="one, of published scores by item",
            code="request.benchmark",
        )
    published = _published(files[0])
    found, notices = {}, []
    for name, theirs in published.items():
        ours = _values(report, name)
        if report["metrics"].get(name, {}).get("random"):
            notices.append(f"{name}: metric models are random")
            continue
        shared = {key: (ours[key], theirs[key]) for key in theirs if ours.get(key) is not None}
        if not shared:
            notices.append(f"{name}: no item in common")
            continue
        differences = {key: float(one or 0) - other for key, (one, other) in shared.items()}
        worst = max(differences, key=lambda key: abs(differences[key]))
        found[name] = Calibration(
            len(differences), float(np.mean([*differences.values()])), abs(differences[worst]), worst
        )
    return found, notices


def describe_calibration(found: Mapping[str, Calibration], notices: list[str]) -> list[str]:
    """A line for each metric."""
    lines = ["ours minus published, item by item"]
    for name, one in found.items():
        lines.append(
            f"{name:<16}{one.count:>5} items  mean {one.mean_difference:+.4f}  "
            f"largest {one.largest:.4f} at item {one.worst}"
        )
    return [*lines, *notices]


def _published(path: Path) -> dict[str, dict[str, float]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise RequestError(f"{path}: cannot be read as CSV ({error})", code="request.benchmark") from error
    if not rows or "id" not in rows[0]:
        raise RequestError(
            f"{path}: found no column id", expected="one row an item", code="request.benchmark"
        )
    found: dict[str, dict[str, float]] = {}
    for column, name in _CSV_NAMES.items():
        values: dict[str, float] = {}
        for row in rows:
            try:
                value = float(row.get(column) or "nan")
            except ValueError:
                continue
            if row["id"] != "Average" and np.isfinite(value):
                values[row["id"]] = value
        if values:
            is_share = name.endswith("_temporal") and max(values.values()) <= 1.0
            found[name] = {key: value * (100 if is_share else 1) for key, value in values.items()}
    return found


def _values(report: Mapping[str, Any], name: str) -> dict[str, float | None]:
    return {item["key"]: item["values"].get(name) for item in report["items"]}


def _difference_of_protocols(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Why a metric of two reports is not one metric; "" where it is."""
    if name == "judge":
        return "" if first["judge"] == second["judge"] else "another judge, profile or question"
    if name in METRICS and (first["models"] or {}).get("hash") != (second["models"] or {}).get("hash"):
        return "other metric models"
    return ""
