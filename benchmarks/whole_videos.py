"""`python -m benchmarks.whole_videos`: ways to join the windows of a long video, where every right answer is known.

Edits of 49 to 97 frames of nano's procedural world, over all tasks that make sense for a whole clip, by each way:

- independent: every 17 frames are a request of their own
- known: the way of the runtime (`length="whole"`): the first frames of a window are known
- propagation: the paper's task: a window gets the last edited frame as the first frame's edit, and no instruction
- blended: windows overlap by two latent frames, share noise there, and are solved together; at each step their
  velocities are averaged, and the frames fade into each other

Written of each: success on the whole clip, on each quarter of it and on its first window, the mean change from frame to
frame at the seams and elsewhere, and the evaluations of the transformer beside those of independent windows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/whole_videos.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.results import FOLDER, write_results
from editverse_rt import media, stages
from editverse_rt.families import family_of
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.inputs import read_inputs
from reference.nano.curate import SIZES, draw_curated
from reference.nano.heldout import score_edit
from reference.nano.tasks import EDIT_TASKS, Sample
from reference.nano.world import Canvas

__all__ = ["LENGTHS", "WAYS", "long_samples", "main", "measure"]

Frames = NDArray[np.uint8]
LENGTHS = (49, 65, 81, 97)
WINDOW = 17
SHEET_SEED = 5
OVERLAP = 2
"""Latent frames that neighbouring windows share where they are blended."""
PROPAGATE = "<video1> Propagate the edit of the first frame <image1>"


def long_samples(count: int, seed: int) -> Iterator[Sample]:
    """Edits with their right answers, as many of each task. A pan lasts as long as its clip, so it is left out."""
    number = attempt = 0
    while number < count:
        task = EDIT_TASKS[number % len(EDIT_TASKS)]
        height, width = SIZES[number % len(SIZES)]
        length = LENGTHS[(number // len(EDIT_TASKS)) % len(LENGTHS)]
        rng = np.random.default_rng([seed, number, attempt])
        sample = draw_curated(rng, task, Canvas(length, height, width))
        if "camera" in sample.prompt:
            attempt += 1
            continue
        number, attempt = number + 1, 0
        yield sample


class Ways:
    """The ways to join windows, on one pipeline and schedule."""

    def __init__(self, pipeline: Pipeline, schedule: str) -> None:
        self.pipeline, self.schedule = pipeline, schedule

    def edit(self, prompt: str, inputs: dict[str, Frames], length: str = "cut") -> Frames:
        """One request; an image is one picture, and a clip is padded to a length that the VAE takes."""
        given = {n: clip if n.startswith("video") else clip[0] for n, clip in inputs.items()}
        return self.pipeline(EditRequest(prompt, given, schedule=self.schedule, length=length)).frames

    def independent(self, sample: Sample) -> Frames:
        length = len(sample.target)
        parts = []
        for begin in range(0, length, WINDOW):
            part = slice(begin, min(begin + WINDOW, length))
            parts.append(self.edit(sample.prompt, _cut(sample, part))[: part.stop - begin])
        return np.concatenate(parts)

    def known(self, sample: Sample) -> Frames:
        return self.edit(sample.prompt, sample.inputs, length="whole")

    def propagation(self, sample: Sample) -> Frames:
        length = len(sample.target)
        whole = self.edit(sample.prompt, _cut(sample, slice(0, WINDOW)))
        while len(whole) < length:
            begin = len(whole) - 1
            part = _cut(sample, slice(begin, min(begin + WINDOW, length)))
            inputs = {sample.source or "video1": part[sample.source or "video1"], "image1": whole[-1:]}
            frames = self.edit(PROPAGATE, inputs)[: length - begin]
            whole = np.concatenate([whole, frames[1:]])
        return whole

    def blended(self, sample: Sample) -> Frames:
        """All windows are solved together. Latent frame 0 of a window stands for one frame, and is not shared."""
        pipeline, spec = self.pipeline, self.pipeline.bundle.spec
        family, run = family_of(spec.family), pipeline.run_graph
        length, step = len(sample.target), WINDOW - 1 - 4 * OVERLAP
        windows = []
        for begin in range(0, max(1, length - 1 - 4 * OVERLAP), step):
            given = {
                n: clip if n.startswith("video") else clip[0]
                for n, clip in _cut(sample, slice(begin, min(begin + WINDOW, length))).items()
            }
            checked = pipeline.prepare(EditRequest(sample.prompt, given, schedule=self.schedule))
            footage = read_inputs(checked.inputs)
            laid_out = family.lay_out(spec, checked, footage)
            texts = [stages.encode_text(run, ids) for ids in family.texts(checked)]
            clean = family.encode_clean(run, spec, checked, footage)
            windows.append((begin, laid_out, texts, clean))
        table = windows[0][1].schedule.table
        a_frame = windows[0][1].target.rows * windows[0][1].target.columns
        latents = (length - 1 + 3) // 4
        shape = np.array([(1 + latents) * a_frame, spec.geometry.patch_dim], np.int64)
        noise = np.asarray(run("noise", seed=np.array(0, np.int64), shape=shape)["noise"])
        rows = [
            np.r_[0:a_frame, (1 + begin // 4) * a_frame : (begin // 4 + w.target.frames) * a_frame]
            for begin, w, _, _ in windows
        ]
        samples = [noise[r] for r in rows]
        histories = [np.zeros((len(table.matrices[0]) - 1, *s.shape), np.float32) for s in samples]
        for number, timestep in enumerate(table.timesteps):
            velocities = [
                _velocity(run, w, texts, clean, x, timestep, table.guidance[number])
                for (_, w, texts, clean), x in zip(windows, samples, strict=True)
            ]
            total, weight = np.zeros_like(noise), np.zeros((len(noise), 1), np.float32)
            for r, velocity in zip(rows, velocities, strict=True):
                total[r[a_frame:]] += velocity[a_frame:]
                weight[r[a_frame:]] += 1
            for index, r in enumerate(rows):
                velocity = velocities[index].copy()
                velocity[a_frame:] = total[r[a_frame:]] / weight[r[a_frame:]]
                outputs = run(
                    "solver_step", sample=samples[index], history=histories[index], velocity_cond=velocity,
                    velocity_uncond=velocity, guidance=np.array(1, np.float32),
                    matrix=np.array(table.matrices[number], np.float32),
                )  # fmt: skip
                samples[index] = np.asarray(outputs["sample_next"])
                histories[index] = np.asarray(outputs["history_next"])
        whole = np.zeros((length, *sample.target.shape[1:]), np.float64)
        for (begin, laid_out, _, _), x in zip(windows, samples, strict=True):
            frames = stages.decode_patches(run, laid_out.target, x)[: length - begin].astype(np.float64)
            shared = 0 if begin == 0 else 1 + 4 * OVERLAP
            fade = (np.arange(shared) / max(1, shared))[:, None, None, None]
            whole[begin : begin + shared] = (1 - fade) * whole[begin : begin + shared] + fade * frames[
                :shared
            ]
            whole[begin + shared : begin + len(frames)] = frames[shared:]
        return np.asarray(whole.round(), np.uint8)


def _velocity(
    run: Callable[..., Any], laid_out: Any, texts: Any, clean: Any, x: Any, timestep: float, guidance: float
) -> NDArray[np.float32]:
    """The guided velocity of one window."""
    found = []
    for branch in (laid_out.cond, laid_out.uncond)[: 1 if guidance == 1 else 2]:
        text = texts[0][:0] if branch.text is None else texts[branch.text]
        outputs = run(
            "transformer", text=text, clean=clean, noisy=x, layout=branch.layout.layout,
            positions=branch.layout.positions, timestep=np.array(timestep, np.float32),
        )  # fmt: skip
        found.append(np.asarray(outputs["velocity"]))
    if len(found) == 1:
        return found[0]
    return np.asarray(found[1] + np.float32(guidance) * (found[0] - found[1]), np.float32)


def _cut(sample: Sample, part: slice) -> dict[str, Frames]:
    """The inputs of a window; its last frame is repeated up to a length that the VAE takes."""

    def padded(clip: Frames) -> Frames:
        missing = -(len(clip) - 1) % 4
        return np.concatenate([clip, clip[-1:].repeat(missing, 0)])

    return {n: padded(clip[part]) if n.startswith("video") else clip for n, clip in sample.inputs.items()}


WAYS: dict[str, tuple[str, Callable[[int], int], Callable[[int], int]]] = {
    # method, new frames of a window after the first, where seams are
    "independent": ("independent", lambda n: -(-n // WINDOW), lambda k: WINDOW * k - 1),
    "known": ("known", lambda n: 1 + -(-(n - WINDOW) // 16), lambda k: 16 * k),
    "propagation": ("propagation", lambda n: 1 + -(-(n - WINDOW) // 16), lambda k: 16 * k),
    "blended": ("blended", lambda n: 1 + -(-(n - WINDOW) // 8), lambda k: 8 * k),
}
"""By name: the method, the number of windows of a length, and the frame before the k-th seam."""


def measure(
    pipeline: Pipeline, schedule: str, seed: int, count: int, ways: Sequence[str]
) -> list[dict[str, Any]]:
    """What each way gives on the samples of a seed, a row each."""
    methods, found = Ways(pipeline, schedule), {way: list[dict[str, float]]() for way in ways}
    windows = dict.fromkeys((*ways, "independent"), 0)
    for sample in tqdm(long_samples(count, seed), total=count, desc=f"seed {seed}", file=sys.stderr):
        length = len(sample.target)
        for way in windows:
            windows[way] += WAYS[way][1](length)
        for way in ways:
            frames = getattr(methods, WAYS[way][0])(sample)
            found[way].append(_score(sample, frames, [WAYS[way][2](k) for k in range(1, length)]))
    return [
        {
            "seed": seed,
            "way": way,
            "edits": count,
            **{name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]},
            "evaluations": round(windows[way] / windows["independent"], 3),
        }
        for way, rows in found.items()
    ]


def draw_sheet(pipeline: Pipeline, schedule: str) -> Frames:
    """A picture: an edit of 65 frames, its source above, at both sides of each seam and between them."""
    sample = draw_curated(np.random.default_rng(SHEET_SEED), "change_color", Canvas(65, 64, 64))
    whole = Ways(pipeline, schedule).known(sample)
    shown = [8, 16, 17, 24, 32, 33, 40, 48, 49, 56, 64]
    source = sample.inputs[sample.source or "video1"]
    print(sample.prompt)
    return media.contact_sheet([source[shown], whole[shown]], num_columns=len(shown), frame_px=128)


def _score(sample: Sample, frames: Frames, seams: Sequence[int]) -> dict[str, float]:
    def success(part: slice) -> bool:
        inputs = {n: clip[part] if n.startswith("video") else clip for n, clip in sample.inputs.items()}
        return score_edit(replace(sample, inputs=inputs, target=sample.target[part]), frames[part]).is_success

    length = len(frames)
    quarter = length // 4
    changes = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    wanted = np.abs(np.diff(sample.target.astype(np.int16), axis=0)).mean((1, 2, 3))
    at_seams = np.isin(np.arange(length - 1), seams)
    return {
        "whole": success(slice(None)),
        "first_window": success(slice(0, WINDOW)),
        **{f"quarter_{k}": success(slice(k * quarter, (k + 1) * quarter)) for k in range(4)},
        "seam": float(changes[at_seams].mean()),
        "elsewhere": float(changes[~at_seams].mean()),
        "right_answer": float(wanted.mean()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.whole_videos", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER / "whole-videos.json", help="a JSON file of the results"
    )
    parser.add_argument("--edits", type=int, default=42, help="of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--schedule", default="balanced")
    parser.add_argument("--sheet", type=Path, help="draw one edit across its seams to this picture, and end")
    arguments = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with Pipeline.open("nano", num_threads=1) as pipeline:
        if args.sheet is not None:
            media.write_image(args.sheet, draw_sheet(pipeline, args.schedule))
            return 0
        for seed in args.seeds:
            rows += measure(pipeline, args.schedule, seed, args.edits, args.ways)
            write_results(args.out, "whole_videos", rows, {"schedule": args.schedule}, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
