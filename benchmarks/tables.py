"""`python -m benchmarks.tables`: the tables of docs/benchmarks.md, from the files in benchmarks/results/, and those of
docs/nano.md, from the quality report in the bundle that ships. docs/long_videos.md has a table of results as well.

A table stands between `<!-- table NAME -->` and `<!-- end of table -->`. With `--check` nothing is written, and the
exit code is 1 if a table is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/tables.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.report_serving import GROWTH_HEAD, growth_cells
from benchmarks.results import FOLDER, Results, read_results

__all__ = ["LONG_PAGE", "NANO_PAGE", "PAGE", "fill_tables", "main"]

PAGE = FOLDER.parents[1] / "docs" / "benchmarks.md"
NANO_PAGE = PAGE.with_name("nano.md")
LONG_PAGE = PAGE.with_name("long_videos.md")
BUNDLE = FOLDER.parents[1] / "editverse_rt" / "bundles" / "nano" / "bundle.json"
OURS = "editverse-rt"
CONTENDERS = ("pytorch", "torch.compile", "onnxruntime", "openvino")
PEERS = (
    "peers-edit",
    "peers-once",
    "peers-transformer",
    "peers-transformer-16k",
    "peers-vae",
    "peers-wan",
    "peers-t5",
)
_TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

Row = dict[str, Any]


def fill_tables(page: str, folder: Path = FOLDER) -> str:
    """The page with every table written anew. folder: of the results.

    Raises ValueError for a table that has no maker, FileNotFoundError for results that are not there.
    """

    def filled(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in _MAKERS:
            raise ValueError(f"table {name!r}; expected one of {', '.join(_MAKERS)}")
        return f"{begin}{_MAKERS[name](folder)}\n{end}"

    return _TABLE.sub(filled, page)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _link(name: str) -> str:
    return f"[{name}](../benchmarks/results/{name}.md)"


def _rows_by_work(results: Results) -> dict[str, dict[str, Row]]:
    works: dict[str, dict[str, Row]] = {}
    for row in results.rows:
        works.setdefault(row["work"], {})[row["contender"]] = row
    return works


def _peer_table(folder: Path, cell: Callable[[Row, Row], str], ours: Callable[[Row], str]) -> str:
    lines = []
    for name in PEERS:
        for work, rows in _rows_by_work(read_results(folder / f"{name}.json")).items():
            cells = []
            for contender in CONTENDERS:
                row = rows.get(contender, {})
                if "failed" in row:
                    cells.append("failed")
                elif "wall_s" not in row:
                    cells.append("")
                else:
                    cells.append(cell(row, rows[OURS]) if row["agrees"] else "other numbers")
            lines.append([work, *cells, ours(rows[OURS]), _link(name)])
    return _table(["work", *CONTENDERS, OURS, "all figures"], lines)


def _make_peers(folder: Path) -> str:
    def cell(row: Row, ours: Row) -> str:
        return f"{_seconds(row['wall_s'])} ({row['wall_s'] / ours['wall_s']:.2f}x)"

    return _peer_table(folder, cell, lambda row: _seconds(row["wall_s"]))


def _make_memory(folder: Path) -> str:
    def cell(row: Row, ours: Row) -> str:
        return f"{row['peak_bytes'] / 1e6:,.0f} ({row['peak_bytes'] / ours['peak_bytes']:.2f}x)"

    return _peer_table(folder, cell, lambda row: f"{row['peak_bytes'] / 1e6:,.0f}")


def _make_stages(folder: Path) -> str:
    found = {name: read_results(folder / f"{name}.json") for name in ("throughput", "throughput-fast")}
    stages = [row["stage"] for row in found["throughput"].rows]
    lines = []
    for name, results in found.items():
        seconds = {row["stage"]: row["wall_s"] for row in results.rows}
        evaluations = f"{results.facts['steps']} steps, {results.facts['evaluations']} evaluations"
        first = _seconds(results.facts["seconds_of_first"])
        lines.append([evaluations, *(f"{seconds[s] * 1e3:.3g}" for s in stages), first, _link(name)])
    return _table(["", *stages, "first request", "all figures"], lines)


def _make_whole_videos(folder: Path) -> str:
    """Means over the seeds, which have as many edits each, with the range of success."""
    results = read_results(folder / "whole-videos.json")
    lines = []
    for way in dict.fromkeys(row["way"] for row in results.rows):
        rows = [row for row in results.rows if row["way"] == way]
        mean = {
            name: sum(row[name] for row in rows) / len(rows)
            for name, value in rows[0].items()
            if name != "way"
        }
        least, most = (pick(row["whole"] for row in rows) for pick in (min, max))
        quarters = ", ".join(f"{mean[f'quarter_{k}']:.0%}" for k in range(4))
        lines.append(
            [
                way,
                f"{mean['whole']:.0%} ({least:.0%} to {most:.0%})",
                f"{mean['first_window']:.0%}",
                quarters,
                f"{mean['seam']:.2f}",
                f"{mean['elsewhere']:.2f}",
                f"{mean['evaluations']:.2f}",
            ]
        )
    head = [
        "way",
        "whole clip right (seeds)",
        "first window right",
        "each quarter right",
        "change at seams",
        "change elsewhere",
        "evaluations",
    ]
    return _table(head, lines)


def _make_load(folder: Path) -> str:
    results = read_results(folder / "soak.json")
    lines = [
        [
            str(row["concurrency"]),
            str(row["threads"]),
            f"{row['requests_per_s']:.1f}",
            f"{row['slope_bytes'] / 1e3:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            str(len(row["failures"])),
        ]
        for row in results.rows
    ]
    head = [
        "requests at once",
        "threads each",
        "requests a second",
        "growth a request, kB",
        "peak memory, MB",
    ]
    return _table([*head, "failures"], lines)


def _make_growth(folder: Path) -> str:
    results = read_results(folder / "growth.json")
    lines = [[*growth_cells(row), _link("growth")] for row in results.rows]
    return _table([*GROWTH_HEAD, "all figures"], lines)


def _make_serving(folder: Path) -> str:
    results = read_results(folder / "serving.json")
    lines = [
        [
            str(row["clients"]),
            str(row["done"]),
            f"{row['requests_per_s']:.2f}",
            f"{row['in_process_requests_per_s']:.2f}",
            f"{row['requests_per_s'] / row['in_process_requests_per_s']:.0%}",
            *(
                f"{_seconds(row[f'{name}_p50_s'])}, {_seconds(row[f'{name}_p99_s'])}"
                for name in ("healthz", "status")
            ),
            str(len(row["failures"])),
            _link("serving"),
        ]
        for row in results.rows
    ]
    head = [
        "clients",
        "jobs",
        "jobs a second",
        "`RequestQueue` in process",
        "share of that",
        "`/healthz`, p50, p99",
        "a job's state, p50, p99",
        "failures",
        "all figures",
    ]
    return _table(head, lines)


def _make_schedules(folder: Path) -> str:
    results = read_results(folder / "frontier.json")
    first = results.rows[0]
    lines = [
        [
            f"`{row['named']}`",
            f"`{row['schedule']}`",
            str(row["evaluations"]),
            f"{row['success_rate']:.1%}",
            "" if row is first else f"{row['psnr_db']:.1f}",
            f"{first['cpu_s'] / row['cpu_s']:.1f}x",
        ]
        for row in results.rows
        if row.get("named")
    ]
    head = ["name", "schedule", "evaluations", "success", "PSNR against 50 steps, dB", "speed by CPU time"]
    return _table(head, lines)


def _make_variety(folder: Path) -> str:
    results = read_results(folder / "variety.json")
    kinds = list(results.facts["samples"])
    lines = []
    for row in results.rows:
        figures = [f"{row[kind][key]:.3g}" for kind in kinds for key in ("frechet", "variance")]
        kept = "the standard" if row is results.rows[0] else "yes" if row["kept"] else "no"
        lines.append([f"`{row['schedule']}`", str(row["evaluations"]), *figures, kept])
    columns = [f"{kind}: {name}" for kind in kinds for name in ("Frechet", "variance")]
    return _table(["schedule", "evaluations", *columns, "kept"], lines)


def _quality_table(report: Row, parts: Sequence[str] = ()) -> str:
    rows = {**report["by_task"], **{name: report[name] for name in parts}}

    def decibels(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    lines = [
        [
            task,
            str(row["edits"]),
            f"{row['success_rate']:.0%}",
            decibels(row["changed_db"]),
            decibels(row["preserved_db"]),
        ]
        for task, row in rows.items()
    ]
    lines.append(["**all**", str(report["edits"]), f"{report['success_rate']:.1%}", "", ""])
    return _table(["task", "edits", "success", "changed region, dB", "preserved region, dB"], lines)


def _make_quality(folder: Path) -> str:
    return _quality_table(json.loads(BUNDLE.read_text("utf-8"))["quality"], ("images", "videos"))


def _make_real(folder: Path) -> str:
    return _quality_table(json.loads(BUNDLE.read_text("utf-8"))["quality"]["real_clips"])


def _make_photographs(folder: Path) -> str:
    return _quality_table(json.loads(BUNDLE.read_text("utf-8"))["quality"]["photographs"])


_MAKERS: dict[str, Callable[[Path], str]] = {
    "peers": _make_peers,
    "memory": _make_memory,
    "stages": _make_stages,
    "load": _make_load,
    "schedules": _make_schedules,
    "variety": _make_variety,
    "growth": _make_growth,
    "serving": _make_serving,
    "quality": _make_quality,
    "real": _make_real,
    "photographs": _make_photographs,
    "whole_videos": _make_whole_videos,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or check it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is old")
    check = parser.parse_args(argv).check
    is_old = False
    for path in (PAGE, NANO_PAGE, LONG_PAGE):
        page = path.read_text(encoding="utf-8")
        new = fill_tables(page)
        if new == page:
            continue
        is_old = True
        if not check:
            path.write_text(new, encoding="utf-8")
        print(f"{path}: {'has old tables; run `python -m benchmarks.tables`' if check else 'written'}")
    return int(check and is_old)


if __name__ == "__main__":
    sys.exit(main())
