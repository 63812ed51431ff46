from __future__ import annotations

from dataclasses import replace

import pytest

from editverse_rt.bundle.spec import Geometry

GEOMETRY = Geometry(
    temporal_ratio=4,
    spatial_ratio=8,
    patch_size=2,
    patch_dim=64,
    clean_dim=64,
    min_area_px=4096,
    max_area_px=9216,
    max_side_px=144,
    max_frames=17,
    default_height_px=64,
    default_width_px=64,
    default_frames=17,
    default_fps=8.0,
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
