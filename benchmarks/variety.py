"""`python -m benchmarks.variety CHECKPOINT`: which schedules keep what has many right answers (`export/variety.py`).

Images and clips are sampled without text and inputs, and held to real ones of nano's world, or of `--real FOLDER`
(files .npy, uint8 [T, H, W, 3]; those of one frame are the images). The first row is the standard: the checkpoint's
own 50 steps. `--distilled FOLDER` adds a distilled checkpoint at the steps that it was made for; it may be given more
than once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/variety.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from export.schedules import ScheduleSettings, build_schedule
from export.variety import Variety, encode_real, keeps_variety, measure_variety, sample_latents
from reference.checkpoint import Checkpoint, load_checkpoint
from reference.nano.curate import draw_curated
from reference.nano.world import Canvas

__all__ = ["SCHEDULES", "measure_schedules", "real_clips"]

STANDARD = "euler-50 guidance 1"
SCHEDULES = (
    "ab2-8 shift 0.3 guidance 1", "euler-8 guidance 1", "ab2-4 shift 0.2 guidance 1", "euler-4 guidance 1",
    "ab2-2 shift 0.2 guidance 1", "euler-2 guidance 1", "euler-1 guidance 1",
)  # fmt: skip
REAL_SEED = 31
IMAGES, CLIPS, CLIP_FRAMES = 128, 48, 9
Frames = NDArray[np.uint8]


def real_clips(frames: int, count: int, height: int, width: int, seed: int = REAL_SEED) -> Iterator[Frames]:
    """Scenes of nano's world without a request."""
    for index in range(count):
        rng = np.random.default_rng([seed, frames, index])
        yield draw_curated(rng, "generation", Canvas(frames, height, width)).target


def measure_schedules(
    checkpoint: Checkpoint,
    labels: Sequence[str],
    real: dict[str, torch.Tensor],
    grids: dict[str, tuple[int, int, int]],
    *,
    distilled: Sequence[tuple[str, Checkpoint]] = (),
) -> list[dict[str, Any]]:
    """Rows, one a schedule; the first is the standard, that the others are held to.

    labels: of schedules, the standard first. real, grids: latents and their grid by kind of sample, as many
    samples of each as there are real ones. distilled: checkpoints with their names.
    """
    runs = [(label, checkpoint, ScheduleSettings.from_label(label)) for label in labels]
    own = len(runs)
    for name, other in distilled:
        steps = int(other.scheduler["num_inference_steps"])
        runs.append((name, other, ScheduleSettings("euler", steps, guidance_scale=1.0)))
    expected: dict[str, torch.Tensor] = {}
    standard: dict[str, Variety] = {}
    rows = []
    for index, (name, model, settings) in enumerate(runs):
        found, start = {}, time.process_time()
        for kind, grid in grids.items():
            samples = sample_latents(model, grid, len(real[kind]), settings)
            expected.setdefault(kind, samples)
            found[kind] = measure_variety(samples, real[kind], expected[kind])
        standard = standard or found
        rows.append({
            "schedule": name,
            "evaluations": build_schedule("variety", settings).num_inference_steps,
            "distilled": index >= own,
            "kept": keeps_variety(found, standard),
            "cpu_s": time.process_time() - start,
            **{kind: asdict(variety) for kind, variety in found.items()},
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variety",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--schedule", nargs="+", default=SCHEDULES, metavar="LABEL")
    add("--distilled", type=Path, action="append", default=[], metavar="FOLDER")
    add("--real", type=Path, metavar="FOLDER", help="clips as .npy, instead of nano's world")
    add("--images", type=int, default=IMAGES)
    add("--clips", type=int, default=CLIPS)
    add("--out", type=Path, default=FOLDER / "variety.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(args.checkpoint)
    limits = checkpoint.limits
    size = int(limits["default_height_px"]), int(limits["default_width_px"])
    kinds: dict[str, list[Frames]] = {
        "images": list(real_clips(1, args.images, *size)),
        "clips": list(real_clips(CLIP_FRAMES, args.clips, *size)),
    }
    if args.real is not None:
        files = [np.load(path, allow_pickle=False) for path in sorted(args.real.glob("*.npy"))]
        kinds = {
            "images": [clip for clip in files if len(clip) == 1],
            "clips": [clip for clip in files if len(clip) > 1],
        }
        kinds = {kind: clips for kind, clips in kinds.items() if clips}
    side = 8 * checkpoint.patch_size
    grids = {}
    for kind, clips in kinds.items():
        frames, height, width, _ = clips[0].shape
        grids[kind] = (1 + (frames - 1) // 4, height // side, width // side)
    real = {kind: encode_real(checkpoint, clips) for kind, clips in kinds.items()}
    distilled = [(path.name, load_checkpoint(path)) for path in args.distilled]
    try:
        rows = measure_schedules(checkpoint, [STANDARD, *args.schedule], real, grids, distilled=distilled)
    except ValueError as error:
        parser.error(str(error))
    facts = {
        "checkpoint": args.checkpoint.name,
        "samples": {kind: len(values) for kind, values in real.items()},
        "real_variance": {kind: float(values.double().var(0).mean()) for kind, values in real.items()},
    }
    if args.real is None:
        other = {
            kind: encode_real(
                checkpoint, real_clips(len(kinds[kind][0]), len(kinds[kind]), *size, REAL_SEED + 1)
            )
            for kind in kinds
        }
        facts["real_frechet"] = {
            kind: measure_variety(other[kind], real[kind], other[kind]).frechet for kind in kinds
        }
    print(write_report(write_results(args.out, "variety", rows, facts, arguments), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
