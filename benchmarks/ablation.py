"""`python -m benchmarks.ablation DIR`: the runs of `reference.nano.ablation` as results, with table, plot and verdict.

DIR is the folder of the study (docs/ablation.md). Every run that reached its end is listed, whichever way it came
out. With `--pilot` the pilot's runs are printed, from which the spread is read; they are never written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/ablation.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.report import write_report
from benchmarks.report_ablation import report_ablation
from benchmarks.results import FOLDER, Results, write_results
from reference.nano.ablation import GROUPS, group_mean, read_runs

__all__ = ["main", "rows_of_runs"]


def rows_of_runs(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A flat row a run: arm, seed, what it cost, and the means over the tasks of each group."""
    rows = []
    for run in runs:
        row = {name: run[name] for name in ("arm", "seed", "steps", "tokens", "core_hours", "by_task")}
        for group in GROUPS:
            for measure in ("error_left", "success_rate"):
                row[f"{group}_{measure}"] = group_mean(run, group, measure)
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--pilot", action="store_true", help="print the smaller study")
    parser.add_argument("--out", type=Path, default=FOLDER / "ablation.json")
    args = parser.parse_args(arguments)
    study = args.folder / ("pilot" if args.pilot else "full")
    runs = read_runs(study)
    if not runs:
        print(
            f"error: {study} has no run that reached its end; run `reference.nano.ablation run` first",
            file=sys.stderr,
        )
        return 2
    rows, facts = rows_of_runs(runs), {"budget": runs[0]["budget"]}
    if args.pilot:
        print(report_ablation(Results("ablation", rows, facts))[0])
        return 0
    results = write_results(args.out, "ablation", rows, facts, arguments or sys.argv[1:])
    print(write_report(results, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
