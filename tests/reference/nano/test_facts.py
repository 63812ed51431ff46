"""The facts of tokens, against pictures of single objects: a mask's mean is the share that is covered."""

from __future__ import annotations

import numpy as np
import pytest

from reference.nano.curate import draw_curated
from reference.nano.facts import NAMES, TEMPORAL_RATIO, TOKEN_PX, sample_facts, scene_facts
from reference.nano.tasks import TASKS
from reference.nano.world import COLORS, Background, Canvas, Scene, Thing, render_mask

HALF_A_LEVEL = 1.5 / 255  # masks are rounded to grey levels, facts to float16


def pooled(mask: np.ndarray) -> np.ndarray:
    """[T, H, W] -> [t, h, w], one loop a token."""
    frames, height, width = mask.shape
    groups = [slice(0, 1), *(slice(i, i + TEMPORAL_RATIO) for i in range(1, frames, TEMPORAL_RATIO))]
    out = np.zeros((len(groups), height // TOKEN_PX, width // TOKEN_PX))
    for place in np.ndindex(out.shape):
        rows, columns = (slice(i * TOKEN_PX, (i + 1) * TOKEN_PX) for i in place[1:])
        out[place] = mask[groups[place[0]], rows, columns].mean()
    return out


@pytest.mark.parametrize("canvas", [Canvas(1, 64, 64), Canvas(9, 48, 80)])
def test_facts_are_the_shares_that_masks_show(canvas):
    things = (
        Thing("circle", "red", 0.2, (0.3, 0.3), (0.0, 0.02)),
        Thing("square", "blue", 0.15, (0.4, 0.45)),  # in front of a part of the circle
    )
    scene = Scene(Background("plain", "white"), things)
    facts = scene_facts(scene, canvas).astype(np.float64)
    named = set()
    for index, thing in enumerate(things):
        expected = pooled(render_mask(scene, index, canvas)[..., 0] / 255.0)
        assert expected.max() > 0.2
        for name in (thing.color, thing.shape):
            named.add(name)
            np.testing.assert_allclose(facts[..., NAMES.index(name)], expected, atol=HALF_A_LEVEL)
    others = [index for index, name in enumerate(NAMES) if name not in named]
    assert not facts[..., others].any()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_tells_facts_of_its_source_and_most_of_their_target(task):
    rng = np.random.default_rng(3)
    sample = draw_curated(rng, task, Canvas(5, 48, 80))
    facts = sample_facts(sample)
    assert sample.source is None or sample.source in facts
    for values in facts.values():
        assert values.shape == (2, 3, 5, len(NAMES))
        assert 0 <= values.min() <= values.max() <= 1
        colors = values[..., : len(COLORS)].astype(np.float64).sum(-1)
        shapes = values[..., len(COLORS) :].astype(np.float64).sum(-1)
        np.testing.assert_allclose(colors, shapes, atol=4e-3)
    if task == "detection":
        assert "target" not in facts


def test_a_mirrored_target_has_its_sources_facts_mirrored():
    for seed in range(20):
        sample = draw_curated(np.random.default_rng(seed), "camera", Canvas(1, 64, 64))
        facts = sample_facts(sample)
        assert np.array_equal(facts["target"], facts["image1"][:, :, ::-1])
