"""Train nano's causal video VAE on rendered scenes and textures.

    python -m reference.nano.train_vae RUN

RUN/vae.pt holds weights, optimiser and clock; a second call goes on from there. RUN/vae_log.jsonl takes a
line every 100 steps; the diffusers folder RUN/vae is written at the end and at every checkpoint.

With `--photographs FOLDER` (`photographs.py`), a share of the clips is made of photographs, and held-out ones are
measured beside the world. `--begin-with VAE` starts from trained weights of the same shape, or with fewer latent
channels. A run keeps the shape, `--base-dim`, `--z-dim` and `--res-blocks`, that it began with.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python reference/nano/train_vae.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan
from numpy.typing import NDArray
from torch import Tensor

from reference.nano import styles
from reference.nano.carry_over import carry_over
from reference.nano.curate import SIZES
from reference.nano.optim import Averaged, Muon, is_matrix
from reference.nano.photographs import ClipSource, Photographs, measure_photographs, mix, open_photographs
from reference.nano.workers import (
    add_worker_options,
    average_gradients,
    in_bfloat16,
    join_workers,
    start_workers,
)
from reference.nano.world import TEXTURES, Canvas, Frames, random_scene, render, render_mask, texture
from reference.vae import clip_psnr_db

VAE_CONFIG: dict[str, object] = {
    "base_dim": 16,
    "z_dim": 64,
    "dim_mult": [1, 3, 5],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
IMAGE_BATCHES = ((1, 10),)
VIDEO_BATCHES = ((5, 4), (1, 10), (9, 2), (5, 4), (1, 10), (17, 1))
"""(frames, clips) of successive steps: images alone first, then mixed."""
LATENT_NOISE = 0.01
"""Noise on the latents while training, in standard deviations: what the decoder must forgive."""
LATENT_PULL = 1e-6
"""Weight of the latents' mean square. A stronger pull, or more noise, leaves directions unused."""
ADAM_LR = 2e-3
FINE = 0.85
"""Share of the second stage after which all is computed in float32, for the last decibels."""

LATENT_SCALE = 0.3
"""Root mean square of the normalised latents. A few directions, brightness above all, hold most of the
energy: at a scale of 1 they show through the noise from the first steps on, and the edit is read off the
noisy segment instead of off the source."""


def use_image_convolutions() -> None:
    """Let causal convolutions see a lone first frame as an image: the taps on the zero padding are left out.

    The result is the same and a step on images takes a third of the time.
    """
    general = autoencoder_kl_wan.WanCausalConv3d.forward

    def forward(self: Any, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        alone = x.shape[2] == 1 and cache_x is None and self.stride[0] == 1
        if not alone or self._padding[4] != self.kernel_size[0] - 1:
            return general(self, x, cache_x)
        padding = (self._padding[2], self._padding[0])
        return F.conv2d(x.squeeze(2), self.weight[:, :, -1], self.bias, padding=padding).unsqueeze(2)

    autoencoder_kl_wan.WanCausalConv3d.forward = forward


def roughen(rng: np.random.Generator, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """More contrast and a grain, up to that of real footage: float32 [H, W, 3] in [0, 1]."""
    mean = picture.mean((0, 1))
    stretched = mean + rng.uniform(1.0, 3.0) * (picture - mean)
    height, width = picture.shape[:2]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    grain = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((height, width))) / np.maximum(frequency, 0.05), s=(height, width)
    )
    return np.clip(stretched + rng.uniform(0.0, 0.10) * (grain / grain.std())[..., None], 0, 1).astype(
        np.float32
    )


