"""Batching and learning: a padded batch equals its sequences one by one, and the loss can go down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import AutoencoderKLWan
from transformers.models.t5.modeling_t5 import T5LayerNorm

from reference.families.editverse import CONFIGS
from reference.nano.batching import collate, pack
from reference.nano.dataset import CachedSample, encode_clips, split_prompt
from reference.nano.facts import NAMES
from reference.nano.grow import grow
from reference.nano.optim import BLOCK_ROWS, Averaged, Muon, orthogonal_update
from reference.nano.publish import STREAM_PEAK, calm_stream, calm_text_encoder, round_to_half
from reference.nano.train import (
    ANYWHERE_SHARE,
    NOISE_SHARE,
    NOT_STARTED,
    Nano,
    compute_losses,
    config_for,
    draw_timesteps,
    make_nano,
    make_optimizers,
    save_state,
)
from reference.nano.train_vae import VAE_CONFIG, Batches, latent_sensitivity, level_latents, make_vae
from reference.nano.workers import CPU, average_gradients, in_bfloat16
from reference.text_encoder import make_nano_text_encoder
from reference.vae import encode_clip

PATCH_DIM = CONFIGS["nano"].patch_dim


def cached(rng: np.random.Generator, words: int, frames: int, with_source: bool) -> CachedSample:
    def clip() -> torch.Tensor:
        return torch.tensor(rng.standard_normal((frames, 2, 3, PATCH_DIM)), dtype=torch.float16)

    ids = [int(i) for i in rng.integers(3, 600, words)]
    segments = [ids[:1], "video1", ids[1:], [1]] if with_source else [ids, [1]]
    clips, source = ({"video1": clip()}, "video1") if with_source else ({}, None)
    facts = {"target": torch.rand(frames, 2, 3, len(NAMES)).half()}
    return CachedSample("t", segments, clips, clip(), source, facts)


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
    together, _, _ = model.outputs(batch, model.encode_text(batch), batch.noisy, timestep)
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
        loss = compute_losses(model, batch).total
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (8, 2, 5)])
def test_an_update_has_singular_values_near_one(shape):
    torch.manual_seed(0)
    update = orthogonal_update(torch.randn(shape))
    assert update.shape == shape
    values = torch.linalg.svdvals(update.flatten(1))
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("is_tall", [False, True])
def test_a_large_matrix_is_orthogonalised_block_by_block(is_tall):
    torch.manual_seed(0)
    gradient = torch.randn(3 * BLOCK_ROWS, 4 * BLOCK_ROWS)
    update = orthogonal_update(gradient.mT if is_tall else gradient)
    for block, alone in zip(
        (update.mT if is_tall else update).split(BLOCK_ROWS), gradient.split(BLOCK_ROWS), strict=True
    ):
        torch.testing.assert_close(block, orthogonal_update(alone), atol=1e-4, rtol=1e-4)


def test_muon_moves_a_matrix_by_the_learning_rate_whatever_the_gradient():
    for scale in (1e-6, 1e6):
        weight = torch.nn.Parameter(torch.zeros(8, 8))
        weight.grad = scale * torch.eye(8)
        Muon([weight], lr=0.1).step()
        assert float(torch.linalg.matrix_norm(weight.detach(), 2)) == pytest.approx(0.1, rel=0.35)


def test_a_run_keeps_the_sizes_that_it_began_with(tmp_path):
    """Training goes on from a state, whatever the sizes that a new run would take."""
    small = replace(CONFIGS["nano"], width=64, num_blocks=1, patch_dim=64)
    model = Nano(small)
    save_state(tmp_path / "state.pt", model, make_optimizers(model), Averaged(model, 0.0), NOT_STARTED)
    state = torch.load(tmp_path / "state.pt")
    again = make_nano(state)
    assert again.transformer.config == small
    again.load_state_dict(state["model"])


def test_a_new_run_is_made_for_the_latents_of_its_vae(tmp_path):
    make_vae({"base_dim": 4, "z_dim": 6}).save_pretrained(tmp_path)
    assert config_for(tmp_path) == replace(CONFIGS["nano"], patch_dim=24)


def save_small(folder, samples):
    """A small network with random weights and moments, as a run's state; and a batch."""
    small = replace(CONFIGS["nano"], width=64, num_blocks=1, mlp_width=48)
    torch.manual_seed(0)
    model = Nano(small)
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    optimizers = make_optimizers(model)
    batch = collate([pack(sample) for sample in samples], np.zeros(3, bool))
    compute_losses(model, batch).total.backward()
    for optimizer in optimizers:
        optimizer.step()
    save_state(folder / "state.pt", model, optimizers, Averaged(model, 0.0), NOT_STARTED)
    return model, batch


@torch.no_grad()
def outputs_of(model, batch):
    timestep = torch.tensor([0.2, 0.5, 0.8])
    return model.outputs(batch, model.encode_text(batch), batch.noisy, timestep)


