"""The one table of graphs: names, modules, inputs, outputs, dtypes, dynamic axes.

The exporter, the comparison with the reference and the graph table of `bundle.json` all read it from here. An
axis is a number, a name (`Lt`) or a multiple of a named axis (`16*h`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from editverse_rt.bundle.spec import Geometry, GraphSpec, TensorSpec
from reference.checkpoint import Checkpoint
from reference.families.editverse import EditVerseTransformer
from reference.vae import DecoderFirst, DecoderNext, EncoderFirst, EncoderNext

__all__ = [
    "GRAPH_NAMES",
    "Graph",
    "SolverStep",
    "TextEncoder",
    "Transformer",
    "axis_size",
    "build_graphs",
    "dynamic_shapes",
    "example_inputs",
    "geometry_of",
    "graph_specs",
    "split_axis",
]

GRAPH_NAMES = (
    "text_encoder",
    "vae_encoder_first",
    "vae_encoder_next",
    "transformer",
    "solver_step",
    "noise",
    "vae_decoder_first",
    "vae_decoder_next",
)

# Sizes of the example inputs that a graph is traced with: small, and no two alike, so that no two axes are
# taken for one.
EXAMPLE_AXES = {"Lt": 5, "Lc": 7, "Lg": 11, "L": 29, "N": 3, "h": 2, "w": 3}
DTYPES = {"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8}


@dataclass(frozen=True)
class Graph:
    """One graph: its interface, the module it is traced from, and the file for its weights.

    module: None for the noise graph, which has no PyTorch twin and is built from operators.
    weights: the external data file. Two graphs that name the same file share it; a graph that shares with
    none uses it only when its weights are large.
    """

    spec: GraphSpec
    module: Callable[[], nn.Module] | None
    weights: str


class TextEncoder(nn.Module):
    """ids int64 [Lt] -> text float32 [Lt, Dt] (section 3.1: a T5 encoder, no padding)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.model(input_ids=ids.unsqueeze(0)).last_hidden_state
        return rows.squeeze(0).to(torch.float32)


class Transformer(nn.Module):
    """The transformer with float32 at its edges, whatever dtype it computes in."""

    def __init__(self, model: EditVerseTransformer) -> None:
        super().__init__()
        self.model = model
        self.dtype = model.patch_in.weight.dtype

    def forward(
        self, text: Tensor, clean: Tensor, noisy: Tensor, layout: Tensor, positions: Tensor, timestep: Tensor
    ) -> Tensor:
        text, clean, noisy = (x.to(self.dtype) for x in (text, clean, noisy))
        velocity: Tensor = self.model(text, clean, noisy, layout, positions, timestep)
        return velocity.to(torch.float32)


