"""`python -m benchmarks.peers`: the same work by every peer and by this project, in turns, A B A B.

Each contender has a process of its own, so its memory is its own. Numbers are checked: a peer whose result
differs from PyTorch's by more than the tolerance is not a peer, and this project is held to the same. Only
`edit-balanced` and `edit-fast` set this project's named schedules against PyTorch's 50 Euler steps, `edit-once` and
`edit-once-int8` one evaluation without guidance, the second in 8-bit integers. A peer that is not installed is named.
Under other load, compare CPU seconds on one thread (`--threads 1`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/peers.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray

from benchmarks.artifacts import CACHE, make_model
from benchmarks.clock import Sample, Timing, take_turns
from benchmarks.contenders import CONTENDERS, OURS, REFERENCE, why_missing
from benchmarks.machine import measure_peak_apart
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from benchmarks.work import VAE_KINDS, Work
from benchmarks.worker import Worker, WorkerError

__all__ = ["MAX_RELATIVE_ERROR", "MAX_SHARE_OFF", "WORKS", "compare_results", "measure_work"]

WORKS = (
    Work("edit", "nano", "edit", frames=17, height_px=48, width_px=80, steps=50),
    Work(
        "edit-balanced", "nano", "edit", frames=17, height_px=48, width_px=80, steps=50, schedule="balanced"
    ),
    Work("edit-fast", "nano", "edit", frames=17, height_px=48, width_px=80, steps=50, schedule="fast"),
    *(
        Work(name, model, "edit", frames=17, height_px=48, width_px=80, schedule="paper", is_once=True)
        for name, model in (("edit-once", "nano"), ("edit-once-int8", "nano-int8"))
    ),
    Work("transformer-1k", "editverse-150m", "transformer", tokens=1024),
    Work("transformer-4k", "editverse-150m", "transformer", tokens=4096),
    Work("transformer-16k", "editverse-150m", "transformer", tokens=16384),
    *(
        Work(f"nano-vae-{half}-{frames}", "nano", VAE_KINDS[half], frames=frames, height_px=128, width_px=128)
        for half in ("encoder", "decoder")
        for frames in (17, 81, 257)
    ),
    Work("wan-vae-encoder-17", "editverse-150m", "vae_encoder", frames=17, height_px=256, width_px=256),
    Work("wan-vae-decoder-17", "editverse-150m", "vae_decoder", frames=17, height_px=256, width_px=256),
    Work("wan22-vae-encoder-17", "wan2.2-vae", "vae_encoder", frames=17, height_px=256, width_px=256),
    Work("wan22-vae-decoder-17", "wan2.2-vae", "vae_decoder", frames=17, height_px=256, width_px=256),
    Work("wan-transformer-300", "wan2.1-t2v-1.3b", "transformer", tokens=300),
    Work("wan-transformer-1.5k", "wan2.1-t2v-1.3b", "transformer", tokens=1530),
    Work("wan-transformer-8k", "wan2.1-t2v-1.3b", "transformer", tokens=8190),
    Work("t5-nano", "nano", "text_encoder", tokens=32),
    Work("t5-base", "editverse-150m", "text_encoder", tokens=128),
)
APART = ("transformer-16k", *(work.name for work in WORKS if work.name.startswith("wan")))
"""Work whose processes would not fit the memory together: they are opened one at a time, turn by turn."""

# Against PyTorch: the relative error of rows, the share of pixels further than one grey level, and, by
# another schedule, the root mean square of the pixels' difference: 30 dB.
MAX_RELATIVE_ERROR = 1e-4
MAX_SHARE_OFF = 1e-3
MAX_DISTANCE = 10 ** (-30 / 20)


def compare_results(
    found: NDArray[Any], expected: NDArray[Any], *, by_other_schedule: bool = False
) -> tuple[float, float]:
    """How far a result is from PyTorch's, and the tolerance: a share of pixels, or a relative error.

    by_other_schedule: the root mean square of the pixels' difference, as a share of white. A result of
    another shape is infinitely far.
    """
    tolerance = MAX_SHARE_OFF if expected.dtype == np.uint8 else MAX_RELATIVE_ERROR
    tolerance = MAX_DISTANCE if by_other_schedule else tolerance
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf"), tolerance
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    if by_other_schedule:
        return float(np.sqrt((difference**2).mean())) / 255, tolerance
    if expected.dtype == np.uint8:
        return float((difference > 1).mean()), tolerance
    size = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(difference)) / max(size, 1e-30), tolerance


def measure_work(
    work: Work,
    forms: dict[str, str],
    contenders: Sequence[str],
    *,
    threads: int,
    repeats: int,
    max_s: float = float("inf"),
    apart: bool = False,
) -> list[dict[str, Any]]:
    """Rows of one piece of work, one a contender: times, memory, error, or why there are none.

    forms: the folders of the model's forms. contenders: names, PyTorch among them, which the others are held
    to; a work of another schedule is PyTorch's and this project's alone. apart: open one process at a time, a
    turn each, with an untimed call before the timed one; max_s then holds after the first turn.
    Raises WorkerError if PyTorch itself fails.
    """
    if work.schedule is not None:
        contenders = [name for name in contenders if name in (REFERENCE, OURS)]
    rows: dict[str, dict[str, Any]] = {name: {"work": work.name, "contender": name} for name in contenders}
    results: dict[str, NDArray[Any]] = {}
    # The very first call of each, which its turns leave out: a warm-up, or one that the process of a turn begins with.
    firsts: dict[str, Sample] = {}
    calls: dict[str, Callable[[], Sample]] = {}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:

        def open_worker(name: str) -> Worker:
            return Worker(name, work, forms, threads)

        def keep_result(worker: Worker) -> None:
            path = Path(folder) / f"{worker.name}.npy"
            worker.save(path)
            results[worker.name] = np.load(path)
            rows[worker.name]["peak_bytes"] = worker.peak_bytes()

        def turn_apart(name: str) -> Callable[[], Sample]:
            def turn() -> Sample:
                with open_worker(name) as worker:
                    first = worker.run()
                    firsts.setdefault(name, first)
                    ready = [part.cpu_s for part in (worker.opened, first)]
                    rows[name].setdefault("first_result_cpu_s", sum(ready))
                    sample = worker.run()
                    keep_result(worker)
                return sample

            return turn

        def drop(name: str, error: WorkerError) -> None:
            if name == REFERENCE:
                raise error
            rows[name]["failed"] = str(error)
            calls.pop(name, None)

        workers: dict[str, Worker] = {}
        for name in contenders:
            missing = why_missing(name)
            if missing is not None:
                rows[name]["missing"] = missing
                continue
            if apart:
                calls[name] = turn_apart(name)
                continue
            try:
                workers[name] = stack.enter_context(open_worker(name))
                firsts[name] = workers[name].run()
                calls[name] = workers[name].run
            except WorkerError as error:
                drop(name, error)
        if apart:
            timings = _take_turns_apart(calls, drop, repeats, max_s)
        else:
            timings = take_turns(calls, repeats=repeats, warm_up=1, max_s=max_s)
        for worker in workers.values():
            if worker.name in calls:
                keep_result(worker)
    for name, timing in timings.items():
        distance, tolerance = compare_results(
            results[name], results[REFERENCE], by_other_schedule=work.schedule is not None and name == OURS
        )
        agrees = {"error": distance, "tolerance": tolerance, "agrees": distance <= tolerance}
        rows[name] |= replace(timing, first=firsts[name]).to_json() | agrees
    return list(rows.values())


def _take_turns_apart(
    calls: Mapping[str, Callable[[], Sample]],
    drop: Callable[[str, WorkerError], None],
    repeats: int,
    max_s: float,
) -> dict[str, Timing]:
    """Turns of calls that warm up by themselves: every one counts. One that fails is dropped."""
    begin = time.monotonic()
    taken: dict[str, list[Sample]] = {}
    for turn in range(repeats):
        if turn > 0 and time.monotonic() - begin > max_s:
            break
        for name, call in list(calls.items()):
            try:
                taken.setdefault(name, []).append(call())
            except WorkerError as error:  # noqa: PERF203 - a handful of calls
                taken.pop(name, None)
                drop(name, error)
    return {name: Timing(samples[0], tuple(samples)) for name, samples in taken.items()}


def _measure_or_say(
    work: Work, forms: dict[str, str], contenders: Sequence[str], **options: Any
) -> list[dict[str, Any]]:
    """The rows of a piece of work, or one that says what ended it: the other works are still measured."""
    try:
        return measure_work(work, forms, contenders, **options)
    except WorkerError as error:
        return [{"work": work.name, "contender": REFERENCE, "failed": str(error)}]


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    names = [work.name for work in WORKS]
    parser.add_argument(
        "--work", nargs="+", choices=names, default=names, metavar="NAME", help="(default: all)"
    )
    parser.add_argument(
        "--peer", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(default: one a core)")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns (default: 7)")
    parser.add_argument(
        "--max-minutes",
        type=float,
        default=6.0,
        help="of one work, after 3 turns, or 1 of a work of one process at a time (default: 6)",
    )
    parser.add_argument("--steps", type=int, default=50, help="of the edit (default: 50)")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where models are kept (default: {CACHE})")
    parser.add_argument("--out", type=Path, default=FOLDER / "peers.json")
    args = parser.parse_args(arguments)
    contenders = [name for name in CONTENDERS if name in {REFERENCE, *args.peer}]
    rows: list[dict[str, Any]] = []
    for work in (replace(work, steps=args.steps) for work in WORKS if work.name in args.work):
        reads_plain = any(CONTENDERS[name].form == "plain" for name in contenders)
        model = make_model(work.model, args.cache, needs_plain=reads_plain)
        forms = {form: str(getattr(model, form)) for form in ("checkpoint", "bundle", "plain")}
        print(f"{work.name} ...", file=sys.stderr)
        options = {"threads": args.threads, "repeats": args.repeats, "max_s": 60 * args.max_minutes}
        rows += _measure_or_say(work, forms, contenders, apart=work.name in APART, **options)
        # What there is by now is kept, should the rest not come to its end.
        results = write_results(args.out, "peers", rows, {"threads": args.threads}, arguments)
    facts = {"threads": args.threads, "matrix_peak": measure_peak_apart(1)}
    results = write_results(args.out, "peers", rows, facts, arguments)
    print(write_report(results, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
