"""Curation as in the paper's pipeline (section 4): samples are scored, and the weak ones are left out.

The paper lets a vision-language model judge; here the world is known, so the scores are exact: is the edit
visible, are its objects inside the frame for the whole clip, and are they not hidden by others.
"""

from __future__ import annotations

import numpy as np

from reference.nano.tasks import TASKS, Rng, Sample, draw_sample
from reference.nano.world import Canvas, visible_fraction

VISIBLE_LEVELS = 32
"""An edit is seen in a pixel when a channel differs by more than this many grey levels."""
MIN_CHANGED_SHARE = 0.012
MIN_VISIBLE = 0.55

SIZES = ((64, 64), (48, 80), (80, 48))
VIDEO_ONLY = frozenset({"propagation"})


def reason_to_reject(sample: Sample, canvas: Canvas) -> str | None:
    """Why a sample is not worth training on, or None."""
    if sample.source is not None:
        source = sample.inputs[sample.source]
        changed = (np.abs(source.astype(np.int16) - sample.target).max(-1) > VISIBLE_LEVELS).mean()
        if changed < MIN_CHANGED_SHARE:
            return "edit not visible"
    for scene in sample.scenes:
        for index in range(len(scene.things)):
            if visible_fraction(scene, index, canvas) < MIN_VISIBLE:
                return "object hidden or outside"
    return None


def draw_curated(rng: Rng, task: str, canvas: Canvas, rejected: dict[str, int] | None = None) -> Sample:
    """Draw until a sample passes; `rejected` counts the reasons."""
    while True:
        sample = draw_sample(rng, task, canvas)
        reason = reason_to_reject(sample, canvas)
        if reason is None:
            return sample
        if rejected is not None:
            rejected[reason] = rejected.get(reason, 0) + 1


def random_canvas(
    rng: Rng, task: str, video_share: float, lengths: tuple[int, ...] = (5, 9, 13, 17)
) -> Canvas:
    """Horizontal, vertical or square; an image or a clip whose short lengths are the more frequent."""
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    if task not in VIDEO_ONLY and rng.random() >= video_share:
        return Canvas(1, height, width)
    odds = np.array([0.3, 0.3, 0.15, 0.25])[: len(lengths)]
    return Canvas(int(rng.choice(lengths, p=odds / odds.sum())), height, width)


def random_task(rng: Rng) -> str:
    """All tasks alike."""
    return TASKS[int(rng.integers(len(TASKS)))]
