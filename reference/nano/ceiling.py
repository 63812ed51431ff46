"""How many held-out edits the VAE lets succeed: the right answers themselves, carried through it.

    python -m reference.nano.ceiling VAE

No transformer does better with this VAE. VAE is a folder of diffusers, RUN/vae or CHECKPOINT/vae.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: `python reference/nano/ceiling.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from diffusers import AutoencoderKLWan

from reference.nano.heldout import PER_KIND, Score, heldout_samples, rows_of_report, score_edit, summarize
from reference.nano.world import Frames
from reference.vae import frames_from_pixels, pixels_from_frames


@torch.no_grad()
def carry(vae: AutoencoderKLWan, frames: Frames) -> Frames:
    """Frames uint8 [T, H, W, 3], encoded and decoded."""
    latents = vae.encode(pixels_from_frames(torch.from_numpy(frames))).latent_dist.mean
    return frames_from_pixels(vae.decode(latents).sample).numpy()


def score_carried(vae: AutoencoderKLWan, per_kind: int = PER_KIND) -> list[Score]:
    """The scores of the right answers of the held-out edits."""
    return [score_edit(sample, carry(vae, sample.target)) for sample in heldout_samples(per_kind)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vae", type=Path)
    parser.add_argument("--per-kind", type=int, default=PER_KIND)
    args = parser.parse_args()
    report = summarize(score_carried(AutoencoderKLWan.from_pretrained(args.vae).eval(), args.per_kind))
    for task, row in rows_of_report(report):
        print(f"{task:22} {row['success_rate']:5.0%}  {row['changed_db']} dB  {row['preserved_db']} dB")
    print(f"all {report['edits']:18} {report['success_rate']:5.1%}")


if __name__ == "__main__":
    main()
