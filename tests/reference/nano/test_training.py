"""Batching and learning: a padded batch equals its sequences one by one, and the loss can go down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from reference.nano.batching import collate, pack
from reference.nano.dataset import CachedSample, encode_clips, split_prompt
from reference.nano.optim import Averaged, Muon, orthogonalize
from reference.nano.train import Nano, make_optimizers, velocity_loss
from reference.nano.train_vae import VAE_CONFIG
from reference.vae import encode_clip


def cached(rng: np.random.Generator, words: int, frames: int, with_source: bool) -> CachedSample:
    def clip() -> torch.Tensor:
        return torch.tensor(rng.standard_normal((frames, 2, 3, 64)), dtype=torch.float16)

    ids = [int(i) for i in rng.integers(3, 600, words)]
    segments = [ids[:1], "video1", ids[1:], [1]] if with_source else [ids, [1]]
    return CachedSample("t", segments, {"video1": clip()} if with_source else {}, clip())


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    return [cached(rng, 4, 1, True), cached(rng, 7, 2, True), cached(rng, 3, 1, False)]


def make_model() -> Nano:
    torch.manual_seed(0)
    model = Nano()
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("drop", [False, True])
def test_a_padded_batch_equals_its_sequences_one_by_one(samples, drop):
    model = make_model()
    packed = [pack(sample) for sample in samples]
    batch = collate(packed, np.full(3, drop))
    timestep = torch.tensor([0.2, 0.5, 0.8])
    together = model.outputs(batch, model.encode_text(batch), batch.noisy, timestep)
    net = model.transformer
    for row, p in enumerate(packed):
        text = model.text_encoder(input_ids=torch.tensor([p.ids])).last_hidden_state[0]
        one = p.layouts[int(drop)]
        rows = text[:0] if drop else text
        velocity = net(rows, p.clean.float(), p.noisy.float(), one.layout, one.positions, timestep[row])
        alone = velocity * (1 - timestep[row]) + p.noisy.float()
        torch.testing.assert_close(together[batch.noisy_owner == row], alone, atol=1e-4, rtol=1e-4)


def test_a_few_steps_bring_the_loss_down(samples):
    torch.manual_seed(0)
    model = Nano()
    optimizers = make_optimizers(model, 0.02, 2e-3)
    batch = collate([pack(sample) for sample in samples], np.zeros(3, bool))
    losses = []
    for _ in range(30):
        torch.manual_seed(1)
        loss = velocity_loss(model, batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), steps=5))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_moves_a_matrix_by_the_learning_rate_whatever_the_gradient():
    for scale in (1e-6, 1e6):
        weight = torch.nn.Parameter(torch.zeros(8, 8))
        weight.grad = scale * torch.eye(8)
        Muon([weight], lr=0.1).step()
        assert float(torch.linalg.matrix_norm(weight.detach(), 2)) == pytest.approx(0.1, rel=0.35)


def test_the_average_follows_the_weights():
    module = torch.nn.Linear(2, 2)
    average = Averaged(module, 0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(3.0)
    for step in range(100):
        average.update(module, step)
    average.copy_to(module)
    assert all(torch.allclose(p, torch.tensor(3.0), atol=1e-3) for p in module.parameters())


def test_a_prompt_becomes_segments_with_one_end():
    class Letters:
        def ids(self, text: str) -> list[int]:
            return [ord(c) for c in text]

    assert split_prompt("a <video1> b", Letters()) == [[97], "video1", [98], [1]]
    assert split_prompt("<image2>", Letters()) == ["image2", [1]]


@torch.no_grad()
def test_cached_latents_are_those_of_the_reference():
    torch.manual_seed(0)
    statistics = {"latents_mean": [0.5] * 16, "latents_std": [2.0] * 16}
    vae = AutoencoderKLWan(**{**VAE_CONFIG, "base_dim": 4}, **statistics).eval()
    clips = [np.random.default_rng(i).integers(0, 256, (5, 32, 48, 3), np.uint8) for i in range(2)]
    for clip, cached_latents in zip(clips, encode_clips(vae, clips), strict=True):
        expected = encode_clip(vae, torch.from_numpy(clip))
        torch.testing.assert_close(cached_latents, expected, atol=1e-4, rtol=1e-4)