@pytest.mark.parametrize("sizes", [{"mlp_width": 80}, {"width": 96}, {"width": 96, "mlp_width": 80}])
def test_a_grown_network_computes_what_it_did_and_learns_on(tmp_path, samples, sizes):
    model, batch = save_small(tmp_path, samples)
    with pytest.raises(ValueError, match="has 64 channels and 48 hidden units"):
        grow(tmp_path, mlp_width=48)
    with pytest.raises(ValueError, match="expected no fewer channels"):
        grow(tmp_path, width=32)
    grow(tmp_path, **sizes)
    state = torch.load(tmp_path / "state.pt")
    grown = make_nano(state)
    grown.load_state_dict(state["model"])
    for name, value in state["average"].items():
        assert torch.equal(value, state["model"][name]), "the average reads what the weights read"
    config = grown.transformer.config
    assert (config.width, config.mlp_width) == (sizes.get("width", 64), sizes.get("mlp_width", 48))
    before, after = outputs_of(model, batch), outputs_of(grown, batch)
    torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-5)
    for tap, tap_before in zip(after[1:], before[1:], strict=True):
        torch.testing.assert_close(tap[:, :64], tap_before, atol=1e-5, rtol=1e-5)
        assert (tap[:, 64:] == 0).all()
    gate = grown.transformer.blocks[0].mlp.gate.weight
    size = float(gate[:48, :64].square().mean().sqrt())
    for new in (gate[48:], gate[:, 64:]):  # at the size of the trained ones, or they would not learn
        assert not new.numel() or float(new.square().mean().sqrt()) == pytest.approx(size, rel=0.1)
    again = make_optimizers(grown)
    for optimizer, saved in zip(again, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    for _ in range(2):
        grown.zero_grad()
        compute_losses(grown, batch).total.backward()
        for optimizer in again:
            optimizer.step()
    down = grown.transformer.blocks[0].mlp.down.weight
    assert (down[:, 48:].abs().sum(0) > 0).all()  # the new units write
    assert (
        grown.transformer.patch_in.weight[64:].abs().sum(1) > 0
    ).all()  # and so do the new channels' writers


def test_a_narrower_feed_forward_keeps_the_units_that_write_most(tmp_path, samples):
    model, batch = save_small(tmp_path, samples)
    mlp = model.transformer.blocks[0].mlp
    with torch.no_grad():
        mlp.down.weight[:, ::3] = 0  # a third of the units writes nothing
    save_state(tmp_path / "state.pt", model, make_optimizers(model), Averaged(model, 0.0), NOT_STARTED)
    grow(tmp_path, mlp_width=32)
    state = torch.load(tmp_path / "state.pt")
    shrunk = make_nano(state)
    shrunk.load_state_dict(state["model"])
    assert shrunk.transformer.blocks[0].mlp.gate.weight.shape == (32, 64)
    torch.testing.assert_close(
        outputs_of(shrunk, batch)[0], outputs_of(model, batch)[0], atol=1e-5, rtol=1e-5
    )


def test_published_weights_are_what_float16_holds():
    module = torch.nn.Linear(7, 5)
    before = module.weight.detach().clone()
    round_to_half(module)
    assert torch.equal(module.weight, before.half().float())
    assert not torch.equal(module.weight, before)


def test_a_weight_that_float16_does_not_hold_is_refused():
    module = torch.nn.Linear(2, 2)
    with torch.no_grad():
        module.bias[1] = -1e5
    with pytest.raises(ValueError, match="bias reaches 100000; float16 holds 65504 at most"):
        round_to_half(module)


@torch.no_grad()
def test_a_calmed_text_encoder_fits_float16_and_says_the_same():
    torch.manual_seed(0)
    encoder = make_nano_text_encoder().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    ids = torch.randint(3, 600, (4, 40))
    before = encoder(input_ids=ids).last_hidden_state
    power = calm_text_encoder(encoder, lambda: encoder(input_ids=ids))
    assert power > 0
    assert torch.equal(encoder(input_ids=ids).last_hidden_state, before)
    largest = []
    for module in encoder.modules():
        if isinstance(module, (T5LayerNorm, torch.nn.Linear)):
            module.register_forward_hook(lambda _, inputs, __: largest.append(float(inputs[0].abs().max())))
    encoder(input_ids=ids)
    assert max(largest) <= STREAM_PEAK


@torch.no_grad()
def test_a_calmed_stream_fits_float16_and_changes_no_picture():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**{**VAE_CONFIG, "base_dim": 4}).eval()
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases are none at first
    for coder in (vae.encoder, vae.decoder):
        coder.conv_in.weight.mul_(1e6)
    clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    latents = vae.encode(clip).latent_dist.mean
    expected = vae.decode(latents).sample
    assert calm_stream(vae.encoder, lambda: vae.encode(clip)) > 0
    assert calm_stream(vae.decoder, lambda: vae.decode(latents)) > 0
    # Powers of two round nothing; norms divide by the root of a sum, which does.
    torch.testing.assert_close(vae.encode(clip).latent_dist.mean, latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae.decode(latents).sample, expected, atol=1e-5, rtol=1e-4)
    assert calm_stream(vae.decoder, lambda: vae.decode(latents)) == 0


