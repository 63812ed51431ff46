"""EditVerse's rules for a whole request: segments in order, the target last, a branch without the text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.families import family_of
from editverse_rt.request.checked import CheckedRequest, check_request
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.inputs import Footage, read_inputs
from editverse_rt.request.tokenizer import Tokenizer


@pytest.fixture
def spec(fake_bundle: Any) -> BundleSpec:
    return load_bundle(fake_bundle.root).spec


@pytest.fixture
def checked(fake_bundle: Any, spec: BundleSpec, blocky_clip: Any) -> CheckedRequest:
    facts = spec.tokenizer
    tokenizer = Tokenizer(fake_bundle.root / facts.file, facts.eos_id, facts.max_tokens)
    inputs = {"video1": blocky_clip(9), "image1": blocky_clip(1, 64, 48, seed=1)[0]}
    request = EditRequest("<image1> like <video1>", inputs, seed=7)
    return check_request(spec, tokenizer, request, lambda *_: pytest.fail("no table is needed"))


@pytest.fixture
def footage(checked: CheckedRequest) -> Footage:
    return read_inputs(checked.inputs)


def test_a_request_in_integers(spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> None:
    laid_out = family_of("editverse").lay_out(spec, checked, footage)
    assert laid_out.sources == {"video1": (9, 48, 64), "image1": (1, 64, 48)}
    assert (laid_out.main, laid_out.seed, laid_out.fps) == ("video1", 7, 8.0)
    assert (laid_out.num_frames, laid_out.height_px, laid_out.width_px) == (9, 48, 64)
    target = laid_out.target
    # 1 + 8 / 4 latent frames of 48 / 16 rows and 64 / 16 columns.
    assert (target.frames, target.rows, target.columns) == (3, 3, 4)
    num_text = sum(map(len, checked.ids))
    cond, uncond = laid_out.cond.layout, laid_out.uncond.layout
    assert (cond.num_text, cond.num_clean, cond.num_noisy) == (num_text, 12 + 36, 36)
    assert (uncond.num_text, uncond.num_clean, uncond.num_noisy) == (0, 12 + 36, 36)
    # A start and an end mark around each of three vision segments.
    assert len(cond.layout) == num_text + 84 + 6
    assert len(uncond.layout) == 84 + 6
    # The image stands first; the end of the sequence before what is generated, which stands last.
    start_row = num_text + 84
    assert cond.layout[:14].tolist() == [start_row, *range(num_text, num_text + 12), start_row + 1]
    assert cond.layout[-38:].tolist() == [start_row, *range(num_text + 48, num_text + 84), start_row + 1]
    assert cond.layout[-39] == num_text - 1
    assert laid_out.work == checked.expected_work


def test_both_branches_name_their_text(spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> None:
    family = family_of("editverse")
    laid_out = family.lay_out(spec, checked, footage)
    texts = family.texts(checked)
    assert texts == [tuple(i for ids in checked.ids for i in ids)]
    assert (laid_out.cond.text, laid_out.uncond.text) == (0, None)
    assert len(texts[laid_out.cond.text]) == laid_out.cond.layout.num_text


def test_clean_rows_are_the_clips_in_the_order_of_the_instruction(
    spec: BundleSpec, checked: CheckedRequest, footage: Footage, runner: Any
) -> None:
    def run(graph: str, **inputs: Any) -> dict[str, Any]:
        return dict(runner.run(graph, inputs))

    with runner:
        clean = family_of("editverse").encode_clean(run, spec, checked, footage)
    assert clean.shape == (12 + 36, spec.geometry.clean_dim)
    image = footage.clips["image1"][0, ::16, ::16].reshape(-1, 3)
    np.testing.assert_array_equal(np.asarray(clean)[:12, :3], image)


def test_no_clip_is_no_row(spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> None:
    segments = tuple(s for s in checked.segments if not hasattr(s, "name"))
    clean = family_of("editverse").encode_clean(
        lambda *_, **__: pytest.fail("nothing is encoded"), spec, replace(checked, segments=segments), footage
    )
    assert clean.shape == (0, spec.geometry.clean_dim)


def test_laying_out_changes_nothing(spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> None:
    family = family_of("editverse")
    first, second = family.lay_out(spec, checked, footage), family.lay_out(spec, checked, footage)
    for branch in ("cond", "uncond"):
        one, other = getattr(first, branch).layout, getattr(second, branch).layout
        np.testing.assert_array_equal(one.layout, other.layout)
        np.testing.assert_array_equal(one.positions, other.positions)


def test_an_unknown_family_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        family_of("vase")
