"""The slow oracle: the paper's sampling loop, 50 Euler steps with guidance 5.0 on text only (section 5.1).

Written apart from the runtime, which is held to it. Inputs already have the size they are used at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference.checkpoint import Checkpoint
from reference.families.editverse_checkpoint import check_steps
from reference.noise import draw_noise
from reference.sequence import Interleaved, interleave
from reference.text_encoder import Tokenizer, encode_segments
from reference.vae import decode_clip, encode_clip

Frames = NDArray[np.uint8]
TAGS = re.compile(r"<((?:video|image)\d+)>")


@dataclass(frozen=True)
class LaidOut:
    """A request as the transformer takes it.

    text float32 [Lt, text_dim]; clean float32 [Lc, P]; both branches of the guidance; target: latent frames, rows
    and columns of patches of the segment that is generated.
    """

    text: Tensor
    clean: Tensor
    conditional: Interleaved
    unconditional: Interleaved
    target: tuple[int, int, int]

    @property
    def num_noisy(self) -> int:
        return self.target[0] * self.target[1] * self.target[2]

    def without_text(self) -> LaidOut:
        """The branch without text alone."""
        return replace(self, text=self.text[:0], conditional=self.unconditional)


@torch.no_grad()
def lay_out(
    checkpoint: Checkpoint, prompt: str, inputs: dict[str, Frames], shape: tuple[int, int, int]
) -> LaidOut:
    """Encode a request's text and inputs, and lay both branches out. Inputs and shape as in `edit`."""
    patch = checkpoint.patch_size
    tokenizer = Tokenizer(checkpoint.tokenizer_file)
    parts = TAGS.split(prompt)
    words = [part.strip() for part in parts[::2]]
    encoded = iter(encode_segments(checkpoint.text_encoder, tokenizer, [w for w in words if w]))
    text: list[Tensor] = []
    clips: list[Tensor] = []
    segments: list[int | tuple[int, int, int]] = []
    for word, name in zip(words, [*parts[1::2], None], strict=True):
        if word:
            text.append(next(encoded))
            segments.append(len(text[-1]))
        if name is not None:
            patches = encode_clip(checkpoint.vae, torch.from_numpy(inputs[name]), patch)
            clips.append(patches.flatten(0, 2))
            segments.append((patches.shape[0], patches.shape[1], patches.shape[2]))
    text.append(next(encoded))
    segments.append(len(text[-1]))

    frames, height, width = shape
    side = 8 * patch
    target = (1 + (frames - 1) // 4, height // side, width // side)
    patch_dim = checkpoint.transformer.config.patch_dim
    return LaidOut(
        text=torch.cat(text),
        clean=torch.cat([torch.zeros(0, patch_dim), *clips]),
        conditional=interleave(segments, target),
        unconditional=interleave([s for s in segments if not isinstance(s, int)], target),
        target=target,
    )


@torch.no_grad()
def edit(
    checkpoint: Checkpoint,
    prompt: str,
    inputs: dict[str, Frames],
    shape: tuple[int, int, int],
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Frames:
    """Edit or generate: uint8 [T, H, W, 3] for shape (T, H, W); inputs uint8 [T, H, W, 3] by tag name.

    Raises ValueError for steps or guidance that a distilled checkpoint was not made for.
    """
    check_steps(checkpoint.scheduler, num_inference_steps, guidance_scale)
    request = lay_out(checkpoint, prompt, inputs, shape)
    conditional, unconditional = request.conditional, request.unconditional
    patch_dim = checkpoint.transformer.config.patch_dim
    rows, clean = request.text, request.clean
    x = draw_noise(seed, request.num_noisy, patch_dim)
    net = checkpoint.transformer
    for step in range(num_inference_steps):
        t = torch.tensor(step / num_inference_steps)
        v = net(rows, clean, x, conditional.layout, conditional.positions, t)
        if guidance_scale != 1:
            free = net(rows[:0], clean, x, unconditional.layout, unconditional.positions, t)
            v = free + guidance_scale * (v - free)
        x = x + v / num_inference_steps
        if on_step is not None:
            on_step(step)
    return decode_clip(checkpoint.vae, x.reshape(*request.target, patch_dim), checkpoint.patch_size).numpy()
