"""The straight line from a request to frames: plan, read, encode, solve, decode.

No arithmetic on pixels or latents happens here: graphs do it, and what they are called with are the
integers of sequence.py and the numbers of the bundle's schedule.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt import video
from editverse_rt.backends import GpuOptions, Runner, Selection, select_backend
from editverse_rt.bundle import Bundle, load_bundle
from editverse_rt.engine import EngineSet
from editverse_rt.errors import BackendError, RequestCancelled, RequestError
from editverse_rt.frames import Frames
from editverse_rt.inputs import Inputs, Source
from editverse_rt.sequence import (
    Grid,
    Layout,
    Size,
    TextSegment,
    VisionSegment,
    lay_out,
    parse_prompt,
)
from editverse_rt.spec import Schedule
from editverse_rt.text import Tokenizer

__all__ = ["Pipeline", "Plan", "Result", "Source"]

StepCallback = Callable[["Pipeline", int, float, dict[str, Any]], Any]
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a request came to, before any graph ran.

    segments: the instruction in order. sources: what each input became, as (frames, height, width) in
    pixels. main: the input that the result follows, or None. target: the result in latent units. layout,
    layout_uncond: the interleaved sequence, and guidance's unconditional branch of it.
    """

    segments: tuple[TextSegment | VisionSegment, ...]
    sources: dict[str, tuple[int, int, int]]
    main: str | None
    num_frames: int
    height_px: int
    width_px: int
    fps: float
    schedule: Schedule
    seed: int
    target: Grid
    layout: Layout
    layout_uncond: Layout


@dataclass(frozen=True, eq=False)
class Result:
    """What a request gave.

    frames: uint8 [T, H, W, 3] at `fps`. timings: seconds of each stage, "total" among them. sources: the
    inputs as the model saw them, main first. notices: lines for the user, about what was cut or rounded.
    audio_from: the source whose sound fits the result, if it keeps that source's whole length.
    """

    frames: Frames
    fps: float
    plan: Plan
    timings: dict[str, float]
    sources: tuple[Frames, ...] = ()
    notices: tuple[str, ...] = ()
    audio_from: Path | None = None

    def save(self, path: str | os.PathLike[str], *, audio: bool = True) -> tuple[str, ...]:
        """Write the frames in one step: a video, a picture or a folder of pictures, by the suffix of path.

        The source's sound goes along, as it is, if the result keeps the source's length and the file can
        hold it. Returns the writer's lines for the user. Raises MediaError if path cannot be written.
        """
        audio_from = self.audio_from if audio else None
        return video.write_clip(path, self.frames, self.fps, audio_from=audio_from).notices


