"""`python -m benchmarks.frontier BUNDLE`: quality against time for each schedule, and which to offer.

Each candidate edits the held-out set of `export.quality` and its real clips, in turns, edit by edit, and
generates described scenes. The first is the paper's schedule, which the others are held to. From those, two
are named:
  balanced  the fewest evaluations that keep success to MAX_LOST and 40 dB to the paper's result;
  fast      the fewest that keep it, and 30 dB.
With `--variety FILE`, none is named that fails the many-valued test of `benchmarks.variety`.
With `--standard OTHER`, the first is the paper's schedule on another bundle: what a lossy one is held to.
A label that names no guidance takes the bundle's own.
`python -m export.name_schedules BUNDLE FRONTIER.json` puts them into the bundle with what was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

if not __package__:  # run as a file: `python benchmarks/frontier.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from benchmarks.clock import time_call
from benchmarks.report import write_report
from benchmarks.results import FOLDER, read_results, write_results
from editverse_rt.backends import select_backend
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.bundle.schedule import Schedule
from editverse_rt.media.frames import Frames
from editverse_rt.pipeline import Pipeline
from editverse_rt.quality.statistics import mean_of
from export.quality import read_real_clips
from export.schedules import ScheduleSettings, build_schedule
from reference.nano.heldout import (
    GENERATIONS_PER_KIND,
    PER_KIND,
    Score,
    generation_samples,
    heldout_samples,
    objects_shown,
    real_samples,
    score_edit,
)
from reference.nano.styles import psnr_db
from reference.nano.tasks import Sample

__all__ = ["CANDIDATES", "choose_named", "mark_variety", "measure_schedules"]

MAX_LOST = 0.01
"""Of the success rate, against the paper's schedule."""
MIN_PSNR_DB = {"balanced": 40.0, "fast": 30.0}
"""To the paper's result: at 40 dB one looks for the difference, at 30 dB one sees it."""
PAPER = "euler-50"
EDITS_A_PART = 12
"""That one process measures before it hands over what it found."""

Kind = Literal["edit", "real", "generation"]

CANDIDATES = (
    PAPER, "euler-20", "ab2-20", "ab2-12", "ab2-8",
    "ab2-12 shift 0.3", "ab2-10 shift 0.3 guided 0.1-1", "ab2-8 shift 0.3 guided 0.1-1",
    "ab2-6 shift 0.3 guided 0.1-1", "ab2-6 shift 0.2 guided 0.1-1", "ab3-6 shift 0.2 guided 0.1-1",
    "ab2-5 shift 0.2 guided 0.1-1", "ab2-4 shift 0.2 guided 0.1-1", "ab2-3 shift 0.2 guided 0.1-1",
    "ab2-2 shift 0.2 guided 0.1-1", "euler-1 guidance 1",
)  # fmt: skip


@dataclasses.dataclass
class _Tally:
    """What one schedule did so far."""

    scores: list[Score] = dataclasses.field(default_factory=list)
    real_scores: list[Score] = dataclasses.field(default_factory=list)
    objects: list[bool] = dataclasses.field(default_factory=list)
    decibels: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)

    def extend(self, other: _Tally) -> None:
        for field in dataclasses.fields(self):
            getattr(self, field.name).extend(getattr(other, field.name))


