"""The graphs of a checkpoint's bundle: the module that each is traced from, with its inputs and outputs.

Names, inputs and outputs come from the runtime's table (`editverse_rt.bundle.interface`). An axis is a
number, a name (`Lt`) or a multiple of a named axis (`16*h`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.export import Dim

from editverse_rt.bundle.interface import interfaces_of, tensor_from_line
from editverse_rt.bundle.spec import Geometry, GraphSpec, TensorSpec
from reference.vae import DecoderFirst, DecoderNext, EncoderFirst, EncoderNext

__all__ = [
    "AddNoise",
    "Graph",
    "KeepKnown",
    "Module",
    "SolverStep",
    "TextEncoder",
    "Transformer",
    "axis_size",
    "dynamic_shapes",
    "example_inputs",
    "geometry_of_vae",
    "graph_specs",
    "graphs_of",
    "split_axis",
    "text_encoder_module",
    "vae_modules",
]

# Sizes of the example inputs that a graph is traced with. All are small and different, so that no two axes are
# taken for one.
EXAMPLE_AXES = {"Lt": 5, "Lc": 7, "Lg": 11, "Lk": 4, "L": 29, "N": 3, "h": 2, "w": 3}
SCHEDULE_EXAMPLE = {"num_steps": 7, "first_step": 2}
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "uint8": torch.uint8,
}


Module = Callable[[], nn.Module]
"""Makes the module that a graph is traced from, when it is called for."""


@dataclass(frozen=True)
class Graph:
    """One graph: its interface, the module it is traced from, and the file for its weights.

    module: None for the noise graph, which has no PyTorch twin and is built from operators.
    weights: the external data file. Two graphs that name the same file share it; a graph that shares with
    none uses it only when its weights are large.
    """

    spec: GraphSpec
    module: Module | None
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

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.dtype = cast(Tensor, cast(Any, model).patch_in.weight).dtype

    def forward(
        self, text: Tensor, clean: Tensor, noisy: Tensor, layout: Tensor, positions: Tensor, timestep: Tensor
    ) -> Tensor:
        text, clean, noisy = (x.to(self.dtype) for x in (text, clean, noisy))
        velocity: Tensor = self.model(text, clean, noisy, layout, positions, timestep)
        return velocity.to(torch.float32)


class SolverStep(nn.Module):
    """Classifier-free guidance and one step of a linear solver (section 5.1): S' = A [S; v].

    The sample stands first in the state, and its sum begins with the sample and the new velocity: with
    Euler's matrix this is x + h v, rounded as one writes it.
    """

    def __init__(self, history_rows: int) -> None:
        super().__init__()
        self.history_rows = history_rows

    def forward(
        self,
        sample: Tensor,
        history: Tensor,
        velocity_cond: Tensor,
        velocity_uncond: Tensor,
        guidance: Tensor,
        matrix: Tensor,
    ) -> tuple[Tensor, Tensor]:
        velocity = velocity_uncond + guidance * (velocity_cond - velocity_uncond)
        state = [sample, velocity, *history.unbind()]
        columns = [0, self.history_rows + 1, *range(1, self.history_rows + 1)]
        rows = []
        for row in range(self.history_rows + 1):
            total = matrix[row, 0] * sample
            for column, tensor in zip(columns[1:], state[1:], strict=True):
                total = total + matrix[row, column] * tensor
            rows.append(total)
        return rows[0], torch.stack(rows[1:])


class AddNoise(nn.Module):
    """A source as the solver's start: x_t = t x_1 + (1 - t) x_0 at one time (section 3.3)."""

    def forward(self, sample: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        t = time.to(torch.float32)
        return t * sample + (1 - t) * noise


class KeepKnown(nn.Module):
    """Rows whose result is known, put where the path to it is at one time: x_t = t x_1 + (1 - t) x_0 (section 3.3).

    sample, noise [Lg, P]; known [Lk, P]: the result at `rows` [Lk] of the sample.
    """

    def forward(self, sample: Tensor, known: Tensor, noise: Tensor, rows: Tensor, time: Tensor) -> Tensor:
        return sample.index_put((rows,), time * known + (1 - time) * noise[rows])


def geometry_of_vae(
    vae: AutoencoderKLWan, patch_size: int, clean_dim: int, limits: Mapping[str, float]
) -> Geometry:
    """The geometry of a bundle: ratios from its VAE, sizes from a checkpoint's limits."""
    config: Any = vae.config
    sizes = {f.name: int(limits[f.name]) for f in fields(Geometry) if f.name in limits and f.type == "int"}
    return Geometry(
        temporal_ratio=2 ** sum(config.temperal_downsample),
        spatial_ratio=2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1),
        patch_size=patch_size,
        patch_dim=config.z_dim * patch_size**2,
        clean_dim=clean_dim,
        default_fps=float(limits["default_fps"]),
        **{"shared_frames": 1, **sizes},
    )


