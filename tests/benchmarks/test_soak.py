"""The soak: all requests are served, failures are seen, and a slope is a slope."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.results import read_results
from editverse_rt import load_bundle
from editverse_rt.planning.costs import weight_bytes
from editverse_rt.planning.planner import CPU_PRECISION


def test_requests_are_mixed_and_the_same_again():
    requests = soak.draw_requests(40, 3)
    assert requests == soak.draw_requests(40, 3)
    assert {request.frames for request in requests} == set(soak.FRAMES)
    assert {request.steps for request in requests} == {1, 2, 3}


def test_every_request_is_served_and_failures_are_counted():
    good = soak.draw_requests(6, 1)
    too_large = soak.Request(1, 4096, 4096, 1, 0)
    outcome = soak.serve("nano", [*good, too_large, good[0]], 2, 1)
    assert len(outcome.resident_bytes) == 7
    assert len(outcome.failures) == 1
    assert "RequestError" in outcome.failures[0]


def test_what_the_memory_budget_never_holds_is_a_failure():
    weights = sum(weight_bytes(load_bundle("nano").spec, CPU_PRECISION).values())
    outcome = soak.serve("nano", soak.draw_requests(2, 1), 2, 1, memory_budget_bytes=weights + 1)
    assert len(outcome.failures) == 2
    assert all("not even one frame fits" in failure for failure in outcome.failures)


def test_a_slope_is_that_of_the_second_half():
    growing = [10**9, 5, 0, 7] + [1000 + 3 * index for index in range(4)]
    assert soak.fit_slope(growing) == pytest.approx(3)
    with pytest.raises(ValueError, match="at least 4"):
        soak.fit_slope([1, 2])


def test_a_soak_compares_with_one_at_a_time(tmp_path: Path):
    out = tmp_path / "soak.json"
    size = ["--requests", "4", "--steps", "1", "--concurrency", "2"]
    assert soak.main([*size, "--out", str(out)]) == 0
    rows = read_results(out).rows
    assert {(row["concurrency"], row["threads"]) for row in rows} == {(1, 1), (1, os.cpu_count()), (2, 1)}
    assert all(len(row["resident_bytes"]) == 4 and not row["failures"] for row in rows)
    assert "| 2 |" in out.with_suffix(".md").read_text()
