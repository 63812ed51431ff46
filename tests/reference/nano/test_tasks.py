"""Requests of the world: tags match inputs, answers match words, curation filters, judging judges."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.nano import styles
from reference.nano.curate import VIDEO_ONLY, draw_curated, reason_to_reject
from reference.nano.heldout import MIN_PRESERVED_DB, heldout_samples, score_edit, summarize
from reference.nano.tasks import EDIT_TASKS, TASKS, Sample, draw_sample
from reference.nano.world import Background, Canvas, Scene, Thing, render


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(TASKS), st.sampled_from([1, 5]), st.integers(0, 10**6))
def test_every_request_is_well_formed(task, frames, seed):
    if task in VIDEO_ONLY:
        frames = 5
    sample = draw_sample(np.random.default_rng(seed), task, Canvas(frames, 48, 80))
    tags = re.findall(r"<(\w+)>", sample.prompt)
    assert sorted(tags) == sorted(sample.inputs)
    assert sample.target.shape == (frames, 48, 80, 3)
    assert sample.target.dtype == np.uint8
    for name, clip in sample.inputs.items():
        assert clip.shape[0] == (1 if name.startswith("image") else frames)
    assert (sample.source is None) == (task == "generation")
    assert re.sub(r"<\w+>", "", sample.prompt).strip()


def test_the_same_seed_draws_the_same_request():
    one, two = (draw_sample(np.random.default_rng(5), "combined", Canvas(5, 64, 64)) for _ in range(2))
    assert one.prompt == two.prompt
    assert np.array_equal(one.target, two.target)


def test_curation_refuses_an_edit_that_cannot_be_seen():
    clip = np.zeros((1, 32, 32, 3), np.uint8)
    sample = Sample("change_color", "<image1> x", {"image1": clip}, clip, "image1")
    assert reason_to_reject(sample, Canvas(1, 32, 32)) == "edit not visible"


def test_curation_refuses_an_object_that_leaves_the_frame():
    canvas = Canvas(5, 64, 64)
    scene = Scene(Background("plain"), (Thing("circle", "red", 0.2, (0.5, 0.5), (0.0, 0.2)),))
    clip = render(scene, canvas)
    sample = Sample("stylize", "<video1> x", {"video1": clip}, styles.invert(clip), "video1", (scene,))
    assert reason_to_reject(sample, canvas) == "object hidden or outside"


def test_the_heldout_set_is_fixed_covers_every_task_and_is_large_enough():
    samples = list(heldout_samples())
    assert len(samples) >= 240
    assert {s.task for s in samples} == set(EDIT_TASKS)
    assert [s.prompt for s in heldout_samples(1)] == [s.prompt for s in heldout_samples(1)]


def test_another_seed_is_another_set_of_the_same_kinds():
    own, other = list(heldout_samples(1)), list(heldout_samples(1, seed=91))
    assert [(s.task, len(s.target)) for s in own] == [(s.task, len(s.target)) for s in other]
    assert all(
        s.prompt != o.prompt or not np.array_equal(s.target, o.target)
        for s, o in zip(own, other, strict=True)
    )


def recolouring(frames: int) -> Sample:
    return draw_curated(np.random.default_rng(3), "change_color", Canvas(frames, 64, 64))


@pytest.mark.parametrize("frames", [1, 5])
def test_the_right_answer_is_a_success_and_doing_nothing_is_not(frames):
    sample = recolouring(frames)
    assert score_edit(sample, sample.target).is_success
    assert not score_edit(sample, sample.inputs[sample.source]).is_success


def test_a_right_edit_that_spoils_the_rest_is_no_success():
    sample = recolouring(1)
    noise = np.random.default_rng(0).normal(0, 40, sample.target.shape)
    changed = (sample.target != sample.inputs[sample.source]).any(-1, keepdims=True)
    spoiled = np.where(changed, sample.target, np.clip(sample.target + noise, 0, 255)).astype(np.uint8)
    score = score_edit(sample, spoiled)
    assert score.preserved_db < MIN_PRESERVED_DB
    assert not score.is_success


def test_a_result_of_another_shape_is_refused():
    sample = recolouring(1)
    with pytest.raises(ValueError, match="right answer is"):
        score_edit(sample, sample.target[:, :32])


def test_the_summary_counts_successes():
    sample = recolouring(1)
    scores = [score_edit(sample, sample.target), score_edit(sample, sample.inputs[sample.source])]
    report = summarize(scores)
    assert report["success_rate"] == 0.5
    assert report["edits"] == 2
    assert report["by_task"]["change_color"]["edits"] == 2


def test_what_was_not_judged_has_no_mean():
    """Where every pixel had to change, nothing had to stay."""
    source = np.zeros((1, 32, 32, 3), np.uint8)
    sample = Sample("stylize", "<image1> Invert it", {"image1": source}, 255 - source, "image1")
    report = summarize([score_edit(sample, sample.target)])
    assert report["by_task"]["stylize"]["preserved_db"] is None
    assert report["success_rate"] == 1.0
