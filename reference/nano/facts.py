"""What is to be seen where, known exactly in this world: a training aid that the published model has not.

Halfway up the transformer, linear heads have to name the objects in each token, its place and whether the
edit changes it. That is representation alignment (Yu et al., 2024) with the world itself for a teacher: the
network finds objects, words and places long before the loss on pixels would have taught it to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.nano import styles
from reference.nano.tasks import Sample
from reference.nano.world import COLORS, SHAPES, Canvas, Scene, pixel_grid, thing_alpha

NAMES = (*COLORS, *SHAPES)
TEMPORAL_RATIO, TOKEN_PX = 4, 16

Facts = NDArray[np.float16]
"""float16 [t, h, w, len(NAMES)]: the share of each token that an object of that colour or shape covers."""


def scene_facts(scene: Scene, canvas: Canvas) -> Facts:
    """Facts of a scene for latent frames (1 frame, then 4 frames each) and tokens of 16 x 16 pixels."""
    grid = pixel_grid(canvas)
    rows, columns = canvas.height // TOKEN_PX, canvas.width // TOKEN_PX
    shares = np.zeros((canvas.frames, rows, columns, len(NAMES)), np.float32)
    for frame in range(canvas.frames):
        uncovered = np.ones((canvas.height, canvas.width), np.float32)
        for thing in reversed(scene.things):
            alpha = thing_alpha(thing, canvas, frame, grid)
            seen = (alpha * uncovered).reshape(rows, TOKEN_PX, columns, TOKEN_PX).mean((1, 3))
            uncovered *= 1 - alpha
            shares[frame, ..., NAMES.index(thing.color)] += seen
            shares[frame, ..., NAMES.index(thing.shape)] += seen
    later = shares[1:].reshape(-1, TEMPORAL_RATIO, *shares.shape[1:]).mean(1)
    return np.concatenate([shares[:1], later]).astype(np.float16)


def sample_facts(sample: Sample) -> dict[str, Facts]:
    """Facts of a sample's source and of its target, of those that a scene tells."""
    frames, height, width, _ = sample.target.shape
    canvas = Canvas(frames, height, width)
    source = scene_facts(sample.scenes[0], canvas)
    facts = {} if sample.source is None else {sample.source: source}
    if sample.task == "camera":
        assert sample.source is not None
        if np.array_equal(styles.mirror(sample.inputs[sample.source]), sample.target):
            facts["target"] = source[:, :, ::-1]
    elif sample.task != "detection":
        facts["target"] = scene_facts(sample.scenes[-1], canvas)
    return facts
