"""A sheet of pictures of scored edits: instruction, source, result and right answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from editverse_rt.media.frames import Frames
from reference.nano.tasks import Sample

__all__ = ["draw_sheet"]

SIDE_PX = 84
CAPTION_PX = 16
GAP_PX = 16
LETTERS = 84
COLORS = 256
"""Of the whole sheet: a quarter of the bytes that all colours take, and hardly to be seen."""


def draw_sheet(results: list[tuple[Sample, Frames]], path: Path, per_task: int = 1) -> None:
    """Write a PNG with a row for the first `per_task` edits of each task, of images and of clips.

    A row has the instruction above two frames each of source, result and right answer; rows stand in two
    columns. results: samples with uint8 [T, H, W, 3].
    """
    rows: list[Frames] = []
    seen: dict[tuple[str, bool], int] = {}
    for sample, result in results:
        key = (sample.task, len(result) > 1)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > per_task or sample.source is None:
            continue
        clips = (sample.inputs[sample.source], result, sample.target)
        pictures = [_square(clip[index]) for clip in clips for index in (0, -1)]
        rows.append(np.concatenate([_caption(sample.prompt), np.concatenate(pictures, 1)]))
    if len(rows) % 2:
        rows.append(np.full_like(rows[0], 255))
    gap = np.full((rows[0].shape[0], GAP_PX, 3), 255, np.uint8)
    pairs = [np.concatenate((a, gap, b), 1) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    Image.fromarray(np.concatenate(pairs, 0)).quantize(COLORS).save(path, "PNG", optimize=True)


def _caption(text: str) -> Frames:
    """The instruction, cut where the row ends, black on white."""
    strip = Image.new("RGB", (6 * SIDE_PX, CAPTION_PX), "white")
    line = text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
    ImageDraw.Draw(strip).text((2, 2), line, fill="black")
    return np.asarray(strip)


def _square(picture: Frames) -> Frames:
    """Centre a picture on a white square."""
    out = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    top, left = (SIDE_PX - picture.shape[0]) // 2, (SIDE_PX - picture.shape[1]) // 2
    out[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return out
