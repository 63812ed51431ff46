"""Schedules and matrices against diffusers' schedulers, against the export's tables, and as a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference.solvers import (
    STATE_ROWS,
    Schedule,
    Solver,
    Spacing,
    matrices_from_sigmas,
    run_solver,
    sigma_at,
)

# diffusers keeps sigmas, and logarithms of them, in float32.
TOLERANCE = 1e-5
STEPS = [*range(1, 13), 20, 25, 30, 40, 50, 64, 99, 100]
SHIFTS = [1.0, 3.0, 5.0, 8.0, 12.0]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def rows_of(schedule: Schedule, steps: int, shift: float, first: int | None = None) -> tuple[Tensor, ...]:
    begin = None if first is None else torch.tensor(first)
    return schedule(torch.tensor(steps), number(shift), begin)


def made_unipc(shift: float) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
    )


def network(sample: Tensor, timestep: float) -> Tensor:
    """A velocity (data - noise) that is not linear in the sample, nor in time."""
    return torch.sin(2 * sample + 3 * timestep) - 0.5 * sample


def run_schedule(rows: tuple[Tensor, ...], start: Tensor) -> Tensor:
    state = torch.zeros((rows[3].shape[1], *start.shape), dtype=torch.float64)
    state[0] = start
    for matrix, timestep in zip(rows[3], rows[1], strict=True):
        velocity = network(state[0], float(timestep))
        state = torch.tensordot(matrix, torch.cat((state, velocity[None])), 1)
    return state[0]


def run_diffusers(scheduler: object, start: Tensor, first: int = 0) -> Tensor:
    scheduler.set_begin_index(first)  # type: ignore[attr-defined]
    x = start[None, None]
    for timestep in scheduler.timesteps[first:]:  # type: ignore[attr-defined]
        velocity = -network(x, 1 - float(timestep) / 1000)
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0].double()  # type: ignore[attr-defined]
    return x[0, 0]


@pytest.mark.parametrize("shift", SHIFTS)
def test_unipc_equals_diffusers(shift: float) -> None:
    start = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for steps in STEPS:
        scheduler = made_unipc(shift)
        scheduler.set_timesteps(steps)
        rows = rows_of(Schedule(), steps, shift)
        told = (1 - rows[1]) * 1000
        assert torch.equal(told.round().long(), scheduler.timesteps), steps
        assert (told - told.round()).abs().max() < 1e-9
        assert torch.equal((1 - rows[0]).float(), scheduler.sigmas[:-1])
        found, expected = run_schedule(rows, start), run_diffusers(scheduler, start)
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max(), steps


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100), st.floats(1, 12), st.data())
def test_unipc_equals_diffusers_at_any_shift_and_from_any_step(
    steps: int, shift: float, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, steps - 1))
    start = torch.linspace(-2, 2, 20, dtype=torch.float64)
    scheduler = made_unipc(shift)
    scheduler.set_timesteps(steps)
    rows = rows_of(Schedule(), steps, shift, first)
    assert torch.equal(((1 - rows[1]) * 1000).round().long(), scheduler.timesteps[first:])
    found, expected = run_schedule(rows, start), run_diffusers(scheduler, start, first)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("shift", SHIFTS)
def test_euler_equals_diffusers(shift: float) -> None:
    start = torch.linspace(-2, 2, 50, dtype=torch.float64)
    for steps in STEPS:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        rows = rows_of(Schedule("euler", "euler_flow", told="exact"), steps, shift)
        np.testing.assert_allclose((1 - rows[1]) * 1000, scheduler.timesteps, rtol=1e-6)
        found, expected = run_schedule(rows, start), run_diffusers(scheduler, start)
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max(), steps


@pytest.mark.parametrize("solver", ["euler", "ab2", "ab3"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 1.0), (3, 2.0), (7, 3.0), (50, 1.0)])
def test_uniform_times_equal_the_tables_of_the_export(solver: Solver, steps: int, shift: float) -> None:
    from export.schedules import ScheduleSettings, build_schedule

    table = build_schedule("x", ScheduleSettings(solver, steps, shift)).table
    schedule = Schedule(solver, "uniform", told="exact", float32_sigmas=False)
    times, timesteps, _, matrices = rows_of(schedule, steps, shift)
    np.testing.assert_allclose(times, table.timesteps, atol=1e-15)
    np.testing.assert_allclose(timesteps, table.timesteps, atol=1e-15)
    # The export's matrices have room for the largest state: the same rows and columns, then zeros.
    padded = np.zeros((steps, 3, 4))
    kept = STATE_ROWS[solver]
    padded[:, :kept, :kept], padded[:, :kept, -1] = matrices[:, :, :-1], matrices[:, :, -1]
    np.testing.assert_allclose(table.matrices, padded, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0.2, 20), st.sampled_from(["euler", "ab2", "ab3", "unipc2"]))
def test_a_constant_velocity_is_integrated_exactly(steps: int, shift: float, solver: Solver) -> None:
    """Straight paths: every solver ends at x + sigma v, whatever the steps; all numbers are finite."""
    spacing: Spacing = "unipc_flow" if solver == "unipc2" else "uniform"
    rows = rows_of(Schedule(solver, spacing), steps, shift)
    assert rows[3].shape == (steps, STATE_ROWS[solver], STATE_ROWS[solver] + 1)
    assert all(bool(torch.isfinite(row).all()) for row in rows)
    assert bool((rows[0][1:] > rows[0][:-1]).all())
    end = run_solver(rows[3], number(0.3)[None], [number(2.0)[None]] * steps)[-1]
    assert float(end) == pytest.approx(0.3 + 2.0 * (1 - float(rows[0][0])), abs=1e-9)


def test_the_first_step_ignores_what_the_state_holds() -> None:
    for solver, size in STATE_ROWS.items():
        spacing: Spacing = "unipc_flow" if solver == "unipc2" else "uniform"
        matrix = rows_of(Schedule(solver, spacing), 4, 3.0)[3][0]
        kept = matrix[:, 1:size].abs().sum(1) > 0
        # Rows that only pass an old velocity or prediction on, to a place that step 1 does not read either.
        assert not kept[: 2 if solver == "unipc2" else 1].any()


def test_guidance_and_experts_by_noise_level() -> None:
    schedule = Schedule(guidance_scales=(4.0, 3.0), boundary=0.875)
    _, timesteps, guidance, _, experts = rows_of(schedule, 40, 3.0)
    scheduler = made_unipc(3.0)
    scheduler.set_timesteps(40)
    low = scheduler.timesteps < 0.875 * 1000
    assert torch.equal(experts, low.long())
    assert guidance.tolist() == [3.0 if is_low else 4.0 for is_low in low]
    part = rows_of(Schedule(guided=(0.2, 0.5)), 40, 1.0)
    assert [g != 1 for g in part[2]] == [0.2 <= t < 0.5 for t in part[0]]
    assert len(timesteps) == 40


def test_fixed_lists_of_sigmas_give_the_same_matrices() -> None:
    scheduler = made_unipc(5.0)
    scheduler.set_timesteps(9)
    assert torch.equal(matrices_from_sigmas("unipc2", scheduler.sigmas), rows_of(Schedule(), 9, 5.0)[3])
    for sigmas in ([0.5], [0.5, 0.5, 0.0], [1.0, 0.5, 0.0]):
        with pytest.raises(ValueError, match=r"expected at least two|needs one below 1"):
            matrices_from_sigmas("unipc2", torch.tensor(sigmas))


def test_schedules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="begins at sigma = 1"):
        Schedule("unipc2", "uniform")
    with pytest.raises(ValueError, match="one for each expert"):
        Schedule(boundary=0.9)
    with pytest.raises(ValueError, match="expected one of euler, ab2"):
        Schedule("heun")  # type: ignore[arg-type]


def test_sigma_is_zero_after_the_last_step() -> None:
    index = torch.arange(9, dtype=torch.float64)
    for spacing in ("uniform", "unipc_flow", "euler_flow"):
        assert (sigma_at(spacing, index, number(5.0), number(3.0)) == 0).tolist() == [False] * 5 + [True] * 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(guidance_scales=(4.1, 3.3), boundary=0.9),
        Schedule("ab3", "uniform", told="exact", float32_sigmas=False, guided=(0.0, 0.6)),
        Schedule("euler", "euler_flow", told="exact"),
    ],
    ids=lambda schedule: schedule.solver,
)
def test_a_schedule_is_one_graph_for_every_number_of_steps(schedule: Schedule, tmp_path: Path) -> None:
    example = (torch.tensor(7), number(3.0), torch.tensor(0))
    path = tmp_path / "schedule.onnx"
    torch.onnx.export(schedule.eval(), example, path, dynamo=True, opset_version=23, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    names = [value.name for value in session.get_inputs()]
    for steps, shift, first in ((1, 1.0, 0), (2, 5.0, 1), (7, 3.0, 3), (50, 8.0, 0)):
        given_values = (np.array(steps), np.array(shift), np.array(first))
        found = session.run(None, dict(zip(names, given_values, strict=True)))
        expected = rows_of(schedule, steps, shift, first)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.numpy().dtype
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-11, atol=1e-12)
