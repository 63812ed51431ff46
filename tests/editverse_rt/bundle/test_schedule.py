from __future__ import annotations

import math
from dataclasses import replace

import pytest

from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.errors import RequestError

EULER = ((1.0, 0.5),)
PAPER = Schedule(
    "paper",
    "schedule_euler",
    5.0,
    ScheduleTable((0.0, 0.5), (0.0, 0.5), (5.0, 5.0), (EULER,) * 2, (0, 0)),
    {"shift": 1.0},
)
INTERVAL = replace(
    PAPER,
    name="interval",
    table=ScheduleTable((0.0, 0.25, 0.5), (0.0, 0.25, 0.5), (1, 4, 1), (EULER,) * 3, (0, 0, 0)),
)


def test_a_table_is_counted_in_steps_and_in_evaluations() -> None:
    assert (PAPER.num_inference_steps, PAPER.table.num_evaluations) == (2, 4)
    assert (INTERVAL.num_inference_steps, INTERVAL.table.num_evaluations) == (3, 4)


def test_another_table_keeps_the_name_and_the_options() -> None:
    other = PAPER.with_table(INTERVAL.table)
    assert (other.name, other.graph, other.options) == ("paper", "schedule_euler", {"shift": 1.0})
    assert other.num_inference_steps == 3


def test_the_callers_guidance_applies_where_the_schedule_guides() -> None:
    assert PAPER.with_guidance(2).table.guidance == (2.0, 2.0)
    assert INTERVAL.with_guidance(2).table.guidance == (1, 2.0, 1)
    assert INTERVAL.with_guidance(1).table.guidance == (1, 1.0, 1)
    assert PAPER.with_guidance(1).with_guidance(3).table.guidance == (3.0, 3.0)
    assert PAPER.with_guidance(2).guidance_scale == 2.0


@pytest.mark.parametrize("scale", [-0.5, math.nan, math.inf])
def test_a_guidance_that_is_none(scale: float) -> None:
    with pytest.raises(RequestError, match="guidance_scale is") as caught:
        PAPER.with_guidance(scale)
    assert caught.value.field == "guidance_scale"


def test_a_schedule_without_a_graph_is_fixed() -> None:
    assert not PAPER.is_fixed
    assert replace(PAPER, graph="", options={}).is_fixed
