"""Make a checkpoint in the diffusers layout of a training run's averaged weights.

    python -m reference.nano.publish RUN CHECKPOINT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from reference.checkpoint import save_checkpoint
from reference.nano.train import Nano

LIMITS: dict[str, float] = {
    "min_area_px": 3584,
    "max_area_px": 4608,
    "max_side_px": 128,
    "max_frames": 17,
    "default_height_px": 64,
    "default_width_px": 64,
    "default_frames": 9,
    "default_fps": 8.0,
    "max_text_tokens": 128,
}
"""The sizes nano was trained on, 64 x 64 and 48 x 80, and what lies between."""


def publish(run: Path, folder: Path) -> Path:
    """Write the checkpoint; raises FileNotFoundError when the run lacks a part."""
    state = torch.load(run / "state.pt")
    nano = Nano()
    names = [name for name, _ in nano.named_parameters()]
    nano.load_state_dict({name: state["average"][name] for name in names}, strict=False)
    return save_checkpoint(
        folder,
        transformer=nano.transformer,
        vae=AutoencoderKLWan.from_pretrained(run / "vae"),
        text_encoder=nano.text_encoder,
        tokenizer_file=run / "tokenizer.model",
        limits=LIMITS,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args()
    print(publish(args.run, args.checkpoint))


if __name__ == "__main__":
    main()
