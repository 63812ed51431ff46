"""The last stage: what it draws belongs together, and pixels teach where there is one right answer."""

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
    NEW_SHARE,
    SHAPES,
    Pair,
    Requests,
    Stock,
    draw_requests,
    evaluate,
    weigh_pixels,
)
from reference.nano.tasks import EDIT_TASKS, Sample
from reference.nano.train import Nano, config_for
from reference.nano.train_vae import LATENT_SCALE
from reference.nano.world import Canvas, Footage
from reference.text_encoder import Tokenizer

CHECKPOINT = Path(__file__).parents[3] / "reference" / "nano" / "checkpoint"
TOKENIZER = Tokenizer(CHECKPOINT / "tokenizer" / "spiece.model")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(CHECKPOINT / "vae").eval()


@pytest.fixture(scope="module")
def untrained() -> Nano:
    torch.manual_seed(0)
    return Nano(config_for(CHECKPOINT / "vae")).eval()


def draw_some(
    vae: AutoencoderKLWan,
    seed: int,
    frames: int,
    count: int,
    footage: Footage | None = None,
    tasks: tuple[str, ...] = EDIT_TASKS,
) -> Requests:
    rng = np.random.default_rng(seed)
    return draw_requests(vae, TOKENIZER, rng, frames, count, footage, tasks=tasks, text_dropout=0.0)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "count"), [(1, 2), (5, 1)])
def test_latents_belong_to_the_right_answers(vae, frames, count):
    drawn = draw_some(vae, 0, frames, count)
    assert drawn.video.shape[:3] == (count, 3, frames)
    encoded = vae.encode(drawn.video).latent_dist.mean
    # They went through float16, in units of LATENT_SCALE deviations.
    std = vae.config.latents_std[0]
    torch.testing.assert_close(drawn.own, encoded, atol=2e-3 * std * LATENT_SCALE * 10, rtol=2e-3)


def test_the_own_latents_decode_better_than_an_untrained_networks(vae, untrained):
    found = evaluate(untrained, vae, [draw_some(vae, 1, 1, 3)])
    assert found["own"] > max(found["once"], found["eight"]) + 5


def test_each_seed_draws_its_own(vae):
    first, again, other = (draw_some(vae, seed, 1, 1) for seed in (2, 2, 3))
    assert torch.equal(first.own, again.own)
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
    drawn = draw_some(vae, 2, 1, 6, film)
    assert film.seeds
    assert not torch.equal(drawn.video, draw_some(vae, 2, 1, 6).video)


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


def test_requests_are_shown_again_and_make_room(vae):
    """`NEW_SHARE` of the draws are new, and no shape keeps more than its share of frames."""
    drawn: list[int] = []
    one = draw_some(vae, 0, 1, 1)

    def draw_shape(shape: tuple[int, int]) -> Requests:
        drawn.append(len(drawn))
        return Requests(one.batch, torch.tensor([len(drawn) - 1]), one.video, one.weight)

    stock = Stock(draw_shape, np.random.default_rng(0))
    shape = SHAPES[1]
    room = KEPT_FRAMES // (shape[0] * shape[1])
    shown = [int(stock.draw(shape).own) for _ in range(1000)]
    assert len(drawn) == pytest.approx(1000 * NEW_SHARE, abs=45)  # three standard deviations
    assert len(stock.kept[shape]) == room
    assert all(max(shown[: place + 1]) - value < room for place, value in enumerate(shown))


def test_steps_lower_the_error_and_leave_the_encoder(untrained):
    vae = AutoencoderKLWan.from_pretrained(CHECKPOINT / "vae")
    nano = Nano(untrained.transformer.config)
    nano.load_state_dict(untrained.state_dict())
    pair = Pair(nano, vae, lr=0.004)
    before = {name: value.clone() for name, value in [*vae.named_parameters(), *nano.named_parameters()]}
    drawn = draw_some(vae, 0, 1, 2)
    found = []
    for step in range(8):
        torch.manual_seed(1)  # the same timesteps, noise and choice of clips
        losses, pixels = pair.losses(drawn)
        (losses.total + pixels).backward()
        pair.update(step, 0.5)
        found.append(float(pixels.detach()))
    assert found[-1] < 0.9 * found[0]
    after = dict([*vae.named_parameters(), *nano.named_parameters()])
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder", "post_quant_conv", "text_encoder", "transformer", "fact_heads"}


@pytest.mark.parametrize("one_answer", [True, False])
def test_pixels_teach_the_transformer_where_there_is_one_answer(vae, untrained, one_answer):
    """What has many right answers learns their mean from errors of pixels, so it is left to the flow's loss."""
    torch.manual_seed(0)
    drawn = draw_some(vae, 0, 1, 8, tasks=("change_color",) if one_answer else ("generation",))
    _, pixels = Pair(untrained, vae, lr=0.004).losses(drawn)
    head = untrained.transformer.patch_out.weight
    (gradient,) = torch.autograd.grad(pixels, [head], allow_unused=True)
    assert (gradient is not None and bool(gradient.any())) is one_answer
