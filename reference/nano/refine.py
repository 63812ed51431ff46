"""The last stage of training, in pixels: the transformer's answers go through the decoder, and both learn from them.

    python -m reference.nano.refine RUN --minutes 25

Until then the transformer learns from errors of latents, where a token is 16 by 16 pixels: an object's outline and the
few pixels that an edit keeps cannot count for more than the rest of their token. Here they do. The encoder stays as
it is, and with it all latents. The loss of `train.py` goes on beside the one of the pixels, so that what has many right
answers stays as it was; three clips in ten are decoded from the encoder's own latents, so that the VAE stays one. With
`--photographs FOLDER` many of the requests are edits over photographs.
RUN/state.pt and RUN/vae are rewritten at the end, and a second call trains on; RUN/refine_log.jsonl takes a line
every 100 steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run as a file: `python reference/nano/refine.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor, nn

from reference.nano.batching import EXTRA_ODDS, Batch, collate, pack
from reference.nano.curate import SIZES, VIDEO_ONLY, draw_curated
from reference.nano.dataset import PATCH_SIZE, cache_samples
from reference.nano.heldout import CHANGED_LEVELS
from reference.nano.optim import Averaged, Muon, is_matrix
from reference.nano.photographs import measure_photographs, open_photographs
from reference.nano.tasks import EDIT_TASKS, TASKS, Sample
from reference.nano.train import (
    TEXT_DROPOUT,
    Losses,
    Nano,
    compute_losses,
    make_nano,
    make_optimizers,
    sample,
    save_state,
)
from reference.nano.train_vae import use_image_convolutions
from reference.nano.workers import (
    add_worker_options,
    average_gradients,
    in_bfloat16,
    join_workers,
    start_workers,
)
from reference.nano.world import Canvas, Footage
from reference.text_encoder import Tokenizer
from reference.vae import clip_psnr_db, latent_statistics, latents_from_patches

SEED, VALIDATION_SEED = 7, 8
Shape = tuple[int, int]
SHAPES: tuple[Shape, ...] = ((1, 10), (5, 4), (1, 10), (9, 2), (17, 1))
"""(frames, clips) of successive steps."""
NOISE_SHARE = 0.25
"""Of the requests are answered from pure noise, as one evaluation does; the others later on the way."""
WAY_SHARE = 0.6
"""Of the requests with one right answer are answered later on the way of the network's own first step: its errors are
in what a second evaluation sees, and those of the right answer are not."""
OWN_SHARE = 0.3
"""Share of the clips that the decoder sees as the encoder gives them."""
PIXEL_WEIGHT = 8.0
"""Of the loss in pixels, beside the one of training."""
MUON_LR, ADAM_LR = 0.005, 4e-4
"""Of the transformer and the text encoder, which have learnt: a quarter of their training's."""
KEPT_FRAMES = 600
"""Frames of each shape that are kept, to be shown again."""
NEW_SHARE = 0.6
"""Share of the steps that draw new requests; the others show again what is kept."""
FOOTAGE_SHARE = 0.6
"""Share of the requests that may have a photograph behind their shapes, where there are photographs."""
MAX_KEPT_WEIGHT = 6.0
"""Kept pixels weigh as much as all others of their clip, but each at most this much."""
WARM_UP_STEPS = 50
LOG_EVERY = 100


@dataclass(frozen=True)
class Requests:
    """Requests of one shape, laid out, with their right answers.

    batch: of n; own: the encoder's latents float32 [n, z, t, h, w]; video: float32 [n, 3, T, H, W] in [-1, 1];
    weight: float32 [n, 1, T, H, W] of its pixels, whose mean is 1 in each clip.
    """

    batch: Batch
    own: Tensor
    video: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Requests:
        """The same on a device."""
        return Requests(
            self.batch.to(device), self.own.to(device), self.video.to(device), self.weight.to(device)
        )


def weigh_pixels(sample: Sample) -> NDArray[np.float32]:
    """What each pixel [1, T, H, W] of a right answer counts: those that the edit keeps, more if few."""
    kept = np.ones(sample.target.shape[:3], bool)
    if sample.source is not None:
        source = sample.inputs[sample.source].astype(np.int16)
        kept = np.abs(source - sample.target).max(-1) <= CHANGED_LEVELS
    share = max(float(kept.mean()), 1e-3)
    weight = np.where(kept, min(max((1 - share) / share, 1.0), MAX_KEPT_WEIGHT), 1.0)
    return (weight / weight.mean()).astype(np.float32)[None]


