"""Means, intervals and paired comparisons, held to scipy's bootstrap and to plain arithmetic."""

from __future__ import annotations

import json
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from editverse_rt.errors import RequestError
from editverse_rt.quality.statistics import RESAMPLES, Item, compare_paired, mean_of, summarize

SCORES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(SCORES)
def test_the_interval_holds_the_mean_and_lies_within_the_values(values: list[float]) -> None:
    found = mean_of(values, resamples=200)
    assert found.mean == pytest.approx(fmean(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert (found.count, found.missing) == (len(values), 0)


def test_the_interval_is_that_of_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).normal(5, 2, 60)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = mean_of(list(values), resamples=20000)
    # Two draws of 20,000 resamples agree to about a hundredth of the interval's width, 1.0 here.
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = sum(
        (found := mean_of(list(rng.normal(0, 1, 50)), resamples=300)).low <= 0 <= found.high
        for _ in range(300)
    )
    # 95 % of 300 are 285; the percentile bootstrap of 50 items is a little short of it.
    assert 265 <= covered <= 297


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = list(np.random.default_rng(3).normal(size=40))
    assert mean_of(values) == mean_of(values)
    assert mean_of(values, seed=1) != mean_of(values)


def test_missing_values_are_counted_and_enter_no_mean() -> None:
    found = mean_of([1.0, None, 3.0])
    assert (found.mean, found.count, found.missing) == (2.0, 2, 1)
    empty = mean_of([None])
    assert (empty.mean, empty.low, empty.count, empty.missing) == (None, None, 0, 1)


def test_of_true_and_false_the_mean_is_the_share_of_the_true() -> None:
    assert mean_of([True, False, True, True]).mean == 0.75


def test_a_summary_has_the_plain_mean_the_macro_mean_and_the_divisions() -> None:
    items = [
        Item(1.0, "add", {"direction": "vertical"}),
        Item(2.0, "add", {"direction": "horizontal"}),
        Item(3.0, "add", {"direction": "vertical"}),
        Item(8.0, "remove", {"direction": "vertical"}),
        Item(None, "remove", {"direction": "horizontal"}),
        Item(None, "style"),
    ]
    found = summarize(items)
    assert found.overall.mean == 3.5
    assert found.macro == 5.0  # of 2 and 8; style has no value
    assert found.by_category["add"].mean == 2.0
    assert found.by_category["style"].count == 0
    assert found.by_group["direction"]["vertical"].mean == 4.0
    assert found.by_group["direction"]["horizontal"].missing == 1
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert report["by_direction"]["vertical"]["count"] == 3
    assert report["count"] == 4
    assert report["missing"] == 2


def test_a_difference_of_every_item_is_found_where_the_spread_of_items_hides_it() -> None:
    rng = np.random.default_rng(0)
    first = {str(i): float(value) for i, value in enumerate(rng.normal(0, 10, 30))}
    second = {key: value + 0.5 + float(rng.normal(0, 0.2)) for key, value in first.items()}
    found = compare_paired(first, second)
    assert found.mean == pytest.approx(0.5, abs=0.1)
    assert found.excludes_zero
    assert found.above == 1.0
    # Not paired, the intervals overlap.
    assert mean_of(list(first.values())).high > mean_of(list(second.values())).low
    back = compare_paired(second, first)
    assert back.mean == pytest.approx(-found.mean)
    assert back.above == 0.0


def test_a_run_beside_itself_differs_by_nothing() -> None:
    run = {"a": 1.0, "b": 2.0}
    found = compare_paired(run, run)
    assert (found.mean, found.low, found.high, found.above, found.excludes_zero) == (0, 0, 0, 0.5, False)


def test_only_items_that_both_runs_have_are_compared() -> None:
    found = compare_paired({"a": 1.0, "b": None, "c": 3.0}, {"a": 2.0, "b": 5.0, "d": 1.0})
    assert (found.mean, found.count, found.unpaired) == (1.0, 1, 3)


def test_the_order_of_the_items_changes_nothing() -> None:
    first = {str(i): float(i % 7) for i in range(20)}
    second = {str(i): float(i % 5) for i in range(20)}
    turned = dict(reversed(first.items()))
    assert compare_paired(turned, second, resamples=RESAMPLES) == compare_paired(first, second)


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(RequestError, match="not finite"):
        mean_of([1.0, float("nan")])
    with pytest.raises(RequestError, match="no item that both"):
        compare_paired({"a": 1.0}, {"b": 1.0})
