"""Whether a backend computes what ort-cpu does: one edit through both, and the stamp for its plans."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np

from editverse_rt.bundle import Bundle, load_bundle
from editverse_rt.engine import EngineSet, write_stamp
from editverse_rt.errors import BackendError
from editverse_rt.frames import Frames
from editverse_rt.pipeline import Pipeline

__all__ = ["LEAST_PSNR_DB", "Verification", "compare_frames", "make_clip", "verify_backend"]

LEAST_PSNR_DB = {"fp32": 40.0, "fp16": 25.0, "bf16": 20.0}
"""How near a whole edit has to come, by the least exact type that the backend computes in."""
PROMPT = "<video1> Make it night"


@dataclass(frozen=True)
class Verification:
    """What the comparison found. stamps: written for plans that passed."""

    backend: str
    precision: str
    psnr_db: float
    least_psnr_db: float
    share_beyond_one_level: float
    stamps: tuple[str, ...] = ()


def verify_backend(
    bundle: str | os.PathLike[str], backend: str, num_inference_steps: int = 4
) -> Verification:
    """Run one edit on a backend and on ort-cpu, and note plans that come close enough as verified.

    Raises BackendError if the backend cannot be used, or is further from ort-cpu than its precision explains.
    """
    loaded = load_bundle(bundle)
    results = []
    with Pipeline.open(bundle, backend, allow_unverified=True) as pipeline:
        results.append(_edit(pipeline, loaded, num_inference_steps))
        used = pipeline.engines
        gpu = pipeline.gpu
    with Pipeline.open(bundle, "ort-cpu") as pipeline:
        results.append(_edit(pipeline, loaded, num_inference_steps))
    precision = _least_exact(used)
    psnr_db, share = compare_frames(*results)
    least = LEAST_PSNR_DB[precision]
    if psnr_db < least:
        raise BackendError(
            f"{backend} is {psnr_db:.1f} dB from ort-cpu, at least {least:.1f} is expected of {precision}; "
            "build its engines again, or use another backend"
        )
    stamps: tuple[str, ...] = ()
    if used is not None:
        stamps = (os.fspath(write_stamp(used, gpu, {"psnr_db": psnr_db, "share_beyond_one_level": share})),)
    return Verification(backend, precision, psnr_db, least, share, stamps)


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


def compare_frames(found: Frames, expected: Frames) -> tuple[float, float]:
    """PSNR in dB (99 for equal ones), and the share of values further than one grey level apart."""
    difference = np.abs(found.astype(np.int32) - expected.astype(np.int32))
    error = float((difference.astype(np.float64) ** 2).mean())
    psnr_db = 99.0 if error == 0 else min(99.0, 10 * math.log10(255**2 / error))
    return psnr_db, float((difference > 1).mean())


def _edit(pipeline: Pipeline, bundle: Bundle, num_inference_steps: int) -> Frames:
    geometry = bundle.spec.geometry
    num_frames = geometry.round_frames(min(geometry.max_frames, 1 + 2 * geometry.temporal_ratio))
    clip = make_clip(num_frames, geometry.default_height_px, geometry.default_width_px)
    schedule = bundle.spec.schedules[bundle.spec.default_schedule]
    steps = num_inference_steps if schedule.kind == "euler" else None
    return pipeline(PROMPT, video1=clip, num_inference_steps=steps, seed=0).frames


def _least_exact(engines: EngineSet | None) -> str:
    precisions = {plan.precision for plan in engines.plans} if engines is not None else {"fp32"}
    return next(p for p in ("bf16", "fp16", "fp32") if p in precisions)
