"""A request checked against a bundle: schedule, token ids, and what its inputs are. Nothing is decoded
yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.errors import RequestError
from editverse_rt.planning.planner import Work
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.inputs import ExaminedInputs, examine_inputs
from editverse_rt.request.prompt import TextSegment, VisionSegment, parse_prompt, with_tags
from editverse_rt.request.tokenizer import Tokenizer

__all__ = ["CheckedRequest", "MakeTable", "check_request", "choose_schedule", "expect_work"]

MakeTable = Callable[[Schedule, int, int], ScheduleTable]
"""The table of a schedule for another number of steps, from one of them on."""
DEFAULT_STRENGTH = 0.8
"""Strength of a video that is noised, as in diffusers' WanVideoToVideoPipeline."""

_NO_NEGATIVE_PROMPT = "this bundle's guidance leaves the text out; leave the negative prompt out"


@dataclass(frozen=True, eq=False)
class CheckedRequest:
    """A request that the bundle can serve, as far as can be known before its inputs are decoded.

    segments: the instruction in order. ids: token ids of each text segment, and last the end of the sequence
    by itself. negative_ids: of the negative prompt, None for a bundle that takes none.
    """

    request: EditRequest
    schedule: Schedule
    segments: tuple[TextSegment | VisionSegment, ...]
    ids: tuple[tuple[int, ...], ...]
    negative_ids: tuple[int, ...] | None
    inputs: ExaminedInputs

    @property
    def clip_names(self) -> list[str]:
        """The inputs in the order of the instruction."""
        return [segment.name for segment in self.segments if isinstance(segment, VisionSegment)]

    @property
    def expected_work(self) -> Work:
        """What is to be computed, by what the inputs say of themselves."""
        steps = self.schedule.num_inference_steps
        guided = self.schedule.table.num_evaluations - steps
        return expect_work(self.inputs, sum(map(len, self.ids)), steps, guided)

    @property
    def expected_result_bytes(self) -> int | None:
        """Memory that a `Result` takes, its sources among it; None where the main video does not say its length."""
        frames = self.inputs.expected_frames
        if frames is None:
            return None
        height, width = self.inputs.size
        videos = [size for name, size in self.inputs.sizes.items() if name.startswith("video")]
        return 3 * frames * (height * width + sum(rows * columns for rows, columns in videos))


def check_request(
    spec: BundleSpec, tokenizer: Tokenizer, request: EditRequest, make_table: MakeTable
) -> CheckedRequest:
    """Check a request and look at its inputs. Raises RequestError, MediaError."""
    _check_capabilities(spec, request)
    is_interleaved = spec.conditioning == "interleaved"
    segments = parse_prompt(with_tags(request.prompt, request.inputs), request.inputs)
    words = [segment.text for segment in segments if isinstance(segment, TextSegment)]
    if not is_interleaved:
        words = [" ".join(words)]
    negative_ids = None
    if spec.unconditional == "prompt":
        negative = request.negative_prompt
        text = spec.default_negative_prompt if negative is None else negative
        negative_ids = tuple(i for ids in tokenizer.encode_segments([text] if text else []) for i in ids)
    strength = None
    if spec.capabilities.strength and request.inputs:
        strength = DEFAULT_STRENGTH if request.strength is None else request.strength
    return CheckedRequest(
        request=request,
        schedule=choose_schedule(
            spec,
            request.schedule,
            request.num_inference_steps,
            request.guidance_scale,
            make_table,
            strength=strength,
        ),
        segments=segments,
        ids=tuple(map(tuple, tokenizer.encode_segments(words))),
        negative_ids=negative_ids,
        inputs=examine_inputs(request, spec.geometry, spec.conditioning),
    )


def choose_schedule(
    spec: BundleSpec,
    name: str | None,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    make_table: MakeTable,
    *,
    strength: float | None = None,
) -> Schedule:
    """The bundle's schedule of that name, None for its default, with the caller's steps and guidance.

    strength: of a noised source, the share of the steps that is run; None for all.

    Raises RequestError for a name that the bundle does not have, and for steps that a fixed table does not have.
    """
    if name is not None and name not in spec.schedules:
        raise RequestError(
            f'schedule is "{name}"',
            hint=f"this bundle has {', '.join(spec.schedules)}",
            code="request.unknown_schedule",
            field="schedule",
        )
    schedule = spec.schedules[spec.default_schedule if name is None else name]
    steps = schedule.num_inference_steps if num_inference_steps is None else num_inference_steps
    first = 0 if strength is None else steps - min(int(steps * strength), steps)
    if first == steps:
        raise RequestError(
            f"strength {strength:g} leaves none of {steps} steps",
            hint="give a larger strength or more steps",
            code="request.option",
            field="strength",
        )
    if first or steps != schedule.num_inference_steps:
        if schedule.is_fixed:
            own = schedule.num_inference_steps
            raise RequestError(
                f'{steps - first} steps of schedule "{schedule.name}"',
                expected=f"its {own} steps, whose noise levels are fixed",
                hint="leave the number of steps out, give strength 1, or take another schedule",
                code="request.option",
                field="num_inference_steps" if steps != own else "strength",
            )
        schedule = schedule.with_table(make_table(schedule, steps, first))
    return schedule if guidance_scale is None else schedule.with_guidance(guidance_scale)


def expect_work(inputs: ExaminedInputs, num_text: int, num_steps: int, num_guided: int) -> Work:
    """What a request computes, for the planner. num_text: its tokens, the end of the sequence among them."""
    shapes = inputs.expected_shapes()
    frames = inputs.num_frames
    if inputs.main is not None and inputs.has_video:
        frames = shapes[inputs.main][0]
    clips = tuple(shapes[name] for name in inputs.names)
    return Work(num_text, clips, (frames, *inputs.size), num_steps, num_guided, inputs.expected_windows or 1)


def _check_capabilities(spec: BundleSpec, request: EditRequest) -> None:
    """Refuse by name what this bundle cannot do."""
    can = spec.capabilities
    if request.negative_prompt is not None and not can.negative_prompt:
        raise RequestError(
            "negative_prompt is given",
            hint=_NO_NEGATIVE_PROMPT,
            code="request.unsupported",
            field="negative_prompt",
        )
    if request.strength is not None and not (can.strength and request.inputs):
        raise RequestError(
            "strength is given",
            hint="it needs a video and a bundle that begins with a noised source; leave it out",
            code="request.unsupported",
            field="strength",
        )
    if not request.inputs and not can.generates:
        raise RequestError(
            "no video and no image is given",
            expected="at least one: this bundle edits and does not generate",
            code="request.unsupported",
            field="inputs",
        )
    if request.inputs and not can.edits:
        raise RequestError(
            f"{', '.join(request.inputs)} is given",
            expected="no input: this bundle generates and does not edit",
            code="request.unsupported",
            field="inputs",
        )
