"""Schedules: each table against a solver that is written step by step, and against known flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from editverse_rt.bundle.schedule import Schedule
from export.schedules import (
    NAMED,
    ScheduleSettings,
    build_schedule,
    count_evaluations,
    exported_settings,
    paper_settings,
    solvers,
)

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
    before = [0.0, 0.0]
    for t, (c0, c1, c2) in zip(schedule.timesteps, schedule.coefficients, strict=True):
        v = velocity(x, t)
        x = x + c0 * v + c1 * before[0] + c2 * before[1]
        before = [v, before[0]]
    return x


def rate_of(path: Callable[[complex], complex], t: float) -> float:
    """The derivative by a complex step, exact to rounding."""
    return (path(t + 1e-30j) / 1e-30).imag


# Paths whose clean prediction is 1, l and l^2, where l = log(t / (1 - t)) and, with sigma = 1 - t,
# x = sigma * integral of exp(l) m(l) dl: what DPM-Solver++ and UniPC integrate.
PATHS: tuple[Callable[[Any], Any], ...] = (
    lambda t: t,
    lambda t: t * (np.log(t / (1 - t)) - 1),
    lambda t: t * (np.log(t / (1 - t)) ** 2 - 2 * np.log(t / (1 - t)) + 2),
)


def advance(begin: float, end: float, known: list[tuple[float, float]]) -> float:
    """The path through the known velocities, from begin to end: fitted, then integrated numerically."""
    rates = np.array([[rate_of(path, t) for path in PATHS[: len(known)]] for t, _ in known])
    shares = np.linalg.solve(rates, [v for _, v in known])
    abscissae, weights = np.polynomial.legendre.leggauss(60)
    at = 0.5 * (end - begin) * abscissae + 0.5 * (end + begin)
    values = [sum(share * rate_of(path, t) for share, path in zip(shares, PATHS, strict=False)) for t in at]
    return float(0.5 * (end - begin) * np.dot(weights, values))


def run_unipc(times: list[float], velocity: Velocity, x: float, *, is_corrected: bool) -> float:
    """Predict, evaluate, correct, with both states at hand; noise has no log-SNR, and data neither."""
    history: list[tuple[float, float]] = []
    corrected = predicted = x
    for i, (t, t_next) in enumerate(pairwise(times)):
        v = velocity(predicted, t)
        history.insert(0, (t, v))
        usable = [node for node in history[:3] if node[0] > 0]
        if is_corrected and i > 1:
            corrected += advance(times[i - 1], t, usable)
        else:
            corrected = predicted
        if t_next == 1 or len(usable) < 2:
            predicted = corrected + (t_next - t) * v
        else:
            predicted = corrected + advance(t, t_next, usable[:2])
    return predicted


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "is_corrected"), [("unip2", False), ("unipc2", True)])
@pytest.mark.parametrize("velocity", [gaussian_velocity, two_points_velocity])
def test_a_table_does_what_its_predictor_and_corrector_do(
    solver, is_corrected: bool, shift: float, velocity: Velocity
):
    schedule = build_schedule("x", ScheduleSettings(solver, 9, shift))
    expected = run_unipc([*schedule.timesteps, 1.0], velocity, 0.4, is_corrected=is_corrected)
    assert run_table(schedule, velocity, 0.4) == pytest.approx(expected, rel=1e-9)


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
    assert schedule.timesteps[0] == 0.0
    assert list(schedule.timesteps) == sorted(set(schedule.timesteps))
    assert schedule.timesteps[-1] < 1
    assert np.isfinite(schedule.coefficients).all()


@pytest.mark.parametrize("shift", [0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 2.0, 3.0, 7.0])
def test_time_begins_at_the_noise_and_is_guided_from_there(shift: float):
    for steps in range(1, 30):
        schedule = build_schedule("x", ScheduleSettings("ab2", steps, shift))
        assert schedule.timesteps[0] == 0
        assert set(schedule.guidance_scale) == {5.0}


def test_a_shift_below_one_moves_times_towards_the_data():
    times = build_schedule("x", ScheduleSettings("euler", 4, shift=0.25)).timesteps
    assert times == pytest.approx([0, 1 - 3 / 7, 1 - 1 / 5, 1 - 1 / 13])


def test_a_shift_moves_times_towards_the_noise():
    schedule = build_schedule("x", ScheduleSettings("euler", 4, shift=3.0))
    # sigma = 1, 3/4, 1/2, 1/4 -> 3 sigma / (1 + 2 sigma)
    assert schedule.timesteps == pytest.approx([0.0, 1 - 2.25 / 2.5, 1 - 1.5 / 2, 1 - 0.75 / 1.5])
    assert schedule.kind == "multistep", "with_steps would make it uniform again"


def test_guidance_applies_in_its_interval_only():
    schedule = build_schedule(
        "x", ScheduleSettings("ab2", 10, guided_from=0.1, guided_until=0.5, guidance_scale=4.0)
    )
    assert schedule.guidance_scale == (1.0, 4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert count_evaluations(schedule) == 14


def test_the_paper_schedule_is_uniform():
    schedule = build_schedule("paper", paper_settings({"num_inference_steps": 50, "guidance_scale": 5.0}))
    assert schedule.kind == "euler"
    assert schedule.timesteps == tuple(i / 50 for i in range(50))
    assert set(schedule.coefficients) == {(0.02, 0.0, 0.0)}
    assert set(schedule.guidance_scale) == {5.0}
    assert schedule == build_schedule("paper", ScheduleSettings())


def test_the_named_schedules_cost_less_and_less():
    costs = [count_evaluations(build_schedule(name, recipe)) for name, recipe in NAMED.items()]
    assert list(NAMED) == ["balanced", "fast"]
    assert 100 > costs[0] > costs[1]


def test_an_export_keeps_to_the_checkpoints_guidance_in_every_schedule():
    recipes = exported_settings({"num_inference_steps": 40, "guidance_scale": 2.0})
    assert recipes["paper"] == ScheduleSettings("euler", 40, guidance_scale=2.0)
    assert {name: recipe.guidance_scale for name, recipe in recipes.items()} == dict.fromkeys(
        ("paper", "balanced", "fast"), 2.0
    )


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
    ("recipe", "label"),
    [
        (ScheduleSettings(), "euler-50"),
        (ScheduleSettings("ab2", 8, 2.0, 4.0, 0.0, 0.6), "ab2-8 shift 2 guidance 4 guided 0-0.6"),
        (ScheduleSettings("unipc2", 12, guided_from=0.1), "unipc2-12 guided 0.1-1"),
    ],
)
def test_a_label_says_what_differs_from_the_paper(recipe: ScheduleSettings, label: str):
    assert recipe.label == label
    assert ScheduleSettings.from_label(label) == recipe


@pytest.mark.parametrize("label", ["", "ab2", "ab2-ten", "ab2-10 shift", "ab2-10 guided 0.5", "ab2-10 x"])
def test_a_label_that_is_none_is_refused(label: str):
    with pytest.raises(ValueError, match="is no schedule"):
        ScheduleSettings.from_label(label)
