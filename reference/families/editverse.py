"""The EditVerse transformer (arXiv 2509.20360) in PyTorch, written to be read.

One sequence interleaves text, clean context images and videos, and the noisy segment that is generated;
every block attends over all of it (paper section 3.1). Sections are those of the paper; where it is
silent, "ours" says so.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer.

    `axis_dims` splits `head_dim` over the axes (sequential, temporal, height, width), section 3.2.
    `ntk_factors` stretches each axis for inputs longer than those trained on (1 leaves it as trained).
    `prediction` says what the last layer gives: the velocity itself, or the clean segment, from which the
    velocity follows (ours; loss and sampler are the same).
    Raises ValueError that names a value which is no size of a transformer.
    """

    width: int
    num_blocks: int
    num_heads: int
    head_dim: int
    mlp_width: int
    time_width: int
    patch_dim: int
    text_dim: int
    axis_dims: tuple[int, int, int, int] = (12, 4, 56, 56)
    rope_theta: float = 10000.0
    ntk_factors: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    norm_eps: float = 1e-6
    prediction: Literal["velocity", "sample"] = "velocity"
    min_time_left: float = 0.02
    """With `prediction="sample"`, the least 1 - t that the velocity is divided by."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            expected = _expected_of(str(field.type), value)
            if expected is not None:
                raise ValueError(f"{field.name} is {value!r}; expected {expected}")
        if sum(self.axis_dims) != self.head_dim or any(d % 2 for d in self.axis_dims):
            raise ValueError(f"axis_dims {self.axis_dims} must be even and sum to head_dim {self.head_dim}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """Read a config.json, fields with _ left out. Raises ValueError for a field that is missing or not known."""
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if not k.startswith("_")
        }
        names = {field.name: field.default is MISSING for field in fields(cls)}
        for name in sorted(known.keys() - names.keys()):
            raise ValueError(
                f"{name} is {known[name]!r}, a field that the transformer does not have; expected {', '.join(names)}"
            )
        for name in sorted(name for name, is_needed in names.items() if is_needed and name not in known):
            raise ValueError(f"{name} is missing; expected all of {', '.join(names)}")
        return cls(**known)

    @property
    def axis_thetas(self) -> tuple[float, float, float, float]:
        """RoPE's base for each axis, NTK-aware: theta * factor ** (d / (d - 2)) (section 3.2)."""
        pairs = zip(self.axis_dims, self.ntk_factors, strict=True)
        a, b, c, d = (self.rope_theta * s ** (n / max(n - 2, 1)) for n, s in pairs)
        return a, b, c, d


def _expected_of(kind: str, value: object) -> str | None:
    """What a field of this type takes, None if the value is that."""
    if kind.startswith("tuple"):
        is_int = "int" in kind
        is_whole = isinstance(value, tuple) and len(value) == 4
        if is_whole and all(_is_number(x, whole=is_int) and x > 0 for x in value):  # type: ignore[attr-defined]
            return None
        return f"four {'whole numbers' if is_int else 'numbers'} above 0"
    if kind.startswith("Literal"):
        return None if value in ("velocity", "sample") else "'velocity' or 'sample'"
    is_int = kind == "int"
    if _is_number(value, whole=is_int) and value > 0:  # type: ignore[operator]
        return None
    return f"a {'whole number' if is_int else 'number'} above 0"


