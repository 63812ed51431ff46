"""Schedules: each table against a solver that is written step by step, and against known flows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from editverse_rt import load_bundle
from editverse_rt.bundle.schedule import Schedule
from export.schedules import (
    HISTORY_ROWS,
    NAMED,
    ScheduleSettings,
    build_schedule,
    exported_settings,
    paper_settings,
    solvers,
)

CHECKPOINT = Path(__file__).parents[2] / "reference" / "nano" / "checkpoint"
Velocity = Callable[[float, float], float]

# Data drawn from N(MEAN, SPREAD^2): the flow from noise z is known in closed form.
MEAN, SPREAD = 0.7, 0.3


def gaussian_velocity(x: float, t: float) -> float:
    """E[x_1 - x_0 | x_t = x] for x_1 of that distribution and x_0 of N(0, 1)."""
    variance = t**2 * SPREAD**2 + (1 - t) ** 2
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance * (x - t * MEAN)


def two_points_velocity(x: float, t: float) -> float:
    """The same for x_1 of +-1, which is not linear in x."""
    return (math.tanh(t * x / (1 - t) ** 2) - x) / (1 - t)


def run_table(schedule: Schedule, velocity: Velocity, x: float) -> float:
    """What a host does with a table."""
    state = np.zeros(1 + HISTORY_ROWS)
    state[0] = x
    for t, matrix in zip(schedule.table.timesteps, schedule.table.matrices, strict=True):
        state = np.array(matrix) @ [*state, velocity(state[0], t)]
    return float(state[0])


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ab2", 2), ("ab3", 3)])
def test_a_solver_converges_with_its_order(solver, order: int):
    z = 1.3
    truth = MEAN + SPREAD * z
    errors = [
        abs(run_table(build_schedule("x", ScheduleSettings(solver, n)), gaussian_velocity, z) - truth)
        for n in (80, 160)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("solver", [name for name in solvers if name != "euler"])
def test_a_multistep_solver_beats_euler(solver):
    z = -0.8
    truth = MEAN + SPREAD * z

    def error(name) -> float:
        return abs(run_table(build_schedule("x", ScheduleSettings(name, 20)), gaussian_velocity, z) - truth)

    assert error(solver) < 0.5 * error("euler")


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("solver", solvers)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_a_constant_velocity_arrives(solver, steps: int, shift: float):
    schedule = build_schedule("x", ScheduleSettings(solver, steps, shift))
    assert run_table(schedule, lambda *_: 2.0, -1.0) == pytest.approx(1.0, rel=1e-9)
    assert schedule.table.timesteps[0] == 0.0
    assert list(schedule.table.timesteps) == sorted(set(schedule.table.timesteps))
    assert schedule.table.timesteps[-1] < 1
    assert np.isfinite(schedule.table.matrices).all()


@pytest.mark.parametrize("shift", [0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 2.0, 3.0, 7.0])
def test_time_begins_at_the_noise_and_is_guided_from_there(shift: float):
    for steps in range(1, 30):
        schedule = build_schedule("x", ScheduleSettings("ab2", steps, shift))
        assert schedule.table.timesteps[0] == 0
        assert set(schedule.table.guidance) == {5.0}


def test_a_shift_below_one_moves_times_towards_the_data():
    times = build_schedule("x", ScheduleSettings("euler", 4, shift=0.25)).table.timesteps
    assert times == pytest.approx([0, 1 - 3 / 7, 1 - 1 / 5, 1 - 1 / 13])


def test_a_shift_moves_times_towards_the_noise():
    schedule = build_schedule("x", ScheduleSettings("euler", 4, shift=3.0))
    # sigma = 1, 3/4, 1/2, 1/4 -> 3 sigma / (1 + 2 sigma)
    assert schedule.table.timesteps == pytest.approx([0.0, 1 - 2.25 / 2.5, 1 - 1.5 / 2, 1 - 0.75 / 1.5])


def test_guidance_applies_in_its_interval_only():
    schedule = build_schedule(
        "x", ScheduleSettings("ab2", 10, guided_from=0.1, guided_until=0.5, guidance_scale=4.0)
    )
    assert schedule.table.guidance == (1.0, 4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert schedule.table.num_evaluations == 14


def test_the_paper_schedule_is_uniform():
    schedule = build_schedule("paper", paper_settings({"num_inference_steps": 50, "guidance_scale": 5.0}))
    assert schedule.graph == "schedule_euler"
    assert schedule.table.timesteps == pytest.approx([i / 50 for i in range(50)], abs=1e-15)
    euler = np.array([[1, 0, 0, 0.02], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(schedule.table.matrices, np.tile(euler, (50, 1, 1)), atol=1e-15)
    assert set(schedule.table.guidance) == {5.0}
    assert schedule == build_schedule("paper", ScheduleSettings())


def test_the_named_schedules_cost_less_and_less():
    costs = [build_schedule(name, settings).table.num_evaluations for name, settings in NAMED.items()]
    assert list(NAMED) == ["balanced", "fast"]
    assert 100 > costs[0] > costs[1]


def test_an_export_keeps_to_the_checkpoints_guidance_in_every_schedule():
    exported = exported_settings({"num_inference_steps": 40, "guidance_scale": 2.0})
    assert exported["paper"] == ScheduleSettings("euler", 40, guidance_scale=2.0)
    assert {name: settings.guidance_scale for name, settings in exported.items()} == dict.fromkeys(
        ("paper", "balanced", "fast"), 2.0
    )


def test_a_checkpoint_names_its_schedules():
    named = {"balanced": "ab2-4 shift 0.2 guided 0.1-1", "fast": "ab3-3 guidance 4"}
    exported = exported_settings({"num_inference_steps": 40, "guidance_scale": 2.0, "schedules": named})
    assert exported == {
        "paper": ScheduleSettings("euler", 40, guidance_scale=2.0),
        "balanced": ScheduleSettings("ab2", 4, 0.2, 2.0, 0.1, 1.0),
        "fast": ScheduleSettings("ab3", 3, guidance_scale=4.0),
    }
    assert list(exported) == ["paper", "balanced", "fast"]
    facts = {"num_inference_steps": 40, "guidance_scale": 2.0}
    assert list(exported_settings({**facts, "schedules": {}})) == ["paper"]
    for wrong in (["ab2-4"], {"fast": "heun"}, {"fast": 3}):
        with pytest.raises(ValueError, match="expected"):
            exported_settings({**facts, "schedules": wrong})


def test_nano_is_exported_with_the_schedules_that_it_ships_with():
    """The bundle has the tables of the numbers as they were first written; they differ by rounding."""
    scheduler = json.loads((CHECKPOINT / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    exported = exported_settings(scheduler)
    shipped = load_bundle("nano").spec.schedules
    assert list(exported) == list(shipped)
    for name, settings in exported.items():
        found, expected = build_schedule(name, settings), shipped[name]
        assert (found.graph, found.options, found.guidance_scale) == (
            expected.graph, expected.options, expected.guidance_scale,
        )  # fmt: skip
        np.testing.assert_allclose(found.table.times, expected.table.times, atol=1e-12)
        assert found.table.guidance == expected.table.guidance


def test_a_label_without_a_guidance_takes_the_callers():
    assert ScheduleSettings.from_label("ab2-10 shift 2", 3.0) == ScheduleSettings(
        "ab2", 10, shift=2.0, guidance_scale=3.0
    )
    assert ScheduleSettings.from_label("ab2-10 guidance 4", 3.0).guidance_scale == 4.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": "heun"}, "solver is 'heun'; expected one of euler"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"shift": 0.0}, "shift is 0.0"),
        ({"shift": math.inf}, "shift is inf"),
        ({"guided_from": 0.6, "guided_until": 0.5}, "expected 0 <= from <= until <= 1"),
    ],
)
def test_what_makes_no_schedule_is_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ScheduleSettings(**wrong)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        (ScheduleSettings(), "euler-50"),
        (ScheduleSettings("ab2", 8, 2.0, 4.0, 0.0, 0.6), "ab2-8 shift 2 guidance 4 guided 0-0.6"),
        (ScheduleSettings("ab3", 12, guided_from=0.1), "ab3-12 guided 0.1-1"),
    ],
)
def test_a_label_says_what_differs_from_the_paper(settings: ScheduleSettings, label: str):
    assert settings.label == label
    assert ScheduleSettings.from_label(label) == settings


@pytest.mark.parametrize("label", ["", "ab2", "ab2-ten", "ab2-10 shift", "ab2-10 guided 0.5", "ab2-10 x"])
def test_a_label_that_is_none_is_refused(label: str):
    with pytest.raises(ValueError, match="is no schedule"):
        ScheduleSettings.from_label(label)
