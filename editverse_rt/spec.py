"""What a bundle and a request are made of: frozen dataclasses, no behaviour beyond arithmetic on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
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
