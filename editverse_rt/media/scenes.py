"""Where a new scene begins: integers only, so that every host finds the same cuts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from editverse_rt.media.frames import Frames

__all__ = ["difference", "is_cut"]

MIN_LEVELS = 16
"""Grey levels, in the mean over all values, by which the first frame of a scene differs from the one before."""
MIN_RATIO = 3
"""How many times as much it differs as its neighbours do: motion and flashes of light are no cuts."""


def difference(frame: Frames, before: Frames) -> int:
    """The sum of the absolute differences of two frames uint8 [H, W, 3]."""
    return int(np.abs(frame.astype(np.int16) - before).sum(dtype=np.int64))


def is_cut(differences: Sequence[int | None], index: int, num_values: int) -> bool:
    """Whether a scene begins at a frame.

    differences: of each frame to the one before it; None for a first one. num_values: height * width * 3.
    """
    here = differences[index]
    if here is None or here <= MIN_LEVELS * num_values:
        return False
    near = (*differences[max(0, index - 1) : index], *differences[index + 1 : index + 2])
    return all(here > MIN_RATIO * other for other in near if other is not None)
