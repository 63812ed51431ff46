"""The quality report: it tells right answers from doing nothing, whatever edits."""

from __future__ import annotations

import itertools

import numpy as np

from export import quality
from reference.nano.heldout import REAL_CLIPS, heldout_samples, real_clip_folder, real_samples, summarize


def test_an_editor_that_knows_the_answers_is_perfect_and_an_idle_one_is_not():
    samples = list(itertools.islice(heldout_samples(1), 8))
    known, _ = quality.evaluate(lambda sample: sample.target, samples)
    idle, _ = quality.evaluate(lambda sample: sample.inputs[sample.source], samples)
    assert summarize(known)["success_rate"] == 1.0
    assert summarize(idle)["success_rate"] == 0.0


def test_real_clips_have_right_answers_of_their_own():
    clips = quality.read_real_clips()
    assert len(clips) == 2 * len(REAL_CLIPS)
    samples = list(real_samples(clips))
    assert len(samples) == 5 * len(clips)
    by_task = {sample.task: sample for sample in samples}
    inverted = by_task["real_invert"]
    assert np.array_equal(inverted.target, 255 - inverted.inputs["video1"])
    assert (real_clip_folder() / REAL_CLIPS[0]).exists()


def test_the_report_reads_as_a_table():
    samples = list(itertools.islice(heldout_samples(1), 2))
    scores, _ = quality.evaluate(lambda sample: sample.target, samples)
    table = quality.format_report(quality.with_interval(summarize(scores), scores))
    assert "| add_object | 2 | 100% |" in table
    assert table.endswith("| **all** | 2 | 100.0% (100.0% to 100.0%) | | |")
