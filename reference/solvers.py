"""Solvers of the flow equation as tables of small matrices, for any number of steps (torch, float64).

Time t runs from 0 (noise) to 1 (data), sigma = 1 - t, x_t = t x_1 + sigma x_0, v = x_1 - x_0. diffusers' Wan
classes give noise - data; a velocity here has the opposite sign, as everywhere in this project.

A solver keeps a state of k tensors, S = [x, ...]. Step i evaluates the network at x and is linear:

    S_(i+1) = A_i [S_i; v_i],  A_i of k rows and k + 1 columns.

    euler   [x]
    ab2     [x, v_(i-1)]                   Adams-Bashforth: the line through the last two velocities
    ab3     [x, v_(i-1), v_(i-2)]          the parabola through the last three
    unipc2  [x, x', m_(i-1), m_(i-2)]      UniPC of order 2, B(h) = e^h - 1 ("bh2"), with its corrector

For UniPC (Zhao et al., arXiv 2302.04867) m = x + sigma v is the predicted clean sample and x' the corrected
state of the step before. The first step finds zeros in every place but the first; its matrix ignores them.
The oracles are `UniPCMultistepScheduler` and `FlowMatchEulerDiscreteScheduler` of diffusers.

Everything is elementwise in the number of the step: sigma is a formula of i, so the sigmas of a step's
neighbours are that formula at i - 2, i - 1 and i + 1. Nothing branches on values, so `torch.export` takes
`Schedule` as it stands.
Numbers that float32 cannot hold are tensors: `torch.onnx` writes Python's floats through float32.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

__all__ = [
    "STATE_ROWS",
    "Schedule",
    "Solver",
    "Spacing",
    "matrices_from_sigmas",
    "run_solver",
    "sigma_at",
    "step_matrices",
]

Solver = Literal["euler", "ab2", "ab3", "unipc2"]
Spacing = Literal["uniform", "unipc_flow", "euler_flow"]
STATE_ROWS: dict[Solver, int] = {"euler": 1, "ab2": 2, "ab3": 3, "unipc2": 4}

TRAIN_STEPS = 1000
"""The networks of diffusers' flow classes are told sigma in thousandths."""
FIRST_SIGMA_GAP = 1e-6
"""UniPC's first sigma is this much below 1, where its logarithm would be infinite."""


def sigma_at(spacing: Spacing, index: Tensor, steps: Tensor, shift: Tensor) -> Tensor:
    """Noise level of step `index` of `steps`, not rounded; 0 from index = steps on.

    index float64 [n], steps and shift float64 []. Spacings, each then moved towards the noise by
    s u / (1 + (s - 1) u):

    uniform     t = i / n: EditVerse, section 5.1;
    unipc_flow  u = 1 - 0.999 i / n, and the first below 1 (`UniPCMultistepScheduler`, `use_flow_sigmas`);
    euler_flow  from 1 to the shifted 0.001 in n values, and moved again (`FlowMatchEulerDiscreteScheduler`).
    """
    floor = _number(1 / TRAIN_STEPS)
    if spacing == "uniform":
        t = index / steps
        sigma = 1 - t / (1 + (shift - 1) * (1 - t))
    elif spacing == "unipc_flow":
        # The order of operations is numpy.linspace's, so that 1000 sigma is rounded down as diffusers does.
        u = index * ((floor - 1) / steps) + 1
        sigma = shift * u / (1 + (shift - 1) * u)
        sigma = torch.where(index == 0, sigma - _number(FIRST_SIGMA_GAP), sigma)
    else:
        last = TRAIN_STEPS * (shift * floor / (1 + (shift - 1) * floor))
        u = (index * ((last - TRAIN_STEPS) / (steps - 1).clamp(min=1)) + TRAIN_STEPS) / TRAIN_STEPS
        sigma = shift * u / (1 + (shift - 1) * u)
    return torch.where(index >= steps, torch.zeros_like(sigma), sigma)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def step_matrices(
    solver: Solver, index: Tensor, steps: Tensor, before2: Tensor, before: Tensor, now: Tensor, after: Tensor
) -> Tensor:
    """The matrices of n steps, float64 [n, k, k + 1] for the k of `STATE_ROWS`.

    index float64 [n] counts from the first step that is run, steps float64 [] is how many are run. The
    sigmas, each float64 [n], are those of the steps index - 2, index - 1, index and index + 1; where there is
    no such step any value between 0 and 1 will do.
    """
    if solver == "unipc2":
        return _unipc_matrices(index, steps, before2, before, now, after)
    if solver == "euler":
        return _stack([[torch.ones_like(now), now - after]])
    weights = _adams_bashforth(2 if solver == "ab2" else 3, index, before2, before, now, after)
    zero, one = torch.zeros_like(now), torch.ones_like(now)
    if solver == "ab2":
        return _stack([[one, weights[1], weights[0]], [zero, zero, one]])
    return _stack(
        [[one, weights[1], weights[2], weights[0]], [zero, zero, zero, one], [zero, one, zero, zero]]
    )


