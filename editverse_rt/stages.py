"""The stages of a request that run graphs: encode, draw noise, solve, decode. They only move arrays.

`Run` runs one graph by its name, run("noise", seed=..., shape=...), and gives its outputs by name. `Hold`
puts an array that many runs take where the backend keeps its results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends import Array
from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import Geometry
from editverse_rt.media.frames import Frames
from editverse_rt.request.laid_out import Branch, LaidOutRequest
from editverse_rt.request.layout import Grid

__all__ = [
    "Array",
    "Hold",
    "Known",
    "Run",
    "StageClock",
    "assemble_patches",
    "begin_with",
    "decode_patches",
    "done_transformer",
    "draw_noise",
    "encode_clip",
    "encode_text",
    "make_table",
    "run_chunks",
    "solve",
]

TRANSFORMERS = ("transformer", "transformer_2")
"""The graphs of the experts, by the number that a schedule's table has."""

Run = Callable[..., Mapping[str, Array]]
Hold = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Known:
    """Rows of the sample whose end is known: patches float32 [Lk, P] at rows int64 [Lk], noise float32 [Lg, P]."""

    patches: Array
    rows: NDArray[np.int64]
    noise: Array

    @classmethod
    def of(cls, laid_out: LaidOutRequest, patches: Array, noise: Array) -> Known:
        """The first frames of a result, behind those of references."""
        first = laid_out.num_dropped * laid_out.target.rows * laid_out.target.columns
        return cls(patches, np.arange(first, first + len(patches), dtype=np.int64), noise)


class StageClock:
    """Adds up seconds by stage; `with clock("read"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin


def encode_text(run: Run, ids: Sequence[int]) -> Array:
    """Text rows float32 [Lt, Dt] of token ids, in one call."""
    return run("text_encoder", ids=np.array(ids, np.int64))["text"]


def encode_clip(run: Run, geometry: Geometry, frames: Frames) -> NDArray[Any]:
    """Clean patches float32 [latent frames * rows * columns, P] of frames uint8 [1 + r k, H, W, 3]."""
    ratio = geometry.temporal_ratio
    chunks = [frames[:1], *(frames[i : i + ratio] for i in range(1, len(frames), ratio))]
    patches = run_chunks(run, "vae_encoder", [{"frames": chunk} for chunk in chunks], "patches")
    return patches.reshape(-1, geometry.patch_dim)


def make_table(run: Run, schedule: Schedule, num_inference_steps: int, first_step: int = 0) -> ScheduleTable:
    """The table of a schedule for another number of steps, by the bundle's graph for it (float64).

    first_step: of those steps the first that is run, for a source that is noised.
    """
    scale = schedule.guidance_scale
    numbers = {"guidance_scale": scale, "guidance_scale_2": scale, **schedule.options}
    outputs = run(
        schedule.graph,
        num_steps=np.array(num_inference_steps, np.int64),
        first_step=np.array(first_step, np.int64),
        **{name: np.array(value, np.float64) for name, value in numbers.items()},
    )
    columns = {name: np.asarray(column).tolist() for name, column in outputs.items()}
    return ScheduleTable(
        times=tuple(columns["times"]),
        timesteps=tuple(columns["timesteps"]),
        guidance=tuple(columns["guidance"]),
        matrices=tuple(tuple(map(tuple, matrix)) for matrix in columns["matrices"]),
        experts=tuple(columns["experts"]),
    )


def draw_noise(run: Run, geometry: Geometry, laid_out: LaidOutRequest) -> Array:
    """Noise float32 [Lg, P] of the request's seed."""
    shape = np.array([laid_out.target.num_patches, geometry.patch_dim], np.int64)
    return run("noise", seed=np.array(laid_out.seed, np.int64), shape=shape)["noise"]


def begin_with(run: Run, geometry: Geometry, laid_out: LaidOutRequest, source: Frames, noise: Array) -> Array:
    """The sample float32 [Lg, P] of a noised source, frames uint8 [1 + r k, H, W, 3], at the first step's time."""
    time = np.array(laid_out.schedule.table.times[0], np.float64)
    return run("add_noise", sample=encode_clip(run, geometry, source), noise=noise, time=time)["noisy"]


