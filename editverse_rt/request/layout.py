"""The interleaved sequence in integers: which row each token takes, and where it stands on the four axes.

Integers only, and nothing that depends on a library: the C++ host repeats this file line by line.
Rules: paper sections 3.1 and 3.2; where the paper is silent, docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "Layout", "lay_out"]


@dataclass(frozen=True)
class Grid:
    """A vision segment in latent units: latent frames x patch rows x patch columns."""

    frames: int
    rows: int
    columns: int

    @property
    def num_patches(self) -> int:
        return self.frames * self.rows * self.columns


@dataclass(frozen=True)
class Layout:
    """The interleaved sequence of one branch, as the `transformer` graph takes it.

    layout: int64 [L], which row of (text, clean, noisy, start of vision, end of vision) each token is.
    positions: int64 [L, 4], columns sequential, temporal, height, width (paper section 3.2).
    """

    layout: NDArray[np.int64]
    positions: NDArray[np.int64]
    num_text: int
    num_clean: int
    num_noisy: int


def lay_out(segments: Sequence[int | Grid], target: Grid, *, with_text: bool = True) -> Layout:
    """Lay the sequence out: the request's segments in order, then the target, which is what is generated.

    segments: a number of text tokens, or the grid of a vision segment; the end-of-sequence token is the last
    text segment. with_text=False is guidance's unconditional branch: text rows are left out, vision stays,
    and sequential positions are counted without the text (paper section 3.1).
    """
    num_text = sum(segment for segment in segments if isinstance(segment, int)) if with_text else 0
    num_clean = sum(segment.num_patches for segment in segments if isinstance(segment, Grid))
    start_row = num_text + num_clean + target.num_patches
    rows: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    next_text, next_vision, sequential = 0, num_text, 0
    for segment in [*segments, target]:
        if isinstance(segment, Grid):
            num_patches = segment.num_patches
            vision = np.arange(next_vision, next_vision + num_patches)
            rows.append(np.concatenate([[start_row], vision, [start_row + 1]]))
            positions.append(_place_vision(segment, sequential))
            next_vision += num_patches
            sequential += segment.frames + 2
        elif with_text:
            rows.append(np.arange(next_text, next_text + segment))
            positions.append(_place_text(np.arange(sequential, sequential + segment)))
            next_text += segment
            sequential += segment
    return Layout(
        layout=np.concatenate(rows).astype(np.int64),
        positions=np.concatenate(positions).astype(np.int64),
        num_text=num_text,
        num_clean=num_clean,
        num_noisy=target.num_patches,
    )


def _place_text(sequential: NDArray[np.int64]) -> NDArray[np.int64]:
    zeros = np.zeros_like(sequential)
    return np.stack([sequential, zeros, zeros, zeros], axis=1)


def _place_vision(grid: Grid, sequential: int) -> NDArray[np.int64]:
    frame, row, column = (
        axis.reshape(-1) for axis in np.indices((grid.frames, grid.rows, grid.columns), dtype=np.int64)
    )
    patches = np.stack([sequential + 1 + frame, frame, row, column], axis=1)
    start, end = _place_text(np.array([sequential, sequential + 1 + grid.frames], dtype=np.int64))
    return np.concatenate([start[None], patches, end[None]])
