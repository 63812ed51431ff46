"""The ablation's runs become a table of all of them, a verdict and a plot; the pilot is printed alone."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import ablation
from benchmarks.plot import draw_pairs
from benchmarks.results import read_results
from reference.nano.ablation import LEFT_OUT, SEEN

BUDGET = {"clips": 6000, "distinct_clips": 800, "images": 12_000, "distinct_images": 4_000}
ERROR_LEFT = {"A": (0.60, 0.62, 0.61), "B": (0.40, 0.43, 0.41), "C": (0.50, 0.52, 0.51)}


def write_runs(study: Path) -> None:
    """Images help by 0.2 on what was seen on clips, and not at all on what was not."""
    for arm, values in ERROR_LEFT.items():
        for seed, value in enumerate(values):
            run = study / f"seed-{seed}-{arm}"
            run.mkdir(parents=True)
            by_task = {task: {"error_left": value, "success_rate": 1 - value} for task in SEEN}
            by_task |= {task: {"error_left": 0.9 + 0.01 * seed, "success_rate": 0.0} for task in LEFT_OUT}
            facts = {"arm": arm, "seed": seed, "budget": BUDGET, "steps": 1200, "tokens": 3_400_000}
            (run / "result.json").write_text(json.dumps({**facts, "core_hours": 0.25, "by_task": by_task}))


def test_every_run_is_listed_and_the_verdict_stands_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_runs(tmp_path / "full")
    out = tmp_path / "ablation.json"
    assert ablation.main([str(tmp_path), "--out", str(out)]) == 0
    text = capsys.readouterr().out.strip()
    assert out.with_suffix(".md").read_text().strip() == text
    assert "A, B and C: 6,000 draws of 800 clips. B besides: 12,000 draws of 4,000 images." in text
    assert "| 1 | B | 1,200 | 3.40 | 0.25 | 0.4300 | 57.0% | 0.9100 | 0.0% |" in text
    assert text.count("| 1,200 |") == 9
    assert "| add_object | lift | 0.610 | 0.413 | 0.510 | 39% | 59% | 49% |" in text
    assert "| lift, error_left | B - A | 3 | -0.1967 |" in text
    assert "lift: images teach video" in text
    assert "transfer: the claim is not shown" in text
    assert len(read_results(out).rows) == 9
    assert "seed 2" in out.with_suffix(".svg").read_text()


def test_the_pilot_is_printed_and_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_runs(tmp_path / "pilot")
    out = tmp_path / "ablation.json"
    assert ablation.main([str(tmp_path), "--pilot", "--out", str(out)]) == 0
    assert "| lift, error_left | B - C |" in capsys.readouterr().out
    assert not out.exists()


def test_a_study_without_runs_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert ablation.main([str(tmp_path)]) == 2
    assert "no run that reached its end; run `reference.nano.ablation run` first" in capsys.readouterr().err


def test_pairs_are_placed_by_their_values_and_may_lack_a_category():
    svg = draw_pairs("t", {"left": {"s": {"A": 0.0, "B": 1.0}, "u": {"B": 0.5}}}, ("A", "B"))
    root = ElementTree.fromstring(svg)
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(dots) == 3
    low, high, middle = (float(dot.attrib["cy"]) for dot in dots)
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    assert high < low  # a larger value stands higher
    assert float(dots[1].attrib["cx"]) == float(dots[2].attrib["cx"])
    # The mean of B, 0.75, is a bar across.
    bars = [e.attrib["d"] for e in root.iter() if e.attrib.get("stroke-width") == "3"]
    assert len(bars) == 2
    assert float(bars[1].split()[1].split("h")[0]) == pytest.approx((high + middle) / 2, abs=0.1)
