"""Curated samples as cached latents: written in shards by one process while another trains on them.

    python -m reference.nano.dataset RUN --samples 60000

A shard RUN/data/NNNNN.pt is a list of `CachedSample`; RUN/retention_PART.json counts what curation
left out. The first latent frame of a clip is its first frame's latent (the VAE is causal), so an image is
a clip of one frame.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from reference.nano.curate import draw_curated, random_canvas, random_task
from reference.nano.tasks import Sample
from reference.nano.world import Frames
from reference.text_encoder import EOS_ID, Tokenizer
from reference.vae import latent_statistics, patches_from_latents

SHARD = 512
TRAIN_SEED = 1
PATCH_SIZE = 2
PARTS = re.compile(r"<((?:video|image)\d+)>")


@dataclass
class CachedSample:
    """A request in the form the transformer takes it.

    segments: token ids (a list) or the name of an input, in the order of the instruction; clips: latent
    patches float16 [T, h, w, P] by name; target the same.
    """

    task: str
    segments: list[list[int] | str]
    clips: dict[str, Tensor]
    target: Tensor


def split_prompt(prompt: str, tokenizer: Tokenizer) -> list[list[int] | str]:
    """Token ids of text segments and names of inputs; the end-of-sequence id stands last."""
    segments: list[list[int] | str] = []
    for index, part in enumerate(PARTS.split(prompt)):
        if index % 2:
            segments.append(part)
        elif part.strip():
            segments.append(tokenizer.ids(part.strip()))
    segments.append([EOS_ID])
    return segments


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, clips: list[Frames]) -> list[Tensor]:
    """Normalised latent patches [t, h, w, P] of clips that share one shape."""
    video = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    latents = vae.encode(video).latent_dist.mean
    mean, std = latent_statistics(vae)
    return [patches_from_latents(one, PATCH_SIZE) for one in ((latents - mean) / std).split(1)]


def cache_sample(vae: AutoencoderKLWan, tokenizer: Tokenizer, sample: Sample) -> CachedSample:
    """Encode the clips of a sample; equal shapes share a call."""
    named = {**sample.inputs, "target": sample.target}
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, clip in named.items():
        shapes.setdefault(clip.shape, []).append(name)
    latents: dict[str, Tensor] = {}
    for names in shapes.values():
        encoded = encode_clips(vae, [named[name] for name in names])
        latents |= {name: one.half() for name, one in zip(names, encoded, strict=True)}
    target = latents.pop("target")
    return CachedSample(sample.task, split_prompt(sample.prompt, tokenizer), latents, target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=60000)
    parser.add_argument("--video-share", type=float, default=0.3)
    parser.add_argument("--part", type=int, default=0, help="which of several processes this is")
    parser.add_argument("--parts", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    from reference.nano.train_vae import use_image_convolutions

    use_image_convolutions()
    vae = AutoencoderKLWan.from_pretrained(args.run / "vae").eval()
    tokenizer = Tokenizer(args.run / "tokenizer.model")
    folder = args.run / "data"
    folder.mkdir(exist_ok=True)
    rejected: dict[str, int] = {}
    kept = 0
    for shard in range(args.part, args.samples // SHARD, args.parts):
        path = folder / f"{shard:05d}.pt"
        if path.exists():
            continue
        rng = np.random.default_rng([TRAIN_SEED, shard])
        samples = []
        for _ in range(SHARD):
            task = random_task(rng)
            canvas = random_canvas(rng, task, args.video_share)
            samples.append(cache_sample(vae, tokenizer, draw_curated(rng, task, canvas, rejected)))
        torch.save(samples, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        kept += SHARD
        rate = kept / (kept + sum(rejected.values()))
        summary = {"kept": kept, "rejected": rejected, "retention": round(rate, 3)}
        (args.run / f"retention_{args.part}.json").write_text(json.dumps(summary))
        print(shard, summary, flush=True)


if __name__ == "__main__":
    # Shards name the class by its module, so it must not be __main__'s.
    from reference.nano import dataset

    dataset.main()
