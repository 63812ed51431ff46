"""A Wan bundle held to PyTorch: every graph on its own, and a whole request against the slow loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray

from editverse_rt import stages
from editverse_rt.backends import Runner
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import Geometry
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.layout import Grid
from export.graphs import AddNoise, Transformer
from export.measurements import REQUEST_PATCHES, Measurement, compare_keep_known, make_clip, measure_against
from export.schedules import pad_matrices
from reference.families.wan_checkpoint import WanCheckpoint
from reference.families.wan_sampler import Inputs, encode_masked, encode_text, grid_positions, sample
from reference.families.wan_vace import Condition
from reference.noise import draw_noise
from reference.tokenizers import encode_prompt
from reference.vae import decode_clip, encode_clip

__all__ = ["compare_wan_graphs", "compare_wan_request"]

Array = NDArray[Any]
PROMPT = "Turn the red circle blue."
CASE = "clip"
TIMESTEP = 0.37
SCHEDULE_STEPS = 7


@torch.no_grad()
def compare_wan_graphs(bundle: Bundle, checkpoint: WanCheckpoint, runner: Runner) -> Iterator[Measurement]:
    """Run every graph of the bundle and its PyTorch twin on the same inputs.

    Raises BackendError for a graph that does not run, ValueError for a bundle whose graphs compute in a dtype that
    has no tolerances or give other shapes than PyTorch.
    """
    spec, measure = bundle.spec, measure_against(bundle)
    geometry, p = spec.geometry, checkpoint.patch_size
    frames_count, height, width = _clip_shape(geometry)
    t = geometry.count_latent_frames(frames_count)
    h, w = height // geometry.size_multiple, width // geometry.size_multiple
    num_rows, P = t * h * w, geometry.patch_dim

    def run(graph: str, **inputs: Any) -> Mapping[str, Any]:
        return runner.run(graph, inputs)

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint.tokenizer_file))
    ids = encode_prompt(tokenizer, PROMPT, checkpoint.config.max_text)
    text = encode_text(checkpoint, PROMPT)
    yield measure("text_encoder", CASE, np.asarray(stages.encode_text(run, ids)), text.numpy())

    clip = make_clip(frames_count, height, width, seed=1)
    if spec.conditioning == "control":
        keep = torch.from_numpy(make_clip(frames_count, height, width, seed=2)[..., 0] > 128).float()
        latents = encode_masked(checkpoint, clip, keep)
        found = _encode_masked(run, geometry, clip, keep.numpy()).reshape(latents.shape)
        mask = torch.rand((height, width), generator=torch.Generator().manual_seed(3))
        given = (latents[:1], 0.5 * latents[-1:], mask)
        expected = Condition(p, geometry.spatial_ratio)(*given)
        names = ("inactive", "reactive", "mask")
        feeds = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        yield measure("condition", CASE, np.asarray(run("condition", **feeds)["clean"]), expected.numpy())
    else:
        latents = encode_clip(checkpoint.vae, torch.from_numpy(clip), p)
        found = stages.encode_clip(run, geometry, clip).reshape(latents.shape)
    yield measure("vae_encoder_first", CASE, found[:1], latents[:1].numpy())
    yield measure("vae_encoder_next", CASE, found[1:], latents[1:].numpy())

    noise = draw_noise(5, num_rows, P)
    drawn = run("noise", seed=np.array(5, np.int64), shape=np.array(noise.shape, np.int64))["noise"]
    yield measure("noise", CASE, np.asarray(drawn), noise.numpy())

    layout, positions, num_clean = torch.arange(num_rows), grid_positions(t, h, w), num_rows
    if spec.conditioning == "none":
        num_clean = 0
    elif spec.conditioning == "rows":
        num_clean, positions = h * w, grid_positions(t + 1, h, w)
        layout = torch.cat((torch.arange(num_rows, num_rows + num_clean), layout))
    generator = torch.Generator().manual_seed(4)
    clean = torch.randn((num_clean, geometry.clean_dim), generator=generator)
    inputs = (text, clean, noise, layout, positions, torch.tensor(TIMESTEP))
    feed = dict(zip((i.name for i in spec.graphs["transformer"].inputs), inputs, strict=True))
    for graph, network in zip(stages.TRANSFORMERS, checkpoint.transformers, strict=False):
        velocity = Transformer(network)(*inputs)
        found = np.asarray(run(graph, **{name: value.numpy() for name, value in feed.items()})["velocity"])
        yield measure(graph, CASE, found, velocity.numpy())

    if "add_noise" in spec.graphs:
        time = torch.tensor(0.25, dtype=torch.float64)
        source = latents.reshape(num_rows, P)
        found = run("add_noise", sample=source.numpy(), noise=noise.numpy(), time=time.numpy())["noisy"]
        yield measure("add_noise", CASE, np.asarray(found), AddNoise()(source, noise, time).numpy())
    yield compare_keep_known(measure, CASE, run, velocity.numpy(), noise.numpy())
    yield _compare_schedule(bundle, checkpoint, run)

    patches = (0.7 * noise).reshape(t, h, w, P)
    decoded = decode_clip(checkpoint.vae, patches, p).numpy()
    found = stages.decode_patches(run, Grid(t, h, w), patches.reshape(-1, P).numpy())
    yield measure("vae_decoder_first", CASE, found[:1], decoded[:1])
    yield measure("vae_decoder_next", CASE, found[1:], decoded[1:])


def _compare_schedule(bundle: Bundle, checkpoint: WanCheckpoint, run: stages.Run) -> Measurement:
    """Times, told times and matrices of the checkpoint's schedule for another number of steps, float64."""
    own = bundle.spec.schedules[checkpoint.schedule.solver]
    table = stages.make_table(run, own, SCHEDULE_STEPS)
    shift = torch.tensor(checkpoint.schedule.shift, dtype=torch.float64)
    expected = checkpoint.schedule.build()(torch.tensor(SCHEDULE_STEPS), shift, None)
    times, timesteps, matrices = expected[0], expected[1], expected[3]
    wide = pad_matrices(matrices, len(table.matrices[0]))
    parts = (times, timesteps, wide.flatten())
    found = np.concatenate([np.ravel(part) for part in (table.times, table.timesteps, table.matrices)])
    return measure_against(bundle)("schedule", CASE, found, torch.cat(parts).numpy())