def random_clip(rng: np.random.Generator, canvas: Canvas) -> Frames:
    """What nano's requests hold: scenes, moving textures, and their stylised, sketched and mask forms."""
    draw = rng.random()
    scene = random_scene(rng, canvas, least=0, most=4)
    if draw < 0.05 and scene.things:
        return render_mask(scene, 0, canvas)
    if draw < 0.28:
        picture = texture(str(rng.choice(TEXTURES)), int(rng.integers(200)))
        if rng.random() < 0.6:
            picture = roughen(rng, picture)
        speed = rng.uniform(-1.5, 1.5, 2) * (canvas.frames > 1)
        reach = np.abs(speed) * canvas.frames
        room = np.maximum(0, np.array(picture.shape[:2]) - (canvas.height, canvas.width) - reach)
        start = rng.uniform(0, 1, 2) * room + np.where(speed < 0, reach, 0)
        corners = [
            np.clip((start + speed * i).astype(int), 0, [96 - canvas.height, 96 - canvas.width])
            for i in range(canvas.frames)
        ]
        crops = np.stack([picture[y : y + canvas.height, x : x + canvas.width] for y, x in corners])
        return np.asarray(crops * 255, np.uint8)
    frames = render(scene, canvas)
    if draw < 0.50:
        frames = styles.STYLES[str(rng.choice(list(styles.STYLES)))](frames)
    elif draw < 0.55:
        frames = styles.sketch(frames)
    return frames


def batch(rng: np.random.Generator, frames: int, count: int, draw: ClipSource = random_clip) -> torch.Tensor:
    """float32 [count, 3, frames, H, W] in [-1, 1]. draw: what each clip is drawn by."""
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    clips = np.stack([draw(rng, Canvas(frames, height, width)) for _ in range(count)])
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class Batches:
    """Rendered batches, most of them shown again later: flipped, and with their colours exchanged."""

    def __init__(
        self, rng: np.random.Generator, kept: int = 300, draw_clip: ClipSource = random_clip
    ) -> None:
        self.rng, self.kept, self.draw_clip = rng, kept, draw_clip
        self.shown: dict[tuple[int, int], list[torch.Tensor]] = {}

    def draw(self, frames: int, count: int) -> torch.Tensor:
        """float32 [count, 3, frames, H, W] in [-1, 1]."""
        known = self.shown.setdefault((frames, count), [])
        is_new = len(known) < self.kept // frames or self.rng.random() < 0.25
        if is_new and len(known) >= self.kept // frames:
            known.pop(int(self.rng.integers(len(known))))
        if is_new:
            known.append(batch(self.rng, frames, count, self.draw_clip))
        video = known[-1 if is_new else int(self.rng.integers(len(known)))]
        turned = [axis for axis in (-2, -1) if self.rng.random() < 0.5]
        return video.flip(turned)[:, torch.from_numpy(self.rng.permutation(3))]


def evaluate(vae: AutoencoderKLWan) -> dict[str, float]:
    """PSNR in dB on clips of held-out seeds, for images and for clips."""
    result = {}
    for frames, count in ((1, 24), (9, 6)):
        video = batch(np.random.default_rng([99, frames]), frames, count).to(vae.device)
        with torch.no_grad():
            out = vae.decode(vae.encode(video).latent_dist.mean).sample
        result[f"psnr_{frames}"] = float(clip_psnr_db(out, video).mean())
    return result


@torch.no_grad()
def latent_sensitivity(vae: AutoencoderKLWan, step: float = 0.2) -> Tensor:
    """J^T J of the decoder, mean over pixels: what a small change of the latents does, [z, z]."""
    latents = vae.encode(batch(np.random.default_rng(6), 1, 24)).latent_dist.mean
    unchanged = vae.decode(latents).sample
    sign = torch.sign(torch.randn(1, 1, *latents.shape[2:], generator=torch.Generator().manual_seed(0)))
    rows = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel : channel + 1] += step * sign
        rows.append((vae.decode(moved).sample - unchanged).flatten() / step)
    effects = torch.stack(rows)
    return effects @ effects.T / effects.shape[1]


