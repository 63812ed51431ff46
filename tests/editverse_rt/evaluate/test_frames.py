"""Which frames are read and how they are cut, held to the published expressions for every length up to 300."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.frames import (
    choose_clip_frames,
    choose_judged_frames,
    fit_longest_side,
    place_crop,
    size_of_shorter_side,
)


def test_frames_of_clips_and_of_judges_are_those_of_the_published_expressions() -> None:
    for n in range(1, 301):
        step = n / 8
        assert choose_clip_frames(n) == tuple(int(i * step) for i in range(8))
        three = tuple(math.floor((i + 0.5) * n / 3) for i in range(3))
        assert choose_judged_frames(n, as_published=False) == three
        if n >= 3:
            assert choose_judged_frames(n, as_published=True) == tuple(range(0, n, n // 3))


def test_known_vectors_of_frames() -> None:
    assert choose_clip_frames(33) == (0, 4, 8, 12, 16, 20, 24, 28)
    assert choose_clip_frames(3) == (0, 0, 0, 1, 1, 1, 2, 2)
    assert choose_judged_frames(81, as_published=True) == (0, 27, 54)
    assert choose_judged_frames(82, as_published=True) == (0, 27, 54, 81)
    assert choose_judged_frames(5, as_published=True) == (0, 1, 2, 3, 4)
    assert choose_judged_frames(2, as_published=True) == (0, 1)
    assert choose_judged_frames(81, as_published=False) == (13, 40, 67)
    assert choose_judged_frames(1, as_published=False) == (0, 0, 0)


@pytest.mark.parametrize("choose", [choose_clip_frames, lambda n: choose_judged_frames(n, as_published=True)])
def test_a_clip_without_frames_is_refused(choose) -> None:
    with pytest.raises(RequestError, match="0 frames"):
        choose(0)


SIDES = st.integers(1, 4000)


@given(SIDES, SIDES)
def test_the_shorter_side_is_met_and_the_longer_one_is_torchvisions(height: int, width: int) -> None:
    short, long = min(height, width), max(height, width)
    expected = int(224 * long / short)  # torchvision's and transformers' expression
    found = size_of_shorter_side(height, width, 224)
    assert min(found) == 224
    assert max(found) == expected
    assert (found[0] < found[1]) <= (height < width)


@pytest.mark.parametrize(
    ("size", "resized", "floor", "rounded"),
    [
        ((480, 848), (224, 395), (0, 85), (0, 86)),
        ((848, 480), (395, 224), (85, 0), (86, 0)),
        ((480, 854), (224, 398), (0, 87), (0, 87)),
        ((1280, 720), (398, 224), (87, 0), (87, 0)),
        ((720, 1283), (224, 399), (0, 87), (0, 88)),
        ((480, 850), (224, 396), (0, 86), (0, 86)),
        ((480, 838), (224, 391), (0, 83), (0, 84)),
        ((480, 834), (224, 389), (0, 82), (0, 82)),
        ((224, 224), (224, 224), (0, 0), (0, 0)),
    ],
)
def test_known_vectors_of_crops(
    size: tuple[int, int], resized: tuple[int, int], floor: tuple[int, int], rounded: tuple[int, int]
) -> None:
    assert size_of_shorter_side(*size, 224) == resized
    assert place_crop(*resized, 224, rounds=False) == floor
    assert place_crop(*resized, 224, rounds=True) == rounded


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((480, 848), (380, 672)),
        ((848, 480), (672, 380)),
        ((720, 1280), (378, 672)),
        ((1080, 1920), (378, 672)),
        ((480, 672), (480, 672)),
        ((100, 673), (99, 672)),
        ((1000, 1001), (671, 672)),
        ((1, 5000), (1, 672)),
    ],
)
def test_known_vectors_of_picks_first_resize(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fit_longest_side(*size) == fitted


@given(SIDES, SIDES)
def test_picks_first_resize_is_the_published_expression(height: int, width: int) -> None:
    if max(height, width) > 672:
        scale = 672.0 / max(height, width)
        expected = (max(1, int(scale * height)), max(1, int(scale * width)))
    else:
        expected = (height, width)
    assert fit_longest_side(height, width) == expected