def measure_schedules(
    bundle: Bundle,
    settings: Mapping[str, ScheduleSettings],
    samples: Iterable[Sample],
    real: Iterable[Sample] = (),
    generations: Iterable[Sample] = (),
    *,
    threads: int = 1,
    workers: int = 1,
    standard: Bundle | None = None,
) -> list[dict[str, Any]]:
    """Rows, one a settings, in their order; the first is what the results of the others are compared with.

    settings: by label. samples, real: held-out edits, and those of real clips, scored apart. generations:
    described scenes, whose objects are counted; they enter neither PSNR nor time. workers:
    processes that share the edits. standard: the bundle that runs the first settings, None for the same as
    the others'.
    """
    schedules = {label: build_schedule(label, settings) for label, settings in settings.items()}
    tallies = {label: _Tally() for label in schedules}
    marked: list[tuple[Sample, Kind]] = [(sample, "edit") for sample in samples]
    marked += [(sample, "real") for sample in real]
    marked += [(sample, "generation") for sample in generations]
    parts = [marked[start : start + EDITS_A_PART] for start in range(0, len(marked), EDITS_A_PART)]
    measure = partial(_measure_part, bundle, standard, schedules, threads)
    with ExitStack() as stack:
        found: Iterable[dict[str, _Tally]] = map(measure, parts)
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context))
            found = pool.map(measure, parts)
        for part in tqdm(found, desc=f"{EDITS_A_PART} edits", total=len(parts), file=sys.stderr):
            for label, tally in part.items():
                tallies[label].extend(tally)
    return [_row(label, settings[label], schedules[label], tally) for label, tally in tallies.items()]


def _measure_part(
    bundle: Bundle,
    standard: Bundle | None,
    schedules: Mapping[str, Schedule],
    threads: int,
    marked: Sequence[tuple[Sample, Kind]],
) -> dict[str, _Tally]:
    """Some of the requests, each by every schedule in turn."""
    tallies = {label: _Tally() for label in schedules}
    with ExitStack() as stack:
        others = stack.enter_context(_open_with(bundle, schedules, threads))
        first = stack.enter_context(_open_with(standard, schedules, threads)) if standard else others
        # Sessions are made before anything is timed: a clip takes all of them.
        longest = max((sample for sample, _ in marked), key=lambda sample: len(sample.target))
        for pipeline in (first, others):
            _edit(pipeline, longest, min(schedules, key=lambda label: schedules[label].num_inference_steps))
        for sample, kind in marked:
            if kind == "generation":
                for label, tally in tallies.items():
                    frames = _edit(first if label == next(iter(tallies)) else others, sample, label)
                    tally.objects.extend(objects_shown(sample, frames))
                continue
            expected: Frames | None = None
            for label, tally in tallies.items():
                pipeline = first if expected is None else others
                taken, frames = time_call(partial(_edit, pipeline, sample, label))
                expected = frames if expected is None else expected
                (tally.real_scores if kind == "real" else tally.scores).append(score_edit(sample, frames))
                tally.decibels.append(psnr_db(frames, expected))
                tally.cpu_s.append(taken.cpu_s)
    return tallies


def _open_with(bundle: Bundle, schedules: Mapping[str, Schedule], threads: int) -> Pipeline:
    """The bundle on the CPU, with other schedules than its own."""
    spec = dataclasses.replace(bundle.spec, schedules=dict(schedules), default_schedule=next(iter(schedules)))
    runner = select_backend("ort-cpu", bundle).backend.open_runner(bundle, threads)
    return Pipeline(Bundle(bundle.root, spec), runner)


def _edit(pipeline: Pipeline, sample: Sample, schedule: str) -> Frames:
    frames, height, width, _ = sample.target.shape
    inputs: dict[str, Any] = {
        name: clip if name.startswith("video") else clip[0] for name, clip in sample.inputs.items()
    }
    result = pipeline(sample.prompt, schedule=schedule, size=(height, width), num_frames=frames, **inputs)
    return result.frames


def _row(label: str, settings: ScheduleSettings, schedule: Schedule, tally: _Tally) -> dict[str, Any]:
    rate = mean_of([score.is_success for score in tally.scores])
    return {
        "schedule": label,
        "solver": settings.solver,
        "settings": settings.to_json(),
        "steps": schedule.num_inference_steps,
        "evaluations": schedule.table.num_evaluations,
        "success_rate": rate.mean,
        "success_interval": [rate.low, rate.high],
        "success_rate_real": mean_of([score.is_success for score in tally.real_scores]).mean,
        "objects_shown": mean_of(tally.objects).mean,
        "psnr_db": mean(tally.decibels),
        "psnr_median_db": median(tally.decibels),
        "cpu_s": mean(tally.cpu_s),
    }


