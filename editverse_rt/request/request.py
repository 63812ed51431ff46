"""A request: what is asked for, checked against a bundle and laid out in integers. No graph runs here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from editverse_rt.bundle.spec import BundleSpec, Geometry, Schedule
from editverse_rt.errors import RequestError
from editverse_rt.media.frames import Frames
from editverse_rt.planning.planner import Work
from editverse_rt.request.inputs import Inputs, Source
from editverse_rt.request.layout import Grid, Layout, lay_out
from editverse_rt.request.prompt import TextSegment, VisionSegment, parse_prompt
from editverse_rt.request.sizes import Size
from editverse_rt.request.tokenizer import Tokenizer

__all__ = ["Plan", "Request", "choose_schedule", "expect_work"]


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


class Request:
    """One request, checked; its inputs were looked at and are not decoded yet. It is run once.

    segments: the instruction in order. ids: of each text segment, and the end of the sequence by itself.
    sources: its inputs, which are read by `read`.
    """

    def __init__(
        self,
        spec: BundleSpec,
        tokenizer: Tokenizer,
        prompt: str,
        inputs: Mapping[str, Source],
        *,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        seed: int,
        schedule: str | None,
        size: Size | None,
        num_frames: int | None,
        fps: float | None,
        start_s: float,
    ) -> None:
        """The options are those of `Pipeline.__call__`. Raises RequestError, MediaError."""
        _check_numbers(seed, fps, start_s)
        self._geometry = spec.geometry
        self.seed = seed
        self.schedule = choose_schedule(spec, schedule, num_inference_steps, guidance_scale)
        self.segments = parse_prompt(prompt, inputs)
        words = [segment.text for segment in self.segments if isinstance(segment, TextSegment)]
        self.ids = tokenizer.encode_segments(words)
        self.sources = Inputs(inputs, spec.geometry, size, num_frames, fps, start_s)

    @property
    def expected_work(self) -> Work:
        """What is to be computed, by what the inputs say of themselves."""
        return expect_work(self.sources, sum(map(len, self.ids)), self.schedule)

    @property
    def clip_names(self) -> list[str]:
        """The inputs in the order of the instruction."""
        return [segment.name for segment in self.segments if isinstance(segment, VisionSegment)]

    def lay_out(self, clips: Mapping[str, Frames]) -> Plan:
        """The plan, now that the clips, uint8 [1 + r k, H, W, 3] by name, were read from the sources."""
        sources, geometry = self.sources, self._geometry
        counts = map(len, self.ids)
        items: list[int | Grid] = [
            next(counts) if isinstance(segment, TextSegment) else _grid(geometry, clips[segment.name].shape)
            for segment in self.segments
        ]
        items.append(next(counts))
        target = _grid(geometry, (sources.num_frames, *sources.size))
        return Plan(
            segments=self.segments,
            sources={name: clips[name].shape[:3] for name in sources.names},
            main=sources.main,
            num_frames=sources.num_frames,
            height_px=sources.size[0],
            width_px=sources.size[1],
            fps=sources.fps,
            schedule=self.schedule,
            seed=self.seed,
            target=target,
            layout=lay_out(items, target),
            layout_uncond=lay_out(items, target, with_text=False),
        )


def choose_schedule(
    spec: BundleSpec, name: str | None, num_inference_steps: int | None, guidance_scale: float | None
) -> Schedule:
    """The bundle's schedule of that name, None for its default, with the caller's steps and guidance.

    Raises RequestError for a name that the bundle does not have, and for numbers that the schedule refuses.
    """
    if name is not None and name not in spec.schedules:
        raise RequestError(
            f'schedule is "{name}"',
            hint=f"this bundle has {', '.join(spec.schedules)}",
            code="request.unknown_schedule",
        )
    schedule = spec.schedules[spec.default_schedule if name is None else name]
    if num_inference_steps is not None:
        schedule = schedule.with_steps(num_inference_steps)
    return schedule if guidance_scale is None else schedule.with_guidance(guidance_scale)


def expect_work(sources: Inputs, num_text: int, schedule: Schedule) -> Work:
    """What a request computes, for the planner. num_text: its tokens, the end of the sequence among them."""
    shapes = sources.expected_shapes()
    frames = sources.num_frames
    if sources.main is not None and sources.has_video:
        frames = shapes[sources.main][0]
    return Work(num_text, tuple(shapes[name] for name in sources.names), (frames, *sources.size), schedule)


def _grid(geometry: Geometry, shape: tuple[int, ...]) -> Grid:
    rows, columns = shape[1] // geometry.size_multiple, shape[2] // geometry.size_multiple
    return Grid(geometry.count_latent_frames(shape[0]), rows, columns)


def _check_numbers(seed: int, fps: float | None, start_s: float) -> None:
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise RequestError(
            f"seed is {seed}", hint=f"give a whole number from 0 to {2**63 - 1}", code="request.option"
        )
    if fps is not None and not 0 < fps < math.inf:
        raise RequestError(f"fps is {fps}", hint="give a number above 0", code="request.option")
    if not 0 <= start_s < math.inf:
        raise RequestError(f"start_s is {start_s}", hint="give seconds of 0 or more", code="request.option")