def _is_number(value: object, *, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


CONFIGS: dict[str, TransformerConfig] = {
    "nano": TransformerConfig(
        width=256, num_blocks=6, num_heads=4, head_dim=64, mlp_width=384, time_width=128,
        patch_dim=256, text_dim=128, axis_dims=(12, 8, 22, 22), rope_theta=1000.0, prediction="sample",
    ),
    # The paper's form at a size that a CPU evaluates in seconds: what benchmarks run, untrained.
    "editverse-150m": TransformerConfig(
        width=768, num_blocks=12, num_heads=6, head_dim=128, mlp_width=4096, time_width=768,
        patch_dim=64, text_dim=768,
    ),
    "editverse-2b": TransformerConfig(
        width=2048, num_blocks=28, num_heads=16, head_dim=128, mlp_width=8704, time_width=2048,
        patch_dim=64, text_dim=4096,
    ),
}  # fmt: skip


def rope_angles(positions: Tensor, axis_dims: tuple[int, ...], axis_thetas: tuple[float, ...]) -> Tensor:
    """Angles [..., L, head_dim / 2] of the 4D rotary embedding (section 3.2).

    positions: integers [..., L, 4]. Each axis with d channels turns d / 2 pairs by
    position * theta ** (-2 i / d); the axes' pairs stand one after the other.
    """
    parts = []
    for axis, (dim, theta) in enumerate(zip(axis_dims, axis_thetas, strict=True)):
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
        frequencies = torch.pow(torch.tensor(theta, dtype=torch.float32, device=positions.device), -exponents)
        parts.append(positions[..., axis, None].to(torch.float32) * frequencies)
    return torch.cat(parts, -1)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Turn channel i against channel i + head_dim / 2.

    x: [..., L, heads, head_dim]; angles: [..., L, head_dim / 2].
    """
    cos, sin = angles.cos().unsqueeze(-2).to(x.dtype), angles.sin().unsqueeze(-2).to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    positions: Tensor,
    *,
    num_heads: int,
    axis_dims: tuple[int, ...],
    axis_thetas: tuple[float, ...],
    eps: float,
    key_mask: Tensor | None = None,
) -> Tensor:
    """QK-norm, 4D RoPE and full attention: the one node `editverse::RopeAttention` of the exported graph.

    q, k, v: [..., L, num_heads * head_dim]; q_norm, k_norm: [head_dim]; positions: int64 [..., L, 4];
    key_mask: bool [B, L], False for padding (training only). Returns [..., L, num_heads * head_dim].
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (q, k, v))
    head_dim = q.shape[-1]
    angles = rope_angles(positions, axis_dims, axis_thetas)
    q = rotate_pairs(F.rms_norm(q, (head_dim,), q_norm, eps), angles)
    k = rotate_pairs(F.rms_norm(k, (head_dim,), k_norm, eps), angles)
    mask = None if key_mask is None else key_mask[:, None, None, :]
    out = F.scaled_dot_product_attention(q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2), mask)
    return out.transpose(-3, -2).flatten(-2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, with a learned scale (section 5.1: LLaMA 3 style)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class RopeAttention(nn.Module):
    """Full self-attention over the interleaved sequence, no causal mask (section 3.1)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.config = config
        self.attend = rope_attention  # an export puts one operator in its place
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_k = nn.Linear(config.width, inner, bias=False)
        self.to_v = nn.Linear(config.width, inner, bias=False)
        self.to_out = nn.Linear(inner, config.width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))

    def forward(self, x: Tensor, positions: Tensor, key_mask: Tensor | None = None) -> Tensor:
        config = self.config
        mixed = self.attend(
            self.to_q(x), self.to_k(x), self.to_v(x), self.q_norm, self.k_norm, positions,
            num_heads=config.num_heads, axis_dims=config.axis_dims, axis_thetas=config.axis_thetas,
            eps=config.norm_eps, key_mask=key_mask,
        )  # fmt: skip
        return self.to_out(mixed)


class SwiGLU(nn.Module):
    """Gated feed-forward without biases (section 5.1)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and feed-forward, each modulated by the timestep: adaLN-single (ours, after PixArt-alpha)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = RopeAttention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)
        self.modulation = nn.Parameter(torch.zeros(6, config.width))
        nn.init.zeros_(self.attention.to_out.weight)
        nn.init.zeros_(self.mlp.down.weight)

    def forward(
        self, x: Tensor, modulation: Tensor, noisy: Tensor, positions: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """x [..., L, C]; modulation [..., 2, 6, C] of clean and noisy tokens; noisy bool [..., L, 1]."""
        # [..., 2, 6, C] -> six times [..., L, C]: each token takes the clean or the noisy vector.
        clean_row, noisy_row = (modulation + self.modulation).unsqueeze(-2).unbind(-4)
        chosen = (
            torch.where(noisy, n, c) for c, n in zip(clean_row.unbind(-3), noisy_row.unbind(-3), strict=True)
        )
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = chosen
        x = x + (1 + gate_a) * self.attention(
            self.attention_norm(x) * (1 + scale_a) + shift_a, positions, key_mask
        )
        return x + (1 + gate_m) * self.mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m)


