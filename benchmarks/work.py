"""What is measured: one kind of work at given sizes, its inputs drawn from seeds, run on any runner."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from editverse_rt import media, stages
from editverse_rt.backends import Runner
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.pipeline import Pipeline
from editverse_rt.planning.costs import Tokens
from editverse_rt.request.layout import Grid, Layout, lay_out
from editverse_rt.request.tokenizer import Tokenizer

__all__ = [
    "VAE_KINDS",
    "Kind",
    "Work",
    "draw_clip",
    "draw_text",
    "draw_transformer_inputs",
    "kinds",
    "prepare_work",
    "tokens_of",
]

Array = NDArray[Any]
Kind = Literal["edit", "transformer", "vae_encoder", "vae_decoder", "text_encoder"]
kinds: tuple[Kind, ...] = get_args(Kind)
VAE_KINDS: dict[str, Kind] = {"encoder": "vae_encoder", "decoder": "vae_decoder"}

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "sample.mp4"
INSTRUCTION = "<video1> Make it night"
TEXT = "Turn the red circle into a blue square and make it night, as in the picture."
TEXT_TOKENS = 32
"""Of the transformer's work: a long instruction, with the end of the sequence."""
TOKENS_A_FRAME = 256
_WAN_TEXT = 40
_WAN_FRAMES = 21
"""Latent frames of 81 frames."""


@dataclass(frozen=True)
class Work:
    """One piece of work on the graphs of `model` (a name of `artifacts.MODELS`, or a bundle's folder).

    tokens: the whole sequence of one transformer evaluation, or those of the text encoder. frames, height_px,
    width_px: of the clip that the VAE or the edit takes. steps: Euler steps of the edit. schedule: the one of
    the bundle that this project takes instead. is_once: this project takes one evaluation of it, without guidance.
    """

    name: str
    model: str
    kind: Kind
    tokens: int = 0
    frames: int = 0
    height_px: int = 0
    width_px: int = 0
    steps: int = 50
    schedule: str | None = None
    is_once: bool = False


def draw_clip(frames: int, height_px: int, width_px: int, seed: int = 0) -> Array:
    """A clip uint8 [T, H, W, 3] of moving waves with grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height_px, 0:width_px].astype(np.float32) / max(height_px, width_px)
    waves = y[..., None] * rng.uniform(2, 9, 3) + x[..., None] * rng.uniform(2, 9, 3)
    clip = np.empty((frames, height_px, width_px, 3), np.uint8)
    for index in range(frames):
        grain = rng.normal(0, 6, (height_px, width_px, 3))
        clip[index] = np.clip(128 + 90 * np.sin(waves + 0.2 * index) + grain, 0, 255)
    return clip


def draw_text(bundle: Bundle, num_tokens: int) -> Array:
    """Token ids int64 [num_tokens] of an instruction, said again until it is as long.

    Not any ids: a trained encoder's attention may hang on rounding where the words say nothing.
    """
    tokenizer = Tokenizer(bundle.tokenizer_path(), bundle.spec.tokenizer.eos_id, max_tokens=num_tokens + 100)
    sentence, end = tokenizer.encode_segments([TEXT])
    return np.array([*np.resize(sentence, num_tokens - len(end)), *end], np.int64)


def draw_transformer_inputs(bundle: Bundle, num_tokens: int, seed: int = 0) -> dict[str, Array]:
    """Inputs of one evaluation of an edit: an instruction, a source clip, and a target as large as it.

    The clips take what the instruction and the four marks leave, the odd one goes to the instruction. Of Wan a clip
    made from text, whose patches are the sequence; a grid that has at most num_tokens.
    Raises ValueError for fewer than 64 tokens.
    """
    if bundle.spec.family == "wan":
        return _draw_wan_inputs(bundle, num_tokens, seed)
    if num_tokens < 2 * TEXT_TOKENS:
        raise ValueError(f"{num_tokens} tokens; a transformer's work has at least {2 * TEXT_TOKENS}")
    patches = (num_tokens - TEXT_TOKENS - 4) // 2
    frames = max(1, patches // TOKENS_A_FRAME)
    rows = 1 + int(np.sqrt(patches // frames)) // 2
    grid = Grid(frames, rows, patches // (frames * rows))
    num_text = num_tokens - 4 - 2 * grid.num_patches
    layout: Layout = lay_out([num_text - 1, grid, 1], grid)
    widths = {t.name: t.shape[-1] for t in bundle.spec.graphs["transformer"].inputs if len(t.shape) == 2}
    rng = np.random.default_rng(seed)
    counts = {"text": num_text, "clean": grid.num_patches, "noisy": grid.num_patches}
    rows_of = {
        name: rng.standard_normal((count, int(widths[name]))).astype(np.float32)
        for name, count in counts.items()
    }
    return {
        **rows_of,
        "layout": layout.layout,
        "positions": layout.positions,
        "timestep": np.array(0.3, np.float32),
    }


def _draw_wan_inputs(bundle: Bundle, num_tokens: int, seed: int) -> dict[str, Array]:
    frames = max(1, min(_WAN_FRAMES, num_tokens // TOKENS_A_FRAME))
    rows = math.isqrt(num_tokens // frames)
    columns = num_tokens // (frames * rows)
    places = np.indices((1, frames, rows, columns), dtype=np.int64).reshape(4, -1).T
    widths = {t.name: t.shape[-1] for t in bundle.spec.graphs["transformer"].inputs if len(t.shape) == 2}
    rng = np.random.default_rng(seed)
    counts = {"text": _WAN_TEXT, "clean": 0, "noisy": len(places)}
    return {
        **{n: rng.standard_normal((count, int(widths[n])), np.float32) for n, count in counts.items()},
        "layout": np.arange(len(places)),
        "positions": np.ascontiguousarray(places),
        "timestep": np.array(0.3, np.float32),
    }


def tokens_of(inputs: dict[str, Array]) -> Tokens:
    """How many rows of each kind a transformer's inputs have."""
    return Tokens(*(len(inputs[name]) for name in ("text", "clean", "noisy", "layout")))