@torch.no_grad()
def level_latents(vae: AutoencoderKLWan) -> None:
    """Turn and stretch the latents until an error in any direction costs the same in pixels.

    The 1x1 convolutions around the latents take the linear map up, so the VAE as a whole stays what it was,
    and the transformer's squared error on latents becomes, to first order, one on pixels.
    """
    values, directions = torch.linalg.eigh(latent_sensitivity(vae).double())
    root = values.clamp(min=1e-4 * float(values.mean())).sqrt()
    forward = (directions * root) @ directions.T
    backward = (directions / root) @ directions.T
    z = len(values)
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:z] = (forward @ into.weight[:z].flatten(1).double()).float().view_as(into.weight[:z])
    into.bias[:z] = (forward @ into.bias[:z].double()).float()
    out_of.weight.copy_((out_of.weight.flatten(1).double() @ backward).float().view_as(out_of.weight))


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan) -> None:
    """Write the latents' statistics into the config: a mean by channel, one standard deviation for all."""
    rng = np.random.default_rng(5)
    rows = []
    for frames, count in ((1, 14), (5, 3), (1, 14), (9, 2)) * 6:
        latents = vae.encode(batch(rng, frames, count)).latent_dist.mean
        rows.append(latents.transpose(0, 1).flatten(1))
    values = torch.cat(rows, 1)
    std = float(values.var(1).mean().sqrt()) / LATENT_SCALE
    vae.register_to_config(latents_mean=values.mean(1).tolist(), latents_std=[std] * len(values))


def make_vae(shape: Mapping[str, object] | None = None) -> AutoencoderKLWan:
    """An untrained VAE of nano's size, its weights in the layout that CPU convolutions are fastest in."""
    vae = AutoencoderKLWan(**{**VAE_CONFIG, **(shape or {})})
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    return vae


