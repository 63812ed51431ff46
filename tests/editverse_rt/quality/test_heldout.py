"""Held-out edits in a bundle: read back, judged by the rule, refused when they are not what they should."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt.bundle.manifest import Bundle, file_specs, load_bundle, write_bundle_json
from editverse_rt.errors import BundleError
from editverse_rt.quality.heldout import (
    HELDOUT_FILE,
    HeldoutEdit,
    Rule,
    is_right,
    load_heldout,
    measure_psnr_db,
)

RULE = Rule(changed_levels=16, min_preserved_db=22.0, min_region_share=0.02)
FACTS: dict[str, Any] = {
    "rule": {"changed_levels": 16, "min_preserved_db": 22.0, "min_region_share": 0.02},
    "edits": [{"task": "change", "prompt": "<image1> Make it", "inputs": ["image1"], "source": "image1"}],
}
CLIP = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
CLIPS = {"0/image1": CLIP, "0/target": CLIP + 20}


def put_heldout(bundle: Bundle, facts: Any = FACTS, clips: dict[str, Any] = CLIPS) -> Bundle:
    content = io.BytesIO()
    listed = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez_compressed(content, facts=listed, **clips)
    return put_file(bundle, content.getvalue())


def put_file(bundle: Bundle, content: bytes) -> Bundle:
    (bundle.root / HELDOUT_FILE).write_bytes(content)
    (bundle.root / "bundle.json").unlink()
    write_bundle_json(bundle.root, replace(bundle.spec, files=file_specs(bundle.root)))
    return load_bundle(bundle.root)


def test_a_bundle_without_edits_has_none(fake_bundle: Bundle) -> None:
    assert load_heldout(load_bundle(fake_bundle.root)) is None


def test_edits_are_read_back(fake_bundle: Bundle) -> None:
    found = load_heldout(put_heldout(fake_bundle))
    assert found is not None
    (edit,), rule = found
    assert rule == RULE
    assert (edit.task, edit.prompt, edit.source) == ("change", "<image1> Make it", "image1")
    np.testing.assert_array_equal(edit.inputs["image1"], CLIP)
    np.testing.assert_array_equal(edit.target, CLIP + 20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": {"changed_levels": 16}}, "min_preserved_db"),
        ({"edits": []}, "one edit or more"),
        ({"edits": [{**FACTS["edits"][0], "inputs": ["video9"]}]}, "uint8"),
        ({"edits": [{**FACTS["edits"][0], "source": "image2"}]}, "one of the inputs"),
        ({"edits": [{**FACTS["edits"][0], "odd": 1}]}, "no field of this name"),
        ({"edits": FACTS["edits"] * 2}, "uint8"),
    ],
)
def test_what_is_wrong_is_named(fake_bundle: Bundle, change: dict[str, Any], said: str) -> None:
    bundle = put_heldout(fake_bundle, {**FACTS, **change})
    with pytest.raises(BundleError, match=said) as error:
        load_heldout(bundle)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "clips",
    [
        {**CLIPS, "0/target": CLIP.astype(np.float32)},
        {**CLIPS, "0/target": CLIP[0]},
        {**CLIPS, "0/target": CLIP[:1]},
        {"0/target": CLIP},
    ],
)
def test_clips_of_another_form_are_refused(fake_bundle: Bundle, clips: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        load_heldout(put_heldout(fake_bundle, clips=clips))


def test_other_files_are_refused(fake_bundle: Bundle, tmp_path: Path) -> None:
    pickled = io.BytesIO()
    np.savez(pickled, facts=np.array([{"a": 1}], object))
    for content in (b"", b"no archive", pickled.getvalue()):
        with pytest.raises(BundleError, match="holds no held-out edits"):
            load_heldout(put_file(fake_bundle, content))


def edit_of(source: np.ndarray, target: np.ndarray) -> HeldoutEdit:
    return HeldoutEdit("t", "p", {"video1": source}, "video1", target)


def test_the_rule_by_hand() -> None:
    source = np.full((1, 10, 10, 3), 100, np.uint8)
    target = source.copy()
    target[:, :5] = 200
    edit = edit_of(source, target)
    assert is_right(edit, target, RULE)
    assert not is_right(edit, source, RULE)
    nearly = target.copy()
    nearly[:, :5] = 151  # nearer to 200 than to 100
    assert is_right(edit, nearly, RULE)
    nearly[:, :5] = 149
    assert not is_right(edit, nearly, RULE)
    spoilt = target.copy()
    # 20 levels are 10 log10(255^2 / 400) = 22.1 dB, 21 are 21.7 dB.
    spoilt[:, 5:] = 120
    assert is_right(edit, spoilt, RULE)
    spoilt[:, 5:] = 121
    assert not is_right(edit, spoilt, RULE)
    with pytest.raises(ValueError, match="right answer"):
        is_right(edit, target[:, :5], RULE)


def test_regions_that_are_too_small_or_not_there_are_not_judged() -> None:
    source = np.full((1, 10, 10, 3), 100, np.uint8)
    everywhere = np.full_like(source, 200)
    assert is_right(edit_of(source, everywhere), everywhere, RULE)
    nowhere = edit_of(source, source)
    assert is_right(nowhere, source, RULE)
    assert not is_right(nowhere, everywhere, RULE)
    almost = everywhere.copy()
    almost[0, 0, 0] = 100  # one pixel in a hundred is preserved
    wrong = everywhere.copy()
    assert is_right(edit_of(source, almost), wrong, RULE)


def test_distances_by_hand() -> None:
    expected = np.full((1, 2, 2, 3), 100, np.uint8)
    found = expected.copy()
    assert measure_psnr_db(found, expected) == 99.0
    found[0, 0, 0] = 110
    assert measure_psnr_db(found, expected) == pytest.approx(10 * np.log10(255**2 / 25.0))
    # Differences must not wrap around at 255.
    assert measure_psnr_db(np.zeros_like(expected), np.full_like(expected, 255)) == 0.0
    there = np.zeros((1, 2, 2), bool)
    there[0, 0, 0] = True
    assert measure_psnr_db(found, expected, there) == pytest.approx(10 * np.log10(255**2 / 100.0))
