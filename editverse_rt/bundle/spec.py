"""What a bundle and a request are made of: frozen dataclasses, no behaviour beyond arithmetic on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from editverse_rt.errors import RequestError

__all__ = [
    "FORMAT_VERSION",
    "BundleSpec",
    "FileSpec",
    "Geometry",
    "GraphSpec",
    "Schedule",
    "TensorSpec",
    "TokenizerSpec",
]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a string in `shape` names a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph of a bundle: its file (relative to the bundle) and its interface."""

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FileSpec:
    """Size and digest of one file of a bundle."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenizerSpec:
    """The SentencePiece model of a bundle; `eos_id` ends every encoded instruction."""

    file: str
    eos_id: int
    max_tokens: int


@dataclass(frozen=True)
class Geometry:
    """How pixels become latent patches, and which sizes a bundle accepts (areas in px per frame).

    A clip has 1 + temporal_ratio * k frames. One latent patch covers `size_multiple` pixels a side:
    the VAE's spatial ratio times the transformer's 1 x p x p patch (paper section 3.1).
    """

    temporal_ratio: int
    spatial_ratio: int
    patch_size: int
    patch_dim: int
    min_area_px: int
    max_area_px: int
    max_side_px: int
    max_frames: int
    default_height_px: int
    default_width_px: int
    default_frames: int
    default_fps: float

    @property
    def size_multiple(self) -> int:
        """Pixels a side of one latent patch; heights and widths are multiples of it."""
        return self.spatial_ratio * self.patch_size

    def round_frames(self, num_frames: int) -> int:
        """The longest clip length 1 + temporal_ratio * k that is at most num_frames (itself at least 1)."""
        return num_frames - (num_frames - 1) % self.temporal_ratio

    def count_latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip of num_frames = 1 + temporal_ratio * k frames."""
        return 1 + (num_frames - 1) // self.temporal_ratio


@dataclass(frozen=True)
class Schedule:
    """One row per solver step: where the transformer is evaluated and how its velocities are combined.

    A step computes x <- x + sum_j coefficients[i][j] * v_j, where v_0 is the guided velocity at
    `timesteps[i]` and v_1, v_2 are those of the two steps before. Time runs from 0 (noise) to 1 (data)
    as in paper section 3.3. A guidance of 1 needs no unconditional evaluation.
    """

    name: str
    timesteps: tuple[float, ...]
    coefficients: tuple[tuple[float, float, float], ...]
    guidance_scale: tuple[float, ...]
    kind: Literal["euler", "multistep"] = "euler"

    @property
    def num_inference_steps(self) -> int:
        return len(self.timesteps)

    def with_steps(self, num_inference_steps: int) -> Schedule:
        """This schedule in another number of steps: uniform Euler steps, each with the first row's guidance.

        Raises RequestError for fewer than one step, and for a multistep table, which holds for its own
        number of steps only.
        """
        if num_inference_steps == self.num_inference_steps:
            return self
        if num_inference_steps < 1:
            raise RequestError(
                f"num_inference_steps is {num_inference_steps}", hint="give at least 1", code="request.option"
            )
        if self.kind != "euler":
            raise RequestError(
                f'num_inference_steps is {num_inference_steps}, but schedule "{self.name}" is a '
                f"multistep table of {self.num_inference_steps} steps",
                hint="leave it out, or choose an euler schedule",
                code="request.option",
            )
        n = num_inference_steps
        return replace(
            self,
            timesteps=tuple(i / n for i in range(n)),
            coefficients=((1.0 / n, 0.0, 0.0),) * n,
            guidance_scale=(self.guidance_scale[0],) * n,
        )

    def with_guidance(self, guidance_scale: float) -> Schedule:
        """This schedule with the caller's guidance.

        Steps that the table leaves unguided (a guidance of 1) stay so: where guidance applies belongs to the
        schedule. A table without any guidance takes the caller's everywhere. Raises RequestError for a
        negative or non-finite value.
        """
        if not math.isfinite(guidance_scale) or guidance_scale < 0:
            raise RequestError(
                f"guidance_scale is {guidance_scale}",
                hint="give a number of at least 0 (1: none)",
                code="request.option",
            )
        unguided = all(row == 1 for row in self.guidance_scale)
        rows = tuple(float(guidance_scale) if unguided or row != 1 else row for row in self.guidance_scale)
        return replace(self, guidance_scale=rows)


@dataclass(frozen=True)
class BundleSpec:
    """Everything `bundle.json` says, checked."""

    format_version: int
    name: str
    model: dict[str, object]
    geometry: Geometry
    tokenizer: TokenizerSpec
    graphs: dict[str, GraphSpec]
    schedules: dict[str, Schedule]
    default_schedule: str
    files: tuple[FileSpec, ...]
    made: dict[str, object] = field(default_factory=dict)
    quality: dict[str, object] = field(default_factory=dict)