def draw_requests(
    vae: AutoencoderKLWan,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    frames: int,
    count: int,
    footage: Footage | None = None,
    *,
    tasks: tuple[str, ...] = TASKS,
    text_dropout: float = TEXT_DROPOUT,
) -> Requests:
    """Draw `count` requests of so many frames, a share of them without their text.

    footage: what `FOOTAGE_SHARE` of the requests may have behind their shapes.
    """
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    plain = Canvas(frames, height, width)
    possible = [task for task in tasks if frames > 1 or task not in VIDEO_ONLY]
    odds = np.array([0.5 + EXTRA_ODDS.get(task, 0.0) for task in possible])
    samples = []
    for _ in range(count):
        has_footage = footage is not None and rng.random() < FOOTAGE_SHARE
        canvas = replace(plain, footage=footage) if has_footage else plain
        samples.append(draw_curated(rng, str(rng.choice(possible, p=odds / odds.sum())), canvas))
    with torch.no_grad():
        cached = cache_samples(vae, tokenizer, samples)
    batch = collate([pack(one) for one in cached], rng.random(count) < text_dropout)
    video = torch.from_numpy(np.stack([s.target for s in samples])).permute(0, 4, 1, 2, 3).float()
    weight = torch.from_numpy(np.stack([weigh_pixels(s) for s in samples]))
    own = latents_of(vae, batch.noisy, count, tuple(cached[0].target.shape[:3]))
    return Requests(batch, own, video / 127.5 - 1, weight)


def latents_of(vae: AutoencoderKLWan, rows: Tensor, count: int, grid: tuple[int, ...]) -> Tensor:
    """Rows [count * t * h * w, P] of the target as the decoder's latents [count, z, t, h, w] on their device."""
    mean, std = (value.to(rows.device) for value in latent_statistics(vae))
    clips = rows.float().view(count, *grid, -1)
    return torch.cat([latents_from_patches(clip, PATCH_SIZE) for clip in clips]) * std + mean


@torch.no_grad()
def evaluate(nano: Nano, vae: AutoencoderKLWan, known: list[Requests]) -> dict[str, float]:
    """PSNR in dB of right answers, decoded from the encoder's latents and from the transformer's of 1 and 8 steps."""
    found: dict[str, list[float]] = {"own": [], "once": [], "eight": []}

    def decoded_psnr_db(latents: Tensor, video: Tensor) -> float:
        return float(clip_psnr_db(vae.decode(latents).sample, video).mean())

    for one in known:
        found["own"].append(decoded_psnr_db(one.own, one.video))
        for name, steps in (("once", 1), ("eight", 8)):
            with in_bfloat16(one.video.device):
                rows = sample(nano, one.batch, steps)
            found[name].append(decoded_psnr_db(_latents_like(vae, rows, one), one.video))
    return {name: round(float(np.mean(values)), 3) for name, values in found.items()}