def prepare_work(work: Work, bundle: Bundle, runner: Runner) -> Callable[[], Array]:
    """What does the work once and returns its result: frames uint8, or rows float32. Inputs are drawn here.

    Raises ValueError for work that the bundle's geometry has no sizes for.
    """
    if work.kind == "transformer":
        inputs = draw_transformer_inputs(bundle, work.tokens)
        return lambda: np.asarray(runner.run("transformer", inputs)["velocity"])
    if work.kind == "text_encoder":
        (text,) = bundle.spec.graphs["text_encoder"].inputs
        ids = {text.name: draw_text(bundle, work.tokens)}
        return lambda: np.asarray(runner.run("text_encoder", ids)["text"])
    if work.kind == "edit":
        return _prepare_edit(work, bundle, runner)
    geometry = bundle.spec.geometry
    multiple, ratio = geometry.size_multiple, geometry.temporal_ratio
    if (work.frames - 1) % ratio or work.height_px % multiple or work.width_px % multiple:
        raise ValueError(
            f"{work.name}: {work.frames} frames of {work.width_px}x{work.height_px}; the bundle takes "
            f"1 + {ratio} k frames, and sides that are multiples of {multiple}"
        )

    def run(graph: str, **inputs: Any) -> Any:
        return runner.run(graph, inputs)

    if work.kind == "vae_encoder":
        clip = draw_clip(work.frames, work.height_px, work.width_px)
        return lambda: stages.encode_clip(run, geometry, clip)
    grid = Grid(
        geometry.count_latent_frames(work.frames),
        work.height_px // multiple,
        work.width_px // multiple,
    )
    latents = np.random.default_rng(0).standard_normal((grid.num_patches, geometry.patch_dim), np.float32)
    return lambda: stages.decode_patches(run, grid, latents)


def _prepare_edit(work: Work, bundle: Bundle, runner: Runner) -> Callable[[], Array]:
    """The demonstration's edit, from frames in memory to frames in memory."""
    size = (work.height_px, work.width_px)
    clip = media.read_clip(SAMPLE, num_frames=work.frames, height_px=size[0], width_px=size[1]).frames
    # A runner that brings the reference's own loop is measured with that.
    own_loop = getattr(runner, "edit", None)
    if own_loop is not None:
        return lambda: np.asarray(own_loop(INSTRUCTION, clip, work.steps))
    pipeline = Pipeline(bundle, runner)
    steps = 1 if work.is_once else work.steps if work.schedule is None else None
    guidance = 1.0 if work.is_once else None
    return lambda: (
        pipeline(
            INSTRUCTION,
            video1=clip,
            size=size,
            num_frames=len(clip),
            num_inference_steps=steps,
            guidance_scale=guidance,
            schedule=work.schedule,
        ).frames
    )
