"""Comparison of two runs, and of a run with published scores."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.comparing import (
    calibrate,
    compare_reports,
    describe_calibration,
    describe_comparison,
)


def make_report(values: list[float | None], **changes: Any) -> dict[str, Any]:
    items = [{"key": str(i), "values": {"judge": v, "pick": v}} for i, v in enumerate(values)]
    metric = {"random": False}
    return {
        "benchmark": "editverse-bench",
        "metrics": {"judge": metric, "pick": metric},
        "judge": {"model": "j"},
        "models": {"hash": "h"},
        "items": items,
    } | changes


VALUES = [float(value) for value in np.random.default_rng(0).normal(5, 1, 30)]


def test_a_run_does_not_differ_from_itself() -> None:
    report = make_report(VALUES)
    found, notices = compare_reports(report, copy.deepcopy(report))
    assert not notices
    for one in found.values():
        assert (one.mean, one.low, one.high, one.above) == (0, 0, 0, 0.5)
    assert "no item differs" in describe_comparison(found, notices)[1]


def test_swapped_runs_swap_the_sign() -> None:
    rng = np.random.default_rng(1)
    other = make_report([value + 1 + float(rng.normal(0, 0.1)) for value in VALUES])
    forward, _ = compare_reports(make_report(VALUES), other)
    back, _ = compare_reports(other, make_report(VALUES))
    one, two = forward["judge"], back["judge"]
    assert one.mean == pytest.approx(-two.mean)
    assert (one.low, one.high) == (pytest.approx(-two.high), pytest.approx(-two.low))
    assert one.excludes_zero
    assert "the second is higher" in describe_comparison(forward, [])[1]
    assert "the second is lower" in describe_comparison(back, [])[1]


def test_noise_may_be_chance() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, 30)
    other = make_report([value + float(one) for value, one in zip(VALUES, noise - noise.mean(), strict=True)])
    found, _ = compare_reports(make_report(VALUES), other)
    assert "may be chance" in describe_comparison(found, [])[1]


def test_what_is_not_one_metric_is_not_compared() -> None:
    first = make_report(VALUES)
    found, notices = compare_reports(
        first, make_report(VALUES, judge={"model": "k"}, models={"hash": "other"})
    )
    assert not found
    assert "another judge" in notices[0]
    assert "other metric models" in notices[1]
    with pytest.raises(RequestError):
        compare_reports(first, make_report(VALUES, benchmark="tgve"))


def test_runs_without_a_common_item_are_a_notice() -> None:
    found, notices = compare_reports(make_report([1.0, None]), make_report([None, 1.0]))
    assert not found
    assert all("no item" in line for line in notices)


def test_calibration_holds_items_to_a_published_table(tmp_path: Path) -> None:
    (tmp_path / "model.csv").write_text(
        "id,pick_score_video_quality,clip_temporal_consistency,editing_vlm_evaluation,type\n"
        "0,20.0,0.98,nonsense,x\n1,21.0,0.99,6,x\nAverage,20.5,0.985,6,\n",
        encoding="utf-8",
    )
    report = make_report([], metrics={"pick": {}, "clip_temporal": {}, "judge": {}})
    report["items"] = [
        {"key": "0", "values": {"pick": 20.5, "clip_temporal": 98.0, "judge": 7.0}},
        {"key": "1", "values": {"pick": 21.0, "clip_temporal": 99.5, "judge": None}},
    ]
    found, notices = calibrate(report, tmp_path)
    assert (found["pick"].count, found["pick"].worst) == (2, "0")
    assert found["pick"].mean_difference == pytest.approx(0.25)
    assert found["pick"].largest == pytest.approx(0.5)
    assert found["clip_temporal"].largest == pytest.approx(0.5)
    assert notices == ["judge: no item in common"]
    assert len(describe_calibration(found, notices)) == 4
    report["metrics"]["pick"]["random"] = True
    assert "pick" not in calibrate(report, tmp_path)[0]
    (tmp_path / "second.csv").write_text("x\n", encoding="utf-8")
    with pytest.raises(RequestError, match="found 2 CSV files"):
        calibrate(report, tmp_path)
