"""`python -m benchmarks.report FILE ...`: results as a Markdown table and an SVG plot beside the file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/report.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.plot import Point, draw_bars, draw_plane
from benchmarks.report_ablation import report_ablation
from benchmarks.report_parts import Row, megabytes, seconds, spread, table
from benchmarks.report_serving import report_growth, report_serving
from benchmarks.results import Results, read_results

__all__ = ["format_report", "write_report"]

OURS = "editverse-rt"


def write_report(results: Results, path: Path) -> str:
    """Write path's twins with the suffixes .md and .svg, and return the Markdown. path: of the results."""
    text, drawing = format_report(results)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    path.with_suffix(".svg").write_text(drawing, encoding="utf-8")
    return text


def format_report(results: Results) -> tuple[str, str]:
    """Markdown and SVG of one benchmark's results. Raises ValueError for a benchmark that is not known."""
    if results.benchmark not in _REPORTS:
        raise ValueError(f"results of {results.benchmark!r}; expected one of {', '.join(_REPORTS)}")
    tables, drawing = _REPORTS[results.benchmark](results)
    return f"{tables}\n\n{_describe_run(results)}\n", drawing


def _describe_run(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"*{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GB; "
        f"{machine['system']}, Python {machine['python']}; {versions}; "
        f"load average {machine['load_average']:.1f}; {results.date} UTC; `{results.command}`*"
    )


def _report_throughput(results: Results) -> tuple[str, str]:
    facts = results.facts
    whole = next(row["wall_s"] for row in results.rows if row["stage"] == "end to end")
    lines = [
        [
            row["stage"],
            seconds(row["first_wall_s"]),
            spread(row, "wall_s"),
            seconds(row.get("cpu_s")),
            f"{row['wall_s'] / whole:.1%}",
            f"{row['flops_per_s'] / 1e9:.0f}" if "flops_per_s" in row else "",
            f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else "",
        ]
        for row in results.rows
    ]
    head = ["stage", "first request", "median (quartiles)", "CPU", "share", "GFLOP/s", "share of peak"]
    summary = (
        f"{facts['bundle']} on {facts['backend']}: {facts['frames']} frames of {facts['size']}, "
        f"{facts['steps']} steps ({facts['evaluations']} evaluations of {facts['tokens']} tokens); "
        f"{facts['requests']} requests, {facts['concurrency']} at once: "
        f"{facts['frames_per_s']:.3g} frames/s, "
        f"{facts['steps_per_s']:.3g} steps/s, {facts['tokens_per_s']:,.0f} tokens/s, "
        f"{facts['cpu_s_per_request']:.3g} CPU s a request, "
        f"peak memory {megabytes(facts['peak_bytes'])}."
    )
    bars = {row["stage"]: {"median": row["wall_s"] * 1e3} for row in results.rows}
    return f"{summary}\n\n{table(head, lines)}", draw_bars("One request, by stage", bars, "ms")


def _report_peers(results: Results) -> tuple[str, str]:
    lines: list[list[str]] = []
    bars: dict[str, dict[str, float]] = {}
    has_load = any("first_result_cpu_s" in row for row in results.rows)
    for work in dict.fromkeys(row["work"] for row in results.rows):
        rows = [row for row in results.rows if row["work"] == work]
        peers = [row for row in rows if row["contender"] != OURS and row.get("agrees")]
        ours = next((row for row in rows if row["contender"] == OURS and "wall_s" in row), None)
        for row in rows:
            note = row.get("missing") or row.get("failed")
            if note is not None:
                lines.append([work, row["contender"], note, *[""] * (6 + has_load)])
                continue
            # How many times faster this project is than the row; of itself, than the best peer.
            rivals = peers if row["contender"] == OURS else [row]
            ratios = ["", ""]
            if ours is not None and rivals:
                ratios = [
                    f"{min(rival[clock] for rival in rivals) / ours[clock]:.2f}x"
                    for clock in ("wall_s", "cpu_s")
                ]
            if row["contender"] == OURS:
                ratios = [f"**{ratio}**" if ratio else "" for ratio in ratios]
            agrees = f"{row['error']:.1e}" if row["agrees"] else f"{row['error']:.1e}: NOT A PEER"
            lines.append([
                work, row["contender"], spread(row, "wall_s"), seconds(row["cpu_s"]), *ratios,
                megabytes(row["peak_bytes"]), seconds(row.get("first_wall_s")),
                *([seconds(row.get("first_result_cpu_s"))] if has_load else []), agrees,
            ])  # fmt: skip
            if ours is not None and row["agrees"]:
                bars.setdefault(work, {})[row["contender"]] = ours["cpu_s"] / row["cpu_s"]
    head = [
        "work", "contender", "median (quartiles)", "CPU", "editverse-rt is faster by", "by CPU time",
        "peak memory", "first call", *(["to the first result, CPU"] if has_load else []), "error",
    ]  # fmt: skip
    note = (
        f"Threads: {results.facts['threads']}. In editverse-rt's row the factors are against the best peer."
    )
    return f"{note}\n\n{table(head, lines)}", draw_bars("Work a CPU second, editverse-rt = 1", bars, "x")


