"""The graphs of a checkpoint's bundle: the module that each is traced from, with its inputs and outputs.

Names, inputs and outputs come from the runtime's table (`editverse_rt.bundle.interface`). An axis is a
number, a name (`Lt`) or a multiple of a named axis (`16*h`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from editverse_rt.bundle.interface import interfaces_of, tensor_from_line
from editverse_rt.bundle.spec import Geometry, GraphSpec, TensorSpec
from export.schedules import HISTORY_ROWS, ScheduleGraph, Solver, exported_settings, solvers
from reference.checkpoint import Checkpoint
from reference.families.editverse import EditVerseTransformer
from reference.vae import DecoderFirst, DecoderNext, EncoderFirst, EncoderNext

__all__ = [
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

# Sizes of the example inputs that a graph is traced with: small, and no two alike, so that no two axes are
# taken for one.
EXAMPLE_AXES = {"Lt": 5, "Lc": 7, "Lg": 11, "L": 29, "N": 3, "h": 2, "w": 3}
SCHEDULE_EXAMPLE = {"num_steps": 7, "first_step": 2}
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "uint8": torch.uint8,
}


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


def geometry_of(checkpoint: Checkpoint) -> Geometry:
    """The geometry of a checkpoint's bundle: ratios from its VAE, sizes from its model_index.json."""
    limits, vae = checkpoint.limits, _vae_config(checkpoint.vae)
    sizes = {f.name: int(limits[f.name]) for f in fields(Geometry) if f.name in limits and f.type == "int"}
    return Geometry(
        temporal_ratio=2 ** sum(vae.temperal_downsample),
        spatial_ratio=2 ** (len(vae.dim_mult) - 1) * (vae.patch_size or 1),
        patch_size=checkpoint.patch_size,
        patch_dim=checkpoint.transformer.config.patch_dim,
        clean_dim=checkpoint.transformer.config.patch_dim,
        default_fps=float(limits["default_fps"]),
        **sizes,
    )


def build_graphs(checkpoint: Checkpoint) -> dict[str, Graph]:
    """The table for one checkpoint, in the order of the runtime's. Modules are made when called for."""
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
        "solver_step": lambda: SolverStep(HISTORY_ROWS),
        "noise": None,
        "vae_decoder_first": lambda: DecoderFirst(vae, p),
        "vae_decoder_next": lambda: DecoderNext(vae, p),
        **{name: partial(ScheduleGraph, solver) for name, solver in _schedule_graphs(checkpoint).items()},
    }
    return {
        name: Graph(
            spec=specs[name],
            module=modules[name],
            weights=f"{name.removesuffix('_first').removesuffix('_next')}.weights",
        )
        for name in specs
    }


def graph_specs(checkpoint: Checkpoint) -> dict[str, GraphSpec]:
    """The interface of every graph of a checkpoint's bundle, from the runtime's table of its family."""
    geometry = geometry_of(checkpoint)
    sizes = {
        "r": geometry.temporal_ratio,
        "s": geometry.size_multiple,
        "P": geometry.patch_dim,
        "Pc": geometry.clean_dim,
        "Dt": checkpoint.transformer.config.text_dim,
        "K": HISTORY_ROWS,
        "S": HISTORY_ROWS + 1,
        "S1": HISTORY_ROWS + 2,
    }
    encoder, decoder = _cache_lines(checkpoint)

    def tensors(lines: tuple[str, ...], caches: list[str], prefix: str) -> tuple[TensorSpec, ...]:
        whole = [line for line in lines if line != "caches"]
        if "caches" in lines:
            whole += [prefix + cache for cache in caches]
        return tuple(tensor_from_line(line, sizes) for line in whole)

    specs = {}
    for name, interface in interfaces_of(
        "editverse", "interleaved", tuple(_schedule_graphs(checkpoint))
    ).items():
        caches = encoder if name.startswith("vae_encoder") else decoder
        specs[name] = GraphSpec(
            name=name,
            file=f"{name}.onnx",
            inputs=tensors(interface.inputs, caches, ""),
            outputs=tensors(interface.outputs, caches, "next_"),
        )
    return specs


def _schedule_graphs(checkpoint: Checkpoint) -> dict[str, Solver]:
    """The graphs that make tables: one for each solver that a named schedule of the bundle uses."""
    used = {settings.solver for settings in exported_settings(checkpoint.scheduler).values()}
    return {f"schedule_{solver}": solver for solver in solvers if solver in used}


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