class TimestepEmbedding(nn.Module):
    """Sinusoids of the timestep in [0, 1], through a small network."""

    NUM_FREQUENCIES = 128
    SCALE = 1000.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(2 * self.NUM_FREQUENCIES, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, timestep: Tensor) -> Tensor:
        steps = torch.arange(self.NUM_FREQUENCIES, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(steps * (-math.log(10000.0) / self.NUM_FREQUENCIES))
        angles = timestep.to(torch.float32)[..., None] * self.SCALE * frequencies
        waves = torch.cat((angles.cos(), angles.sin()), -1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(waves)))


class EditVerseTransformer(nn.Module):
    """The whole network: embed the segments, interleave, attend, give the target's velocity."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_in = nn.Linear(config.patch_dim, config.width, bias=False)
        self.text_in = nn.Linear(config.text_dim, config.width, bias=False)
        self.vision_markers = nn.Parameter(torch.randn(2, config.width) * 0.5)
        self.time = TimestepEmbedding(config.time_width)
        self.time_to_modulation = nn.Linear(config.time_width, 6 * config.width, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.out_norm = RMSNorm(config.width, config.norm_eps)
        self.out_modulation = nn.Parameter(torch.zeros(2, config.width))
        self.patch_out = nn.Linear(config.width, config.patch_dim, bias=False)
        nn.init.zeros_(self.time_to_modulation.weight)
        nn.init.zeros_(self.patch_out.weight)

    def forward(
        self, text: Tensor, clean: Tensor, noisy: Tensor, layout: Tensor, positions: Tensor, timestep: Tensor
    ) -> Tensor:
        """Velocity [Lg, P] of the noisy segment at one timestep.

        text [Lt, text_dim]; clean [Lc, patch_dim]; noisy [Lg, patch_dim]; layout int64 [L] indexes the rows
        of (text, clean, noisy, start of vision, end of vision); positions int64 [L, 4]; timestep [].
        The noisy segment stands last: its rows end one before the last (the end of vision).
        """
        rows = torch.cat(
            (self.text_in(text), self.patch_in(clean), self.patch_in(noisy), self.vision_markers)
        )
        x = rows[layout]
        first_noisy = text.shape[0] + clean.shape[0]
        is_noisy = (layout >= first_noisy) & (layout < first_noisy + noisy.shape[0])
        x = self.run_blocks(x, positions, is_noisy, timestep)
        end = layout.shape[0] - 1
        return self.velocity_from_output(x[end - noisy.shape[0] : end], noisy, timestep)

    def run_blocks(
        self, x: Tensor, positions: Tensor, is_noisy: Tensor, timestep: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """The blocks and the head: x [..., L, width] -> [..., L, patch_dim]; timestep [...]."""
        modulation = self.modulate(timestep)
        mask = is_noisy.unsqueeze(-1)
        for block in self.blocks:
            x = block(x, modulation, mask, positions, key_mask)
        return self.head(x)

    def modulate(self, timestep: Tensor) -> Tensor:
        """Shifts, scales and gates [..., 2, 6, width] of a timestep [...]: of clean tokens, of noisy ones."""
        times = torch.stack((torch.ones_like(timestep), timestep), -1)
        embedded = F.silu(self.time(times))
        return self.time_to_modulation(embedded).unflatten(-1, (6, self.config.width))

    def head(self, x: Tensor) -> Tensor:
        """[..., L, width] -> [..., L, patch_dim]."""
        shift, scale = self.out_modulation
        return self.patch_out(self.out_norm(x) * (1 + scale) + shift)

    def velocity_from_output(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """v = x_1 - x_0 (section 3.3); from a predicted clean segment it is (x_1 - x_t) / (1 - t)."""
        if self.config.prediction == "velocity":
            return output
        time_left = (1 - timestep).clamp(min=self.config.min_time_left)
        return (output - noisy) / time_left.reshape(timestep.shape + (1,) * (noisy.ndim - timestep.ndim))
