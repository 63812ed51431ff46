"""The transformers of the metric models: a vision tower and a text tower that CLIP, DINOv2 and ViCLIP share.

They are written here and filled from the checkpoints, so that transformers' classes stay the oracle in tests.
Sources: arXiv 2103.00020 (CLIP), 2304.07193 (DINOv2), 2307.06942 (ViCLIP).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ImageTower", "TextTower", "TowerConfig", "VideoTower"]


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one tower.

    activation: "gelu" or "quick_gelu". output_dim: of the projection, None for none.
    """

    width: int
    num_blocks: int
    num_heads: int
    mlp_width: int
    activation: str
    norm_eps: float
    output_dim: int | None = None


class Block(nn.Module):
    """Attention and feed-forward, each after a LayerNorm and with its residual."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.is_quick = config.activation == "quick_gelu"
        self.norm_1 = nn.LayerNorm(config.width, config.norm_eps)
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm_2 = nn.LayerNorm(config.width, config.norm_eps)
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor, is_causal: bool) -> Tensor:
        y = self.norm_1(x)
        heads = (layer(y).unflatten(-1, (self.num_heads, -1)) for layer in (self.query, self.key, self.value))
        query, key, value = (part.transpose(1, 2) for part in heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        hidden = self.up(self.norm_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.is_quick else F.gelu(hidden)
        residual: Tensor = self.down(hidden)
        return x + residual


class Pixels(nn.Module):
    """uint8 [N, S, S, 3] -> rows float32 [N, (S / patch)^2, width]: normalised, then patches projected."""

    scale: Tensor
    shift: Tensor

    def __init__(self, width: int, patch: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(3 * patch * patch, width)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", mean / std)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32) * self.scale - self.shift
        num, side = pixels.shape[0], pixels.shape[1] // self.patch
        x = x.reshape(num, side, self.patch, side, self.patch, 3)
        rows: Tensor = self.project(x.permute(0, 1, 3, 5, 2, 4).reshape(num, side * side, -1))
        return rows


class ImageTower(nn.Module):
    """pixels uint8 [N, S, S, 3] -> pooled float32 [N, width] and, with a projection, projected [N, output].

    has_pre_norm: CLIP normalises before the first block, DINOv2 does not.
    """

    def __init__(self, config: TowerConfig, pixels: Pixels, num_patches: int, *, has_pre_norm: bool) -> None:
        super().__init__()
        self.pixels = pixels
        self.class_row = nn.Parameter(torch.zeros(config.width))
        self.places = nn.Parameter(torch.zeros(1 + num_patches, config.width))
        norm = nn.LayerNorm(config.width, config.norm_eps)
        self.norm_before: nn.Module = norm if has_pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm_after = nn.LayerNorm(config.width, config.norm_eps)
        self.project = (
            None if config.output_dim is None else nn.Linear(config.width, config.output_dim, bias=False)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        rows = self.pixels(pixels)
        first = self.class_row.expand(rows.shape[0], 1, -1)
        x = self.norm_before(torch.cat((first, rows), 1) + self.places)
        for block in self.blocks:
            x = block(x, False)
        pooled = self.norm_after(x[:, 0])
        return (pooled,) if self.project is None else (pooled, self.project(pooled))


class VideoTower(nn.Module):
    """ViCLIP: pixels uint8 [N, T, S, S, 3] -> projected float32 [N, output].

    One class row for the clip; the rows stand place by place, each with its T times; times are added to the
    places of pictures but not to the class row.
    """

    def __init__(self, config: TowerConfig, pixels: Pixels, num_patches: int, num_frames: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.num_frames = num_frames
        self.class_row = nn.Parameter(torch.zeros(config.width))
        self.places = nn.Parameter(torch.zeros(1 + num_patches, config.width))
        self.times = nn.Parameter(torch.zeros(num_frames, config.width))
        self.norm_before = nn.LayerNorm(config.width, config.norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm_after = nn.LayerNorm(config.width, config.norm_eps)
        self.project = nn.Linear(config.width, config.output_dim or config.width, bias=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        rows = self.pixels(pixels.flatten(0, 1)) + self.places[1:]
        rows = rows.unflatten(0, (-1, self.num_frames)).transpose(1, 2) + self.times
        rows = rows.flatten(1, 2)
        first = (self.class_row + self.places[0]).expand(rows.shape[0], 1, -1)
        x = self.norm_before(torch.cat((first, rows), 1))
        for block in self.blocks:
            x = block(x, False)
        return (self.project(self.norm_after(x[:, 0])),)


class TextTower(nn.Module):
    """ids int64 [N, L] -> projected float32 [N, output], the row of each text's first end token."""

    def __init__(self, config: TowerConfig, vocabulary: int, max_tokens: int, end_id: int) -> None:
        super().__init__()
        self.end_id = end_id
        self.words = nn.Embedding(vocabulary, config.width)
        self.places = nn.Parameter(torch.zeros(max_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm_after = nn.LayerNorm(config.width, config.norm_eps)
        self.project = nn.Linear(config.width, config.output_dim or config.width, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        x = self.words(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, True)
        end = (ids == self.end_id).to(torch.int64).argmax(1)
        pooled = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1)
        return (self.project(self.norm_after(pooled)),)