class Run:
    """What one worker trains, what trains it, and how far the run is; taken up from RUN/vae.pt if there is one."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.path: Path = args.run / "vae.pt"
        state = torch.load(self.path, map_location=device) if self.path.exists() else None
        asked = {
            "base_dim": args.base_dim,
            "dim_mult": args.dim_mult,
            "z_dim": args.z_dim,
            "num_res_blocks": args.res_blocks,
        }
        own = {name: value for name, value in asked.items() if value is not None}
        self.shape: dict[str, object] = own if state is None else state.get("shape", {})
        self.kept_apart: Photographs | None = None
        self.vae = make_vae(self.shape)
        if state is None and args.begin_with is not None:
            carry_over(AutoencoderKLWan.from_pretrained(args.begin_with).state_dict(), self.vae)
        self.vae.to(device)
        matrices = [p for p in self.vae.parameters() if is_matrix(p)]
        self.others = [p for p in self.vae.parameters() if not is_matrix(p)]
        self.muon = Muon(matrices, lr=args.lr)
        self.adam = torch.optim.AdamW(self.others, lr=ADAM_LR, betas=(0.9, 0.99), weight_decay=0.0)
        self.average = Averaged(self.vae, 0.995)
        self.num_steps, self.spent = 0, 0.0
        if state is not None:
            self.vae.load_state_dict(state["vae"])
            self.muon.load_state_dict(state["muon"])
            self.adam.load_state_dict(state["adam"])
            self.average.values = state["average"]
            self.num_steps, self.spent = state["step"], state["spent"]

    def save(self) -> None:
        state = {"vae": self.vae.state_dict(), "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        state |= {"average": self.average.values, "step": self.num_steps, "spent": self.spent}
        torch.save(state | {"shape": self.shape}, self.path)

    @property
    def has_clips(self) -> bool:
        """Whether this is the second stage, in which clips are learnt beside images."""
        return self.spent / 60 >= float(self.args.image_minutes)

    @property
    def share(self) -> float:
        """How much of this stage's time is spent, from 0 to 1."""
        minutes = self.spent / 60
        if self.has_clips:
            return (minutes - float(self.args.image_minutes)) / float(self.args.video_minutes)
        return minutes / float(self.args.image_minutes)

    def set_rates(self) -> None:
        """The learning rates of both optimizers at this moment: they rise at the start and fall to the stage's end."""
        factor = min(1.0, (self.num_steps + 1) / 50, (1 - self.share) / 0.7) * (
            0.6 if self.has_clips else 1.0
        )
        self.muon.param_groups[0]["lr"] = self.args.lr * factor
        self.adam.param_groups[0]["lr"] = ADAM_LR * factor

    def add_gradients(self, batches: Batches) -> float:
        """Forward and backward on one batch of this step's shape; the loss."""
        shapes = VIDEO_BATCHES if self.has_clips else IMAGE_BATCHES
        video = batches.draw(*shapes[self.num_steps % len(shapes)])
        video = video.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        with in_bfloat16(self.device, enabled=not (self.has_clips and self.share > FINE)):
            latents = self.vae.encode(video).latent_dist.mean
            noisy = latents + LATENT_NOISE * latents.detach().std() * torch.randn_like(latents)
            out = self.vae.decode(noisy).sample
        # The root makes a clip that is good already count as much as a hard one.
        error = (out.float() - video).square().mean((1, 2, 3, 4))
        loss = (error + 1e-5).sqrt().mean() + LATENT_PULL * latents.float().square().mean()
        loss.backward()
        return float(loss.detach())

    def step(self) -> None:
        """One step of both optimizers."""
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        self.muon.step()
        self.adam.step()
        self.vae.zero_grad(set_to_none=True)
        self.average.update(self.vae, self.num_steps)
        self.num_steps += 1

    def evaluate(self, vae: AutoencoderKLWan) -> dict[str, float]:
        """PSNR in dB, of held-out photographs as well where there are any."""
        return evaluate(vae) | ({} if self.kept_apart is None else measure_photographs(vae, self.kept_apart))

    def report(self, losses: list[float]) -> None:
        """A line of RUN/vae_log.jsonl; every `--evaluate` steps with an evaluation, and the state is saved."""
        line = {
            "step": self.num_steps,
            "minutes": round(self.spent / 60, 2),
            "loss": float(np.mean(losses)),
        }
        if self.num_steps % self.args.evaluate == 0:
            shadow = make_vae(self.shape).to(self.device)
            self.average.copy_to(shadow)
            line |= self.evaluate(shadow)
            self.save()
        with (self.args.run / "vae_log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)


def train(rank: int, args: argparse.Namespace) -> None:
    """One worker; the first keeps the clock, the log and the state."""
    device = join_workers(rank, args)
    torch.manual_seed(0)
    use_image_convolutions()
    run = Run(args, device)
    draw: ClipSource = random_clip
    if args.photographs is not None:
        shown = open_photographs(args.photographs, held_out=False)
        draw = mix(shown, args.photograph_share, random_clip)
        run.kept_apart = open_photographs(args.photographs, held_out=True) if rank == 0 else None
    batches = Batches(np.random.default_rng([1, run.num_steps, rank]), draw_clip=draw)
    losses: list[float] = []
    start = time.monotonic() - run.spent
    while run.share < 1:
        run.set_rates()
        loss = run.add_gradients(batches)
        spent = time.monotonic() - start if rank == 0 else 0.0
        facts = average_gradients(run.vae.parameters(), torch.tensor([loss, spent]))
        losses.append(float(facts[0]) / args.workers)
        run.spent = float(facts[1])
        run.step()
        if rank == 0 and run.num_steps % 100 == 0:
            run.report(losses)
            losses.clear()
    if rank == 0:
        run.average.copy_to(run.vae)
        run.vae.cpu()
        level_latents(run.vae)
        measure_latents(run.vae)
        print(run.evaluate(run.vae))
        run.vae.save_pretrained(args.run / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--image-minutes", type=float, default=5.0, help="on images alone, over all calls")
    parser.add_argument("--video-minutes", type=float, default=14.0, help="then on images and clips")
    add_worker_options(parser)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--evaluate", type=int, default=500, help="and save, every so many steps")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    parser.add_argument("--photograph-share", type=float, default=0.5, help="of the clips (default: 0.5)")
    parser.add_argument("--begin-with", type=Path, metavar="VAE", help="a folder of diffusers")
    parser.add_argument("--base-dim", type=int)
    parser.add_argument("--dim-mult", type=int, nargs=3, help="widths of the three levels, in base widths")
    parser.add_argument("--z-dim", type=int)
    parser.add_argument("--res-blocks", type=int)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    start_workers(train, args)


if __name__ == "__main__":
    main()
