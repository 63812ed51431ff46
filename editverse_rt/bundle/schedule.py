"""A sampling schedule: where the transformer is evaluated, and the solver's matrix of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from editverse_rt.errors import RequestError

__all__ = ["Schedule", "ScheduleTable"]

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ScheduleTable:
    """One row a solver step.

    The solver is linear: over the state S = [x, history ...] and the guided velocity v of this step it
    computes S' = A [S; v], where x is the sample and A the step's matrix of k rows and k + 1 columns.
    Euler's step is x' = x + (t' - t) v; multistep solvers keep earlier velocities in the history, UniPC a
    corrected sample and clean predictions.

    times: where each step begins, from 0 (noise) to 1 (data) as in paper section 3.3. timesteps: what the
    transformer is told there. guidance: the scale of each step; 1 needs no unconditional evaluation. matrices: A
    of each step. experts: which transformer each step runs, for a bundle with several; all 0 otherwise.
    """

    times: tuple[float, ...]
    timesteps: tuple[float, ...]
    guidance: tuple[float, ...]
    matrices: tuple[Matrix, ...]
    experts: tuple[int, ...]

    @property
    def num_evaluations(self) -> int:
        """Evaluations of the transformer in all: one a step, and another where guidance applies."""
        return len(self.timesteps) + sum(scale != 1 for scale in self.guidance)


@dataclass(frozen=True)
class Schedule:
    """A named schedule of a bundle: its table for its own number of steps, and the graph that makes any
    other.

    graph: the bundle's graph that computes a table from `options` and a number of steps; "" where the table is
    fixed, as that of a step-distilled adapter is. options: its other inputs by name, such as "shift".
    guidance_scale: of the guided steps.
    """

    name: str
    graph: str
    guidance_scale: float
    table: ScheduleTable
    options: dict[str, float] = field(default_factory=dict)

    @property
    def num_inference_steps(self) -> int:
        return len(self.table.timesteps)

    @property
    def is_fixed(self) -> bool:
        """Whether no graph makes another number of steps."""
        return self.graph == ""

    def with_table(self, table: ScheduleTable) -> Schedule:
        """This schedule with the table of another number of steps."""
        return replace(self, table=table)

    def with_guidance(self, guidance_scale: float) -> Schedule:
        """This schedule with the caller's guidance.

        Steps that the table leaves unguided (a guidance of 1) stay so: where guidance applies belongs to the
        schedule. A table without any guidance takes the caller's everywhere. Raises RequestError for a
        negative or non-finite value.
        """
        if not math.isfinite(guidance_scale) or guidance_scale < 0:
            raise RequestError(
                f"{guidance_scale}",
                expected="a number of at least 0 (1: no guidance)",
                code="request.option",
                field="guidance_scale",
                is_value=True,
            )
        unguided = all(row == 1 for row in self.table.guidance)
        rows = tuple(float(guidance_scale) if unguided or row != 1 else row for row in self.table.guidance)
        return replace(self, guidance_scale=float(guidance_scale), table=replace(self.table, guidance=rows))