def mark_variety(rows: Sequence[dict[str, Any]], found: Sequence[Mapping[str, Any]]) -> None:
    """Write "keeps_variety" into the rows whose solver, steps and shift `benchmarks.variety` measured.

    found: its rows. Guidance plays no part there, since nothing is told.
    """

    def key(label: str) -> tuple[str, int, float]:
        settings = ScheduleSettings.from_label(label)
        return settings.solver, settings.num_steps, settings.shift

    kept = {key(row["schedule"]): row["kept"] for row in found if not row.get("distilled")}
    for row in rows:
        settings = ScheduleSettings(**row["settings"])
        row["keeps_variety"] = kept.get((settings.solver, settings.num_steps, settings.shift))


def choose_named(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The labels to offer, by name; the first row is the paper's. A name that none deserves is left out.

    Rows that `mark_variety` has marked as failing the many-valued test are not offered.
    """
    paper, *others = rows
    others = [row for row in others if row["schedule"] != PAPER and row.get("keeps_variety") is not False]
    kept = [row for row in others if row["success_rate"] >= paper["success_rate"] - MAX_LOST]
    named = {"paper": PAPER}
    for name, min_psnr_db in MIN_PSNR_DB.items():
        close = [row for row in kept if row["psnr_db"] >= min_psnr_db]
        if close:
            # Of equal cost, the one that is nearer to the paper's result.
            best = min(close, key=lambda row: (row["evaluations"], -row["psnr_db"]))
            named[name] = best["schedule"]
    return named


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", nargs="?", default="nano", help="name or folder (default: nano)")
    add("--schedule", nargs="+", default=CANDIDATES, metavar="LABEL", help="as 'ab2-10 shift 2 guided 0-0.6'")
    add("--per-kind", type=int, default=PER_KIND, help="edits of each task, for images and for videos")
    add("--skip-real", action="store_true", help="leave the real clips out")
    add("--skip-generations", action="store_true", help="leave the described scenes out")
    add("--threads", type=int, default=1, help="of the CPU, of each process (default: 1)")
    add("--workers", type=int, default=1, help="processes that share the edits (default: 1)")
    add("--variety", type=Path, metavar="FILE", help="of `benchmarks.variety`: name none that fails it")
    add("--standard", metavar="OTHER", help="the bundle that BUNDLE is held to (default: itself)")
    add("--out", type=Path, default=FOLDER / "frontier.json")
    args = parser.parse_args(arguments)
    bundle = load_bundle(args.bundle)
    guidance = bundle.spec.schedules["paper"].guidance_scale
    try:
        settings = {
            label: ScheduleSettings.from_label(label, guidance)
            for label in dict.fromkeys((PAPER, *args.schedule))
        }
    except ValueError as error:
        parser.error(str(error))
    samples = list(heldout_samples(args.per_kind))
    real = [] if args.skip_real else list(real_samples(read_real_clips()))
    generations = [] if args.skip_generations else list(generation_samples(GENERATIONS_PER_KIND))
    standard = None
    if args.standard is not None:
        standard = load_bundle(args.standard)
        settings = {f"{PAPER} of {standard.spec.name}": settings[PAPER], **settings}
    rows = measure_schedules(
        bundle,
        settings,
        samples,
        real,
        generations,
        threads=args.threads,
        workers=args.workers,
        standard=standard,
    )
    if args.variety is not None:
        mark_variety(rows, read_results(args.variety).rows)
    named = choose_named(rows)
    for name, label in named.items():
        next(row for row in rows if row["schedule"] == label).setdefault("named", name)
    facts = {"bundle": bundle.spec.name, "edits": len(samples), "real_edits": len(real), "named": named}
    print(write_report(write_results(args.out, "frontier", rows, facts, arguments), args.out))
    missing = {"balanced", "fast"} - set(named)
    if missing:
        print(f"No candidate keeps what {' and '.join(sorted(missing))} asks for; it is not offered.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
