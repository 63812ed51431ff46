"""Make a checkpoint in the diffusers layout of a training run's averaged weights, or a run of a checkpoint.

    python -m reference.nano.publish RUN CHECKPOINT
    python -m reference.nano.publish --back CHECKPOINT RUN

The second takes training up again where a published checkpoint stands: with new optimisers and a new clock.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from reference.checkpoint import LIMITS, load_checkpoint, save_checkpoint
from reference.nano.optim import Averaged
from reference.nano.train import NOT_STARTED, Nano, make_nano, make_optimizers, save_state


@torch.no_grad()
def round_to_half(module: nn.Module) -> None:
    """Round the weights to values that float16 holds: the export then stores them in half the bytes."""
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())


def publish(run: Path, folder: Path) -> Path:
    """Write the checkpoint; raises FileNotFoundError when the run lacks a part."""
    state = torch.load(run / "state.pt")
    nano = make_nano(state)
    names = [name for name, _ in nano.named_parameters()]
    nano.load_state_dict({name: state["average"][name] for name in names}, strict=False)
    vae = AutoencoderKLWan.from_pretrained(run / "vae")
    for part in (nano, vae):
        round_to_half(part)
    return save_checkpoint(
        folder,
        transformer=nano.transformer,
        vae=vae,
        text_encoder=nano.text_encoder,
        tokenizer_file=run / "tokenizer.model",
        limits=LIMITS["nano"],
    )


def unpublish(folder: Path, run: Path) -> Path:
    """Lay a run out from a checkpoint, ready for `reference.nano.dataset` and `reference.nano.train`."""
    checkpoint = load_checkpoint(folder)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.vae.save_pretrained(run / "vae")
    shutil.copyfile(checkpoint.tokenizer_file, run / "tokenizer.model")
    nano = Nano(checkpoint.transformer.config)
    nano.transformer.load_state_dict(checkpoint.transformer.state_dict())
    nano.text_encoder.load_state_dict(checkpoint.text_encoder.state_dict())
    save_state(run / "state.pt", nano, make_optimizers(nano), Averaged(nano, 0.0), NOT_STARTED)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--back", action="store_true", help="from a checkpoint to a run")
    args = parser.parse_args()
    print((unpublish if args.back else publish)(args.source, args.target))


if __name__ == "__main__":
    main()
