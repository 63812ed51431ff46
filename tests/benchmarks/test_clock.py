"""The clock: warm-up is left out, turns alternate, and each process has a peak of its own."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.clock import Sample, Timing, take_turns, time_call, wait_for_device


def test_turns_alternate_and_the_warm_up_is_left_out():
    order: list[str] = []

    def call(name: str):
        def run() -> Sample:
            order.append(name)
            return Sample(float(len(order)), 0.5)

        return run

    timings = take_turns({"a": call("a"), "b": call("b")}, repeats=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert [sample.wall_s for sample in timings["a"].samples] == [5.0, 7.0, 9.0]
    assert timings["a"].first == Sample(1.0, 0.5)


def test_no_round_is_begun_after_the_time_is_over_once_there_are_three():
    timings = take_turns({"a": lambda: Sample(1.0, 1.0)}, repeats=9, warm_up=1, max_s=0.0)
    assert len(timings["a"].samples) == 3


def test_the_summary_is_the_median_and_the_quartiles():
    timing = Timing(Sample(9.0, 8.0), tuple(Sample(float(x), 2.0 * x) for x in (1, 2, 3, 4, 100)))
    facts = timing.to_json()
    assert facts["wall_s"] == 3.0
    assert facts["wall_s_quartiles"] == [2.0, 4.0]
    assert facts["cpu_s"] == 6.0
    assert (facts["first_wall_s"], facts["repeats"]) == (9.0, 5)


@pytest.mark.parametrize(("repeats", "warm_up"), [(0, 1), (1, 0)])
def test_turns_need_a_warm_up_and_a_repeat(repeats: int, warm_up: int):
    with pytest.raises(ValueError, match="give at least 1"):
        take_turns({}, repeats=repeats, warm_up=warm_up)


def test_a_call_is_timed_with_the_wait_inside():
    waits: list[int] = []
    sample, result = time_call(lambda: len(waits), lambda: waits.append(1))
    assert result == 1
    assert len(waits) == 2
    assert sample.wall_s >= 0


def test_a_cpu_needs_no_waiting():
    assert wait_for_device("ort-cpu")() is None


def test_the_peak_sees_memory_that_was_given_back():
    memory.forget_peak()
    before = memory.peak_bytes()
    block = np.ones(40_000_000, np.uint8)
    del block
    assert memory.peak_bytes() - before > 30_000_000
    assert memory.current_bytes() < memory.peak_bytes()
