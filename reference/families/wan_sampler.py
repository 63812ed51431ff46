"""The slow oracle of Wan's pipelines: their loops over rows, as plainly as they can be written.

The oracles of this one are diffusers' pipelines. Inputs already have the size they are used at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference.families.wan_checkpoint import WanCheckpoint
from reference.families.wan_vace import Condition, mask_frame
from reference.tokenizers import encode_prompt
from reference.vae import (
    decode_clip,
    encode_clip,
    latent_statistics,
    patches_from_latents,
    pixels_from_frames,
)

__all__ = ["Inputs", "encode_masked", "encode_text", "generate", "grid_positions", "sample"]

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Inputs:
    """What a request brings, each uint8 [T, H, W, 3] of the result's size.

    video: Lucy's or VACE's source, or the clip that is noised. mask: VACE's, white where the result is made
    anew. references: VACE's pictures. first_frame: TI2V's.
    """

    video: Frames | None = None
    mask: Frames | None = None
    references: Sequence[Frames] = ()
    first_frame: Frames | None = None


def grid_positions(frames: int, rows: int, columns: int) -> Tensor:
    """Positions int64 [frames * rows * columns, 4] of one clip; nothing stands on the sequential axis."""
    counts = (1, frames, rows, columns)
    return torch.stack(torch.meshgrid(*map(torch.arange, counts), indexing="ij"), -1).flatten(0, 3)


@torch.no_grad()
def encode_text(checkpoint: WanCheckpoint, text: str) -> Tensor:
    """Rows float32 [Lt, Dt] of a prompt, unpadded: what padding and cutting give as well."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint.tokenizer_file))
    ids = torch.tensor([encode_prompt(tokenizer, text, checkpoint.config.max_text)])
    return checkpoint.text_encoder(input_ids=ids).last_hidden_state[0].to(torch.float32)


@torch.no_grad()
def encode_masked(checkpoint: WanCheckpoint, frames: Frames, keep: Tensor) -> Tensor:
    """Patches float32 [t, h, w, P] of frames whose pixels count where keep, float32 [T, H, W], is 1."""
    mean, std = latent_statistics(checkpoint.vae)
    pixels = pixels_from_frames(torch.from_numpy(frames)) * keep
    latents = checkpoint.vae.encode(pixels).latent_dist.mode()
    return patches_from_latents((latents - mean) / std, checkpoint.patch_size)


def control_rows(checkpoint: WanCheckpoint, inputs: Inputs, shape: tuple[int, int, int]) -> Tensor:
    """VACE's control patches float32 [references + t, h, w, Pc]; without a video all is made anew."""
    num_frames, height, width = shape
    mask = torch.ones(shape) if inputs.mask is None else torch.from_numpy(inputs.mask[..., 0]) / 255
    chosen = (mask > 0.5).to(torch.float32)
    if inputs.video is None:  # grey, which is what a mask of ones leaves of the kept side
        inactive = reactive = encode_masked(
            checkpoint, np.zeros((*shape, 3), np.uint8), torch.zeros((num_frames, height, width))
        )
    else:
        inactive, reactive = (encode_masked(checkpoint, inputs.video, k) for k in (1 - chosen, chosen))
    ratio = height // inactive.shape[1] // checkpoint.patch_size
    condition = Condition(checkpoint.patch_size, ratio)
    rows = []
    for picture in reversed(inputs.references):
        latents = encode_clip(checkpoint.vae, torch.from_numpy(picture), checkpoint.patch_size)
        rows.append(condition(latents, torch.zeros_like(latents), torch.zeros((height, width))))
    for frame in range(len(inactive)):
        part = slice(frame, frame + 1)
        rows.append(condition(inactive[part], reactive[part], mask[mask_frame(frame, num_frames)]))
    return torch.cat(rows)


