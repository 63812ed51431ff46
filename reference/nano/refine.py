"""Train the VAE's decoder on what the transformer writes, so that it forgives the transformer's errors.

    python -m reference.nano.refine RUN --minutes 12

The last stage of training. The encoder stays as it is, and with it all latents; the decoder sees clips as the
averaged transformer samples them, and is to give the right answer's pixels: those that the edit keeps as much
as all others, however few they are. Every third clip is one of the encoder's own, so that the VAE stays one; with
`--photographs FOLDER` many of the requests are edits over photographs, which the decoder would unlearn otherwise.
RUN/vae is rewritten at the end; RUN/refine_log.jsonl takes a line every 100 steps.
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
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor, nn

from reference.nano.batching import collate, pack
from reference.nano.curate import SIZES, VIDEO_ONLY, draw_curated
from reference.nano.dataset import PATCH_SIZE, cache_samples
from reference.nano.heldout import CHANGED_LEVELS
from reference.nano.optim import Averaged, Muon
from reference.nano.photographs import measure_photographs, open_photographs
from reference.nano.tasks import EDIT_TASKS, Sample
from reference.nano.train import Nano, make_nano, sample
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
from reference.vae import latent_statistics, latents_from_patches

SEED, VALIDATION_SEED = 7, 8
Shape = tuple[int, int]
SHAPES: tuple[Shape, ...] = ((1, 10), (5, 4), (1, 10), (9, 2), (17, 1))
"""(frames, clips) of successive steps."""
SAMPLING_STEPS = (1, 2, 4, 8)
"""Euler steps that a clip is sampled in, one of these."""
OWN_SHARE = 1 / 3
"""Share of the clips that the decoder sees as the encoder gives them."""
KEPT_FRAMES = 600
"""Frames of each shape that are kept, to be shown again."""
NEW_SHARE = 0.3
FOOTAGE_SHARE = 0.6
"""Share of the requests that may have a photograph behind their shapes, where there are photographs."""
MAX_KEPT_WEIGHT = 6.0
"""Kept pixels weigh as much as all others of their clip, but each at most this much."""
LOG_EVERY = 100


@dataclass(frozen=True)
class Written:
    """Right answers of n requests of one shape.

    own: the encoder's latents float32 [n, z, t, h, w]; sampled: the transformer's; video: float32
    [n, 3, T, H, W] in [-1, 1]; weight: float32 [n, 1, T, H, W] of its pixels, whose mean is 1 in each clip.
    """

    own: Tensor
    sampled: Tensor
    video: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Written:
        """The same on a device."""
        return Written(*(part.to(device) for part in (self.own, self.sampled, self.video, self.weight)))


def weigh_pixels(sample: Sample) -> NDArray[np.float32]:
    """What each pixel [1, T, H, W] of a right answer counts: those that the edit keeps, more if few."""
    kept = np.ones(sample.target.shape[:3], bool)
    if sample.source is not None:
        source = sample.inputs[sample.source].astype(np.int16)
        kept = np.abs(source - sample.target).max(-1) <= CHANGED_LEVELS
    share = max(float(kept.mean()), 1e-3)
    weight = np.where(kept, min(max((1 - share) / share, 1.0), MAX_KEPT_WEIGHT), 1.0)
    return (weight / weight.mean()).astype(np.float32)[None]


@torch.no_grad()
def write(
    nano: Nano,
    vae: AutoencoderKLWan,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    frames: int,
    count: int,
    footage: Footage | None = None,
) -> Written:
    """Draw requests and let the transformer sample their answers, without guidance, on its own device.

    footage: what `FOOTAGE_SHARE` of the requests may have behind their shapes.
    """
    device = nano.transformer.patch_in.weight.device
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    tasks = [task for task in EDIT_TASKS if frames > 1 or task not in VIDEO_ONLY]
    plain = Canvas(frames, height, width)
    samples = []
    for _ in range(count):
        has_footage = footage is not None and rng.random() < FOOTAGE_SHARE
        canvas = replace(plain, footage=footage) if has_footage else plain
        samples.append(draw_curated(rng, str(rng.choice(tasks)), canvas))
    cached = cache_samples(vae, tokenizer, samples)
    batch = collate([pack(one) for one in cached], np.zeros(count, bool)).to(device)
    with in_bfloat16(device):
        rows = sample(nano, batch, int(rng.choice(SAMPLING_STEPS)), seed=int(rng.integers(2**31)))
    mean, std = (value.to(device) for value in latent_statistics(vae))

    def latents(rows: Tensor) -> Tensor:
        clips = rows.float().view(count, *cached[0].target.shape)
        return torch.cat([latents_from_patches(clip, PATCH_SIZE) for clip in clips]) * std + mean

    video = torch.from_numpy(np.stack([s.target for s in samples])).permute(0, 4, 1, 2, 3).float()
    weight = torch.from_numpy(np.stack([weigh_pixels(s) for s in samples]))
    return Written(latents(batch.noisy), latents(rows), video / 127.5 - 1, weight).to(device)


def psnr_db(vae: AutoencoderKLWan, latents: Tensor, video: Tensor) -> float:
    """Mean over clips."""
    with torch.no_grad():
        error = (vae.decode(latents).sample.clamp(-1, 1) - video).square().mean((1, 2, 3, 4))
    return float((10 * torch.log10(4 / error)).mean())


def evaluate(vae: AutoencoderKLWan, known: list[Written]) -> dict[str, float]:
    """PSNR in dB of the right answers, decoded from the encoder's latents and from the transformer's."""
    return {
        "own": round(float(np.mean([psnr_db(vae, w.own, w.video) for w in known])), 3),
        "sampled": round(float(np.mean([psnr_db(vae, w.sampled, w.video) for w in known])), 3),
    }


def load_averaged(run: Path) -> Nano:
    """The run's networks with their averaged weights."""
    state = torch.load(run / "state.pt")
    nano = make_nano(state)
    nano.load_state_dict(state["average"], strict=False)
    return nano.eval()


