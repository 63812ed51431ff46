"""The decoder's last stage: what it is shown belongs together, and is drawn anew by each seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from reference.nano.refine import Written, evaluate, write
from reference.nano.train import Nano
from reference.nano.train_vae import LATENT_SCALE
from reference.text_encoder import Tokenizer

CHECKPOINT = Path(__file__).parents[3] / "reference" / "nano" / "checkpoint"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(CHECKPOINT / "vae").eval()


def write_some(vae: AutoencoderKLWan, seed: int, frames: int, count: int) -> Written:
    torch.manual_seed(0)
    tokenizer = Tokenizer(CHECKPOINT / "tokenizer" / "spiece.model")
    return write(Nano().eval(), vae, tokenizer, np.random.default_rng(seed), frames, count)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "count"), [(1, 2), (5, 1)])
def test_latents_belong_to_the_right_answers(vae, frames, count):
    written = write_some(vae, 0, frames, count)
    assert written.video.shape[:3] == (count, 3, frames)
    encoded = vae.encode(written.video).latent_dist.mean
    # They went through float16, in units of LATENT_SCALE deviations.
    std = vae.config.latents_std[0]
    torch.testing.assert_close(written.own, encoded, atol=2e-3 * std * LATENT_SCALE * 10, rtol=2e-3)
    assert written.sampled.shape == written.own.shape
    assert (written.sampled - written.own).abs().max() > std * LATENT_SCALE  # the network is untrained


def test_the_own_latents_decode_better_than_an_untrained_networks(vae):
    found = evaluate(vae, [write_some(vae, 1, 1, 3)])
    assert found["own"] > found["sampled"] + 5


def test_each_seed_draws_its_own(vae):
    first, again, other = (write_some(vae, seed, 1, 1) for seed in (2, 2, 3))
    assert torch.equal(first.sampled, again.sampled)
    assert first.video.shape != other.video.shape or not torch.equal(first.video, other.video)