def vae_modules(vae: AutoencoderKLWan, patch_size: int, *, masked: bool = False) -> dict[str, Module]:
    """The four graphs of a VAE; masked: its encoder takes what to keep beside the frames."""
    return {
        "vae_encoder_first": lambda: EncoderFirst(vae, patch_size, masked=masked),
        "vae_encoder_next": lambda: EncoderNext(vae, patch_size, masked=masked),
        "vae_decoder_first": lambda: DecoderFirst(vae, patch_size),
        "vae_decoder_next": lambda: DecoderNext(vae, patch_size),
    }


def text_encoder_module(model: nn.Module) -> Module:
    """The text encoder's graph."""

    def make() -> nn.Module:
        # The fused attention of the class does not survive the export's decompositions.
        cast(Any, model).set_attn_implementation("eager")
        return TextEncoder(model)

    return make


def graph_specs(
    family: str,
    conditioning: str,
    modules: Mapping[str, Module | None],
    vae: AutoencoderKLWan,
    geometry: Geometry,
    text_dim: int,
    history_rows: int,
) -> dict[str, GraphSpec]:
    """The interface of every graph that has a module, from the runtime's table of its family."""
    sizes = {
        "r": geometry.temporal_ratio,
        "s": geometry.size_multiple,
        "P": geometry.patch_dim,
        "Pc": geometry.clean_dim,
        "Dt": text_dim,
        "K": history_rows,
        "S": history_rows + 1,
        "S1": history_rows + 2,
    }
    encoder, decoder = _cache_lines(vae, geometry)

    def tensors(lines: tuple[str, ...], caches: list[str], prefix: str) -> tuple[TensorSpec, ...]:
        whole = [line for line in lines if line != "caches"]
        if "caches" in lines:
            whole += [prefix + cache for cache in caches]
        return tuple(tensor_from_line(line, sizes) for line in whole)

    specs = {}
    for name, interface in interfaces_of(family, conditioning, tuple(modules)).items():
        if name not in modules:
            continue
        caches = encoder if name.startswith("vae_encoder") else decoder
        specs[name] = GraphSpec(
            name=name,
            file=f"{name}.onnx",
            inputs=tensors(interface.inputs, caches, ""),
            outputs=tensors(interface.outputs, caches, "next_"),
        )
    return specs


def graphs_of(specs: Mapping[str, GraphSpec], modules: Mapping[str, Module | None]) -> dict[str, Graph]:
    """Each graph with its module and the file for its weights, which first and next share."""
    return {
        name: Graph(
            spec=spec,
            module=modules[name],
            weights=f"{name.removesuffix('_first').removesuffix('_next')}.weights",
        )
        for name, spec in specs.items()
    }


def _cache_lines(vae: AutoencoderKLWan, geometry: Geometry) -> tuple[list[str], list[str]]:
    """The caches of the encoder and of the decoder as lines of the table: `cache_0 float32 1 C 2 8*h 8*w`.

    Their shapes are those that the modules give for one patch.
    """
    side, p = geometry.size_multiple, geometry.patch_size
    with torch.no_grad():
        patches, *encoder = EncoderFirst(vae, p)(torch.zeros((1, side, side, 3), dtype=torch.uint8))
        _, *decoder = DecoderFirst(vae, p)(patches)

    def lines(caches: list[Tensor]) -> list[str]:
        shapes = [tuple(cache.shape) for cache in caches]
        return [f"cache_{i} float32 1 {c} {t} {h}*h {w}*w" for i, (_, c, t, h, w) in enumerate(shapes)]

    return lines(encoder), lines(decoder)


def split_axis(axis: str) -> tuple[int, str]:
    """`16*h` -> (16, `h`); `Lt` -> (1, `Lt`). Raises ValueError for another form."""
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
        if spec.name.startswith("schedule_"):
            inputs.append(
                torch.full(shape, SCHEDULE_EXAMPLE.get(tensor.name, 0.5), dtype=DTYPES[tensor.dtype])
            )
        elif tensor.dtype == "float32":
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
