"""What a bundle and a request are made of: frozen dataclasses, no behaviour beyond arithmetic on them."""

from __future__ import annotations

from dataclasses import dataclass, field

from editverse_rt.bundle.schedule import Schedule

__all__ = [
    "FORMAT_VERSION",
    "BundleSpec",
    "Capabilities",
    "Costs",
    "FileSpec",
    "Geometry",
    "GraphSpec",
    "TensorSpec",
    "TokenizerSpec",
]

FORMAT_VERSION = 2


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
    the VAE's spatial ratio times the transformer's 1 x p x p patch (paper section 3.1). patch_dim: values
    of a noisy row; clean_dim: of a clean one. shared_frames: of a video longer than max_frames, the frames that
    each window takes over from the one before; 0 for a bundle that edits no longer ones.
    """

    temporal_ratio: int
    spatial_ratio: int
    patch_size: int
    patch_dim: int
    clean_dim: int
    min_area_px: int
    max_area_px: int
    max_side_px: int
    max_frames: int
    default_height_px: int
    default_width_px: int
    default_frames: int
    default_fps: float
    shared_frames: int = 0

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
class Capabilities:
    """What a bundle can do, which decides how it is called; how it was made is `BundleSpec.made`.

    generates: it takes requests without inputs. edits: it takes videos and images. negative_prompt: its
    unconditional branch is a prompt of the caller's. strength: a video can be the start of the solver, noised by
    that much. attention: the form of the transformer's RopeAttention,
    "inline" (standard operators that hold the scores), "fused" (no scores in memory) or "plugin" (a node for
    TensorRT only). convolutions: of the VAE, "volumes", or "frames", whose results do not depend on the
    number of threads. dtype: what the transformer and the text encoder compute in. weights: "float", or
    "int8" where the transformer multiplies in 8-bit integers. emulates: precision by graph, where the graphs
    round as plans for a GPU would.
    """

    generates: bool = True
    edits: bool = True
    negative_prompt: bool = False
    strength: bool = False
    attention: str = "fused"
    convolutions: str = "frames"
    dtype: str = "float32"
    weights: str = "float"
    emulates: dict[str, str] = field(default_factory=dict)


Costs = dict[str, dict[str, dict[str, float]]]
"""Of each graph the polynomials `flops`, `moved` and `held`: coefficients by product of axes, "L*L" for a square. A
graph whose matrices are in 8 bits also has the constant `weight_bytes`: what its weights take in ONNX Runtime."""


@dataclass(frozen=True)
class BundleSpec:
    """Everything `bundle.json` says, checked.

    family: which rules lay a request out (`editverse_rt.families`). conditioning: how inputs reach the
    transformer: "none", "interleaved" (rows of one sequence with the text), "rows" (clean frames before the noisy
    ones), "channels" (beside the noisy rows) or "control" (rows of a control branch). unconditional: what
    guidance's second branch leaves out, "drop_text" (the text rows) or "prompt" (it has a text of its own, the
    negative prompt). costs: operations, values moved and values held of the graphs with weights, as the exporter
    counted them; without them no cost is estimated.
    """

    format_version: int
    name: str
    model: dict[str, object]
    family: str
    conditioning: str
    unconditional: str
    default_negative_prompt: str
    capabilities: Capabilities
    geometry: Geometry
    tokenizer: TokenizerSpec
    graphs: dict[str, GraphSpec]
    schedules: dict[str, Schedule]
    default_schedule: str
    files: tuple[FileSpec, ...]
    costs: Costs = field(default_factory=dict)
    made: dict[str, object] = field(default_factory=dict)
    quality: dict[str, object] = field(default_factory=dict)
