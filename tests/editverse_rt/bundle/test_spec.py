from __future__ import annotations

import math
from dataclasses import replace

import pytest

from editverse_rt.bundle.spec import Geometry, Schedule
from editverse_rt.errors import RequestError

GEOMETRY = Geometry(
    temporal_ratio=4,
    spatial_ratio=8,
    patch_size=2,
    patch_dim=64,
    min_area_px=4096,
    max_area_px=9216,
    max_side_px=144,
    max_frames=17,
    default_height_px=64,
    default_width_px=64,
    default_frames=17,
    default_fps=8.0,
)
PAPER = Schedule("paper", (0.0, 0.5), ((0.5, 0.0, 0.0),) * 2, (5.0, 5.0))
INTERVAL = Schedule(
    "interval",
    (0.0, 0.25, 0.5),
    ((0.25, 0.0, 0.0), (0.4, -0.1, 0.0), (0.7, -0.5, 0.3)),
    (1, 4, 1),
    "multistep",
)


def test_a_patch_covers_the_ratio_of_the_vae_times_the_patch() -> None:
    assert GEOMETRY.size_multiple == 16


@pytest.mark.parametrize(
    ("asked", "frames", "latent_frames"),
    [(1, 1, 1), (2, 1, 1), (4, 1, 1), (5, 5, 2), (8, 5, 2), (9, 9, 3), (16, 13, 4), (17, 17, 5)],
)
def test_frames_round_down_to_whole_latent_frames(asked: int, frames: int, latent_frames: int) -> None:
    assert GEOMETRY.round_frames(asked) == frames
    assert GEOMETRY.count_latent_frames(frames) == latent_frames


def test_without_temporal_compression_every_length_is_whole() -> None:
    geometry = replace(GEOMETRY, temporal_ratio=1)
    assert [geometry.round_frames(n) for n in (1, 2, 7)] == [1, 2, 7]
    assert geometry.count_latent_frames(7) == 7


def test_another_number_of_euler_steps() -> None:
    schedule = PAPER.with_steps(4)
    assert schedule.timesteps == (0.0, 0.25, 0.5, 0.75)
    assert schedule.coefficients == ((0.25, 0.0, 0.0),) * 4
    assert schedule.guidance_scale == (5.0,) * 4
    assert schedule.num_inference_steps == 4


def test_a_schedules_own_number_of_steps_keeps_its_table() -> None:
    assert INTERVAL.with_steps(3) is INTERVAL
    assert PAPER.with_steps(2) is PAPER


def test_a_multistep_table_holds_for_its_own_number_of_steps() -> None:
    with pytest.raises(RequestError, match='"interval" is a multistep table of 3 steps; leave it out'):
        INTERVAL.with_steps(4)


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step(steps: int) -> None:
    with pytest.raises(RequestError, match=f"num_inference_steps is {steps}; give at least 1"):
        PAPER.with_steps(steps)


def test_the_callers_guidance_applies_where_the_schedule_guides() -> None:
    assert PAPER.with_guidance(2).guidance_scale == (2.0, 2.0)
    assert INTERVAL.with_guidance(2).guidance_scale == (1, 2.0, 1)
    assert INTERVAL.with_guidance(1).guidance_scale == (1, 1.0, 1)
    assert PAPER.with_guidance(1).with_guidance(3).guidance_scale == (3.0, 3.0)


@pytest.mark.parametrize("scale", [-0.5, math.nan, math.inf])
def test_a_guidance_that_is_none(scale: float) -> None:
    with pytest.raises(RequestError, match="guidance_scale is"):
        PAPER.with_guidance(scale)