def _report_scaling(results: Results) -> tuple[str, str]:
    axes = list(dict.fromkeys(row["axis"] for row in results.rows))
    lines = [
        [
            row["axis"],
            f"{row['size']:,}",
            seconds(row["wall_s"]),
            seconds(row["cpu_s"]),
            megabytes(row["peak_bytes"]),
        ]
        for row in results.rows
    ]
    fitted = [
        [axis, *(f"{values[key]:.2f}" for key in ("wall_s", "cpu_s", "peak_bytes"))]
        for axis, values in results.facts["exponents"].items()
    ]
    tables = [
        table(["axis", "size", "median", "CPU", "peak memory"], lines),
        table(["axis", "exponent of time", "of CPU time", "of memory"], fitted),
    ]
    curves = {
        axis: [Point(row["size"], row["cpu_s"]) for row in results.rows if row["axis"] == axis]
        for axis in axes
    }
    drawing = draw_plane(
        "CPU time against size", curves, "tokens, frames or requests at once", "CPU s", log_x=True, log_y=True
    )
    return "\n\n".join(tables), drawing


def _success(row: Mapping[str, Any]) -> str:
    """The success rate, with its 95 % interval where the results have one."""
    low, high = row.get("success_interval") or (None, None)
    interval = f" ({low:.1%} to {high:.1%})" if low is not None and high is not None else ""
    return f"{row['success_rate']:.1%}{interval}"


def _report_frontier(results: Results) -> tuple[str, str]:
    has_objects = any(row.get("objects_shown") is not None for row in results.rows)
    shares = {"success_rate_real": "on real clips"} | (
        {"objects_shown": "objects shown"} if has_objects else {}
    )
    lines = [
        [
            f"**{row['named']}**: {row['schedule']}" if row.get("named") else row["schedule"],
            str(row["steps"]),
            str(row["evaluations"]),
            _success(row),
            *(f"{row[key]:.1%}" if row.get(key) is not None else "" for key in shares),
            f"{row['psnr_db']:.1f}",
            f"{row['cpu_s']:.3g} s",
            f"{results.rows[0]['cpu_s'] / row['cpu_s']:.1f}x",
        ]
        for row in results.rows
    ]
    head = [
        "schedule", "steps", "evaluations", "success", *shares.values(), "PSNR against the first, dB",
        "CPU an edit", "faster by",
    ]  # fmt: skip
    solvers = list(dict.fromkeys(row["solver"] for row in results.rows))
    points = {
        solver: [
            Point(row["cpu_s"], 100 * row["success_rate"], row.get("named") or "", bool(row.get("named")))
            for row in results.rows
            if row["solver"] == solver
        ]
        for solver in solvers
    }
    note = f"{results.facts['edits']} held-out edits of the bundle {results.facts['bundle']}."
    drawing = draw_plane(
        "Success against time, each schedule a point", points, "CPU seconds an edit", "success, %",
        log_x=True, is_joined=False,
    )  # fmt: skip
    return f"{note}\n\n{table(head, lines)}", drawing


def _report_variety(results: Results) -> tuple[str, str]:
    kinds = list(results.facts["samples"])
    lines = []
    for row in results.rows:
        figures = [f"{row[kind][key]:.3f}" for kind in kinds for key in ("frechet", "variance", "rmse")]
        kept = "the standard" if row is results.rows[0] else "yes" if row["kept"] else "no"
        lines.append([row["schedule"], str(row["evaluations"]), *figures, kept])
    real = results.facts["real_variance"]
    floor = results.facts.get("real_frechet", {})
    figures = [f"{floor[kind]:.3f}" if kind in floor else "" for kind in kinds]
    lines.append(
        [
            "*other real ones*",
            "",
            *(f for kind, d in zip(kinds, figures, strict=True) for f in (d, f"{real[kind]:.3f}", "")),
            "",
        ]
    )
    head = [
        "schedule",
        "evaluations",
        *(f"{kind}: {name}" for kind in kinds for name in ("Frechet", "variance", "RMSE")),
        "kept",
    ]
    counts = " and ".join(f"{count} {kind}" for kind, count in results.facts["samples"].items())
    note = f"{counts} without text and inputs, by {results.facts['checkpoint']}."
    bars = {row["schedule"]: {kind: row[kind]["frechet"] for kind in kinds} for row in results.rows}
    return f"{note}\n\n{table(head, lines)}", draw_bars("Frechet distance to real latents", bars, "")