def _stack(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _adams_bashforth(
    order: int, index: Tensor, before2: Tensor, before: Tensor, now: Tensor, after: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of v_i, v_(i-1), v_(i-2): polynomials through them, integrated over the step of length h.

    a and b are how far back in time the earlier velocities stand.
    """
    one = torch.ones_like(now)
    h = now - after
    a = torch.where(index >= 1, before - now, one)
    line = h * h / (2 * a)
    none = torch.zeros_like(h)
    first, second, third = h + line, -line, none
    if order == 3:
        b = torch.where(index >= 2, before2 - now, 2 * one)
        cube, square = h**3 / 3, h**2 / 2
        many = index >= 2
        first = torch.where(many, h + (cube + (a + b) * square) / (a * b), first)
        second = torch.where(many, -(cube + b * square) / (a * (b - a)), second)
        third = torch.where(many, (cube + a * square) / (b * (b - a)), none)
    return torch.where(index >= 1, first, h), torch.where(index >= 1, second, none), third


def _unipc_matrices(
    index: Tensor, steps: Tensor, before2: Tensor, before: Tensor, now: Tensor, after: Tensor
) -> Tensor:
    """UniPC-2's corrector and predictor over [x, x', m_(i-1), m_(i-2), v].

    With l = log((1 - sigma) / sigma) and h the step in l, (1 - sigma_b) (e^-h - 1) is sigma_b / sigma_a - 1:
    of the exponential integrator's terms only the ratios of steps need a logarithm.
    """
    half = torch.full_like(now, 0.5)
    # Steps that do not exist take part in no result; these values keep them finite.
    before = torch.where(index >= 1, before, now * half)
    before2 = torch.where(index >= 2, before2, before * half)
    is_last = index >= steps - 1
    following = torch.where(is_last, now * half, after)
    l2, l1, l0, next_l = (torch.log((1 - s) / s) for s in (before2, before, now, following))

    unit = torch.eye(5, dtype=now.dtype)
    x, corrected, m1, m2, v = (unit[i].expand(now.shape[0], 5) for i in range(5))
    m = x + now[:, None] * v

    # The corrector repeats the step from `before` to `now`, with what the new velocity tells.
    h = l0 - l1
    phi = (now - before) / (before * (1 - now))  # e^-h - 1
    first = -phi / h - 1
    second = -first / h - half
    ratio = (l2 - l1) / h
    far = (2 * second - first) / phi / (ratio - 1)
    near = first / phi - far
    far, near = torch.where(index >= 2, far / ratio, 0 * half), torch.where(index >= 2, near, half)
    keep = (now / before)[:, None]
    step = keep * corrected + (1 - keep) * (m1 + far[:, None] * (m2 - m1) + near[:, None] * (m - m1))
    sample = torch.where((index >= 1)[:, None], step, x)

    # The predictor: of order 2 but for the first step and the last.
    slope = half * (next_l - l0) / (l1 - l0)
    slope = torch.where((index >= 1) & ~is_last, slope, 0 * half)[:, None]
    keep = (after / now)[:, None]
    predicted = keep * sample + (1 - keep) * (m + slope * (m1 - m))
    return torch.stack((predicted, sample, m, m1), 1)


class Schedule(nn.Module):
    """Times, what the network is told, guidance and matrices for any number of steps and any shift.

    solver, spacing: see the module. told: "floor" for what diffusers' UniPC tells a network,
    floor(1000 sigma) / 1000; "exact" for sigma itself. float32_sigmas: diffusers keeps sigmas in float32,
    where UniPC's first is 1.3 % further from 1, and its matrices are those. guidance_scales: the scale, or
    one for each expert. guided: the interval [from, until) of t outside of which guidance is 1. boundary:
    the noise level, told, from which on the first of two experts is used (`boundary_ratio`).

    Raises ValueError for values that do not fit each other.
    """

    def __init__(
        self,
        solver: Solver = "unipc2",
        spacing: Spacing = "unipc_flow",
        *,
        told: Literal["floor", "exact"] = "floor",
        float32_sigmas: bool = True,
        guidance_scales: tuple[float, ...] = (5.0,),
        guided: tuple[float, float] = (0.0, 1.0),
        boundary: float | None = None,
    ) -> None:
        super().__init__()
        if solver not in get_args(Solver) or spacing not in get_args(Spacing):
            raise ValueError(
                f"solver is {solver!r} and spacing {spacing!r}; expected one of "
                f"{', '.join(get_args(Solver))} and one of {', '.join(get_args(Spacing))}"
            )
        if solver == "unipc2" and spacing != "unipc_flow":
            raise ValueError(f"unipc2 with spacing {spacing!r} begins at sigma = 1; take unipc_flow")
        if len(guidance_scales) != (1 if boundary is None else 2):
            raise ValueError(f"guidance_scales are {guidance_scales}; expected one for each expert")
        self.solver: Solver = solver
        self.spacing: Spacing = spacing
        self.told = told
        self.float32_sigmas = float32_sigmas
        self.guidance_scales = guidance_scales
        self.guided = guided
        self.boundary = boundary

    def forward(self, steps: Tensor, shift: Tensor, first: Tensor | None = None) -> tuple[Tensor, ...]:
        """steps int64 [], shift float64 []; first int64 []: the step to begin with, for a noised source.

        Returns, for the n = steps - first steps that are run: times [n]; timesteps [n], what the network is
        told; guidance [n]; matrices [n, k, k + 1]; with a boundary also experts int64 [n], 0 or 1. All but
        the last are float64. A noised source begins as times[0] x_1 + (1 - times[0]) x_0.
        """
        begin = torch.zeros_like(steps) if first is None else first
        count = (steps - begin).item()
        torch._check(count >= 1)
        index = torch.arange(count, dtype=torch.float64)
        return self.rows(index, steps.to(torch.float64), shift, begin.to(torch.float64))

    def rows(self, index: Tensor, steps: Tensor, shift: Tensor, begin: Tensor) -> tuple[Tensor, ...]:
        """What `forward` returns, for the steps `index` float64 [n], counted from `begin` float64 []."""
        exact = [sigma_at(self.spacing, index + (begin + d), steps, shift) for d in (-2, -1, 0, 1)]
        if self.float32_sigmas:
            before2, before, now, after = (s.to(torch.float32).to(torch.float64) for s in exact)
        else:
            before2, before, now, after = exact
        matrices = step_matrices(self.solver, index, steps - begin, before2, before, now, after)
        times = 1 - now
        told = torch.floor(TRAIN_STEPS * exact[2]) / TRAIN_STEPS if self.told == "floor" else now
        begin_guided, end_guided = (_number(t) for t in self.guided)
        is_guided = (times >= begin_guided) & (times < end_guided)
        scales = [_number(scale) for scale in self.guidance_scales]
        if self.boundary is None:
            return times, 1 - told, torch.where(is_guided, scales[0], _number(1.0)), matrices
        is_low = told < _number(self.boundary)
        guidance = torch.where(is_guided, torch.where(is_low, scales[1], scales[0]), _number(1.0))
        return times, 1 - told, guidance, matrices, is_low.to(torch.int64)


def matrices_from_sigmas(solver: Solver, sigmas: Tensor) -> Tensor:
    """The matrices [n, k, k + 1] of sigmas given one by one, float64 [n + 1], falling to 0.

    What a distilled network's fixed list of steps needs. Raises ValueError unless they fall, or where UniPC
    is asked to begin at 1.
    """
    values = sigmas.to(torch.float64)
    if values.ndim != 1 or len(values) < 2 or not bool((values[1:] < values[:-1]).all()):
        raise ValueError(f"sigmas are {sigmas.tolist()}; expected at least two, each below the one before")
    if solver == "unipc2" and float(values[0]) >= 1:
        raise ValueError(f"the first sigma is {float(values[0])}; UniPC needs one below 1")
    index = torch.arange(len(values) - 1, dtype=torch.float64)
    places = index.to(torch.int64)
    columns = [values[(places + d).clamp(min=0)] for d in (-2, -1, 0, 1)]
    return step_matrices(solver, index, torch.tensor(float(len(index)), dtype=torch.float64), *columns)


def run_solver(matrices: Tensor, start: Tensor, velocities: list[Tensor]) -> list[Tensor]:
    """The slow loop: the samples x_0 .. x_n when the network answers with these velocities."""
    state = torch.zeros((matrices.shape[1], *start.shape), dtype=start.dtype)
    state[0] = start
    samples = [start]
    for matrix, velocity in zip(matrices.to(start.dtype), velocities, strict=True):
        state = torch.tensordot(matrix, torch.cat((state, velocity[None])), 1)
        samples.append(state[0])
    return samples
