"""Schedules of a bundle: the settings that name one, its table, and the graph that makes any other.

The arithmetic is `reference.solvers`: a solver is linear, a step is a matrix over its state. Here a
schedule has a name and settings, and `ScheduleGraph` is the module that the bundle's `schedule_<solver>`
graphs are traced from. Time runs from 0 (noise) to 1 (data), paper section 3.3: x_t = t x_1 + (1 - t) x_0,
v = x_1 - x_0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from reference import solvers as solvers_of_reference
from reference.solvers import STATE_ROWS, TRAIN_STEPS, Spacing, sigma_at, step_matrices

__all__ = [
    "HISTORY_ROWS",
    "NAMED",
    "ScheduleGraph",
    "ScheduleSettings",
    "Solver",
    "build_schedule",
    "exported_settings",
    "fixed_schedule",
    "pad_matrices",
    "paper_settings",
    "solvers",
    "table_of",
]

Solver = Literal["euler", "ab2", "ab3"]
solvers: tuple[Solver, ...] = get_args(Solver)

PAPER_GUIDANCE = 5.0
HISTORY_ROWS = 2
"""Rows of the solver's history in a bundle of this family: two earlier velocities, as ab3 needs."""


@dataclass(frozen=True)
class ScheduleSettings:
    """What a schedule is built from.

    shift: 1 for uniform times; s > 1 moves them towards the noise and s < 1 towards the data, 1 - t becomes
    s (1 - t) / (1 + (s - 1) (1 - t)). guided_from, guided_until: guidance applies to the steps that begin in
    [from, until); elsewhere there is no second branch.
    """

    solver: Solver = "euler"
    num_steps: int = 50
    shift: float = 1.0
    guidance_scale: float = 5.0
    guided_from: float = 0.0
    guided_until: float = 1.0

    def __post_init__(self) -> None:
        if self.solver not in solvers:
            raise ValueError(f"solver is {self.solver!r}; expected one of {', '.join(solvers)}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; expected at least 1")
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise ValueError(f"shift is {self.shift}; expected a number above 0")
        if not 0 <= self.guided_from <= self.guided_until <= 1:
            interval = f"guidance from {self.guided_from} until {self.guided_until}"
            raise ValueError(f"{interval}; expected 0 <= from <= until <= 1")

    @property
    def label(self) -> str:
        """A short name of every setting that differs from the paper's schedule: `ab2-10 shift 2 guided 0-0.6`."""
        words = [f"{self.solver}-{self.num_steps}"]
        if self.shift != 1:
            words.append(f"shift {self.shift:g}")
        if self.guidance_scale != PAPER_GUIDANCE:
            words.append(f"guidance {self.guidance_scale:g}")
        if (self.guided_from, self.guided_until) != (0.0, 1.0):
            words.append(f"guided {self.guided_from:g}-{self.guided_until:g}")
        return " ".join(words)

    @classmethod
    def from_label(cls, label: str, guidance_scale: float = PAPER_GUIDANCE) -> ScheduleSettings:
        """The settings of a label; guidance_scale holds where it names none.

        Raises ValueError if the text is not a label.
        """
        match = _LABEL.fullmatch(label)
        if match is None:
            raise ValueError(f"{label!r} is no schedule; expected one as 'ab2-10 shift 2 guided 0-0.6'")
        solver, steps, *numbers = match.groups()
        shift, guidance, begin, end = (
            default if number is None else float(number)
            for number, default in zip(numbers, (1.0, guidance_scale, 0.0, 1.0), strict=True)
        )
        return cls(cast(Solver, solver), int(steps), shift, guidance, begin, end)

    def to_json(self) -> dict[str, object]:
        """The settings by name, as `bundle.json` has them."""
        return asdict(self)


_NUMBER = r"(\d+(?:\.\d+)?)"
_LABEL = re.compile(
    rf"(\w+)-(\d+)(?: shift {_NUMBER})?(?: guidance {_NUMBER})?(?: guided {_NUMBER}-{_NUMBER})?"
)

# What an export writes beside the paper's schedule for a checkpoint that names no schedules; not measured.
NAMED: dict[str, ScheduleSettings] = {
    "balanced": ScheduleSettings("ab2", 20),
    "fast": ScheduleSettings("ab2", 10, shift=2.0),
}


def paper_settings(scheduler: dict[str, object]) -> ScheduleSettings:
    """The paper's loop: uniform Euler steps at one guidance (section 5.1), from scheduler_config.json."""
    return ScheduleSettings(
        "euler", int(str(scheduler["num_inference_steps"])), 1.0, float(str(scheduler["guidance_scale"]))
    )


def exported_settings(scheduler: dict[str, object]) -> dict[str, ScheduleSettings]:
    """What an export writes: the paper's loop, and the schedules that the checkpoint names, or else `NAMED`.

    scheduler: scheduler_config.json; its "schedules" are labels by name. All are at the checkpoint's guidance unless
    their label says otherwise. Raises ValueError for what is no label.
    """
    paper = paper_settings(scheduler)
    labels = scheduler.get("schedules", {name: settings.label for name, settings in NAMED.items()})
    if not isinstance(labels, dict):
        raise ValueError(f"schedules is {labels!r}; expected labels by name")
    named = {
        str(name): ScheduleSettings.from_label(str(label), paper.guidance_scale)
        for name, label in labels.items()
    }
    return {"paper": paper, **{name: found for name, found in named.items() if name != "paper"}}


