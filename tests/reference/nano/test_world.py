"""The procedural world: what is drawn is what is said."""

from __future__ import annotations

import numpy as np
import pytest

from reference.nano import styles
from reference.nano.world import (
    COLORS,
    SHAPES,
    Background,
    Canvas,
    Scene,
    Thing,
    random_scene,
    render,
    render_mask,
    visible_fraction,
)

PAGE = Background("plain", "white")
CANVAS = Canvas(1, 64, 64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_an_object_has_its_colour_where_its_mask_is_white(shape, color):
    scene = Scene(PAGE, (Thing(shape, color, 0.25, (0.5, 0.5)),))
    inside = render_mask(scene, 0, CANVAS)[0, ..., 0] == 255
    assert inside.sum() > 60
    colors = render(scene, CANVAS)[0][inside]
    assert np.abs(colors - 255 * np.array(COLORS[color])).max() < 1.0


def test_the_triangle_points_up_and_is_bounded():
    mask = render_mask(Scene(PAGE, (Thing("triangle", "red", 0.25, (0.5, 0.5)),)), 0, CANVAS)[0, ..., 0] > 127
    widths = mask.sum(1)
    rows = np.flatnonzero(widths)
    assert 14 < rows[0] < 20
    assert rows[-1] < 48
    assert widths[rows[1]] < widths[rows[-2]]


def test_motion_moves_the_object_by_its_speed():
    thing = Thing("square", "red", 0.15, (0.5, 0.25), (0.0, 0.05))
    mask = render_mask(Scene(PAGE, (thing,)), 0, Canvas(6, 64, 64))[..., 0].astype(float)
    columns = (mask.sum(1) * np.arange(64)).sum(1) / mask.sum((1, 2))
    np.testing.assert_allclose(np.diff(columns), 0.05 * 64, atol=0.05)


def test_objects_in_front_hide_those_behind():
    scene = Scene(PAGE, (Thing("circle", "red", 0.15, (0.5, 0.5)), Thing("square", "blue", 0.25, (0.5, 0.5))))
    assert visible_fraction(scene, 0, CANVAS) < 0.01
    assert visible_fraction(scene, 1, CANVAS) > 0.99
    assert render_mask(scene, 0, CANVAS).max() < 20


def test_a_scene_of_a_seed_is_always_the_same_and_another_seed_gives_another():
    pictures = [
        render(random_scene(np.random.default_rng(s), Canvas(3, 48, 80)), Canvas(3, 48, 80))
        for s in (1, 1, 2)
    ]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_panning_shows_what_stood_further_right():
    scene = Scene(Background("leaves", seed=4), (Thing("circle", "red", 0.15, (0.5, 0.5)),))
    still, panned = render(scene, Canvas(2, 48, 48)), render(scene, Canvas(2, 48, 48), [0, 8])
    assert np.array_equal(panned[0], still[0])
    assert np.array_equal(panned[1][:, :-8], still[1][:, 8:])


def test_styles_do_what_their_names_say():
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    gray = styles.grayscale(frames)
    assert (gray[..., :1] == gray).all()
    assert np.array_equal(styles.invert(styles.invert(frames)), frames)
    assert np.array_equal(styles.mirror(frames)[:, :, 0], frames[:, :, -1])
    blocks = styles.pixelate(frames)
    assert (blocks[:, :8, :8] == blocks[:, :1, :1]).all()
    assert np.abs(blocks[0, 0, 0] - frames[0, :8, :8].mean((0, 1))).max() <= 0.51
    assert styles.darken(frames).mean() < 0.5 * frames.mean()
    assert styles.sketch(np.full((1, 16, 16, 3), 90, np.uint8)).min() == 255


def test_psnr_of_a_region_looks_at_that_region_only():
    a = np.zeros((1, 4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 255
    corner = np.zeros((1, 4, 4), bool)
    corner[0, 0, 0] = True
    assert styles.psnr_db(a, b, corner) == pytest.approx(0.0)
    assert styles.psnr_db(a, b, ~corner) == 99.0
    assert np.isnan(styles.psnr_db(a, b, np.zeros_like(corner)))
