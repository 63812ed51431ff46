"""The interleaved sequence of a request, written as plainly as it can be (paper sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interleaved:
    """layout int64 [L] into rows (text, clean, noisy, start and end of vision); positions int64 [L, 4]."""

    layout: Tensor
    positions: Tensor


def interleave(segments: Sequence[int | tuple[int, int, int]], target: tuple[int, int, int]) -> Interleaved:
    """Layout and positions of text segments (numbers of tokens) and clips (latent frames, rows, columns).

    Text rows and clean rows are numbered in the order in which they stand. Positions are (sequential,
    temporal, height, width): text and markers advance the first by one each, a latent frame by one for all
    of its patches.
    """
    num_text = sum(s for s in segments if isinstance(s, int))
    num_clean = sum(s[0] * s[1] * s[2] for s in segments if isinstance(s, tuple))
    num_noisy = target[0] * target[1] * target[2]
    start = num_text + num_clean + num_noisy
    next_text, next_clean, next_noisy = 0, num_text, num_text + num_clean
    layout: list[int] = []
    positions: list[tuple[int, int, int, int]] = []
    place = 0
    for segment in [*segments, target]:
        if isinstance(segment, int):
            for _ in range(segment):
                layout.append(next_text)
                positions.append((place, 0, 0, 0))
                next_text += 1
                place += 1
            continue
        is_target = len(layout) - layout.count(start) - layout.count(start + 1) == num_text + num_clean
        layout.append(start)
        positions.append((place, 0, 0, 0))
        place += 1
        for frame in range(segment[0]):
            for row in range(segment[1]):
                for column in range(segment[2]):
                    layout.append(next_noisy if is_target else next_clean)
                    positions.append((place, frame, row, column))
                    next_noisy += is_target
                    next_clean += not is_target
            place += 1
        layout.append(start + 1)
        positions.append((place, 0, 0, 0))
        place += 1
    return Interleaved(torch.tensor(layout), torch.tensor(positions))