class ScheduleGraph(nn.Module):
    """The module of a bundle's graph `schedule_<solver>`: numbers of a schedule to its table."""

    def __init__(
        self,
        solver: solvers_of_reference.Solver,
        history_rows: int = HISTORY_ROWS,
        *,
        spacing: Spacing = "uniform",
        told: Literal["floor", "exact"] = "exact",
        float32_sigmas: bool = False,
        boundary: float | None = None,
    ) -> None:
        """As `reference.solvers.Schedule`; boundary: from which noise level on the second expert is used."""
        super().__init__()
        self.solver: solvers_of_reference.Solver = solver
        self.state_rows = 1 + history_rows
        self.spacing: Spacing = spacing
        self.told = told
        self.float32_sigmas = float32_sigmas
        self.boundary = boundary

    def forward(
        self,
        num_steps: Tensor,
        first_step: Tensor,
        shift: Tensor,
        guidance_scale: Tensor,
        guidance_scale_2: Tensor,
        guided_from: Tensor,
        guided_until: Tensor,
    ) -> tuple[Tensor, ...]:
        """num_steps and first_step int64 [], the others float64 [].

        Returns times [n], timesteps [n], guidance [n] and matrices [n, S, S + 1], float64, and experts int64 [n].
        """
        count = int((num_steps - first_step).item())
        torch._check(count >= 1)
        index, steps = torch.arange(count, dtype=torch.float64), num_steps.to(torch.float64)
        begin = first_step.to(torch.float64)
        exact = [sigma_at(self.spacing, index + (begin + d), steps, shift) for d in (-2.0, -1.0, 0.0, 1.0)]
        kept = [s.to(torch.float32).to(torch.float64) for s in exact] if self.float32_sigmas else exact
        matrices = step_matrices(self.solver, index, steps - begin, *kept)
        if self.spacing == "uniform":
            # Not 1 - sigma: its rounding could move a step that begins at guided_from to a time before it.
            at = (index + begin) / steps
            times = at / (1 + (shift - 1) * (1 - at))
        else:
            times = 1 - kept[2]
        # A second tensor even where the values are the same, because two outputs of a graph cannot be one tensor.
        timesteps = times + 0.0
        if self.told == "floor":
            timesteps = 1 - torch.floor(TRAIN_STEPS * exact[2]) / TRAIN_STEPS
        experts = torch.zeros_like(times, dtype=torch.int64)
        scale = guidance_scale
        if self.boundary is not None:
            experts = (1 - timesteps < torch.tensor(self.boundary, dtype=torch.float64)).to(torch.int64)
            scale = torch.where(experts == 1, guidance_scale_2, guidance_scale)
        is_guided = (times >= guided_from) & (times < guided_until)
        guidance = torch.where(is_guided, scale, torch.ones_like(times))
        return times, timesteps, guidance, pad_matrices(matrices, self.state_rows), experts


def pad_matrices(matrices: Tensor, rows: int) -> Tensor:
    """Matrices [n, k, k + 1] of a smaller state as [n, rows, rows + 1]: the rows that are new stay zero."""
    missing = rows - matrices.shape[1]
    if not missing:
        return matrices
    state, velocity = matrices[:, :, :-1], matrices[:, :, -1:]
    wide = torch.cat([state, torch.zeros_like(state[:, :, :1]).expand(-1, -1, missing), velocity], 2)
    return torch.cat([wide, torch.zeros_like(wide[:, :1]).expand(-1, missing, -1)], 1)


def fixed_schedule(name: str, num_steps: int, history_rows: int = HISTORY_ROWS) -> Schedule:
    """The schedule of a distilled checkpoint: Euler steps at uniform times without guidance, and no graph, since no
    other number of steps has a meaning."""
    built = build_schedule(name, ScheduleSettings("euler", num_steps, guidance_scale=1.0), history_rows)
    return Schedule(name=name, graph="", guidance_scale=1.0, table=built.table)


def build_schedule(name: str, settings: ScheduleSettings, history_rows: int = HISTORY_ROWS) -> Schedule:
    """The schedule of these settings, with its table, as the graph `schedule_<solver>` gives it.

    history_rows: earlier velocities that the bundle's `solver_step` keeps. Raises ValueError for a solver that needs
    more of them.
    """
    if STATE_ROWS[settings.solver] > 1 + history_rows:
        raise ValueError(
            f"{settings.solver} keeps {STATE_ROWS[settings.solver]} rows; this bundle {history_rows}"
        )
    options = {
        "shift": settings.shift,
        "guidance_scale": settings.guidance_scale,
        "guided_from": settings.guided_from,
        "guided_until": settings.guided_until,
    }
    scale = options.pop("guidance_scale")
    module = ScheduleGraph(settings.solver, history_rows)
    return Schedule(
        name=name,
        graph=f"schedule_{settings.solver}",
        guidance_scale=scale,
        table=table_of(module, settings.num_steps, scale, options),
        options=options,
    )


def table_of(
    module: ScheduleGraph, num_steps: int, guidance_scale: float, options: Mapping[str, float]
) -> ScheduleTable:
    """The table that the graph of a module gives for a number of steps and the options of a schedule."""
    numbers = {"guidance_scale": guidance_scale, "guidance_scale_2": guidance_scale, **options}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    columns = module(torch.tensor(num_steps), torch.tensor(0), **tensors)
    times, timesteps, guidance, matrices, experts = (column.tolist() for column in columns)
    return ScheduleTable(
        times=tuple(times),
        timesteps=tuple(timesteps),
        guidance=tuple(guidance),
        matrices=tuple(tuple(map(tuple, matrix)) for matrix in matrices),
        experts=tuple(experts),
    )
