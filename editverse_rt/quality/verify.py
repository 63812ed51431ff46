"""Whether a backend computes what ort-cpu does: the same edits through both, and the stamp for its plans.

A bundle that carries held-out edits (`heldout.py`) is verified by them: every task, images and videos, with
the right answers known. One that does not is verified by a few made-up requests of each shape.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.engines.stamps import write_stamp
from editverse_rt.errors import BackendError, RequestError
from editverse_rt.media.frames import Frames
from editverse_rt.pipeline import Pipeline
from editverse_rt.quality.heldout import HeldoutEdit, Rule, is_right, load_heldout, measure_psnr_db
from editverse_rt.quality.statistics import mean_of

__all__ = [
    "LIMITS",
    "Compared",
    "Limits",
    "Verification",
    "describe_verification",
    "make_clip",
    "verify_backend",
]


@dataclass(frozen=True)
class Limits:
    """Least PSNR in dB of a backend's results against ort-cpu's: of the median edit, and of every edit."""

    median_db: float
    least_db: float


LIMITS = {"fp32": Limits(45.0, 35.0), "fp16": Limits(45.0, 35.0), "bf16": Limits(35.0, 20.0)}
"""By the least exact type that the backend computes in. Some 10 dB below what emulated rounding leaves of
nano's edits (docs/engines.md), since a GPU also adds up in another order; TensorRT's float32 may be TF32."""
MOST_LOST = 0.1
"""The largest accepted share of edits, net, that are right on ort-cpu and wrong on the backend."""
MADE_UP_STEPS = 4


@dataclass(frozen=True)
class Compared:
    """One edit on the backend, beside ort-cpu. right, right_on_cpu: None where no right answer is known."""

    task: str
    psnr_db: float
    right: bool | None = None
    right_on_cpu: bool | None = None


@dataclass(frozen=True)
class Verification:
    """What the comparison found.

    stamps: written for plans that passed. reference: the bundle that ort-cpu ran, None for the same one.
    """

    backend: str
    precision: str
    num_inference_steps: int
    limits: Limits
    edits: tuple[Compared, ...]
    stamps: tuple[str, ...] = ()
    reference: str | None = None

    @property
    def median_db(self) -> float:
        return float(np.median([edit.psnr_db for edit in self.edits]))

    @property
    def least_db(self) -> float:
        return min(edit.psnr_db for edit in self.edits)

    @property
    def num_lost(self) -> int:
        """Net number of edits that are right on ort-cpu and wrong on this backend."""
        return sum(bool(edit.right_on_cpu) - bool(edit.right) for edit in self.edits)

    @property
    def failure(self) -> str | None:
        """Which limits were exceeded, or None."""
        limits, worst = self.limits, min(self.edits, key=lambda edit: edit.psnr_db)
        if self.median_db < limits.median_db:
            return f"{self.median_db:.1f} dB from ort-cpu in the median, {limits.median_db:.0f} are expected"
        if worst.psnr_db < limits.least_db:
            return f"{worst.psnr_db:.1f} dB from ort-cpu in {worst.task}, {limits.least_db:.0f} are expected"
        if self.num_lost > MOST_LOST * len(self.edits):
            return f"right in {self.num_lost} of {len(self.edits)} edits less than ort-cpu"
        return None

    def report(self) -> dict[str, Any]:
        """All of it as JSON takes it, success by task among it."""
        return {**asdict(self), "median_db": self.median_db, "least_db": self.least_db, **self.success()}

    def success(self) -> dict[str, Any]:
        """The quality report: success rates on the backend, with its 95 % interval, and on ort-cpu.

        {} where no answer is known.
        """
        if any(edit.right is None for edit in self.edits):
            return {}
        rates = [
            mean_of([bool(right) for right in rights])
            for rights in ([e.right for e in self.edits], [e.right_on_cpu for e in self.edits])
        ]
        names = ("success_rate", "success_rate_on_cpu")
        return {name: round(rate.mean or 0.0, 4) for name, rate in zip(names, rates, strict=True)} | {
            "success_interval": [rates[0].to_json()["low"], rates[0].to_json()["high"]]
        }


def verify_backend(
    bundle: str | os.PathLike[str],
    backend: str,
    num_inference_steps: int | None = None,
    *,
    reference: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Verification:
    """Run the bundle's held-out edits on a backend and on ort-cpu, and note plans that pass as verified.

    num_inference_steps: None for the schedule's own; for made-up requests, which nobody judges, 4.
    reference: another export of the same checkpoint for ort-cpu to run, where it cannot run this one.
    options: of the GPU, as `Pipeline.open` takes them.
    Raises BackendError if the backend cannot be used, or is beyond the limits of its precision; RequestError
    if ort-cpu cannot run the bundle, or the reference is of another model.
    """
    loaded = load_bundle(bundle)
    standard = loaded if reference is None else load_bundle(reference)
    _check_standard(loaded, standard)
    heldout = load_heldout(loaded) or load_heldout(standard)
    edits, rule = ([*_make_edits(loaded)], None) if heldout is None else heldout
    schedule = loaded.spec.schedules[loaded.spec.default_schedule]
    if num_inference_steps is None and rule is None:
        num_inference_steps = MADE_UP_STEPS
    with Pipeline.open(bundle, backend, allow_unverified=True, **options) as pipeline:
        found = [_run(pipeline, edit, num_inference_steps) for edit in edits]
        traits = pipeline.traits
    with Pipeline.open(bundle if reference is None else reference, "ort-cpu") as pipeline:
        expected = [_run(pipeline, edit, num_inference_steps) for edit in edits]
    precision = next(p for p in ("bf16", "fp16", "fp32") if p in traits.precisions)
    report = Verification(
        backend=backend,
        precision=precision,
        num_inference_steps=num_inference_steps or schedule.num_inference_steps,
        limits=LIMITS[precision],
        edits=tuple(_compare(*three, rule) for three in zip(edits, found, expected, strict=True)),
        reference=None if reference is None else standard.spec.name,
    )
    if report.failure is not None:
        raise BackendError(
            f"{backend} ({precision}) is {report.failure}",
            hint="build its engines again, or use another backend",
            code="backend.unverified",
        )
    if traits.engines is None:
        return report
    facts = {key: value for key, value in report.report().items() if key != "stamps"}
    stamp = write_stamp(traits.engines, traits.gpu, facts)
    return replace(report, stamps=(os.fspath(stamp),))


def describe_verification(report: Verification) -> list[str]:
    """The lines that `editverse-rt verify` prints for a person: a line a task, then the sum."""
    lines = [f"{'task':<20} {'edits':>5} {'right':>6} {'on ort-cpu':>11} {'dB from ort-cpu, least':>23}"]
    for task in dict.fromkeys(edit.task for edit in report.edits):
        edits = [edit for edit in report.edits if edit.task == task]
        right, on_cpu = (
            "-" if None in marks else str(sum(map(bool, marks)))
            for marks in ([e.right for e in edits], [e.right_on_cpu for e in edits])
        )
        least = min(edit.psnr_db for edit in edits)
        lines.append(f"{task:<20} {len(edits):>5} {right:>6} {on_cpu:>11} {least:>23.1f}")
    steps = f"{report.num_inference_steps} step{'' if report.num_inference_steps == 1 else 's'}"
    lines.append(
        f"{report.backend} ({report.precision}, {steps}) against ort-cpu: "
        f"{report.median_db:.1f} dB in the median, of at least {report.limits.median_db:.0f}; "
        f"{report.least_db:.1f} at worst, of at least {report.limits.least_db:.0f}"
    )
    return [*lines, *(f"accepted: {path}" for path in report.stamps)]


def make_clip(num_frames: int, height_px: int, width_px: int) -> Frames:
    """A clip uint8 [T, H, W, 3]: a gradient with a disc that moves, the same on every machine."""
    rows, columns = np.mgrid[0:height_px, 0:width_px]
    frames = np.empty((num_frames, height_px, width_px, 3), np.uint8)
    frames[..., 0], frames[..., 1] = 255 * rows // height_px, 255 * columns // width_px
    frames[..., 2] = 96
    radius = max(2, min(height_px, width_px) // 5)
    for index, frame in enumerate(frames):
        inside = (rows - height_px // 2) ** 2 + (columns - radius - 2 * index) ** 2 < radius**2
        frame[inside] = (230, 60, 40)
    return frames


def _check_standard(bundle: Bundle, standard: Bundle) -> None:
    """Refuse what ort-cpu cannot run, before a GPU has run it, and a standard that is another model."""
    can = standard.spec.capabilities
    if can.attention == "plugin" or can.dtype != "float32":
        raise RequestError(
            f'ort-cpu cannot run bundle "{standard.spec.name}", exported with attention '
            f"{can.attention} in {can.dtype}",
            hint=(
                "export the same checkpoint with the attention fused, in float32, and name that bundle "
                "as the reference"
            ),
            code="backend.cannot_run",
        )
    own, other = bundle.spec, standard.spec
    for part, is_same in (
        ("model", own.model == other.model),
        ("geometry", own.geometry == other.geometry),
        ("schedule", own.schedules[own.default_schedule] == other.schedules[other.default_schedule]),
    ):
        if not is_same:
            raise RequestError(
                f'bundle "{other.name}" has another {part} than "{own.name}"',
                hint="name an export of the same checkpoint as the reference",
                code="bundle.mismatch",
            )


def _make_edits(bundle: Bundle) -> Iterator[HeldoutEdit]:
    """Requests of every shape: a video, an image, a video with an image. Their answers are not known."""
    geometry = bundle.spec.geometry
    num_frames = geometry.round_frames(min(geometry.max_frames, 1 + 2 * geometry.temporal_ratio))
    size = geometry.default_height_px, geometry.default_width_px
    video, image = make_clip(num_frames, *size), make_clip(1, *size)
    yield HeldoutEdit("video", "<video1> Make it night", {"video1": video}, "video1", video)
    yield HeldoutEdit("image", "<image1> Make it grayscale", {"image1": image}, "image1", image)
    both = {"video1": video, "image1": image}
    yield HeldoutEdit("both", "<video1> Insert the circle of <image1>", both, "video1", video)


def _run(pipeline: Pipeline, edit: HeldoutEdit, num_inference_steps: int | None) -> Frames:
    frames, height, width, _ = edit.target.shape
    inputs: dict[str, Any] = {
        name: clip if name.startswith("video") else clip[0] for name, clip in edit.inputs.items()
    }
    return pipeline(
        edit.prompt,
        num_inference_steps=num_inference_steps,
        size=(height, width),
        num_frames=frames,
        **inputs,
    ).frames


def _compare(edit: HeldoutEdit, found: Frames, expected: Frames, rule: Rule | None) -> Compared:
    psnr_db = measure_psnr_db(found, expected)
    if rule is None:
        return Compared(edit.task, psnr_db)
    return Compared(edit.task, psnr_db, is_right(edit, found, rule), is_right(edit, expected, rule))
