"""Which waiting job a worker gets next."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from editverse_rt.serve.choosing import AGEING_S, choose_next, shape_of
from editverse_rt.serve.live import LiveRun

ESTIMATE = {
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "memory_bytes": 10,
    "num_inference_steps": 4,
    "flops": {},
}


def job(name: str, owner: str = "one", width: int = 64, deaths: int = 0, waited_s: float = 0.0) -> Any:
    return SimpleNamespace(
        id=name, owner=owner, model="nano", deaths=deaths, inputs={}, estimate={**ESTIMATE, "width": width},
        queued_at=time.time() - waited_s,
    )  # fmt: skip


def worker(slots: int = 1, budget: int | None = None, weights: int = 0) -> Any:
    limits = SimpleNamespace(memory_budget_bytes=budget)
    return SimpleNamespace(
        is_up=True,
        slots=slots,
        weight_bytes=weights,
        models=[{"id": "nano"}],
        options=SimpleNamespace(limits=limits),
    )


def live(at: Any, *runs: tuple[Any, str]) -> dict[str, LiveRun]:
    return {given.id: LiveRun(given, at, phase=phase) for given, phase in runs}


def test_a_job_that_writes_its_files_leaves_the_device_to_the_next() -> None:
    one, waiting = worker(), [job("b")]
    for phase in ("read", "encode", "denoise", "decode"):
        assert choose_next(waiting, one, live(one, (job("a"), phase)), None) is None
    assert choose_next(waiting, one, live(one, (job("a"), "write")), None) is waiting[0]
    # No more write than run, so that memory has a bound.
    both = live(one, (job("a"), "write"), (job("c"), "write"))
    assert choose_next(waiting, one, both, None) is None


def test_what_writes_still_holds_its_memory() -> None:
    one = worker(budget=15)
    assert choose_next([job("b")], one, live(one, (job("a"), "write")), None) is None
    assert choose_next([job("b")], one, {}, None) is not None


@pytest.mark.parametrize(("weights", "fits"), [(0, True), (5, True), (6, False), (15, False)])
def test_the_weights_take_their_part_of_the_memory_budget(weights: int, fits: bool) -> None:
    """Jobs of 10 beside weights, in a budget of 25 for all of it; the first is let in by the check of requests."""
    one = worker(slots=2, budget=25, weights=weights)
    assert choose_next([job("b")], one, {}, None) is not None
    assert (choose_next([job("b")], one, live(one, (job("a"), "denoise")), None) is not None) == fits


def test_a_job_whose_process_died_is_alone() -> None:
    one = worker(slots=2)
    assert choose_next([job("b", deaths=1)], one, live(one, (job("a"), "write")), None) is None
    assert choose_next([job("b")], one, live(one, (job("a", deaths=1), "write")), None) is None


def test_owners_take_turns_and_shapes_follow_each_other_for_a_while() -> None:
    one = worker(slots=3)
    running = live(one, (job("a", "one"), "denoise"))
    other = job("c", "two")
    assert choose_next([job("b", "one"), other], one, running, None) is other
    narrow, wide = job("d", width=48), job("e", width=64)
    assert choose_next([narrow, wide], one, {}, shape_of(wide)) is wide
    aged = job("f", width=48, waited_s=AGEING_S + 1)
    assert choose_next([aged, wide], one, {}, shape_of(wide)) is aged