def _report_versus(results: Results) -> tuple[str, str]:
    lines = [
        [
            row["work"],
            spread(row["before"], "cpu_s"),
            spread(row["after"], "cpu_s"),
            f"**{row['cpu_factor']:.2f}x**",
            f"{row['factor']:.2f}x",
            " / ".join(megabytes(peak) for peak in row["peak_bytes"]),
            "equal" if row["is_equal"] else f"{row['error']:.1e}",
        ]
        for row in results.rows
    ]
    head = [
        "work", "CPU before (quartiles)", "CPU after", "faster by CPU", "by wall clock", "peak memory",
        "result",
    ]  # fmt: skip
    bars = {row["work"]: {"factor": row["cpu_factor"]} for row in results.rows}
    note = f"{results.facts['other']} against {results.facts['bundle']}, threads: {results.facts['threads']}."
    return f"{note}\n\n{table(head, lines)}", draw_bars("Times faster, by CPU time", bars, "x")


def _report_metrics(results: Results) -> tuple[str, str]:
    ours = {row["work"]: row for row in results.rows if row["contender"] == OURS}
    lines = [
        [
            row["work"],
            row["contender"],
            spread(row, "wall_s"),
            spread(row, "cpu_s"),
            f"{row['frames_per_cpu_s']:.3g}",
            f"{row['cpu_s'] / ours[row['work']]['cpu_s']:.2f}x",
            megabytes(row["peak_bytes"]),
            f"{ours[row['work']]['peak_bytes'] / row['peak_bytes']:.2f}",
            f"{row['error']:.1e}",
        ]
        for row in results.rows
    ]
    head = [
        "model", "contender", "time (quartiles)", "CPU", "frames a CPU second", "CPU against ours",
        "peak memory", "ours against it", "differs by",
    ]  # fmt: skip
    bars = {
        work: {row["contender"]: row["frames_per_cpu_s"] for row in results.rows if row["work"] == work}
        for work in ours
    }
    facts = results.facts
    note = f"{facts['frames']} frames of {facts['size']} to features, threads: {facts['threads']}; random weights."
    return f"{note}\n\n{table(head, lines)}", draw_bars("Frames a CPU second", bars, "frames")


def _report_soak(results: Results) -> tuple[str, str]:
    alone = results.rows[0]

    def rate(row: Row, key: str) -> str:
        return f"{row[key]:.2f} ({row[key] / alone[key]:.2f}x)"

    lines = [
        [
            str(row["concurrency"]),
            str(row["threads"]),
            rate(row, "requests_per_s"),
            rate(row, "requests_per_cpu_s"),
            f"{row['slope_bytes'] / 1e3:+.1f} kB",
            megabytes(row["peak_bytes"]),
            str(len(row["failures"])),
        ]
        for row in results.rows
    ]
    head = [
        "at once", "threads each", "requests/s", "requests a CPU second", "growth a request", "peak memory",
        "failures",
    ]  # fmt: skip
    note = f"{results.facts['requests']} mixed requests of {results.facts['bundle']}."
    curves = {
        f"{row['concurrency']} at once, threads: {row['threads']}": [
            Point(index + 1, value / 1e6) for index, value in enumerate(row["resident_bytes"])
        ]
        for row in results.rows
    }
    drawing = draw_plane("Memory after each request", curves, "request", "MB")
    return f"{note}\n\n{table(head, lines)}", drawing


def _report_native(results: Results) -> tuple[str, str]:
    def between(row: Row, measure: str, show: Callable[[float], str]) -> str:
        if measure not in row:
            return ""
        low, high = row[f"{measure}_range"]
        return f"{show(row[measure])} ({show(low)} to {show(high)})"

    measures = [
        ("wall_s", seconds), ("cpu_s", seconds), ("peak_bytes", megabytes),
        ("first_step_wall_s", seconds), ("first_step_cpu_s", seconds),
    ]  # fmt: skip
    lines = [[row["program"], *(between(row, name, show) for name, show in measures)] for row in results.rows]
    ratios = [
        f"{results.facts[f'{name}_ratio']:.2f} ({low:.2f} to {high:.2f})"
        for name in ("wall_s", "cpu_s", "peak_bytes")
        for low, high in [results.facts[f"{name}_ratio_range"]]
    ]
    lines.append(["ratio of a pair", *ratios, "", ""])
    head = ["program", "wall clock", "CPU", "peak memory", "until the first step", "CPU until then"]
    note = f"{results.rows[0]['repeats']} pairs in turns: medians, with the least and the largest."
    bars = {row["program"]: {"median": row["peak_bytes"] / 1e6} for row in results.rows}
    return f"{note}\n\n{table(head, lines)}", draw_bars("Peak memory of one edit", bars, "MB")


_REPORTS: dict[str, Callable[[Results], tuple[str, str]]] = {
    "throughput": _report_throughput,
    "peers": _report_peers,
    "scaling": _report_scaling,
    "frontier": _report_frontier,
    "variety": _report_variety,
    "soak": _report_soak,
    "growth": report_growth,
    "serving": report_serving,
    "metrics": _report_metrics,
    "versus": _report_versus,
    "native": _report_native,
    "ablation": report_ablation,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results of a benchmark, JSON")
    try:
        for path in parser.parse_args().files:
            print(write_report(read_results(path), path))
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