class Stock:
    """Written clips of each shape: some are new, most are shown again, until newer ones take their place."""

    def __init__(self, write_shape: Callable[[Shape], Written], rng: np.random.Generator) -> None:
        self.write_shape, self.rng = write_shape, rng
        self.kept: dict[Shape, list[Written]] = {shape: [] for shape in SHAPES}

    def draw(self, shape: Shape) -> Written:
        """Clips of a shape."""
        kept = self.kept[shape]
        if len(kept) >= 2 and self.rng.random() >= NEW_SHARE:
            return kept[int(self.rng.integers(len(kept)))]
        kept.append(self.write_shape(shape))
        del kept[: -(KEPT_FRAMES // (shape[0] * shape[1]))]
        return kept[-1]


class Decoder:
    """The half of a VAE that is trained, what trains it, and the average of its weights."""

    def __init__(self, vae: AutoencoderKLWan, lr: float) -> None:
        self.vae = vae
        self.layers = nn.ModuleList([vae.post_quant_conv, vae.decoder])
        matrices = [p for p in self.layers.parameters() if _is_matrix(p)]
        self.others = [p for p in self.layers.parameters() if not _is_matrix(p)]
        adam = torch.optim.AdamW(self.others, lr=lr / 10, betas=(0.9, 0.99), weight_decay=0.0)
        self.optimizers = [(Muon(matrices, lr=lr), lr), (adam, lr / 10)]
        self.average = Averaged(self.layers, 0.99)

    def loss(self, clips: Written) -> Tensor:
        """The mean root of each clip's squared error; every third clip is decoded from its own latents."""
        device = clips.video.device
        is_own = torch.rand(len(clips.video), 1, 1, 1, 1, device=device) < OWN_SHARE
        with in_bfloat16(device):
            out = self.vae.decode(torch.where(is_own, clips.own, clips.sampled)).sample
        error = ((out.float() - clips.video).square() * clips.weight).mean((1, 2, 3, 4))
        return (error + 1e-5).sqrt().mean()

    def update(self, step: int, rate: float) -> None:
        """One step down the gradients, at a share `rate` of the learning rates."""
        nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimizer, lr in self.optimizers:
            optimizer.param_groups[0]["lr"] = lr * rate
            optimizer.step()
        self.layers.zero_grad(set_to_none=True)
        self.average.update(self.layers, step)


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and parameter.shape[0] > 4 and parameter.numel() > parameter.shape[0]


def refine(rank: int, args: argparse.Namespace) -> None:
    """One worker; the first keeps the clock and the log."""
    device = join_workers(rank, args)
    torch.manual_seed(rank)
    use_image_convolutions()
    nano, tokenizer = load_averaged(args.run).to(device), Tokenizer(args.run / "tokenizer.model")
    vae = AutoencoderKLWan.from_pretrained(args.run / "vae").to(device)
    decoder = Decoder(vae, args.lr)
    footage = kept_apart = None
    if args.photographs is not None:
        footage = open_photographs(args.photographs, held_out=False)
        kept_apart = open_photographs(args.photographs, held_out=True)
    rng = np.random.default_rng([SEED, rank])
    stock = Stock(lambda shape: write(nano, vae, tokenizer, rng, *shape, footage), rng)
    known: list[Written] = []

    def measure() -> dict[str, float]:
        return evaluate(vae, known) | ({} if kept_apart is None else measure_photographs(vae, kept_apart))

    if rank == 0:
        held = np.random.default_rng(VALIDATION_SEED)
        known = [write(nano, vae, tokenizer, held, *shape, kept_apart) for shape in SHAPES * 3]
        print("before", measure(), flush=True)
    losses: list[float] = []
    step, spent, start = 0, 0.0, time.monotonic()
    while spent < 60 * args.minutes:
        loss = decoder.loss(stock.draw(SHAPES[step % len(SHAPES)]))
        loss.backward()
        spent = time.monotonic() - start if rank == 0 else 0.0
        facts = average_gradients(decoder.layers.parameters(), torch.tensor([float(loss.detach()), spent]))
        losses.append(float(facts[0]) / args.workers)
        spent = float(facts[1])
        decoder.update(step, min(1.0, (step + 1) / 50) * max(0.0, 1 - spent / (60 * args.minutes)))
        step += 1
        if rank == 0 and step % LOG_EVERY == 0:
            line = {"step": step, "minutes": round(spent / 60, 2), "loss": round(float(np.mean(losses)), 5)}
            losses.clear()
            with (args.run / "refine_log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
    if rank == 0:
        decoder.average.copy_to(decoder.layers)
        print("after", measure())
        vae.save_pretrained(args.run / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    add_worker_options(parser)
    parser.add_argument("--lr", type=float, default=0.004)
    start_workers(refine, parser.parse_args())


if __name__ == "__main__":
    main()
