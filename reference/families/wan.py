"""Wan's transformer (Wan 2.1 and 2.2, arXiv 2503.20314) in PyTorch, written to be read, behind rows.

Video patches attend to each other, then to the text, which stands beside the sequence. Three forms of a
source, told apart by the numbers of channels:

    rows      clean rows stand in the sequence beside the noisy ones (a first frame, Wan 2.2 TI2V);
    channels  a clean row is glued to each noisy row, noisy values first (Lucy-Edit);
    control   a clean row steers each noisy row through blocks of its own (VACE, families/wan_vace.py).

The oracle is diffusers' `WanTransformer3DModel`. Its weights are rearranged once, by
`families/wan_weights.py`, so that rows, rotation and sign are those of this project:

    a row holds z * p * p values, z slowest; RoPE turns channel i against channel i + head_dim / 2;
    the velocity is data - noise, at t = 1 - sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Block",
    "CrossAttention",
    "WanConfig",
    "WanTransformer",
    "cross_attention",
    "rope_angles",
    "rope_attention",
]

TRAIN_STEPS = 1000
"""The network is told the noise level in thousandths."""


@dataclass(frozen=True)
class WanConfig:
    """Sizes of a transformer. latent_channels is z; patch_size is p, the side of a 1 x p x p patch.

    axis_dims splits head_dim over (sequential, frame, row, column); no channel turns with the first.
    clean_timestep: clean rows are told that they hold no noise, each row having a timestep of its own.
    rounds_timestep: the network was trained on whole thousandths, and a timestep is rounded to them.
    control_channels, control_blocks: VACE's latent channels, and the blocks that are steered.
    """

    num_blocks: int
    num_heads: int
    head_dim: int
    mlp_width: int
    text_dim: int
    latent_channels: int
    source: Literal["rows", "channels", "control"] = "rows"
    patch_size: int = 2
    num_frequencies: int = 128
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_text: int = 512
    cross_norm: bool = True
    clean_timestep: bool = False
    rounds_timestep: bool = True
    control_channels: int = 0
    control_blocks: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WanConfig:
        """The config of a JSON object, as `dataclasses.asdict` gives it."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**known)

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def patch_dim(self) -> int:
        """P, the values of a noisy row and of a row of the velocity."""
        return self.latent_channels * self.patch_size**2

    @property
    def clean_dim(self) -> int:
        """Pc, the values of a clean row: P but for VACE."""
        return self.control_channels * self.patch_size**2 if self.source == "control" else self.patch_dim

    @property
    def axis_dims(self) -> tuple[int, int, int, int]:
        side = 2 * (self.head_dim // 6)
        return 0, self.head_dim - 2 * side, side, side


def rope_angles(positions: Tensor, axis_dims: tuple[int, ...], theta: float) -> Tensor:
    """Angles float32 [L, head_dim / 2] of positions int64 [L, 4]; the axes' pairs stand one after the other.

    Frequencies are rounded from float64, as diffusers' are.
    """
    parts = []
    for axis, dim in enumerate(axis_dims):
        if dim == 0:
            continue
        exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        frequencies = torch.pow(torch.tensor(theta, dtype=torch.float64), -exponents).to(torch.float32)
        parts.append(positions[:, axis, None].to(torch.float32) * frequencies)
    return torch.cat(parts, -1)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    cos, sin = angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)
    first, second = x.to(torch.float32).chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    *,
    num_heads: int,
    axis_dims: tuple[int, ...],
    theta: float,
) -> Tensor:
    """Rotate q and k by their positions, and attend fully: one node of the exported graph.

    q, k (already normalised), v: [L, num_heads * head_dim]; positions int64 [L, 4]. Returns the same shape.
    """
    angles = rope_angles(positions, axis_dims, theta)
    q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (q, k, v))
    return _attend(_rotate(q, angles), _rotate(k, angles), v)


