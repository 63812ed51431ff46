"""The decoder's last stage: what it is shown belongs together, and is drawn anew by each seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray

from reference.nano.refine import (
    KEPT_FRAMES,
    MAX_KEPT_WEIGHT,
    SHAPES,
    Decoder,
    Stock,
    Written,
    evaluate,
    weigh_pixels,
    write,
)
from reference.nano.tasks import Sample
from reference.nano.train import Nano, config_for
from reference.nano.train_vae import LATENT_SCALE
from reference.nano.world import Canvas, Footage
from reference.text_encoder import Tokenizer

CHECKPOINT = Path(__file__).parents[3] / "reference" / "nano" / "checkpoint"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(CHECKPOINT / "vae").eval()


def write_some(
    vae: AutoencoderKLWan, seed: int, frames: int, count: int, footage: Footage | None = None
) -> Written:
    torch.manual_seed(0)
    tokenizer = Tokenizer(CHECKPOINT / "tokenizer" / "spiece.model")
    model = Nano(config_for(CHECKPOINT / "vae")).eval()
    return write(model, vae, tokenizer, np.random.default_rng(seed), frames, count, footage)


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


class Film:
    """Footage that notes what it was asked for."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def draw_background(self, seed: int, canvas: Canvas) -> NDArray[np.float32]:
        self.seeds.append(seed)
        return np.full((canvas.frames, canvas.height, canvas.width, 3), 0.5, np.float32)


def test_photographs_stand_behind_some_of_the_shapes(vae):
    film = Film()
    written = write_some(vae, 2, 1, 6, film)
    assert film.seeds
    assert not torch.equal(written.video, write_some(vae, 2, 1, 6).video)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(4, 3.0), (8, 1.0), (12, 1.0), (1, MAX_KEPT_WEIGHT)],
    ids=["few", "half", "most", "very few"],
)
def test_what_an_edit_keeps_counts_as_much_as_the_rest(kept: int, expected: float):
    """Of 16 pixels the first `kept` stay; they weigh `expected` times what each of the others does."""
    source = np.full((1, 4, 4, 3), 100, np.uint8)
    target = source.copy()
    target.reshape(16, 3)[kept:, 1] += 40
    weight = weigh_pixels(Sample("t", "p", {"video1": source}, target, "video1"))
    assert weight.shape == (1, 1, 4, 4)
    flat = weight.ravel()
    assert flat.mean() == pytest.approx(1, abs=1e-6)
    assert flat[:kept] / flat[-1] == pytest.approx(expected, rel=1e-6)


def test_without_a_source_all_pixels_count_alike():
    frames = np.zeros((5, 4, 4, 3), np.uint8)
    assert (weigh_pixels(Sample("t", "p", {}, frames, None)) == 1).all()


def test_clips_are_shown_again_and_make_room():
    """Three in ten draws are new, and no shape keeps more than its share of frames."""
    count = 0

    def write_shape(shape: tuple[int, int]) -> Written:
        nonlocal count
        count += 1
        return Written(*(torch.full((1,), float(count)) for _ in range(4)))

    stock = Stock(write_shape, np.random.default_rng(0))
    shape = SHAPES[1]
    room = KEPT_FRAMES // (shape[0] * shape[1])
    shown = [float(stock.draw(shape).own) for _ in range(1000)]
    assert count == pytest.approx(300, abs=45)  # three standard deviations
    assert shown[:2] == [1, 2]
    assert len(stock.kept[shape]) == room
    assert all(max(shown[: place + 1]) - value < room for place, value in enumerate(shown))


def test_a_step_lowers_the_loss_of_the_decoder_alone():
    vae = AutoencoderKLWan.from_pretrained(CHECKPOINT / "vae")
    before = {name: value.clone() for name, value in vae.named_parameters()}
    clips = write_some(vae, 0, 1, 2)
    decoder = Decoder(vae, lr=0.004)
    found = []
    for step in range(4):
        torch.manual_seed(0)  # the same clips are decoded from their own latents
        loss = decoder.loss(clips)
        loss.backward()
        decoder.update(step, 1.0)
        found.append(float(loss.detach()))
    assert found == sorted(found, reverse=True)
    changed = {name for name, value in vae.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
