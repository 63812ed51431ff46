"""Whole processes are measured from outside, and pairs of them become ratios."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import native, report
from benchmarks.memory import peak_bytes
from benchmarks.native import ProcessSample, compare_pairs, run_process
from benchmarks.results import write_results


def test_a_process_is_measured_with_its_peak_and_its_first_word() -> None:
    more = peak_bytes() + 200_000_000
    code = (
        f"import sys; x = bytearray({more}); x[::4096] = bytes(len(x[::4096])); print('hi', file=sys.stderr)"
    )
    sample = run_process([sys.executable, "-c", code])
    assert more < sample.peak_bytes < more + 200_000_000
    assert sample.first_step_wall_s is not None
    assert 0 < sample.first_step_wall_s <= sample.wall_s
    assert sample.cpu_s > 0


def test_a_failure_says_why() -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        run_process([sys.executable, "-c", "raise SystemExit('out of luck')"])


def test_a_peak_below_the_parents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "peak_bytes", lambda: 2**50)
    with pytest.raises(RuntimeError, match="cannot be told"):
        run_process([sys.executable, "-c", "pass"])


def test_the_ratios_are_of_pairs_and_stand_in_the_report(tmp_path: Path) -> None:
    ours = [ProcessSample(1.0, 0.5, 60, 0.2, 0.1), ProcessSample(2.0, 1.0, 50), ProcessSample(9.0, 1.0, 50)]
    theirs = [ProcessSample(2.0, 1.0, 100), ProcessSample(2.0, 1.0, 100), ProcessSample(3.0, 1.0, 100)]
    facts = compare_pairs(ours, theirs)
    assert facts["wall_s_ratio"] == 1.0
    assert facts["wall_s_ratio_range"] == [0.5, 3.0]
    assert facts["peak_bytes_ratio"] == 0.5
    rows: list[dict[str, Any]] = [native._row("C example", ours), native._row("Python", theirs)]
    assert rows[0]["first_step_wall_s"] == 0.2
    assert "first_step_wall_s" not in rows[1]
    text, svg = report.format_report(
        write_results(tmp_path / "n.json", "native", rows, facts, ["--pairs", "3"])
    )
    assert "| ratio of a pair | 1.00 (0.50 to 3.00) | 1.00 (0.50 to 1.00) | 0.50 (0.50 to 0.60) |" in text
    assert "C example" in svg
