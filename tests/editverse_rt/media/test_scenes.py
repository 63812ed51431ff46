"""Where scenes begin, on frames whose cuts are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from editverse_rt.media.scenes import difference, is_cut

Frames = NDArray[np.uint8]
SHAPE = (24, 32, 3)


def noise(seed: int) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def cuts_of(frames: list[Frames]) -> list[int]:
    differences = [None, *(difference(b, a) for a, b in pairwise(frames))]
    return [index for index in range(len(frames)) if is_cut(differences, index, frames[0].size)]


def test_the_difference_is_exact() -> None:
    black, white = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 255, np.uint8)
    assert difference(black, white) == difference(white, black) == 255 * black.size
    assert difference(white, white) == 0


def test_a_cut_between_two_shots_is_found() -> None:
    assert cuts_of([noise(0)] * 4 + [noise(1)] * 5) == [4]


def test_two_cuts() -> None:
    assert cuts_of([noise(0)] * 3 + [noise(1)] * 3 + [noise(2)] * 3) == [3, 6]


def test_a_cut_before_the_last_frame() -> None:
    assert cuts_of([noise(0)] * 4 + [noise(1)]) == [4]


def test_noise_from_frame_to_frame_is_no_cut() -> None:
    assert cuts_of([noise(seed) for seed in range(6)]) == []


def test_a_flash_of_one_frame_is_no_cut() -> None:
    dark, flash = np.full(SHAPE, 40, np.uint8), np.full(SHAPE, 220, np.uint8)
    assert cuts_of([dark, dark, flash, dark, dark]) == []


@pytest.mark.parametrize(("levels", "found"), [(16, []), (17, [3])])
def test_a_small_change_is_no_cut(levels: int, found: list[int]) -> None:
    before = np.full(SHAPE, 100, np.uint8)
    assert cuts_of([before] * 3 + [before + np.uint8(levels)] * 3) == found


def test_slow_motion_and_fades_are_no_cuts() -> None:
    fade = [np.full(SHAPE, 20 * k, np.uint8) for k in range(12)]
    assert cuts_of(fade) == []
