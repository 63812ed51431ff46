"""Schedules of step-distilled adapters for Wan: fixed lists of noise levels, without guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from export.schedules import pad_matrices
from reference.solvers import TRAIN_STEPS, matrices_from_sigmas

__all__ = ["DISTILLED", "StepList", "distilled_schedule"]


@dataclass(frozen=True)
class StepList:
    """Steps out of 1000 at which the network was trained, and the shift that moves their noise levels."""

    steps: tuple[int, ...]
    shift: float


DISTILLED = {"lightx2v-4step": StepList((1000, 750, 500, 250), 5.0)}
"""By name. The list is that of LightX2V's `WanStepDistillScheduler` and `Wan22StepDistillScheduler`.

The steps are Euler's, as the second of these has them and as workflows with the merged adapter run it. The first
draws new noise after every step; that is not done here.
"""


def distilled_schedule(name: str, history_rows: int, boundary: float | None = None) -> Schedule:
    """The schedule of a list of `DISTILLED`: it has no graph, since no other number of steps has a meaning.

    history_rows: of the bundle's solver_step. boundary: from which noise level on the second expert runs; None for one
    expert. Raises ValueError for another name.
    """
    if name not in DISTILLED:
        raise ValueError(f"no schedule is named {name!r}; expected one of {', '.join(DISTILLED)}")
    entry = DISTILLED[name]
    u = torch.tensor([*entry.steps, 0], dtype=torch.float64) / TRAIN_STEPS
    sigmas = entry.shift * u / (1 + (entry.shift - 1) * u)
    matrices = pad_matrices(matrices_from_sigmas("euler", sigmas), 1 + history_rows)
    times = tuple((1 - sigmas[:-1]).tolist())
    table = ScheduleTable(
        times=times,
        timesteps=times,
        guidance=(1.0,) * len(times),
        matrices=tuple(tuple(map(tuple, matrix)) for matrix in matrices.tolist()),
        experts=tuple(int(boundary is not None and sigma < boundary) for sigma in sigmas[:-1].tolist()),
    )
    return Schedule(name, "", 1.0, table)
