"""The sheet has its pictures where they belong, and the instruction above them."""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

from export.sheet import CAPTION_PX, GAP_PX, SIDE_PX, draw_sheet
from reference.nano.heldout import heldout_samples


def test_a_row_has_the_instruction_and_two_frames_of_source_result_and_answer(tmp_path):
    samples = list(itertools.islice(heldout_samples(1), 4))
    results = [(sample, 255 - sample.target) for sample in samples]
    draw_sheet(results, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    row_px, half_px = SIDE_PX + CAPTION_PX, 6 * SIDE_PX
    assert sheet.shape == (2 * row_px, 2 * half_px + GAP_PX, 3)
    first = samples[0]
    height, width = first.target.shape[1:3]
    for place, expected in (
        (0, first.inputs[first.source][0]),
        (2, 255 - first.target[0]),
        (5, first.target[-1]),
    ):
        top = CAPTION_PX + (SIDE_PX - height) // 2
        left = place * SIDE_PX + (SIDE_PX - width) // 2
        found = sheet[top : top + height, left : left + width]
        assert np.abs(found - expected).mean() < 4  # of 256 colours for the whole sheet
    captions = [sheet[row * row_px : row * row_px + CAPTION_PX, :half_px] for row in (0, 1)]
    assert all((caption < 128).any() for caption in captions)
    assert not np.array_equal(captions[0], captions[1])


def test_each_task_is_shown_once_for_images_and_once_for_clips(tmp_path):
    samples = list(
        itertools.islice(heldout_samples(2), 6)
    )  # two images and two clips of one task, two of another
    draw_sheet([(sample, sample.target) for sample in samples], tmp_path / "sheet.png")
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape[0] == 2 * (SIDE_PX + CAPTION_PX)
