"""Whether a schedule with few evaluations keeps what has many right answers: the many-valued test.

An edit with one right answer cannot tell a good schedule of few steps from a bad one, because the mean over all
answers is the answer. So images and clips are sampled without text and without inputs, where the model's own
distribution is all there is. Their latents are judged by the Frechet distance to real ones, by their variance over
noises, and by the RMSE to the trajectory of many steps from the same noise. A schedule that gives the mean of all
pictures has a large distance and hardly any variance, however small its error.

All in normalised latents, patch by patch: [samples, patches, patch_dim].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.schedules import ScheduleSettings, build_schedule
from reference.checkpoint import Checkpoint
from reference.families.editverse_checkpoint import check_steps
from reference.noise import draw_noise
from reference.sequence import interleave
from reference.vae import encode_clip

__all__ = ["Variety", "encode_real", "frechet_distance", "keeps_variety", "measure_variety", "sample_latents"]

Array = NDArray[np.float64]
Grid = tuple[int, int, int]
"""Latent frames, rows and columns of patches."""

MAX_DISTANCE = 1.25
"""How many times the Frechet distance of the first schedule another may have."""
MIN_VARIANCE = 0.8
"""Which share of the first schedule's variance it has to have."""
SAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class Variety:
    """What was found of samples of one schedule.

    frechet: squared distance of Gaussians fitted to patches. variance: over the noises, mean over all values.
    rmse: to the samples of the first schedule, from the same noises.
    """

    frechet: float
    variance: float
    rmse: float


def frechet_distance(first: Array, second: Array) -> float:
    """The squared Frechet distance of the Gaussians fitted to the rows of two arrays [n, D] and [m, D], in float64.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2). Covariances divide by n - 1. Raises ValueError for fewer
    than two rows, or rows of different widths.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"rows are {first.shape} and {second.shape}; expected [n, D] and [m, D]")
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{min(len(first), len(second))} rows; a covariance needs at least 2")
    one, other = first.astype(np.float64), second.astype(np.float64)
    gap = one.mean(0) - other.mean(0)
    covariances = [np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (one, other)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ covariances[1] @ root
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    total = gap @ gap + sum(np.trace(c) for c in covariances) - 2 * overlap
    return max(0.0, float(total))


@torch.no_grad()
def sample_latents(
    checkpoint: Checkpoint, grid: Grid, count: int, settings: ScheduleSettings, first_seed: int = 0
) -> Tensor:
    """Samples float32 [count, patches, patch_dim] without text and inputs; sample i has noise of seed first_seed + i.

    The guidance of the settings does not matter: without text both branches are the same. Raises ValueError for
    steps that a distilled checkpoint was not made for.
    """
    check_steps(checkpoint.scheduler, settings.num_steps)
    table = build_schedule("variety", settings).table
    net = checkpoint.transformer
    patch_dim, num_patches = net.config.patch_dim, grid[0] * grid[1] * grid[2]
    sequence = interleave([], grid)
    is_noisy = sequence.layout < num_patches
    found = []
    for start in range(0, count, SAMPLES_AT_ONCE):
        seeds = range(first_seed + start, first_seed + min(start + SAMPLES_AT_ONCE, count))
        x = torch.stack([draw_noise(seed, num_patches, patch_dim) for seed in seeds])
        rows = len(table.matrices[0])
        state = torch.zeros(rows, *x.shape)
        state[0] = x
        for told, matrix in zip(table.timesteps, table.matrices, strict=True):
            timestep = torch.full((len(x),), told)
            markers = net.vision_markers.expand(len(x), -1, -1)
            tokens = torch.cat((net.patch_in(state[0]), markers), 1)[:, sequence.layout]
            out = net.run_blocks(tokens, sequence.positions, is_noisy.expand(len(x), -1), timestep)
            velocity = net.velocity_from_output(out[:, is_noisy], state[0], timestep)
            state = torch.tensordot(torch.tensor(matrix), torch.cat((state, velocity[None])), 1)
        found.append(state[0])
    return torch.cat(found)


@torch.no_grad()
def encode_real(checkpoint: Checkpoint, clips: Iterable[NDArray[np.uint8]]) -> Tensor:
    """Latents float32 [n, patches, patch_dim] of real clips uint8 [T, H, W, 3], all of one shape."""
    patch = checkpoint.patch_size
    return torch.stack(
        [encode_clip(checkpoint.vae, torch.from_numpy(clip), patch).flatten(0, 2) for clip in clips]
    )


def measure_variety(samples: Tensor, real: Tensor, expected: Tensor) -> Variety:
    """Judge samples [n, patches, P]. real: [m, patches, P]. expected: of many steps, from the same noises."""
    patches = [values.flatten(0, 1).double().numpy() for values in (samples, real)]
    return Variety(
        frechet=frechet_distance(*patches),
        variance=float(samples.double().var(0).mean()),
        rmse=float((samples - expected).double().square().mean().sqrt()),
    )


def keeps_variety(found: Mapping[str, Variety], standard: Mapping[str, Variety]) -> bool:
    """Whether a schedule passes, for every kind of sample ("images", "clips"). standard: of many steps."""
    return all(
        one.frechet <= MAX_DISTANCE * standard[kind].frechet
        and one.variance >= MIN_VARIANCE * standard[kind].variance
        for kind, one in found.items()
    )
