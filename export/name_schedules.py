"""`python -m export.name_schedules BUNDLE FRONTIER.json`: the schedules that were measured best, into a bundle.

FRONTIER.json is what `python -m benchmarks.frontier` writes: rows, one a schedule, and which of them are named.
The quality report of `python -m export.quality BUNDLE --write` comes first, since it is written anew there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python export/name_schedules.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from editverse_rt.bundle.manifest import Bundle, load_bundle, write_bundle_json
from editverse_rt.errors import EditVerseError
from editverse_rt.fields import read_json
from export.schedules import ScheduleSettings, build_schedule

__all__ = ["main", "name_schedules"]

MEASURED = ("evaluations", "success_rate", "success_rate_real", "psnr_db", "cpu_s")
"""What the quality report keeps of a row."""
REPLACED = ("balanced", "fast")
"""A schedule of these names goes where it is not named any more."""


def name_schedules(bundle: Bundle, rows: Sequence[Mapping[str, Any]], named: Mapping[str, str]) -> None:
    """Put the named schedules into the bundle, and what was measured of them into its quality report.

    rows: by their label in "schedule", with their settings and `MEASURED`; the first is what the others were
    compared with. named: label by name. Raises KeyError for a label without a row, BundleError for schedules whose
    graph the bundle lacks.
    """
    by_label = {row["schedule"]: row for row in rows}
    schedules = {name: found for name, found in bundle.spec.schedules.items() if name not in REPLACED}
    first = rows[0]["schedule"]
    measured = {}
    for name, label in named.items():
        row = by_label[label]
        schedules[name] = build_schedule(name, ScheduleSettings(**row["settings"]))
        against = "paper" if first == ScheduleSettings().label else first
        measured[name] = {"settings": label, "psnr_against": against, **{key: row[key] for key in MEASURED}}
    quality = {**bundle.spec.quality, "schedules": measured}
    write_bundle_json(bundle.root, dataclasses.replace(bundle.spec, schedules=schedules, quality=quality))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.name_schedules",
        description="Put the schedules that a report of benchmarks.frontier names into a bundle.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="name or folder")
    parser.add_argument(
        "frontier", type=Path, metavar="FRONTIER.json", help="of `python -m benchmarks.frontier`"
    )
    args = parser.parse_args(argv)
    try:
        report: Any = read_json(args.frontier)
        named = report["facts"]["named"]
        name_schedules(load_bundle(args.bundle), report["rows"], named)
    except EditVerseError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (LookupError, TypeError, ValueError) as error:
        said = f"{args.frontier}: {type(error).__name__} {error}; expected a report of benchmarks.frontier"
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        return 2
    print(", ".join(f"{name}: {label}" for name, label in named.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