def _latents_like(vae: AutoencoderKLWan, rows: Tensor, one: Requests) -> Tensor:
    count, _, frames, height, width = one.own.shape
    return latents_of(vae, rows, count, (frames, height // PATCH_SIZE, width // PATCH_SIZE))


class Stock:
    """Requests of each shape: some are new, most are shown again, until newer ones take their place."""

    def __init__(self, draw_shape: Callable[[Shape], Requests], rng: np.random.Generator) -> None:
        self.draw_shape, self.rng = draw_shape, rng
        self.kept: dict[Shape, list[Requests]] = {shape: [] for shape in SHAPES}

    def draw(self, shape: Shape) -> Requests:
        """Requests of a shape."""
        kept = self.kept[shape]
        if len(kept) >= 2 and self.rng.random() >= NEW_SHARE:
            return kept[int(self.rng.integers(len(kept)))]
        kept.append(self.draw_shape(shape))
        del kept[: -(KEPT_FRAMES // (shape[0] * shape[1]))]
        return kept[-1]


class Pair:
    """The transformer with its text encoder and the VAE's decoder, what trains them, and the averages of both."""

    def __init__(self, nano: Nano, vae: AutoencoderKLWan, lr: float) -> None:
        self.nano, self.vae = nano, vae
        self.decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
        matrices = [p for p in self.decoder.parameters() if is_matrix(p)]
        others = [p for p in self.decoder.parameters() if not is_matrix(p)]
        adam = torch.optim.AdamW(others, lr=lr / 10, betas=(0.9, 0.99), weight_decay=0.0)
        self.own = make_optimizers(nano, MUON_LR, ADAM_LR)
        self.optimizers = [
            (Muon(matrices, lr=lr), lr),
            (adam, lr / 10),
            *zip(self.own, (MUON_LR, ADAM_LR), strict=True),
        ]
        self.clipped = (others, self.own[1].param_groups[0]["params"])
        self.averages = Averaged(nano, 0.99), Averaged(self.decoder, 0.99)

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [*self.nano.parameters(), *self.decoder.parameters()]

    def losses(self, requests: Requests) -> tuple[Losses, Tensor]:
        """Those of `train.py`, and the mean root of each clip's squared error in pixels.

        Clips with many right answers, and `OWN_SHARE` of the others, are decoded from the encoder's latents.
        """
        batch = requests.batch
        is_described = torch.tensor([one.task == "generation" for one in batch.samples])
        has_one = batch.has_text & ~is_described.to(batch.has_text.device)
        on_its_way = has_one & (torch.rand(len(has_one)) < WAY_SHARE).to(has_one.device)
        losses = compute_losses(self.nano, batch, NOISE_SHARE, on_its_way)
        is_own = ~has_one | (torch.rand(len(has_one)) < OWN_SHARE).to(has_one.device)
        answers = _latents_like(self.vae, losses.answer, requests)
        chosen = torch.where(is_own[:, None, None, None, None], requests.own, answers)
        with in_bfloat16(answers.device):
            out = self.vae.decode(chosen).sample
        error = ((out.float() - requests.video).square() * requests.weight).mean((1, 2, 3, 4))
        return losses, (error + 1e-5).sqrt().mean()

    def update(self, step: int, rate: float) -> None:
        """One step down the gradients, at a share `rate` of the learning rates."""
        for parameters in self.clipped:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, lr in self.optimizers:
            optimizer.param_groups[0]["lr"] = lr * rate
            optimizer.step()
        for parameter in self.parameters():
            parameter.grad = None
        for average, module in zip(self.averages, (self.nano, self.decoder), strict=True):
            average.update(module, step)


def train_pair(pair: Pair, stock: Stock, minutes: float, note: Callable[[dict[str, float]], None]) -> int:
    """Train until the first worker's clock has run out, at rates that fall to zero. Returns the number of steps.

    note: is given the means of every `LOG_EVERY` steps.
    """
    seen: list[Tensor] = []
    step, share, start = 0, 0.0, time.monotonic()
    while share < 1:
        losses, pixels = pair.losses(stock.draw(SHAPES[step % len(SHAPES)]))
        (losses.total + PIXEL_WEIGHT * pixels).backward()
        own_share = (time.monotonic() - start) / (60 * minutes) if dist.get_rank() == 0 else 0.0
        facts = torch.tensor([float(losses.pixels), float(pixels.detach()), own_share])
        facts = average_gradients(pair.parameters(), facts)
        seen.append(facts[:2] / dist.get_world_size())
        share = float(facts[2])
        pair.update(step, min(1.0, (step + 1) / WARM_UP_STEPS) * max(0.0, 1 - share))
        step += 1
        if step % LOG_EVERY == 0:
            latents, shown = torch.stack(seen).mean(0).tolist()
            seen.clear()
            note(
                {
                    "step": step,
                    "minutes": round(share * minutes, 2),
                    "loss": round(latents, 4),
                    "pixels": round(shown, 5),
                }
            )
    return step


def refine(rank: int, args: argparse.Namespace) -> None:
    """One worker; the first keeps the clock and the log."""
    device = join_workers(rank, args)
    use_image_convolutions()
    state = torch.load(args.run / "state.pt")
    begun = int(state["progress"].get("refined", 0))
    torch.manual_seed(begun * args.workers + rank)
    nano, tokenizer = make_nano(state), Tokenizer(args.run / "tokenizer.model")
    nano.load_state_dict(state["average"], strict=False)
    nano.to(device)
    vae = AutoencoderKLWan.from_pretrained(args.run / "vae").to(device)
    pair = Pair(nano, vae, args.lr)
    footage = kept_apart = None
    if args.photographs is not None:
        footage = open_photographs(args.photographs, held_out=False)
        kept_apart = open_photographs(args.photographs, held_out=True)
    rng = np.random.default_rng([SEED, rank, begun])  # a second call draws other requests
    stock = Stock(lambda shape: draw_requests(vae, tokenizer, rng, *shape, footage).to(device), rng)
    if rank != 0:
        train_pair(pair, stock, args.minutes, lambda line: None)
        return

    held = np.random.default_rng(VALIDATION_SEED)
    known = [
        draw_requests(vae, tokenizer, held, *shape, kept_apart, tasks=EDIT_TASKS, text_dropout=0.0).to(device)
        for shape in SHAPES * 3
    ]

    def measure() -> dict[str, float]:
        photographs = {} if kept_apart is None else measure_photographs(vae, kept_apart)
        return evaluate(nano, vae, known) | photographs

    def note(line: dict[str, float]) -> None:
        with (args.run / "refine_log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)

    print("before", measure(), flush=True)
    steps = train_pair(pair, stock, args.minutes, note)
    for average, module in zip(pair.averages, (nano, pair.decoder), strict=True):
        average.copy_to(module)
    print("after", measure())
    vae.save_pretrained(args.run / "vae")
    progress = state["progress"] | {"refined": begun + steps}
    save_state(args.run / "state.pt", nano, pair.own, pair.averages[0], progress)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    add_worker_options(parser)
    parser.add_argument("--lr", type=float, default=0.004)
    start_workers(refine, parser.parse_args())


if __name__ == "__main__":
    main()
