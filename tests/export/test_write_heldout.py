"""Held-out edits in a bundle: the runtime reads what the reference drew, and judges as it judges."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.quality.heldout import is_right, load_heldout
from export.write_heldout import main
from reference.nano.heldout import heldout_samples, score_edit


@pytest.fixture(scope="module")
def folder(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heldout") / "tiny"
    shutil.copytree(bundle_folder, folder)
    assert main([str(folder)]) == 0
    return folder


def test_the_bundle_carries_the_first_edit_of_each_kind(folder: Path) -> None:
    loaded = load_heldout(load_bundle(folder))
    assert loaded is not None
    edits, _ = loaded
    samples = list(heldout_samples(1))
    assert len(edits) == len(samples) == 28
    for edit, sample in zip(edits, samples, strict=True):
        assert (edit.task, edit.prompt, edit.source) == (sample.task, sample.prompt, sample.source)
        assert edit.inputs.keys() == sample.inputs.keys()
        np.testing.assert_array_equal(edit.target, sample.target)
        for name, clip in sample.inputs.items():
            np.testing.assert_array_equal(edit.inputs[name], clip)
    # A small part of a bundle that has to stay under 24 MB.
    assert (folder / "heldout.npz").stat().st_size < 400_000


def test_both_judges_agree(folder: Path) -> None:
    loaded = load_heldout(load_bundle(folder))
    assert loaded is not None
    edits, rule = loaded
    rng = np.random.default_rng(0)
    verdicts = []
    for edit, sample in zip(edits, heldout_samples(1), strict=True):
        source = sample.inputs[edit.source].astype(np.float64)
        for share in (0.0, 0.4, 0.5, 0.6, 1.0):
            for noise in (0, 8, 21):
                mixed = source + share * (sample.target - source) + rng.normal(size=source.shape) * noise
                result = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
                expected = score_edit(sample, result).is_success
                assert is_right(edit, result, rule) == expected, (edit.task, share, noise)
                verdicts.append(expected)
    assert 0.2 < np.mean(verdicts) < 0.8


def test_writing_again_replaces(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_bundle(folder).spec.files
    assert main([str(folder), "--per-kind", "2"]) == 0
    loaded = load_heldout(load_bundle(folder))
    assert loaded is not None
    assert len(loaded[0]) == 56
    assert main([str(folder)]) == 0
    assert {f.path for f in load_bundle(folder).spec.files} == {f.path for f in before}
    capsys.readouterr()
    assert main(["absent"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
