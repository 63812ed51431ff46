"""What a worker does with a request before it is queued: inputs get names, limits hold, the cost is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editverse_rt import media
from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.media.frames import MediaInfo
from editverse_rt.pipeline import Pipeline
from editverse_rt.planning.planner import Work, check_budget, estimate_work
from editverse_rt.request.checked import CheckedRequest
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.prompt import INPUT_NAME, with_tags
from editverse_rt.serve.problems import too_many_frames, too_many_inputs

__all__ = ["Limits", "Prepared", "error_without_paths", "prepare_request", "share_budget"]


@dataclass(frozen=True)
class Limits:
    """What an input may be, and what a request may hold. max_frames: of a result, whose windows a worker keeps on disk;
    memory_budget_bytes: None for no limit."""

    max_picture_px: int = 40_000_000
    max_side_px: int = 4096
    max_video_s: float = 600.0
    max_frames: int = 20_000
    max_inputs: int = 16
    memory_budget_bytes: int | None = None


def share_budget(limits: Limits, weights: Mapping[str, int]) -> dict[str, Limits]:
    """The limits by model: of a memory budget, what the weights of the other models leave.

    weights: bytes by model. Raises RequestError where the budget does not hold them all.
    """
    budget, total = limits.memory_budget_bytes, sum(weights.values())
    if budget is None:
        return dict.fromkeys(weights, limits)
    if budget <= total:
        raise RequestError(
            f"the memory budget is {budget} bytes",
            expected=f"more than the {total} bytes of the weights alone",
            hint="give more",
            code="request.option",
            field="memory_budget",
        )
    return {
        name: replace(limits, memory_budget_bytes=budget - (total - own)) for name, own in weights.items()
    }


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checked request, its JSON with the tags that were put in, its file type, and what it will cost."""

    checked: CheckedRequest
    request: dict[str, Any]
    inputs: dict[str, Path]
    format: str
    estimate: dict[str, Any]

    def close(self) -> None:
        """Close the files of the inputs."""
        for file in self.checked.inputs.files.values():
            file.close()


def prepare_request(
    pipeline: Pipeline,
    request: Mapping[str, Any],
    inputs: Mapping[str, Path],
    unnamed: Sequence[Path],
    file_format: str | None,
    limits: Limits,
) -> Prepared:
    """Check a request and look at its inputs.

    request: JSON of an edit request without inputs. unnamed: inputs that get the next free name of their kind.
    file_format: the result's suffix without the dot; None for a picture of one frame, else a video.
    Raises RequestError, MediaError, BackendError.
    """
    if len(inputs) + len(unnamed) > limits.max_inputs:
        raise too_many_inputs(len(inputs) + len(unnamed), limits.max_inputs)
    named = dict(inputs)
    for path in unnamed:
        kind = media.probe(path).kind
        taken = [int(name[len(kind) :]) for name in named if name.startswith(kind)]
        named[f"{kind}{max(taken, default=0) + 1}"] = path
    edit = EditRequest.from_json(dict(request)).with_inputs(dict(named))
    edit = replace(edit, prompt=with_tags(edit.prompt, named))
    is_picture = f".{file_format}" in media.IMAGE_SUFFIXES
    if is_picture:
        if edit.num_frames not in (None, 1):
            raise RequestError(
                f"{edit.num_frames} for a {file_format}, which holds 1 frame",
                hint="leave it out, or take a video's format",
                code="request.option",
                field="num_frames",
                is_value=True,
            )
        edit = replace(edit, num_frames=1)
    with ExitStack() as stack:
        checked = pipeline.prepare(edit)
        for file in checked.inputs.files.values():
            stack.callback(file.close)
        for name, info in checked.inputs.media.items():
            _check_input(name, info, limits)
        work = checked.expected_work
        spec = pipeline.bundle.spec
        _check_length(checked, limits)
        decoded = sum(3 * frames * height * width for frames, height, width in work.clips)
        if limits.memory_budget_bytes is not None:
            check_budget(spec, work, limits.memory_budget_bytes, decoded)
        estimate = _estimate_from(pipeline, checked, work, decoded)
        stack.pop_all()
    chosen = file_format or ("png" if work.result[0] == 1 else "mp4")
    facts = edit.to_json()
    facts.pop("inputs", None)
    return Prepared(checked, facts, named, chosen, estimate)


def error_without_paths(error: EditVerseError, places: Mapping[str, Path]) -> dict[str, str]:
    """The error as JSON, with names in place of the server's paths."""
    facts = error.to_json()
    for name, path in places.items():
        facts = {part: text.replace(str(path), name) for part, text in facts.items()}
    return facts


def _check_input(name: str, info: MediaInfo, limits: Limits) -> None:
    found = f"{name} is {info.width_px}x{info.height_px} px"
    expected = ""
    if info.kind == "image":
        if info.width_px * info.height_px > limits.max_picture_px:
            expected = f"a picture of {limits.max_picture_px} px or fewer"
    elif max(info.width_px, info.height_px) > limits.max_side_px:
        expected = f"a video of {limits.max_side_px} px a side or fewer"
    elif info.duration_s is not None and info.duration_s > limits.max_video_s:
        found = f"{name} is {info.duration_s:.1f} s long"
        expected = f"{limits.max_video_s:g} s or fewer"
    if expected:
        raise RequestError(
            found, expected=expected, hint="make it smaller first", code="request.too_large", field=name
        )


def _check_length(checked: CheckedRequest, limits: Limits) -> None:
    """Refuse a result of more frames than a worker keeps on its disk. Raises RequestError."""
    frames = _frames_of(checked)
    if frames > limits.max_frames:
        raise too_many_frames(str(frames), limits.max_frames)


def _frames_of(checked: CheckedRequest) -> int:
    """The frames of the whole result; where its video does not say, the most that it may have."""
    inputs = checked.inputs
    frames = inputs.total_frames if inputs.expected_frames is None else inputs.expected_frames
    return inputs.num_frames if frames is None else frames


def _estimate_from(pipeline: Pipeline, checked: CheckedRequest, work: Work, decoded: int) -> dict[str, Any]:
    spec = pipeline.bundle.spec
    estimate = estimate_work(spec, work)
    request, (frames, height, width) = checked.request, work.result
    windows = checked.inputs.expected_windows or 1
    flops = {"encode": 0, "denoise": 0, "decode": 0}
    for stage in estimate.stages:
        phase = "encode"
        if stage.name.startswith(("transformer", "solver")):
            phase = "denoise"
        elif stage.name == "vae_decoder":
            phase = "decode"
        flops[phase] += stage.flops
    return {
        "width": width,
        "height": height,
        "num_frames": frames if windows == 1 else _frames_of(checked),
        "num_windows": windows,
        "fps": _expected_fps(checked),
        "schedule": spec.default_schedule if request.schedule is None else request.schedule,
        "num_inference_steps": work.num_steps,
        "memory_bytes": estimate.peak_bytes - estimate.weight_bytes + decoded,
        "flops": flops,
        "main": checked.inputs.main,
    }


def _expected_fps(checked: CheckedRequest) -> float:
    inputs = checked.inputs
    main = inputs.main
    if checked.request.fps is None and main is not None and INPUT_NAME.fullmatch(main):
        return inputs.media[main].fps or inputs.fps
    return inputs.fps