class SolverStep(nn.Module):
    """Classifier-free guidance and one step of a linear multistep solver (section 5.1)."""

    def forward(
        self,
        sample: Tensor,
        velocity_cond: Tensor,
        velocity_uncond: Tensor,
        velocity_prev1: Tensor,
        velocity_prev2: Tensor,
        guidance: Tensor,
        coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        velocity = velocity_uncond + guidance * (velocity_cond - velocity_uncond)
        c0, c1, c2 = coefficients.unbind()
        return sample + c0 * velocity + c1 * velocity_prev1 + c2 * velocity_prev2, velocity


def geometry_of(checkpoint: Checkpoint) -> Geometry:
    """The geometry of a checkpoint's bundle: ratios from its VAE, sizes from its model_index.json."""
    limits, vae = checkpoint.limits, _vae_config(checkpoint.vae)
    sizes = {f.name: int(limits[f.name]) for f in fields(Geometry) if f.name in limits and f.type == "int"}
    return Geometry(
        temporal_ratio=2 ** sum(vae.temperal_downsample),
        spatial_ratio=2 ** (len(vae.dim_mult) - 1) * (vae.patch_size or 1),
        patch_size=checkpoint.patch_size,
        patch_dim=checkpoint.transformer.config.patch_dim,
        default_fps=float(limits["default_fps"]),
        **sizes,
    )


def build_graphs(checkpoint: Checkpoint) -> dict[str, Graph]:
    """The table for one checkpoint, in the order of `GRAPH_NAMES`. Modules are made when called for."""
    vae, p = checkpoint.vae, checkpoint.patch_size
    specs = graph_specs(checkpoint)

    def text_encoder() -> nn.Module:
        # The fused attention of the class does not survive the export's decompositions.
        checkpoint.text_encoder.set_attn_implementation("eager")
        return TextEncoder(checkpoint.text_encoder)

    modules: dict[str, Callable[[], nn.Module] | None] = {
        "text_encoder": text_encoder,
        "vae_encoder_first": lambda: EncoderFirst(vae, p),
        "vae_encoder_next": lambda: EncoderNext(vae, p),
        "transformer": lambda: Transformer(checkpoint.transformer),
        "solver_step": SolverStep,
        "noise": None,
        "vae_decoder_first": lambda: DecoderFirst(vae, p),
        "vae_decoder_next": lambda: DecoderNext(vae, p),
    }
    return {
        name: Graph(
            spec=specs[name],
            module=modules[name],
            weights=f"{name.removesuffix('_first').removesuffix('_next')}.weights",
        )
        for name in GRAPH_NAMES
    }


def graph_specs(checkpoint: Checkpoint) -> dict[str, GraphSpec]:
    """The interface of every graph of a checkpoint's bundle."""
    geometry = geometry_of(checkpoint)
    r, s, P = geometry.temporal_ratio, geometry.size_multiple, geometry.patch_dim
    Dt = checkpoint.transformer.config.text_dim
    patches = f"patches float32 1 h w {P}"
    text, clean, noisy = f"text float32 Lt {Dt}", f"clean float32 Lc {P}", f"noisy float32 Lg {P}"
    velocity = f"float32 Lg {P}"
    enc, dec = _cache_lines(checkpoint)
    enc_next, dec_next = ([f"next_{line}" for line in lines] for lines in (enc, dec))
    table: dict[str, tuple[list[str], list[str]]] = {
        "text_encoder": (["ids int64 Lt"], [text]),
        "vae_encoder_first": ([f"frames uint8 1 {s}*h {s}*w 3"], [patches, *enc_next]),
        "vae_encoder_next": ([f"frames uint8 {r} {s}*h {s}*w 3", *enc], [patches, *enc_next]),
        "transformer": (
            [text, clean, noisy, "layout int64 L", "positions int64 L 4", "timestep float32"],
            [f"velocity {velocity}"],
        ),
        "solver_step": (
            [f"sample {velocity}"]
            + [f"velocity_{which} {velocity}" for which in ("cond", "uncond", "prev1", "prev2")]
            + ["guidance float32", "coefficients float32 3"],
            [f"sample_next {velocity}", f"velocity {velocity}"],
        ),
        "noise": (["seed int64", "shape int64 2"], ["noise float32 N P"]),
        "vae_decoder_first": ([patches], [f"frames uint8 1 {s}*h {s}*w 3", *dec_next]),
        "vae_decoder_next": ([patches, *dec], [f"frames uint8 {r} {s}*h {s}*w 3", *dec_next]),
    }
    return {
        name: GraphSpec(
            name=name,
            file=f"{name}.onnx",
            inputs=tuple(_tensor_from_line(line) for line in table[name][0]),
            outputs=tuple(_tensor_from_line(line) for line in table[name][1]),
        )
        for name in GRAPH_NAMES
    }


def _tensor_from_line(line: str) -> TensorSpec:
    name, dtype, *axes = line.split()
    return TensorSpec(name, dtype, tuple(int(axis) if axis.isdigit() else axis for axis in axes))


def _cache_lines(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """The caches of the encoder and of the decoder as lines of the table: `cache_0 float32 1 C 2 8*h 8*w`.

    Their shapes are those that the modules give for one patch.
    """
    side, p = geometry_of(checkpoint).size_multiple, checkpoint.patch_size
    with torch.no_grad():
        patches, *encoder = EncoderFirst(checkpoint.vae, p)(
            torch.zeros((1, side, side, 3), dtype=torch.uint8)
        )
        _, *decoder = DecoderFirst(checkpoint.vae, p)(patches)

    def lines(caches: list[Tensor]) -> list[str]:
        shapes = [tuple(cache.shape) for cache in caches]
        return [f"cache_{i} float32 1 {c} {t} {h}*h {w}*w" for i, (_, c, t, h, w) in enumerate(shapes)]

    return lines(encoder), lines(decoder)


def _vae_config(vae: Any) -> Any:
    return vae.config


def split_axis(axis: str) -> tuple[int, str]:
    """`16*h` -> (16, `h`); `Lt` -> (1, `Lt`)."""
    match = re.fullmatch(r"(?:(\d+)\*)?([A-Za-z]\w*)", axis)
    if match is None:
        raise ValueError(f"axis {axis!r}; expected a name or a multiple of one, such as 16*h")
    return int(match[1] or 1), match[2]


def axis_size(axis: int | str, sizes: Mapping[str, int]) -> int:
    """The size of an axis of the table, the named ones having the given sizes."""
    if isinstance(axis, int):
        return axis
    factor, name = split_axis(axis)
    return factor * sizes[name]


def example_inputs(spec: GraphSpec, sizes: Mapping[str, int] = EXAMPLE_AXES, seed: int = 0) -> list[Tensor]:
    """Inputs to trace a graph with: normal values, random pixels, zeros where integers index something."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for tensor in spec.inputs:
        shape = [axis_size(axis, sizes) for axis in tensor.shape]
        if tensor.dtype == "float32":
            inputs.append(torch.randn(shape, generator=generator))
        elif tensor.dtype == "uint8":
            inputs.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        else:
            inputs.append(torch.zeros(shape, dtype=DTYPES[tensor.dtype]))
    return inputs


def dynamic_shapes(spec: GraphSpec) -> list[dict[int, Any] | None]:
    """For each input the dynamic axes as `torch.export` wants them, one `Dim` for each name."""
    dims: dict[str, Any] = {}
    shapes: list[dict[int, Any] | None] = []
    for tensor in spec.inputs:
        axes: dict[int, Any] = {}
        for index, axis in enumerate(tensor.shape):
            if isinstance(axis, str):
                factor, name = split_axis(axis)
                dim = dims.setdefault(name, Dim(name))
                axes[index] = dim if factor == 1 else factor * dim
        shapes.append(axes or None)
    return shapes