@torch.no_grad()
def sample(
    checkpoint: WanCheckpoint,
    prompt: str,
    noise: Tensor,
    shape: tuple[int, int, int],
    inputs: Inputs | None = None,
    *,
    negative_prompt: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scales: tuple[float, ...] | None = None,
    shift: float | None = None,
    strength: float | None = None,
) -> Tensor:
    """Normalised patches float32 [t, h, w, P] of the result.

    noise float32 [t, h, w, P]: with references there are as many frames more, in front; with a first frame
    that one's noise is not used. shape: (T, H, W) in pixels. What is left out is the checkpoint's own.
    """
    inputs = inputs or Inputs()
    plan = (
        checkpoint.schedule
        if guidance_scales is None
        else replace(checkpoint.schedule, guidance_scales=guidance_scales)
    )
    steps = num_inference_steps or plan.num_inference_steps
    grid = (noise.shape[0], noise.shape[1], noise.shape[2])
    rows, positions = noise.flatten(0, 2), grid_positions(*grid)
    clean = torch.zeros((0, checkpoint.config.clean_dim))
    layout = torch.arange(len(rows))
    first = 0
    encoded = None
    if inputs.video is not None and checkpoint.config.source != "control":
        encoded = encode_clip(checkpoint.vae, torch.from_numpy(inputs.video), checkpoint.patch_size)
    if checkpoint.config.source == "control":
        clean = control_rows(checkpoint, inputs, shape).flatten(0, 2)
    elif checkpoint.config.source == "channels":
        assert encoded is not None, "a source in the channels needs a video"
        clean = encoded.flatten(0, 2)
    elif inputs.first_frame is not None:
        frame = encode_clip(checkpoint.vae, torch.from_numpy(inputs.first_frame), checkpoint.patch_size)
        clean, rows = frame.flatten(0, 2), noise[1:].flatten(0, 2)
        layout = torch.cat((torch.arange(len(rows), len(positions)), torch.arange(len(rows))))
    if checkpoint.strength is not None:
        part = checkpoint.strength if strength is None else strength
        first = max(steps - min(int(steps * part), steps), 0)
    table = plan.build()(
        torch.tensor(steps),
        torch.tensor(plan.shift if shift is None else shift, dtype=torch.float64),
        torch.tensor(first),
    )
    times, timesteps, guidance, matrices = table[:4]
    experts = table[4] if len(table) == 5 else torch.zeros(len(times), dtype=torch.int64)
    if checkpoint.strength is not None and encoded is not None:
        time = float(times[0])
        rows = time * encoded.flatten(0, 2) + (1 - time) * rows

    text = encode_text(checkpoint, prompt)
    negative = encode_text(
        checkpoint, checkpoint.negative_prompt if negative_prompt is None else negative_prompt
    )
    state = torch.zeros((matrices.shape[1], *rows.shape))
    state[0] = rows
    for step, matrix in enumerate(matrices.to(torch.float32)):
        net = checkpoint.transformers[int(experts[step])]
        told = timesteps[step].to(torch.float32)
        velocity = net(text, clean, state[0], layout, positions, told)
        if guidance[step] > 1:
            free = net(negative, clean, state[0], layout, positions, told)
            velocity = free + float(guidance[step]) * (velocity - free)
        state = torch.tensordot(matrix, torch.cat((state, velocity[None])), 1)
    result = state[0].reshape(-1, *grid[1:], rows.shape[1])
    if inputs.first_frame is not None:
        result = torch.cat((clean.reshape(1, *result.shape[1:]), result))
    return result[len(inputs.references) :]


def generate(checkpoint: WanCheckpoint, prompt: str, noise: Tensor, shape: tuple[int, int, int],
             inputs: Inputs | None = None, **options: object) -> Frames:  # fmt: skip
    """The result as frames uint8 [T, H, W, 3]; arguments as those of `sample`."""
    patches = sample(checkpoint, prompt, noise, shape, inputs, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        return decode_clip(checkpoint.vae, patches, checkpoint.patch_size).numpy()
