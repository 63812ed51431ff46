"""The slow oracle's loop, with the transformer replaced by fields whose solution is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reference import sampler


class Field(torch.nn.Module):
    """Velocity towards a constant: 3 with the text, 1 without; remembers how it was called."""

    config = SimpleNamespace(patch_dim=4)

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, text, clean, noisy, layout, positions, timestep):
        self.calls.append((len(text), len(clean), len(noisy), len(layout), float(timestep)))
        goal = 3.0 if len(text) else 1.0
        return (goal - noisy) / (1 - timestep)


@pytest.fixture
def oracle(monkeypatch):
    """A checkpoint of stubs: one token a word, a patch a frame, patches shown as they are."""
    field = Field()
    monkeypatch.setattr(sampler, "Tokenizer", lambda path: None)
    monkeypatch.setattr(
        sampler,
        "encode_segments",
        lambda encoder, tokenizer, words: (
            [torch.zeros(len(w.split()), 6) for w in words] + [torch.zeros(1, 6)]
        ),
    )
    monkeypatch.setattr(sampler, "encode_clip", lambda vae, frames, patch: torch.zeros(len(frames), 1, 1, 4))
    monkeypatch.setattr(sampler, "decode_clip", lambda vae, patches, patch: patches)
    checkpoint = SimpleNamespace(
        patch_size=2, vae=None, text_encoder=None, tokenizer_file="", transformer=field, scheduler={}
    )
    return checkpoint, field


def test_euler_reaches_the_end_of_a_straight_path(oracle):
    checkpoint, _ = oracle
    out = sampler.edit(checkpoint, "one two", {}, (1, 32, 32), num_inference_steps=7, guidance_scale=1.0)
    np.testing.assert_allclose(out, 3.0, atol=1e-5)


def test_guidance_extrapolates_from_the_branch_without_text(oracle):
    """Both branches share x_t, so the guided goal is 1 + g (3 - 1)."""
    checkpoint, _ = oracle
    out = sampler.edit(checkpoint, "one two", {}, (1, 32, 32), num_inference_steps=10, guidance_scale=5.0)
    np.testing.assert_allclose(out, 11.0, atol=1e-4)


def test_what_the_network_sees(oracle):
    """Text rows with one end-of-sequence row, clean rows in both branches, fifty steps from t = 0."""
    checkpoint, field = oracle
    clip = np.zeros((3, 16, 16, 3), np.uint8)
    sampler.edit(checkpoint, "make <video1> quite red", {"video1": clip}, (5, 16, 32))
    assert len(field.calls) == 100
    # 3 words + 1 end; 3 clean; the target has 2 latent frames of 1 x 2; two pairs of markers
    assert field.calls[0] == (4, 3, 4, 4 + 3 + 4 + 4, 0.0)
    assert field.calls[1] == (0, 3, 4, 3 + 4 + 4, 0.0)
    assert field.calls[-1][-1] == pytest.approx(0.98)


def test_the_seed_decides_the_noise(oracle):
    checkpoint, _ = oracle
    shots = [sampler.edit(checkpoint, "a", {}, (1, 32, 32), num_inference_steps=0, seed=s) for s in (1, 1, 2)]
    assert np.array_equal(shots[0], shots[1])
    assert not np.array_equal(shots[0], shots[2])


def test_a_distilled_checkpoint_refuses_other_steps_and_guidance(oracle):
    checkpoint, _ = oracle
    checkpoint.scheduler = {"num_inference_steps": 2, "guidance_scale": 1.0, "is_fixed": True}
    options = {"num_inference_steps": 2, "guidance_scale": 1.0}
    out = sampler.edit(checkpoint, "a", {}, (1, 32, 32), **options)
    np.testing.assert_allclose(out, 3.0, atol=1e-5)
    with pytest.raises(ValueError, match="4 steps; this checkpoint was distilled for 2"):
        sampler.edit(checkpoint, "a", {}, (1, 32, 32), **{**options, "num_inference_steps": 4})
    with pytest.raises(ValueError, match="guidance 3; this checkpoint has its guidance in its weights"):
        sampler.edit(checkpoint, "a", {}, (1, 32, 32), **{**options, "guidance_scale": 3.0})
