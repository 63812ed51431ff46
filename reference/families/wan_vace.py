"""VACE (arXiv 2503.07598): Wan's transformer, steered by a control sequence through blocks of its own.

The oracle is diffusers' `WanVACETransformer3DModel`. `Condition` makes the control rows of latents and mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.families.wan import Block, Modulation, WanConfig, WanTransformer

__all__ = ["Condition", "VaceTransformer", "mask_frame"]


class VaceTransformer(WanTransformer):
    """clean [Lg, Pc]: a control row beside each noisy row, in the order of the noisy rows."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        width, count = config.width, len(config.control_blocks)
        self.control_in = nn.Linear(config.clean_dim, width)
        self.control_enter = nn.Linear(width, width)
        self.control_blocks = nn.ModuleList(Block(config) for _ in range(count))
        self.control_leave = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def run_blocks(
        self,
        x: Tensor,
        clean: Tensor,
        layout: Tensor,
        modulation: Modulation,
        context: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """A control block runs where its hint is added, so that only one hint is held at a time."""
        control = self.control_enter(self.control_in(clean)[layout]) + x
        branch = iter(zip(self.control_blocks, self.control_leave, strict=True))
        for index, block in enumerate(self.blocks):
            x = block(x, modulation, context, positions)
            if index in self.config.control_blocks:
                control_block, leave = next(branch)
                control = control_block(control, modulation, context, positions)
                x = x + leave(control)
        return x


class Condition(nn.Module):
    """The control rows of one latent frame: the kept part, the part to make anew, and the mask.

    inactive, reactive float32 [1, h, w, P]: patches of the frames with the masked part, or all but it, grey;
    mask float32 [H, W] from 0 (keep) to 1 (make anew), of the one frame `mask_frame` names. Returns float32
    [1, h, w, Pc]. A reference picture has zeros for reactive and for its mask.
    """

    def __init__(self, patch_size: int, spatial_ratio: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.spatial_ratio = spatial_ratio

    def forward(self, inactive: Tensor, reactive: Tensor, mask: Tensor) -> Tensor:
        # [H, W] -> a channel for each pixel of an r x r square, then patches as those of latents.
        squares = F.pixel_unshuffle(mask.unsqueeze(0), self.spatial_ratio)
        rows = F.pixel_unshuffle(squares, self.patch_size).permute(1, 2, 0).unsqueeze(0)
        return torch.cat((inactive, reactive, rows), -1)


def mask_frame(latent_frame: int, num_frames: int, temporal_ratio: int = 4) -> int:
    """The frame whose mask stands for a latent frame: diffusers scales masks in time to the nearest frame."""
    num_latent = (num_frames + temporal_ratio - 1) // temporal_ratio
    return (2 * latent_frame + 1) * num_frames // (2 * num_latent)