def cross_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    """Attention of rows q [L, C] to k and v [Lk, C], without positions and without a mask."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (q, k, v))
    return _attend(q, k, v)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).squeeze(0).transpose(0, 1).flatten(1)


def plain_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without weights, in float32, as float32: modulation follows before it is rounded."""
    return F.layer_norm(x.to(torch.float32), x.shape[-1:], eps=eps)


class Attention(nn.Module):
    """Projections with biases, and a norm of q and of k over all heads together."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.q_norm = nn.Parameter(torch.ones(width))
        self.k_norm = nn.Parameter(torch.ones(width))

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)


class SelfAttention(Attention):
    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        self.attend = rope_attention  # an export puts one operator in its place

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [L, C]; positions int64 [L, 4]."""
        q, k = self.norm(self.to_q(x), self.q_norm), self.norm(self.to_k(x), self.k_norm)
        mixed = self.attend(
            q, k, self.to_v(x), positions,
            num_heads=self.config.num_heads, axis_dims=self.config.axis_dims, theta=self.config.rope_theta,
        )  # fmt: skip
        return self.to_out(mixed)


class CrossAttention(Attention):
    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        self.attend = cross_attention  # an export puts one operator in its place

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [L, C]; context [max_text, C], padding included: the network was trained to see it."""
        q, k = self.norm(self.to_q(x), self.q_norm), self.norm(self.to_k(context), self.k_norm)
        return self.to_out(self.attend(q, k, self.to_v(context), num_heads=self.config.num_heads))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, out: int, activation: Literal["gelu", "silu"]) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, out)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        hidden = F.silu(hidden) if self.activation == "silu" else F.gelu(hidden, approximate="tanh")
        return self.down(hidden)


class CrossNorm(nn.LayerNorm):
    """Layer norm in float32, whatever dtype its weights and its rows have."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(torch.float32), self.bias.to(torch.float32)
        return F.layer_norm(x.to(torch.float32), x.shape[-1:], weight, bias, self.eps).to(x.dtype)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the timestep modulates the first and the last."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config)
        self.cross_norm = CrossNorm(config.width, config.norm_eps) if config.cross_norm else nn.Identity()
        self.mlp = MLP(config.width, config.mlp_width, config.width, "gelu")
        self.modulation = nn.Parameter(torch.zeros(6, config.width))

    def forward(self, x: Tensor, modulation: Modulation, context: Tensor, positions: Tensor) -> Tensor:
        """x [L, C]; context [max_text, C]; positions int64 [L, 4]. Returns [L, C]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.rows(self.modulation)
        dtype, eps = x.dtype, self.config.norm_eps
        h = (plain_norm(x, eps) * (1 + scale_a) + shift_a).to(dtype)
        x = (x + gate_a * self.attention(h, positions)).to(dtype)
        x = x + self.cross(self.cross_norm(x), context)
        h = (plain_norm(x, eps) * (1 + scale_m) + shift_m).to(dtype)
        return (x + gate_m * self.mlp(h)).to(dtype)


class Modulation:
    """A timestep as shifts, scales and gates, one for all rows, or one for clean and one for noisy rows.

    values: float32 [n, C] or, of clean and noisy rows, [2, n, C] with is_noisy bool [L, 1].
    """

    def __init__(self, values: Tensor, is_noisy: Tensor | None) -> None:
        self.values = values
        self.is_noisy = is_noisy

    def rows(self, table: Tensor) -> tuple[Tensor, ...]:
        """n times float32 [C] or [L, C]: the values beside a learned table [n, C]."""
        values = self.values + table.to(torch.float32)
        if self.is_noisy is None:
            return values.unbind(0)
        clean, noisy = values.unbind(0)
        return tuple(torch.where(self.is_noisy, n, c) for c, n in zip(clean, noisy, strict=True))


class WanTransformer(nn.Module):
    """The whole network: embed rows and text, attend, give the velocity of the noisy rows."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        glued = config.patch_dim if config.source == "channels" else 0
        self.patch_in = nn.Linear(config.patch_dim + glued, width)
        self.text_in = MLP(config.text_dim, width, width, "gelu")
        self.time = MLP(2 * config.num_frequencies, width, width, "silu")
        self.time_to_modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.out_modulation = nn.Parameter(torch.zeros(2, width))
        self.patch_out = nn.Linear(width, config.patch_dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_in.weight.dtype

    def forward(
        self, text: Tensor, clean: Tensor, noisy: Tensor, layout: Tensor, positions: Tensor, timestep: Tensor
    ) -> Tensor:
        """Velocity [Lg, P] of the noisy rows at one timestep.

        text [Lt, text_dim] with Lt <= max_text; clean [Lc, Pc]; noisy [Lg, P]; layout int64 [L] indexes the
        rows of (noisy, clean), where the noisy ones stand last and in order; positions int64 [L, 4];
        timestep [], from 0 (noise) to 1 (data). With a source in rows L is Lg + Lc, which may be Lg alone;
        else there are as many clean rows as noisy ones, and layout is 0 .. Lg - 1.
        """
        x = self.embed_rows(clean, noisy)[layout]
        embedded, modulation = self.embed_time(timestep, self.noisy_places(layout, noisy))
        x = self.run_blocks(x, clean, layout, modulation, self.embed_text(text), positions)
        return self.head(x, embedded)[layout.shape[0] - noisy.shape[0] :]

    def embed_rows(self, clean: Tensor, noisy: Tensor) -> Tensor:
        if self.config.source == "channels":
            return self.patch_in(torch.cat((noisy, clean), -1))
        return self.patch_in(torch.cat((noisy, clean)) if self.config.source == "rows" else noisy)

    def embed_text(self, text: Tensor) -> Tensor:
        """[Lt, text_dim] -> [max_text, C], the missing rows being zeros before they are embedded."""
        return self.text_in(F.pad(text, (0, 0, 0, self.config.max_text - text.shape[0])))

    def noisy_places(self, layout: Tensor, noisy: Tensor) -> Tensor | None:
        return (layout < noisy.shape[0]).unsqueeze(-1) if self.config.clean_timestep else None

    def embed_time(self, timestep: Tensor, is_noisy: Tensor | None) -> tuple[Modulation, Modulation]:
        """What modulates the head, and what modulates the blocks."""
        told = (1 - timestep.to(torch.float32)) * TRAIN_STEPS
        told = torch.round(told) if self.config.rounds_timestep else told
        if is_noisy is not None:
            told = torch.stack((torch.zeros_like(told), told))
        steps = torch.arange(self.config.num_frequencies, dtype=torch.float32)
        frequencies = torch.exp(steps * (-math.log(10000.0) / self.config.num_frequencies))
        angles = told.unsqueeze(-1) * frequencies
        waves = torch.cat((angles.cos(), angles.sin()), -1).to(self.time.up.weight.dtype)
        embedded = self.time(waves).to(self.dtype)
        modulation = self.time_to_modulation(F.silu(embedded)).unflatten(-1, (6, -1))
        head = embedded.unsqueeze(-2).to(torch.float32)
        return Modulation(head, is_noisy), Modulation(modulation.to(torch.float32), is_noisy)

    def run_blocks(
        self,
        x: Tensor,
        clean: Tensor,
        layout: Tensor,
        modulation: Modulation,
        context: Tensor,
        positions: Tensor,
    ) -> Tensor:
        for block in self.blocks:
            x = block(x, modulation, context, positions)
        return x

    def head(self, x: Tensor, embedded: Modulation) -> Tensor:
        shift, scale = embedded.rows(self.out_modulation)
        h = plain_norm(x, self.config.norm_eps) * (1 + scale) + shift
        return self.patch_out(h.to(x.dtype))
