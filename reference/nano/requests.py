"""Requests of nano's world without end: what a distillation of nano is trained on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reference.nano.curate import SIZES, draw_curated, random_canvas, random_task
from reference.nano.world import Frames

SEED = 41
WITHOUT_TEXT = 0.5
"""Share of requests without text and inputs: few steps cost nothing where an edit has one right answer."""
VIDEO_SHARE = 0.3
LENGTHS = (1, 5, 9)


def draw_requests(seed: int = SEED) -> Iterator[tuple[str, dict[str, Frames], tuple[int, int, int]]]:
    """Prompt, inputs uint8 [T, H, W, 3] by tag, and the target's frames, height and width."""
    rng = np.random.default_rng(seed)
    while True:
        if rng.random() < WITHOUT_TEXT:
            height, width = SIZES[int(rng.integers(len(SIZES)))]
            yield "", {}, (int(rng.choice(LENGTHS)), height, width)
            continue
        task = random_task(rng)
        drawn = draw_curated(rng, task, random_canvas(rng, task, VIDEO_SHARE))
        frames, height, width, _ = drawn.target.shape
        yield drawn.prompt, drawn.inputs, (frames, height, width)