def _encode_masked(run: stages.Run, geometry: Geometry, frames: Array, keep: Array) -> Array:
    ratio = geometry.temporal_ratio
    parts = [slice(0, 1), *(slice(i, i + ratio) for i in range(1, len(frames), ratio))]
    chunks = [{"frames": frames[part], "keep": keep[part]} for part in parts]
    return stages.run_chunks(run, "vae_encoder", chunks, "patches")


def _clip_shape(geometry: Geometry) -> tuple[int, int, int]:
    """Frames, height and width of a small clip that the bundle takes, with two chunks after the first frame."""
    rows = max(4, math.ceil(math.sqrt(geometry.min_area_px) / geometry.size_multiple))
    frames = geometry.round_frames(min(geometry.max_frames, 2 * geometry.temporal_ratio + 1))
    return frames, rows * geometry.size_multiple, (rows + 1) * geometry.size_multiple


def compare_wan_request(
    folder: str | Path,
    checkpoint: WanCheckpoint,
    *,
    backend: str = "ort-cpu",
    num_threads: int | None = None,
    num_inference_steps: int = 6,
    seed: int = 11,
) -> list[Measurement]:
    """One whole request with all kinds of inputs that the model takes, by the runtime and by the slow loop.

    Two measurements: the patches that the solver ends with, and the frames.
    """
    with Pipeline.open(folder, backend, num_threads=num_threads) as pipeline:
        spec = pipeline.bundle.spec
        shape = _clip_shape(spec.geometry)
        given, inputs = _request_inputs(spec.conditioning, checkpoint, shape, seed)
        ended: dict[str, Array] = {}
        run_graph = pipeline.run_graph

        def keep_last(graph: str, **feeds: Any) -> Mapping[str, Any]:
            outputs = run_graph(graph, **feeds)
            if graph == "solver_step":
                ended["patches"] = np.asarray(outputs["sample_next"])
            return outputs

        pipeline.run_graph = keep_last  # type: ignore[method-assign]
        result = pipeline(
            PROMPT, seed=seed, size=shape[1:], num_frames=shape[0], num_inference_steps=num_inference_steps,
            schedule=checkpoint.schedule.solver, **given,
        )  # fmt: skip
    grid = result.laid_out.target
    noise = draw_noise(seed, grid.num_patches, spec.geometry.patch_dim)
    noise = noise.reshape(grid.frames, grid.rows, grid.columns, -1)
    if inputs.first_frame is not None:
        noise = torch.cat((torch.zeros_like(noise[:1]), noise))
    patches = sample(checkpoint, PROMPT, noise, shape, inputs, num_inference_steps=num_inference_steps)
    with torch.no_grad():
        frames = decode_clip(checkpoint.vae, patches, checkpoint.patch_size).numpy()
    found = ended["patches"].reshape(grid.frames, *patches.shape[1:])[len(inputs.references) :]
    expected = patches if inputs.first_frame is None else patches[1:]
    measure = measure_against(pipeline.bundle)
    return [
        measure(REQUEST_PATCHES, CASE, found, expected.numpy()),
        measure(f"whole request, {num_inference_steps} steps", CASE, result.frames, frames),
    ]


def _request_inputs(
    conditioning: str, checkpoint: WanCheckpoint, shape: tuple[int, int, int], seed: int
) -> tuple[dict[str, Any], Inputs]:
    """The inputs for the runtime and for the loop."""
    video = make_clip(*shape, seed)
    picture = make_clip(1, *shape[1:], seed + 1)
    if conditioning == "control":
        mask = np.zeros_like(video)
        mask[:, shape[1] // 4 : shape[1] // 2, shape[2] // 3 :] = 255
        given = {"video1": video, "video2": mask, "image1": picture[0]}
        return given, Inputs(video=video, mask=mask, references=(picture,))
    if conditioning == "rows":
        return {"image1": picture[0]}, Inputs(first_frame=picture)
    if conditioning == "channels" or checkpoint.strength is not None:
        return {"video1": video}, Inputs(video=video)
    return {}, Inputs()