class Pipeline:
    """A bundle, opened on a backend, that edits and generates.

    Use it as a context manager, or close() it. One request at a time.
    """

    def __init__(self, bundle: Bundle, runner: Runner, selection: Selection | None = None) -> None:
        """Prefer `Pipeline.open`. runner: of this bundle's graphs, not yet entered."""
        tokenizer = bundle.spec.tokenizer
        self._bundle = bundle
        self._tokenizer = Tokenizer(bundle.tokenizer_path(), tokenizer.eos_id, tokenizer.max_tokens)
        self._selection = selection
        self._runner: Runner | None = runner
        runner.__enter__()

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] = "nano",
        backend: str = "auto",
        *,
        num_threads: int | None = None,
        allow_unverified: bool = False,
        device: int | None = None,
        cuda_graphs: bool = False,
        weight_budget_bytes: int | None = None,
        plugin: str | os.PathLike[str] | None = None,
        kernel_cache: str | os.PathLike[str] | None = None,
    ) -> Pipeline:
        """Verify a bundle and open it on a backend.

        bundle: a name that ships, or a folder. backend: a name from `editverse_rt.backends`, or "auto".
        num_threads: of the CPU, None for one a core; results do not depend on it.
        allow_unverified: take plans that `editverse-rt verify` has not accepted on this GPU.
        device: the GPU's number. The rest is TensorRT's. cuda_graphs: launch calls that repeat as one CUDA
        graph. weight_budget_bytes: how much of each plan's weights may lie on the GPU, for plans built with
        weight streaming. plugin: the library that has RopeAttention, for plans built with it. kernel_cache: a
        file that keeps what TensorRT for RTX compiles on this machine.
        Raises BundleError, BackendError: a backend that cannot follow an option is not taken.
        """
        if num_threads is not None and num_threads < 1:
            raise RequestError(f"num_threads is {num_threads}; give at least 1, or None for one a core")
        if device is not None and device < 0:
            raise RequestError(f"device is {device}; give a GPU's number, 0 or more")
        if weight_budget_bytes is not None and weight_budget_bytes < 0:
            raise RequestError(f"weight_budget_bytes is {weight_budget_bytes}; give 0 or more")
        gpu = GpuOptions(
            device=device,
            cuda_graphs=cuda_graphs,
            weight_budget_bytes=weight_budget_bytes,
            plugin=None if plugin is None else Path(plugin),
            kernel_cache=None if kernel_cache is None else Path(kernel_cache),
        )
        loaded = load_bundle(bundle)
        selection = select_backend(backend, loaded, allow_unverified=allow_unverified, gpu=gpu)
        return cls(loaded, selection.backend.open_runner(loaded, num_threads, gpu), selection)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give memory and devices back; safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.__exit__(None, None, None)

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    @property
    def engines(self) -> EngineSet | None:
        """The plans that the runner runs, None where it runs ONNX files."""
        found = getattr(self._runner, "engines", None)
        return found if isinstance(found, EngineSet) else None

    @property
    def gpu(self) -> str:
        """The name of the GPU that the plans run on, "" where there are none."""
        return str(getattr(self._runner, "gpu_name", ""))

    def info(self) -> dict[str, Any]:
        """What is open: bundle, backend, and why the backends preferred over it were passed over."""
        spec, selection = self._bundle.spec, self._selection
        return {
            "bundle": spec.name,
            "path": os.fspath(self._bundle.root),
            "format_version": spec.format_version,
            "made": spec.made,
            "backend": None if selection is None else selection.backend.name,
            "backend_version": None if selection is None else selection.availability.version,
            "passed_over": {}
            if selection is None
            else {state.name: state.reason for state in selection.passed_over},
        }

    def __call__(
        self,
        prompt: str,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        schedule: str | None = None,
        size: Size | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        start_s: float = 0.0,
        callback_on_step_end: StepCallback | None = None,
        **inputs: Source,
    ) -> Result:
        """Edit or generate by an instruction that mentions its inputs by tags: "<video1> Make it snow".

        inputs: video1=, video2=, image1= ...; the result follows the video (else the image) of the lowest
        number in size, length and rate unless size (height, width) in pixels, num_frames, fps or start_s
        (where to begin in the videos, seconds) say otherwise. Without inputs it is generated.
        num_inference_steps, guidance_scale: None for the schedule's own. seed: same seed, same bytes.
        callback_on_step_end(pipeline, step, timestep, {"num_inference_steps": n}) is called after each
        solver step; the request stops if it returns False.
        Raises RequestError, MediaError, BackendError, and RequestCancelled when stopped, by Ctrl-C too.
        """
        clock = _Clock()
        notices: list[str] = []
        try:
            with clock("total"):
                _check_numbers(seed, fps, start_s)
                steps = self._choose_schedule(schedule, num_inference_steps, guidance_scale)
                segments = parse_prompt(prompt, inputs)
                words = [segment.text for segment in segments if isinstance(segment, TextSegment)]
                ids = self._tokenizer.encode_segments(words)
                with clock("read"):
                    sources = Inputs(inputs, self._bundle.spec.geometry, size, num_frames, fps, start_s)
                    clips = sources.read(notices)
                plan = self._plan(segments, ids, sources, clips, steps, seed)

                with clock("text_encoder"):
                    text = self._run("text_encoder", ids=np.concatenate(ids).astype(np.int64))["text"]
                with clock("vae_encoder"):
                    clean = [
                        self._encode_clip(clips[s.name]) for s in segments if isinstance(s, VisionSegment)
                    ]
                with clock("noise"):
                    noise = self._draw_noise(plan)
                patches = self._solve(plan, text, clean, noise, clock, callback_on_step_end)
                with clock("vae_decoder"):
                    frames = self._decode_patches(plan, patches)
        except KeyboardInterrupt:
            raise RequestCancelled("stopped by Ctrl-C; nothing was written") from None
        return Result(
            frames=frames,
            fps=plan.fps,
            plan=plan,
            timings=clock.seconds,
            sources=tuple(clips[name] for name in sources.names),
            notices=tuple(notices),
            audio_from=sources.audio_from,
        )

    def _choose_schedule(
        self, name: str | None, num_inference_steps: int | None, guidance_scale: float | None
    ) -> Schedule:
        spec = self._bundle.spec
        if name is not None and name not in spec.schedules:
            raise RequestError(f'schedule is "{name}"; this bundle has {", ".join(spec.schedules)}')
        schedule = spec.schedules[spec.default_schedule if name is None else name]
        if num_inference_steps is not None:
            schedule = schedule.with_steps(num_inference_steps)
        return schedule if guidance_scale is None else schedule.with_guidance(guidance_scale)

    def _plan(
        self,
        segments: tuple[TextSegment | VisionSegment, ...],
        ids: list[list[int]],
        sources: Inputs,
        clips: Mapping[str, Frames],
        schedule: Schedule,
        seed: int,
    ) -> Plan:
        counts = iter(ids)
        items: list[int | Grid] = [
            len(next(counts)) if isinstance(segment, TextSegment) else self._grid(clips[segment.name].shape)
            for segment in segments
        ]
        items.append(len(next(counts)))
        frames = (sources.num_frames, *sources.size, 3)
        target = self._grid(frames)
        return Plan(
            segments=segments,
            sources={name: clips[name].shape[:3] for name in sources.names},
            main=sources.main,
            num_frames=sources.num_frames,
            height_px=sources.size[0],
            width_px=sources.size[1],
            fps=sources.fps,
            schedule=schedule,
            seed=seed,
            target=target,
            layout=lay_out(items, target),
            layout_uncond=lay_out(items, target, with_text=False),
        )

    def _grid(self, shape: tuple[int, ...]) -> Grid:
        geometry = self._bundle.spec.geometry
        rows, columns = shape[1] // geometry.size_multiple, shape[2] // geometry.size_multiple
        return Grid(geometry.count_latent_frames(shape[0]), rows, columns)

    def _run(self, graph: str, **inputs: Any) -> dict[str, Array]:
        if self._runner is None:
            raise BackendError("the pipeline is closed; open it again with Pipeline.open")
        return self._runner.run(graph, inputs)

    def _encode_clip(self, frames: Frames) -> Array:
        """Clean patches float32 [latent frames * rows * columns, P] of frames uint8 [1 + r k, H, W, 3]."""
        ratio = self._bundle.spec.geometry.temporal_ratio
        outputs = self._run("vae_encoder_first", frames=frames[:1])
        patches = [outputs["patches"]]
        for i in range(1, len(frames), ratio):
            outputs = self._run("vae_encoder_next", frames=frames[i : i + ratio], **_caches_from(outputs))
            patches.append(outputs["patches"])
        return np.concatenate(patches).reshape(-1, self._bundle.spec.geometry.patch_dim)

    def _draw_noise(self, plan: Plan) -> Array:
        shape = np.array([plan.target.num_patches, self._bundle.spec.geometry.patch_dim], np.int64)
        return self._run("noise", seed=np.array(plan.seed, np.int64), shape=shape)["noise"]

    def _solve(
        self,
        plan: Plan,
        text: Array,
        clean: Sequence[Array],
        noise: Array,
        clock: _Clock,
        callback_on_step_end: StepCallback | None,
    ) -> Array:
        """From noise to patches float32 [Lg, P], along the schedule (paper sections 3.3 and 5.1)."""
        schedule = plan.schedule
        empty = np.zeros((0, self._bundle.spec.geometry.patch_dim), np.float32)
        context = np.concatenate([empty, *clean])
        sample, previous, before = noise, np.zeros_like(noise), np.zeros_like(noise)
        for step, timestep in enumerate(schedule.timesteps):
            guidance = schedule.guidance_scale[step]
            with clock("transformer"):
                cond = self._evaluate(plan.layout, text, context, sample, timestep)
                uncond = cond
                if guidance != 1:
                    uncond = self._evaluate(plan.layout_uncond, text[:0], context, sample, timestep)
            with clock("solver_step"):
                outputs = self._run(
                    "solver_step",
                    sample=sample,
                    velocity_cond=cond,
                    velocity_uncond=uncond,
                    velocity_prev1=previous,
                    velocity_prev2=before,
                    guidance=np.array(guidance, np.float32),
                    coefficients=np.array(schedule.coefficients[step], np.float32),
                )
            sample, previous, before = outputs["sample_next"], outputs["velocity"], previous
            if callback_on_step_end is not None:
                facts = {"num_inference_steps": schedule.num_inference_steps}
                if callback_on_step_end(self, step, timestep, facts) is False:
                    raise RequestCancelled(
                        f"stopped by its callback after step {step + 1} of {schedule.num_inference_steps}; "
                        "nothing was written"
                    )
        return sample

    def _evaluate(self, layout: Layout, text: Array, clean: Array, noisy: Array, timestep: float) -> Array:
        return self._run(
            "transformer",
            text=text,
            clean=clean,
            noisy=noisy,
            layout=layout.layout,
            positions=layout.positions,
            timestep=np.array(timestep, np.float32),
        )["velocity"]

    def _decode_patches(self, plan: Plan, patches: Array) -> Frames:
        """Frames uint8 [1 + r k, H, W, 3] of patches float32 [Lg, P], one latent frame a call."""
        grid = plan.target
        latents = patches.reshape(grid.frames, 1, grid.rows, grid.columns, -1)
        outputs = self._run("vae_decoder_first", patches=latents[0])
        frames = [outputs["frames"]]
        for latent in latents[1:]:
            outputs = self._run("vae_decoder_next", patches=latent, **_caches_from(outputs))
            frames.append(outputs["frames"])
        return np.concatenate(frames)


class _Clock:
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


def _check_numbers(seed: int, fps: float | None, start_s: float) -> None:
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise RequestError(f"seed is {seed}; give a whole number from 0 to {2**63 - 1}")
    if fps is not None and not 0 < fps < math.inf:
        raise RequestError(f"fps is {fps}; give a number above 0")
    if not 0 <= start_s < math.inf:
        raise RequestError(f"start_s is {start_s}; give seconds of 0 or more")


def _caches_from(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The caches that a VAE graph gave, under the names by which the next call takes them."""
    return {
        name.removeprefix("next_"): value for name, value in outputs.items() if name.startswith("next_cache_")
    }
