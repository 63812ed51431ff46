"""Make a checkpoint in the diffusers layout of a training run's averaged weights, or a run of a checkpoint.

    python -m reference.nano.publish RUN CHECKPOINT
    python -m reference.nano.publish --back CHECKPOINT RUN

The second takes training up again where a published checkpoint stands: with new optimisers and a new clock.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import Tensor, nn

from reference.checkpoint import LIMITS, PAPER_SCHEDULE, load_checkpoint, save_checkpoint
from reference.nano.optim import Averaged
from reference.nano.train import NOT_STARTED, Nano, make_nano, make_optimizers, save_state
from reference.nano.train_vae import batch

GUIDANCE_SCALE = 2.0
"""Less than the paper's 5: a small network's guidance carries its errors along (docs/nano.md has both)."""
STREAM_PEAK = 2.0**14
"""The largest value of a published VAE's residual streams; float16 ends at 2^16."""


@torch.no_grad()
def round_to_half(module: nn.Module) -> None:
    """Round the weights to values that float16 holds: the export then stores them in half the bytes."""
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())


@torch.no_grad()
def calm_stream(coder: nn.Module, run: Callable[[], object]) -> int:
    """Scale the residual stream of a half of the VAE by a power of two, until float16 holds it with room.

    Every reader of the stream is a norm over its channels, so nothing but the stream changes. run: passes
    typical clips through the half. Returns the power by which it was divided.
    """
    peak = 0.0

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal peak
        if isinstance(output, Tensor):
            peak = max(peak, float(output.abs().max()))

    hooks = [module.register_forward_hook(note) for module in coder.modules()]
    run()
    for hook in hooks:
        hook.remove()
    power = max(0, math.ceil(math.log2(peak / STREAM_PEAK)))
    writers = [coder.conv_in]
    biases = []
    for module in coder.modules():
        if isinstance(module, WanResidualBlock):
            writers.append(module.conv2)
            biases.append(module.conv_shortcut)  # linear in the stream
        elif isinstance(module, WanAttentionBlock):
            writers.append(module.proj)
        elif isinstance(module, WanResample):
            biases += [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))]
    for writer in writers:
        writer.weight.mul_(2.0**-power)
    for layer in writers + biases:
        if getattr(layer, "bias", None) is not None:
            layer.bias.mul_(2.0**-power)
    return power


@torch.no_grad()
def publish(run: Path, folder: Path) -> Path:
    """Write the checkpoint; raises FileNotFoundError when the run lacks a part."""
    state = torch.load(run / "state.pt")
    nano = make_nano(state)
    names = [name for name, _ in nano.named_parameters()]
    nano.load_state_dict({name: state["average"][name] for name in names}, strict=False)
    vae = AutoencoderKLWan.from_pretrained(run / "vae")
    clips = batch(np.random.default_rng(0), 9, 4)
    latents = vae.encode(clips).latent_dist.mean
    calm_stream(vae.encoder, lambda: vae.encode(clips))
    calm_stream(vae.decoder, lambda: vae.decode(latents))
    for part in (nano, vae):
        round_to_half(part)
    return save_checkpoint(
        folder,
        transformer=nano.transformer,
        vae=vae,
        text_encoder=nano.text_encoder,
        tokenizer_file=run / "tokenizer.model",
        limits=LIMITS["nano"],
        scheduler=PAPER_SCHEDULE | {"guidance_scale": GUIDANCE_SCALE},
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
