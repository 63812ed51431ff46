"""The graphs `schedule_...` of the bundle that ships, in ONNX Runtime, against `reference.solvers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch

from editverse_rt import load_bundle
from editverse_rt.bundle.schedule import Schedule
from export.export_onnx import export_module
from export.schedules import HISTORY_ROWS, ScheduleGraph, Solver
from reference.solvers import sigma_at, step_matrices

# float64 on both sides; the order of the operations may differ.
TOLERANCE = 1e-12
SHIFTS = (0.2, 1.0, 3.0, 12.0)
NANO = load_bundle("nano")
Table = dict[str, np.ndarray]
Run = Callable[..., Table]


def open_graph(content: Any) -> Run:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(num_steps: int, first_step: int = 0, **numbers: float) -> Table:
        given = {"shift": 1.0, "guidance_scale": 5.0, "guidance_scale_2": 5.0, "guided_from": 0.0,
                 "guided_until": 1.0, **numbers}  # fmt: skip
        feeds = {"num_steps": np.array(num_steps), "first_step": np.array(first_step)}
        feeds |= {name: np.array(value, np.float64) for name, value in given.items()}
        return dict(zip(names, session.run(None, feeds), strict=True))

    return run


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Those that ship, and one of each other solver, exported by the same interface."""
    import onnx_ir as ir

    found = {}
    folder = tmp_path_factory.mktemp("graphs")
    for solver in get_args(Solver):
        name = f"schedule_{solver}"
        if name in NANO.spec.graphs:
            path = NANO.graph_path(name)
        else:
            path = folder / f"{name}.onnx"
            ir.save(export_module(ScheduleGraph(solver), NANO.spec.graphs["schedule_euler"]), path)
        found[solver] = open_graph(path)
    return found


def expected_matrices(solver: Solver, num_steps: int, shift: float) -> np.ndarray:
    """The reference's matrices, in a state with room for two earlier velocities."""
    index = torch.arange(num_steps, dtype=torch.float64)
    steps, s = torch.tensor(float(num_steps), dtype=torch.float64), torch.tensor(shift, dtype=torch.float64)
    sigmas = [sigma_at("uniform", index + d, steps, s) for d in (-2.0, -1.0, 0.0, 1.0)]
    small = step_matrices(solver, index, steps, *sigmas).numpy()
    rows = small.shape[1]
    padded = np.zeros((num_steps, 1 + HISTORY_ROWS, 2 + HISTORY_ROWS))
    padded[:, :rows, :rows], padded[:, :rows, -1] = small[:, :, :-1], small[:, :, -1]
    return padded


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("solver", get_args(Solver))
def test_a_graph_gives_the_reference_for_any_number_of_steps(
    graphs: dict[str, Run], solver: Solver, shift: float
) -> None:
    for num_steps in range(1, 101):
        table = graphs[solver](num_steps, shift=shift)
        at = np.arange(num_steps) / num_steps
        times = at / (1 + (shift - 1) * (1 - at))
        np.testing.assert_allclose(table["times"], times, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(table["timesteps"], times, atol=TOLERANCE, rtol=0)
        expected = expected_matrices(solver, num_steps, shift)
        np.testing.assert_allclose(table["matrices"], expected, atol=TOLERANCE, rtol=0)
        # The sample moves from 0 to 1 in all, whatever velocity it has, if that does not change.
        assert table["matrices"][:, 0, 1:].sum() == pytest.approx(1, abs=1e-9)
        assert table["guidance"].tolist() == [5.0] * num_steps
        assert table["experts"].tolist() == [0] * num_steps


@pytest.mark.parametrize("num_steps", [2, 4, 5, 10, 20, 50, 100])
def test_a_step_that_begins_at_the_edge_of_the_interval_is_in_it(
    graphs: dict[str, Run], num_steps: int
) -> None:
    """0.1 and 0.9 are no binary numbers, and 1 - (1 - 0.1) is below 0.1."""
    for first in range(num_steps):
        edge = first / num_steps
        table = graphs["ab2"](num_steps, guided_from=edge, guided_until=1.0)
        assert (table["guidance"] != 1).sum() == num_steps - first
        table = graphs["ab2"](num_steps, guided_from=0.0, guided_until=edge)
        assert (table["guidance"] != 1).sum() == first


@pytest.mark.parametrize("solver", get_args(Solver))
def test_a_schedule_that_begins_later_has_the_later_steps(graphs: dict[str, Run], solver: Solver) -> None:
    whole, late = graphs[solver](10, shift=3.0), graphs[solver](10, 4, shift=3.0)
    np.testing.assert_allclose(late["times"], whole["times"][4:], atol=TOLERANCE)
    # Without earlier velocities the first steps are of a lower order, later ones are the same.
    np.testing.assert_allclose(late["matrices"][2:], whole["matrices"][6:], atol=TOLERANCE)
    first = whole["times"][5] - whole["times"][4]
    assert late["matrices"][0, 0].tolist() == pytest.approx([1, 0, 0, first])


@pytest.mark.parametrize("name", NANO.spec.schedules)
def test_a_named_table_comes_from_its_graph_with_its_options(graphs: dict[str, Run], name: str) -> None:
    schedule: Schedule = NANO.spec.schedules[name]
    solver = schedule.graph.removeprefix("schedule_")
    table = graphs[solver](
        schedule.num_inference_steps, guidance_scale=schedule.guidance_scale, **schedule.options
    )
    assert table["guidance"].tolist() == list(schedule.table.guidance)
    assert table["experts"].tolist() == list(schedule.table.experts)
    np.testing.assert_allclose(table["times"], schedule.table.times, atol=TOLERANCE)
    np.testing.assert_allclose(table["timesteps"], schedule.table.timesteps, atol=TOLERANCE)
    # Only what the sample takes is compared: a history that no step reads may be kept or left out.
    np.testing.assert_allclose(
        table["matrices"][:, 0], np.array(schedule.table.matrices)[:, 0], atol=TOLERANCE
    )