def solve(
    run: Run,
    hold: Hold,
    laid_out: LaidOutRequest,
    texts: Sequence[Array],
    clean: Array,
    sample: Array,
    known: Known | None,
    clock: StageClock,
    on_step_end: Callable[[int, float], None],
) -> Array:
    """From noise to patches float32 [Lg, P], along the schedule (paper sections 3.3 and 5.1).

    texts: [Lt, Dt] each, which the branches name by index. clean: [Lc, Pc]. sample: [Lg, P], where the path begins.
    known: rows whose end is known, or None. on_step_end(step, timestep) is called after each solver step, and
    stops the request by what it raises. What does not change between the steps goes to the device once.
    """
    table = laid_out.schedule.table
    context = hold(clean)
    cond_inputs = _hold_inputs(hold, laid_out.cond, texts, context)
    uncond_inputs = _hold_inputs(hold, laid_out.uncond, texts, context)
    history = hold(np.zeros((len(table.matrices[0]) - 1, *sample.shape), np.float32))
    sample = hold(sample)
    keep = _keeper(run, hold, known)
    for step, timestep in enumerate(table.timesteps):
        guidance = table.guidance[step]
        sample = keep(sample, table.times[step])
        transformer = TRANSFORMERS[table.experts[step]]
        with clock("transformer"):
            now = hold(np.array(timestep, np.float32))
            cond = run(transformer, **cond_inputs, noisy=sample, timestep=now)["velocity"]
            uncond = cond
            if guidance != 1:
                uncond = run(transformer, **uncond_inputs, noisy=sample, timestep=now)["velocity"]
        with clock("solver_step"):
            outputs = run(
                "solver_step",
                sample=sample,
                history=history,
                velocity_cond=cond,
                velocity_uncond=uncond,
                guidance=np.array(guidance, np.float32),
                matrix=np.array(table.matrices[step], np.float32),
            )
        sample, history = outputs["sample_next"], outputs["history_next"]
        on_step_end(step, timestep)
    return keep(sample, 1.0)


def _keeper(run: Run, hold: Hold, known: Known | None) -> Callable[[Array, float], Array]:
    """What puts the known rows of a sample where the path to them is at a time."""
    if known is None:
        return lambda sample, time: sample
    fixed = {"known": hold(known.patches), "noise": hold(known.noise), "rows": hold(known.rows)}
    return lambda sample, time: run("keep_known", sample=sample, **fixed, time=np.array(time, np.float32))[
        "sample_next"
    ]


def _hold_inputs(hold: Hold, branch: Branch, texts: Sequence[Array], clean: Array) -> dict[str, Array]:
    """The inputs of one branch of the transformer that are the same in every step."""
    no_text = np.zeros((0, *texts[0].shape[1:]), np.float32)
    return {
        "text": hold(no_text if branch.text is None else texts[branch.text]),
        "clean": clean,
        "layout": hold(branch.layout.layout),
        "positions": hold(branch.layout.positions),
    }


def done_transformer(experts: Sequence[int], step: int) -> str | None:
    """The transformer that ran its last step and makes room for another; None where it goes on, or all is done.

    experts: by step, see `ScheduleTable`.
    """
    expert, rest = experts[step], experts[step + 1 :]
    return TRANSFORMERS[expert] if rest and expert not in rest else None


def assemble_patches(laid_out: LaidOutRequest, clean: Array, patches: Array) -> tuple[Grid, Array]:
    """What is decoded: the clean frames that stay, then what was solved, without the frames of references."""
    grid = laid_out.target
    if not laid_out.num_kept and not laid_out.num_dropped:
        return grid, patches
    a_frame = grid.rows * grid.columns
    whole = np.asarray(patches)
    if laid_out.num_kept:  # only then a clean row has the length of a noisy one
        whole = np.concatenate([np.asarray(clean)[: laid_out.num_kept * a_frame], whole])
    frames = grid.frames + laid_out.num_kept - laid_out.num_dropped
    return Grid(frames, grid.rows, grid.columns), whole[laid_out.num_dropped * a_frame :]


def decode_patches(run: Run, grid: Grid, patches: Array) -> Frames:
    """Frames uint8 [1 + r k, H, W, 3] of patches float32 [Lg, P], one latent frame a call."""
    chunks = patches.reshape(grid.frames, 1, grid.rows, grid.columns, -1)
    return run_chunks(run, "vae_decoder", [{"patches": chunk} for chunk in chunks], "frames")


def run_chunks(
    run: Run, graph: str, chunks: Sequence[Mapping[str, NDArray[Any]]], wanted: str
) -> NDArray[Any]:
    """A whole clip through GRAPH_first and then GRAPH_next: the output `wanted` of each chunk, joined.

    It is written where it stays: for a moment, chunks and their concatenation would hold the clip twice.
    """
    first, *rest = chunks
    outputs = run(f"{graph}_first", **first)
    begin = np.asarray(outputs[wanted])
    whole = begin
    for index, chunk in enumerate(rest):
        outputs = run(f"{graph}_next", **chunk, **_caches_from(outputs))
        part = np.asarray(outputs[wanted])
        if index == 0:
            whole = np.empty((len(begin) + len(rest) * len(part), *part.shape[1:]), part.dtype)
            whole[: len(begin)] = begin
        at = len(begin) + index * len(part)
        whole[at : at + len(part)] = part
    return whole


def _caches_from(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The caches that a VAE graph gave, under the names by which the next call takes them."""
    return {
        name.removeprefix("next_"): value for name, value in outputs.items() if name.startswith("next_cache_")
    }
