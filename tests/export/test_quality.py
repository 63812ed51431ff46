"""The quality report: it tells right answers from doing nothing, whatever edits."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from editverse_rt.bundle.manifest import load_bundle, write_bundle_json
from export import quality
from reference.nano.heldout import REAL_CLIPS, heldout_samples, real_clip_folder, real_samples, summarize
from reference.nano.train_vae import make_vae

CHECKPOINT = Path(__file__).parents[2] / "reference" / "nano" / "checkpoint"


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


class Identity:
    """A VAE that loses nothing."""

    def encode(self, pixels: torch.Tensor):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels))

    def decode(self, latents: torch.Tensor):
        return SimpleNamespace(sample=latents)


class Darkness(Identity):
    """A VAE that loses everything."""

    def decode(self, latents: torch.Tensor):
        return SimpleNamespace(sample=torch.full_like(latents, -1.0))


def test_the_ceiling_of_a_perfect_vae_is_all_and_of_a_dark_one_little():
    samples = list(heldout_samples(1))
    perfect, _ = quality.evaluate(quality.ceiling_editor(Identity()), samples)
    assert all(score.is_success for score in perfect)
    dark, _ = quality.evaluate(quality.ceiling_editor(Darkness()), samples)
    assert sum(score.is_success for score in dark) < 0.3 * len(dark)


def test_the_folder_of_a_vae_is_told_from_a_checkpoint(tmp_path):
    make_vae().save_pretrained(tmp_path)
    sample = next(heldout_samples(1))
    assert quality.choose_editor(str(tmp_path), None, None, None)(sample).shape == sample.target.shape


def test_what_is_no_model_and_what_cannot_take_a_report_are_said_at_once(tmp_path, capsys, monkeypatch):
    for words in ([str(tmp_path)], [str(CHECKPOINT), "--write"], [str(CHECKPOINT / "vae"), "--write"]):
        monkeypatch.setattr("sys.argv", ["quality", *words])
        assert quality.main() == 2
        printed = capsys.readouterr()
        assert f'error: bundle "{words[0]}": no bundle.json in it' in printed.err
        assert not printed.out


def test_a_report_that_is_written_leaves_the_parity(tmp_path, monkeypatch):
    """export.compare --write puts it there: it is of the graphs, not of these edits."""
    nano = load_bundle("nano")
    shutil.copytree(nano.root, tmp_path / "nano")
    parity = {"passed": True, "backend": "ort-cpu"}
    old = {"success_rate": 0.25, "schedules": {"fast": {}}, "parity": parity}
    write_bundle_json(tmp_path / "nano", dataclasses.replace(nano.spec, quality=old))
    monkeypatch.setattr(quality, "choose_editor", lambda *_: lambda sample: sample.target)
    monkeypatch.setattr(quality, "read_real_clips", list)
    for name in ("heldout_samples", "real_samples", "photograph_samples"):
        monkeypatch.setattr(quality, name, lambda *_, **__: itertools.islice(heldout_samples(1), 1))
    monkeypatch.setattr("sys.argv", ["quality", str(tmp_path / "nano"), "--write"])
    assert quality.main() == 0
    found = load_bundle(tmp_path / "nano").spec.quality
    assert found["parity"] == parity
    assert (found["success_rate"], "schedules" in found) == (1.0, False)


def test_a_bundles_report_is_of_the_fixed_set_alone(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["quality", str(CHECKPOINT), "--write", "--seed", "91"])
    with pytest.raises(SystemExit) as stopped:
        quality.main()
    assert stopped.value.code == 2
    assert (
        "--write --seed 91; a bundle's report is of seed 9: leave one of them out" in capsys.readouterr().err
    )
