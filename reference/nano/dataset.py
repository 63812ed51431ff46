"""Curated samples as cached latents: written in shards by one process while another trains on them.

    python -m reference.nano.dataset RUN --samples 60000

A shard RUN/data/NNNNN.pt is a list of `CachedSample`; RUN/retention_WORKER.json counts what curation
left out. The first latent frame of a clip is its first frame's latent (the VAE is causal), so an image is
a clip of one frame.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run as a file: `python reference/nano/dataset.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from reference.nano.curate import draw_curated, random_canvas, random_task
from reference.nano.facts import sample_facts
from reference.nano.photographs import open_photographs
from reference.nano.tasks import Sample
from reference.nano.train_vae import use_image_convolutions
from reference.nano.world import Frames
from reference.text_encoder import EOS_ID, Tokenizer
from reference.vae import latent_statistics, patches_from_latents

SHARD = 512
TRAIN_SEED = 1
PATCH_SIZE = 2
FRAMES_AT_ONCE = 32
"""Frames that the VAE encodes in a call."""
PARTS = re.compile(r"<((?:video|image)\d+)>")


@dataclass
class CachedSample:
    """A request in the form the transformer takes it.

    segments: token ids (a list) or the name of an input, in the order of the instruction; clips: latent
    patches float16 [T, h, w, P] by name; target the same; source: the name of the clip that is edited;
    facts: `reference.nano.facts` of some of the clips.
    """

    task: str
    segments: list[list[int] | str]
    clips: dict[str, Tensor]
    target: Tensor
    source: str | None
    facts: dict[str, Tensor]


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
    """Normalised latent patches float32 [t, h, w, P] of clips, on the CPU; equal shapes share calls."""
    mean, std = latent_statistics(vae)
    encoded: list[Tensor | None] = [None] * len(clips)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, clip in enumerate(clips):
        shapes.setdefault(clip.shape, []).append(index)
    for shape, members in shapes.items():
        at_once = max(1, FRAMES_AT_ONCE // shape[0])
        for start in range(0, len(members), at_once):
            chosen = members[start : start + at_once]
            video = torch.from_numpy(np.stack([clips[i] for i in chosen])).permute(0, 4, 1, 2, 3)
            latents = vae.encode(video.to(vae.device).float() / 127.5 - 1).latent_dist.mean.cpu()
            for index, one in zip(chosen, ((latents - mean) / std).split(1), strict=True):
                encoded[index] = patches_from_latents(one, PATCH_SIZE)
    return [one for one in encoded if one is not None]


def cache_samples(vae: AutoencoderKLWan, tokenizer: Tokenizer, samples: list[Sample]) -> list[CachedSample]:
    """Encode the clips of samples, all of one shape together."""
    clips = [clip for sample in samples for clip in (*sample.inputs.values(), sample.target)]
    latents = iter(encode_clips(vae, clips))
    cached = []
    for sample in samples:
        inputs = {name: next(latents).half() for name in sample.inputs}
        facts = {name: torch.from_numpy(values.copy()) for name, values in sample_facts(sample).items()}
        segments = split_prompt(sample.prompt, tokenizer)
        target = next(latents).half()
        cached.append(CachedSample(sample.task, segments, inputs, target, sample.source, facts))
    return cached


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=60000)
    parser.add_argument("--video-share", type=float, default=0.3)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="also as backgrounds of scenes")
    parser.add_argument(
        "--photograph-share",
        type=float,
        default=0.7,
        help="of the samples, which may have them (default: 0.7)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes, each with a share of the shards (default: 1)"
    )
    args = parser.parse_args()
    if args.workers == 1:
        write_shards(0, args)
    else:
        start_processes(write_shards, (args,), nprocs=args.workers, start_method="spawn")


def write_shards(rank: int, args: argparse.Namespace) -> None:
    """One worker: its share of the shards that are not there yet."""
    torch.set_num_threads(1)
    use_image_convolutions()
    vae = AutoencoderKLWan.from_pretrained(args.run / "vae").eval()
    tokenizer = Tokenizer(args.run / "tokenizer.model")
    footage = None if args.photographs is None else open_photographs(args.photographs, held_out=False)
    folder = args.run / "data"
    folder.mkdir(exist_ok=True)
    rejected: dict[str, int] = {}
    kept = 0
    for shard in range(rank, args.samples // SHARD, args.workers):
        path = folder / f"{shard:05d}.pt"
        if path.exists():
            continue
        rng = np.random.default_rng([TRAIN_SEED, shard])
        samples = []
        for _ in range(SHARD):
            task = random_task(rng)
            canvas = random_canvas(rng, task, args.video_share)
            if footage is not None and rng.random() < args.photograph_share:
                canvas = replace(canvas, footage=footage)
            samples.append(draw_curated(rng, task, canvas, rejected))
        torch.save(cache_samples(vae, tokenizer, samples), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        kept += SHARD
        rate = kept / (kept + sum(rejected.values()))
        summary = {"kept": kept, "rejected": rejected, "retention": round(rate, 3)}
        (args.run / f"retention_{rank}.json").write_text(json.dumps(summary))
        print(shard, summary, flush=True)


if __name__ == "__main__":
    # Shards name the class by its module, so it must not be __main__'s.
    from reference.nano import dataset

    dataset.main()
