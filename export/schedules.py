"""Schedules as tables: where the transformer is evaluated, and how its velocities are combined.

A solver here is linear: a step adds a fixed combination of the newest velocity and the two before it, so it
is a row of numbers in the bundle and no code in a host. The rows are exact integrals: of all weights on the
known velocities, those that integrate a small space of functions without error.

  euler   one velocity;
  ab2     Adams-Bashforth: straight lines through the last two velocities;
  ab3     parabolas through the last three;
  unip2   as ab2, for paths whose clean prediction is linear in the log signal-to-noise ratio, which is where
          the predictor of UniPC (Zhao et al., 2302.04867) of order 2 is exact, for rectified flow. UniPC
          keeps clean predictions and this keeps velocities, so off such paths the two differ;
  unipc2  unip2, and each step first corrected with the velocity that was found at its end, as UniPC does,
          which costs no evaluation. Predicted and corrected state differ by velocities alone, so the
          correction goes into the next row.

Time runs from 0 (noise) to 1 (data), paper section 3.3: x_t = t x_1 + (1 - t) x_0, v = x_1 - x_0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, cast, get_args

import numpy as np

from editverse_rt.bundle.spec import Schedule

__all__ = [
    "NAMED",
    "Recipe",
    "Solver",
    "build_schedule",
    "count_evaluations",
    "exported_recipes",
    "paper_recipe",
    "solvers",
]

Solver = Literal["euler", "ab2", "ab3", "unip2", "unipc2"]
solvers: tuple[Solver, ...] = get_args(Solver)

PAPER_GUIDANCE = 5.0

# An integral of basis functions from a to b, and their values at a node, both [basis size].
_Basis = tuple[Callable[[float], np.ndarray], Callable[[float], np.ndarray]]


@dataclass(frozen=True)
class Recipe:
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
        """A short name that says all that differs from the paper's: `ab2-10 shift 2 guided 0-0.6`."""
        words = [f"{self.solver}-{self.num_steps}"]
        if self.shift != 1:
            words.append(f"shift {self.shift:g}")
        if self.guidance_scale != PAPER_GUIDANCE:
            words.append(f"guidance {self.guidance_scale:g}")
        if (self.guided_from, self.guided_until) != (0.0, 1.0):
            words.append(f"guided {self.guided_from:g}-{self.guided_until:g}")
        return " ".join(words)

    @classmethod
    def from_label(cls, label: str, guidance_scale: float = PAPER_GUIDANCE) -> Recipe:
        """The recipe of a label; guidance_scale holds where it names none. Raises ValueError for no label."""
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
        return asdict(self)


_NUMBER = r"(\d+(?:\.\d+)?)"
_LABEL = re.compile(
    rf"(\w+)-(\d+)(?: shift {_NUMBER})?(?: guidance {_NUMBER})?(?: guided {_NUMBER}-{_NUMBER})?"
)

# What an export writes beside the paper's schedule; `python -m benchmarks.frontier BUNDLE --write` replaces
# them in a bundle by what was measured there, with the measured quality.
NAMED: dict[str, Recipe] = {
    "balanced": Recipe("ab2", 20),
    "fast": Recipe("ab2", 10, shift=2.0),
}


def paper_recipe(scheduler: dict[str, object]) -> Recipe:
    """The paper's loop: uniform Euler steps at one guidance (section 5.1), from scheduler_config.json."""
    return Recipe(
        "euler", int(str(scheduler["num_inference_steps"])), 1.0, float(str(scheduler["guidance_scale"]))
    )


def exported_recipes(scheduler: dict[str, object]) -> dict[str, Recipe]:
    """What an export writes: the paper's loop, and `NAMED`, all at the checkpoint's guidance."""
    paper = paper_recipe(scheduler)
    named = {name: replace(r, guidance_scale=paper.guidance_scale) for name, r in NAMED.items()}
    return {"paper": paper, **named}


def build_schedule(name: str, recipe: Recipe) -> Schedule:
    """The table of a recipe, of kind "euler" for uniform Euler steps; others hold for their steps only."""
    n = recipe.num_steps
    times = [_shifted(i / n, recipe.shift) for i in range(n)] + [1.0]
    is_guided = [recipe.guided_from <= t < recipe.guided_until for t in times[:-1]]
    schedule = Schedule(
        name=name,
        timesteps=tuple(times[:-1]),
        coefficients=tuple(_solve_rows(recipe.solver, times)),
        guidance_scale=tuple(recipe.guidance_scale if guided else 1.0 for guided in is_guided),
        kind="multistep",
    )
    if recipe.solver == "euler" and recipe.shift == 1 and all(is_guided):
        # Written without the rounding of differences: this is the table that `with_steps` makes.
        return replace(schedule, kind="euler", coefficients=((1.0 / n, 0.0, 0.0),) * n)
    return schedule