def test_sequences_on_their_way_are_where_the_networks_first_step_brought_them(samples, monkeypatch):
    """The second of three: an Euler step from its noise to its timestep; the others on the line to the answer."""
    model = make_model()
    batch = collate([pack(sample) for sample in samples], np.zeros(3, bool))
    seen = []
    outputs = model.outputs

    def note(batch, text, x_t, timestep):
        seen.append((x_t, timestep))
        return outputs(batch, text, x_t, timestep)

    monkeypatch.setattr(model, "outputs", note)
    compute_losses(model, batch, noise_share=0.0, on_its_way=torch.tensor([False, True, False]))
    (noise, start), (x_t, timestep) = seen
    assert not start.any()
    t = timestep[batch.noisy_owner, None]
    assert (t > 0).all()
    with torch.no_grad(), in_bfloat16(CPU):
        first, _, _ = outputs(batch, model.encode_text(batch), noise, start)
    second = batch.noisy_owner == 1
    # Rows of order 1; products may be in bfloat16, whose kernels with and without gradients round apart.
    torch.testing.assert_close(x_t[second], (noise + t * (first - noise))[second], atol=0.01, rtol=0)
    torch.testing.assert_close(
        x_t[~second], (t * batch.noisy + (1 - t) * noise)[~second], atol=1e-5, rtol=1e-5
    )


def test_timesteps_start_at_noise_as_often_as_they_should_and_reach_everywhere():
    torch.manual_seed(0)
    timesteps = draw_timesteps(20_000)
    assert float((timesteps == 0).float().mean()) == pytest.approx(NOISE_SHARE, abs=0.01)  # 4 standard errors
    assert 0.98 < float(timesteps.max()) < 1
    late = float((timesteps > 0.75).float().mean())
    assert ANYWHERE_SHARE / 4 < late < ANYWHERE_SHARE / 4 + 0.02  # the near ones seldom come so far


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
    z_dim = VAE_CONFIG["z_dim"]
    statistics = {"latents_mean": [0.5] * z_dim, "latents_std": [2.0] * z_dim}
    vae = AutoencoderKLWan(**{**VAE_CONFIG, "base_dim": 4}, **statistics).eval()
    clips = [np.random.default_rng(i).integers(0, 256, (5, 32, 48, 3), np.uint8) for i in range(2)]
    for clip, cached_latents in zip(clips, encode_clips(vae, clips), strict=True):
        expected = encode_clip(vae, torch.from_numpy(clip))
        torch.testing.assert_close(cached_latents, expected, atol=1e-4, rtol=1e-4)


def step_of_a_worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ((rank + 1.0) * model(torch.full((1, 3), 2.0)).sum()).backward()
    facts = average_gradients(model.parameters(), torch.tensor([1.0, float(rank)]))
    torch.save([facts, model.weight.grad, model.bias.grad], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_workers_average_their_gradients_and_add_up_their_facts(tmp_path):
    mp.start_processes(step_of_a_worker, (tmp_path,), nprocs=2, start_method="fork")
    for rank in (0, 1):
        facts, weight, bias = torch.load(tmp_path / f"{rank}.pt")
        assert facts.tolist() == [2.0, 1.0]
        # Worker 0 has the gradient 2 (weight) and 1 (bias), worker 1 twice that.
        torch.testing.assert_close(weight, torch.full((2, 3), 3.0))
        torch.testing.assert_close(bias, torch.full((2,), 1.5))


def test_levelled_latents_decode_to_the_same_and_every_direction_costs_the_same():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**{**VAE_CONFIG, "base_dim": 4, "z_dim": 6}).eval()
    with torch.no_grad():
        vae.post_quant_conv.weight.copy_(torch.randn_like(vae.post_quant_conv.weight))
        clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
        before = vae.decode(vae.encode(clip).latent_dist.mean).sample
        uneven = torch.linalg.cond(latent_sensitivity(vae, step=0.02))
        level_latents(vae)
        after = vae.decode(vae.encode(clip).latent_dist.mean).sample
    torch.testing.assert_close(after, before, atol=2e-3, rtol=0)
    assert torch.linalg.cond(latent_sensitivity(vae, step=0.02)) < 0.2 * uneven


def test_flipped_and_recoloured_batches_keep_their_values():
    """What is shown again is the same picture, turned: the values of its three channels, sorted, stay."""
    batches = Batches(np.random.default_rng(0), kept=1)
    first = batches.draw(1, 2)
    shown = [batches.draw(1, 2) for _ in range(6)]
    again = [video for video in shown if video.shape == first.shape]
    assert any(torch.equal(video.flatten().sort()[0], first.flatten().sort()[0]) for video in again)
    assert all(float(video.abs().max()) <= 1 for video in shown)
