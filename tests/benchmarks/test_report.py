"""Results are read back as they were written, and every benchmark's become a table and a plot."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.plot import Point, draw_bars, draw_plane
from benchmarks.results import Results, read_results, write_results

TIMES = {
    "wall_s": 0.5, "cpu_s": 0.4, "wall_s_quartiles": [0.4, 0.6], "cpu_s_quartiles": [0.3, 0.5],
    "first_wall_s": 1.0, "peak_bytes": 10**8,
}  # fmt: skip
AGREES = {"error": 1e-6, "tolerance": 1e-4, "agrees": True}


def results_of(benchmark: str, rows: list[dict[str, Any]], facts: dict[str, Any], tmp_path: Path) -> Results:
    path = tmp_path / f"{benchmark}.json"
    written = write_results(path, benchmark, rows, facts, ["--quick"])
    assert read_results(path) == written
    return written


def texts_of(svg: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def test_peers_that_differ_are_no_peers_and_absent_ones_are_named(tmp_path: Path):
    rows = [
        {"work": "w", "contender": "pytorch", **TIMES, **AGREES},
        {"work": "w", "contender": "onnxruntime", **TIMES, "cpu_s": 0.01, **AGREES, "agrees": False},
        {"work": "w", "contender": "openvino", "missing": "openvino not installed"},
        {"work": "w", "contender": "editverse-rt", **TIMES, "wall_s": 0.25, "cpu_s": 0.1, **AGREES},
    ]
    text, svg = report.format_report(results_of("peers", rows, {"threads": 1}, tmp_path))
    assert "NOT A PEER" in text
    assert "openvino not installed" in text
    # Twice as fast by the wall clock, four times by CPU seconds; the one that differs does not count.
    assert "| **2.00x** | **4.00x** |" in text
    assert "`python -m benchmarks.peers --quick`" in text
    assert "pytorch" in texts_of(svg)
    assert "onnxruntime" not in texts_of(svg)


def test_scaling_has_its_exponents(tmp_path: Path):
    rows = [{"axis": "tokens", "size": size, **TIMES} for size in (512, 1024)]
    facts = {"exponents": {"tokens": {"wall_s": 1.25, "cpu_s": 1.5, "peak_bytes": 0.1}}}
    text, svg = report.format_report(results_of("scaling", rows, facts, tmp_path))
    assert "| tokens | 1.25 | 1.50 | 0.10 |" in text
    assert "tokens" in texts_of(svg)


def test_metric_models_are_told_beside_ours_by_time_and_memory(tmp_path: Path):
    speed = {"frames_per_s": 16.0, "frames_per_cpu_s": 20.0, "error": 1e-6}
    ours = {"work": "clip", "contender": "editverse-rt", **TIMES, **speed}
    other = {**ours, "contender": "transformers", "cpu_s": 0.8, "peak_bytes": 2 * 10**8}
    facts = {"threads": 1, "frames": 8, "size": "848x480", "small": False}
    text, svg = report.format_report(results_of("metrics", [ours, other], facts, tmp_path))
    # Twice the CPU time of ours, and ours takes half of its memory.
    assert "| 2.00x | 200 MB | 0.50 |" in text
    assert "random weights" in text
    assert "transformers" in texts_of(svg)


def test_the_frontier_marks_the_named_schedules(tmp_path: Path):
    row = {
        "steps": 50,
        "evaluations": 100,
        "success_rate": 0.5,
        "psnr_db": 99.0,
        "cpu_s": 4.0,
        "solver": "euler",
    }
    rows = [
        {"schedule": "euler-50", "named": "paper", **row},
        {"schedule": "ab2-8", **row, "solver": "ab2", "evaluations": 16, "cpu_s": 0.5, "psnr_db": 31.0},
    ]
    text, svg = report.format_report(results_of("frontier", rows, {"edits": 4, "bundle": "nano"}, tmp_path))
    assert "**paper**: euler-50" in text
    assert "8.0x" in text
    assert "paper" in texts_of(svg)


def test_unknown_results_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="results of 'dance'"):
        report.format_report(results_of("dance", [], {}, tmp_path))
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match=r"other\.json has \['rows'\]"):
        read_results(tmp_path / "other.json")


def test_bars_are_as_long_as_their_values():
    svg = ElementTree.fromstring(draw_bars("t", {"g": {"a": 1.0, "b": 4.0}}, "s"))
    widths = [
        float(e.get("width", "0")) for e in svg.iter() if e.tag.endswith("rect") and e.get("height") == "12"
    ]
    assert widths[1] == pytest.approx(4 * widths[0], rel=1e-2)


def test_a_plane_with_equal_points_still_has_axes():
    svg = draw_plane("t", {"a": [Point(1.0, 2.0, "here <&>", True)]}, "x", "y", log_x=True)
    assert "here <&>" in texts_of(svg)
