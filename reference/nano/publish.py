"""Make a checkpoint in the diffusers layout of a training run's averaged weights, or a run of a checkpoint.

    python -m reference.nano.publish RUN CHECKPOINT
    python -m reference.nano.publish --back CHECKPOINT RUN

The second takes training up again where a published checkpoint stands: with new optimisers and a new clock.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python reference/nano/publish.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import Tensor, nn
from transformers import T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention, T5DenseGatedActDense, T5LayerNorm

from reference.checkpoint import LIMITS, PAPER_SCHEDULE, load_checkpoint, save_checkpoint
from reference.nano.dataset import split_prompt
from reference.nano.optim import Averaged
from reference.nano.tasks import TASKS, draw_sample
from reference.nano.train import NOT_STARTED, Nano, make_nano, make_optimizers, save_state
from reference.nano.train_vae import batch
from reference.nano.world import Canvas
from reference.text_encoder import Tokenizer

GUIDANCE_SCALE = 2.0
"""Less than the paper's 5: a small network's guidance carries its errors along (docs/nano.md has both)."""
SCHEDULES = {"balanced": "ab2-4 shift 0.2 guided 0.1-1", "fast": "ab2-2 shift 0.2 guided 0.1-1"}
"""What `benchmarks.frontier` found for nano: the export writes these beside the paper's schedule."""
STREAM_PEAK = 2.0**14
"""The largest value of a published model's residual streams and hidden units; float16 ends at 2^16."""
NUM_PROMPTS = 300
"""Instructions that the text encoder's largest values are measured on."""


@torch.no_grad()
def round_to_half(module: nn.Module) -> None:
    """Round the weights to values that float16 holds: the export then stores them in half the bytes.

    Raises ValueError for a weight that is too large.
    """
    for name, parameter in module.named_parameters():
        rounded = parameter.half().float()
        if not rounded.isfinite().all():
            largest = float(parameter.abs().max())
            raise ValueError(
                f"{name} reaches {largest:g}; float16 holds {torch.finfo(torch.float16).max:g} at most"
            )
        parameter.copy_(rounded)


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
    power = _power_above(peak)
    writers: list[Any] = [coder.conv_in]
    biases: list[Any] = []
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
def calm_text_encoder(encoder: T5EncoderModel, run: Callable[[], object]) -> int:
    """The same for T5's residual stream, and for the hidden units of each feed-forward layer.

    The stream's readers are norms without a mean, whose epsilon is scaled along; a layer's gated half and
    what reads it are scaled against each other. So every result stays what it was, bit for bit. Returns the
    power by which the stream was divided.
    """
    peaks: dict[nn.Module, float] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        peaks[module] = max(peaks.get(module, 0.0), float(inputs[0].abs().max()))

    norms = [module for module in encoder.modules() if isinstance(module, T5LayerNorm)]
    layers = [m for m in encoder.modules() if isinstance(m, T5DenseGatedActDense)]
    hooks = [module.register_forward_hook(note) for module in (*norms, *(layer.wo for layer in layers))]
    run()
    for hook in hooks:
        hook.remove()
    power = _power_above(max(peaks[norm] for norm in norms))
    for writer in (encoder.shared, *(m.o for m in encoder.modules() if isinstance(m, T5Attention))):
        writer.weight.mul_(2.0**-power)
    for layer in layers:
        hidden = _power_above(peaks[layer.wo])
        layer.wi_1.weight.mul_(2.0**-hidden)
        layer.wo.weight.mul_(2.0 ** (hidden - power))
    for norm in norms:
        norm.variance_epsilon *= 4.0**-power
    encoder.config.layer_norm_epsilon *= 4.0**-power
    return power


def _power_above(peak: float) -> int:
    """By which power of two a peak has to be divided to lie below STREAM_PEAK."""
    return max(0, math.ceil(math.log2(peak / STREAM_PEAK)))


def _read_prompts(encoder: T5EncoderModel, tokenizer: Tokenizer) -> None:
    """Run the encoder on instructions of all tasks."""
    rng = np.random.default_rng(0)
    for index in range(NUM_PROMPTS):
        sample = draw_sample(rng, TASKS[index % len(TASKS)], Canvas(5, 64, 64))
        words = split_prompt(sample.prompt, tokenizer)
        encoder(input_ids=torch.tensor([[i for part in words if isinstance(part, list) for i in part]]))


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
    tokenizer = Tokenizer(run / "tokenizer.model")
    calm_text_encoder(nano.text_encoder, lambda: _read_prompts(nano.text_encoder, tokenizer))
    for part in (nano, vae):
        round_to_half(part)
    return save_checkpoint(
        folder,
        transformer=nano.transformer,
        vae=vae,
        text_encoder=nano.text_encoder,
        tokenizer_file=run / "tokenizer.model",
        limits=LIMITS["nano"],
        scheduler=PAPER_SCHEDULE | {"guidance_scale": GUIDANCE_SCALE, "schedules": SCHEDULES},
    )


def unpublish(folder: Path, run: Path) -> Path:
    """Lay a run out from a checkpoint, ready for `reference.nano.dataset` and `reference.nano.train`.

    The text encoder's norms have T5's epsilon again, which is as good to train on with.
    """
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