def count_evaluations(schedule: Schedule) -> int:
    """Evaluations of the transformer in all: one a step, and another where guidance applies."""
    return len(schedule.timesteps) + sum(scale != 1 for scale in schedule.guidance_scale)


def _shifted(t: float, shift: float) -> float:
    # Not by way of 1 - t, whose rounding would put the first time beside 0, and out of an interval from 0 on.
    return t / (1.0 + (shift - 1.0) * (1.0 - t)) if shift != 1 else t


def _solve_rows(solver: Solver, times: Sequence[float]) -> list[tuple[float, float, float]]:
    """The coefficients of every step from times[i] to times[i + 1], newest velocity first."""
    order = {"euler": 1, "ab2": 2, "ab3": 3, "unip2": 2, "unipc2": 2}[solver]
    basis = _log_snr_basis if solver in ("unip2", "unipc2") else _polynomial_basis
    rows = [_predict(basis, order, times, i) for i in range(len(times) - 1)]
    if solver == "unipc2":
        # x_i was predicted; corrected it would be x_i + (correction - prediction of the step before).
        correct = [_correct(basis, times, i) for i in range(1, len(times) - 1)]
        for i, row in enumerate(correct, 1):
            rows[i] = rows[i] + row - _delayed(_predict(basis, order, times, i - 1))
    return [(float(c0), float(c1), float(c2)) for c0, c1, c2 in rows]


def _predict(basis: Callable[[int], _Basis], order: int, times: Sequence[float], i: int) -> np.ndarray:
    """Weights [3] of v_i, v_{i-1}, v_{i-2} for the step from times[i]. The last step to the data is Euler's
    where the basis ends before t = 1."""
    nodes = [times[j] for j in range(i, max(i - order, -1), -1)]
    return _weights(basis, nodes, times[i], times[i + 1])


def _correct(basis: Callable[[int], _Basis], times: Sequence[float], i: int) -> np.ndarray:
    """Weights [3] of v_i, v_{i-1}, v_{i-2} for the step from times[i - 1] to times[i], v_i being known."""
    nodes = [times[j] for j in range(i, max(i - 3, -1), -1)]
    return _weights(basis, nodes, times[i - 1], times[i])


def _delayed(row: np.ndarray) -> np.ndarray:
    """A row of the step before, told of this step's velocities; its third would be a fourth here.

    Raises ValueError if there is one.
    """
    if row[2] != 0:
        raise ValueError(f"the row {row.tolist()} uses three velocities; a correction leaves room for two")
    return np.array([0.0, row[0], row[1]])


def _weights(basis: Callable[[int], _Basis], nodes: Sequence[float], begin: float, end: float) -> np.ndarray:
    """Weights [3] with which velocities at the nodes integrate the basis from begin to end without error.

    Nodes at which the basis has no values, t = 0 of the log-SNR, are left out, as are all but the first where
    the interval ends beyond it.
    """
    usable = [t for t in nodes if basis is _polynomial_basis or t > 0]
    if basis is _log_snr_basis and (end >= 1 or begin <= 0):
        usable = []
    weights = np.zeros(3)
    if len(usable) < 2:
        weights[0 if begin == nodes[0] or len(nodes) == 1 else 1] = end - begin
        return weights
    integral, value = basis(len(usable))
    matrix = np.stack([value(t) for t in usable], 1)
    weights[: len(usable)] = np.linalg.solve(matrix, integral(end) - integral(begin))
    return weights


def _polynomial_basis(size: int) -> _Basis:
    """Velocities 1, t, t^2 and their integrals."""
    powers = np.arange(size)
    return (lambda t: t ** (powers + 1) / (powers + 1)), (lambda t: t**powers)


def _log_snr_basis(size: int) -> _Basis:
    """Velocities along which the clean prediction x_t + (1 - t) v is 1, l, l^2 for l = log(t / (1 - t)).

    From dx/dt = (m - x) / (1 - t) with m = l^k: x = t; t l - 1; t l^2 - 2 t l + 2. Their derivatives are the
    velocities.
    """

    def integral(t: float) -> np.ndarray:
        log = math.log(t / (1 - t))
        return np.array([t, t * log - 1, t * log**2 - 2 * t * log + 2])[:size]

    def value(t: float) -> np.ndarray:
        log = math.log(t / (1 - t))
        return np.array([1.0, log + 1 / (1 - t), log**2 + 2 * log / (1 - t) - 2 * log - 2 / (1 - t)])[:size]

    return integral, value
