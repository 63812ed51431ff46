"""Schedules by quality and cost: what is measured, what is chosen, and what the bundle says of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks import frontier
from editverse_rt.bundle.manifest import load_bundle
from export.integers import quantize_bundle
from export.schedules import ScheduleSettings
from reference.nano.heldout import generation_samples, heldout_samples


def row(schedule: str, evaluations: int, success_rate: float, psnr_db: float) -> dict[str, Any]:
    return {
        "schedule": schedule, "settings": ScheduleSettings.from_label(schedule).to_json(), "evaluations": evaluations,
        "success_rate": success_rate, "success_rate_real": None, "psnr_db": psnr_db, "cpu_s": 0.1,
    }  # fmt: skip


PAPER = row("euler-50", 100, 0.80, 99.0)


def test_the_cheapest_that_keeps_the_quality_is_chosen():
    rows = [
        PAPER,
        row("ab2-20", 40, 0.80, 40.0),
        row("ab2-10", 20, 0.795, 31.0),
        row("ab2-8", 16, 0.81, 29.9),
        row("ab3-8", 16, 0.80, 25.0),
        row("ab2-4", 8, 0.78, 35.0),
    ]
    assert frontier.choose_named(rows) == {"paper": "euler-50", "balanced": "ab2-20", "fast": "ab2-10"}


def test_of_equal_cost_the_nearer_one_is_chosen():
    rows = [PAPER, row("euler-4", 8, 0.80, 41.0), row("ab2-4", 8, 0.80, 42.0), row("ab3-4", 8, 0.80, 39.0)]
    assert frontier.choose_named(rows) == {"paper": "euler-50", "balanced": "ab2-4", "fast": "ab2-4"}


def test_a_schedule_that_loses_more_than_a_point_is_not_offered():
    assert frontier.choose_named([PAPER, row("ab2-4", 8, 0.78, 35.0)]) == {"paper": "euler-50"}
    assert frontier.choose_named([PAPER, row("ab2-8", 16, 0.80, 29.9)]) == {"paper": "euler-50"}
    assert frontier.choose_named([PAPER, row("ab2-8", 16, 0.80, 39.9)]) == {
        "paper": "euler-50",
        "fast": "ab2-8",
    }


def test_a_schedule_that_fails_the_many_valued_test_is_not_named():
    rows = [PAPER, row("ab2-8 guided 0-0.5", 12, 0.80, 45.0), row("ab2-4", 8, 0.80, 45.0)]
    found = [
        {"schedule": "ab2-8 guidance 1", "kept": True, "distilled": False},
        {"schedule": "ab2-4 guidance 1", "kept": False, "distilled": False},
        {"schedule": "two-steps", "kept": True, "distilled": True},
    ]
    assert frontier.choose_named(rows)["fast"] == "ab2-4"
    frontier.mark_variety(rows, found)
    assert [one["keeps_variety"] for one in rows] == [None, True, False]
    assert frontier.choose_named(rows) == {
        "paper": "euler-50", "balanced": "ab2-8 guided 0-0.5", "fast": "ab2-8 guided 0-0.5",
    }  # fmt: skip


def test_objects_of_described_scenes_are_counted():
    settings = {"euler-2": ScheduleSettings("euler", 2), "euler-1": ScheduleSettings("euler", 1)}
    scenes = list(itertools.islice(generation_samples(2), 2))
    samples = list(itertools.islice(heldout_samples(1), 1))
    rows = frontier.measure_schedules(load_bundle("nano"), settings, samples, (), scenes)
    assert all(0 <= row["objects_shown"] <= 1 for row in rows)
    # The scenes enter nothing else.
    without = frontier.measure_schedules(load_bundle("nano"), settings, samples)
    assert [row["psnr_db"] for row in rows] == [row["psnr_db"] for row in without]
    assert [row["objects_shown"] for row in without] == [None, None]


def test_schedules_are_measured_through_the_runtime():
    settings = {"euler-2": ScheduleSettings("euler", 2), "euler-1": ScheduleSettings("euler", 1)}
    samples = list(itertools.islice(heldout_samples(1), 1))
    first, second = frontier.measure_schedules(load_bundle("nano"), settings, samples, samples)
    assert (first["evaluations"], second["evaluations"]) == (4, 2)
    assert first["psnr_db"] == 99.0
    assert second["psnr_db"] < 99.0
    assert first["success_rate"] == first["success_rate_real"] in (0.0, 1.0)
    assert first["cpu_s"] > 0


def test_processes_that_share_the_edits_find_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frontier, "EDITS_A_PART", 1)
    settings = {"euler-2": ScheduleSettings("euler", 2), "euler-1": ScheduleSettings("euler", 1)}
    samples = list(itertools.islice(heldout_samples(1), 2))
    alone, shared = (
        frontier.measure_schedules(load_bundle("nano"), settings, samples, samples[:1], workers=workers)
        for workers in (1, 2)
    )
    for one, other in zip(alone, shared, strict=True):
        assert {**one, "cpu_s": None} == {**other, "cpu_s": None}


def test_a_bundle_may_be_held_to_another(tmp_path: Path):
    nano = load_bundle("nano")
    settings = {"euler-1 of nano": ScheduleSettings("euler", 1), "euler-1": ScheduleSettings("euler", 1)}
    samples = list(itertools.islice(heldout_samples(1), 1))
    lossy = load_bundle(quantize_bundle("nano", tmp_path / "int8"))
    exact = frontier.measure_schedules(nano, settings, samples, standard=nano)
    rounded = frontier.measure_schedules(lossy, settings, samples, standard=nano)
    assert exact[1]["psnr_db"] == 99.0
    assert 20 < rounded[1]["psnr_db"] < 99.0


def test_the_candidates_begin_with_the_papers_and_are_schedules():
    assert frontier.CANDIDATES[0] == ScheduleSettings().label == frontier.PAPER
    assert len(set(frontier.CANDIDATES)) == len(frontier.CANDIDATES)
    assert all(ScheduleSettings.from_label(label).label == label for label in frontier.CANDIDATES)


def test_a_label_that_is_none_ends_the_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        frontier.main(["--schedule", "heun-3 backwards"])
    assert stopped.value.code == 2
    assert "is no schedule" in capsys.readouterr().err
