"""`python -m benchmarks.soak`: many mixed requests at once in one process, and what its memory does.

Requests of unequal size and length go through a `RequestQueue` on one pipeline, and wait for a place in it.
The same requests run one at a time before, in processes of their own, on as many threads as each has at
concurrency and on all cores, for the throughput to compare with. Memory must not grow: the slope is that of a
line through the resident memory after each request of the second half. Allocators keep what the most that ran
at once took, so before the first request that counts the largest ones run together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/soak.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import memory
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from benchmarks.work import INSTRUCTION, draw_clip
from editverse_rt import EditVerseError, Pipeline, QueueFull, RequestHandle, RequestQueue

__all__ = ["Outcome", "draw_requests", "fit_slope", "serve"]

FRAMES = (1, 5, 9, 17)
WARM_UP = 3
"""Rounds of the largest requests, all at once."""
SIZES = ((64, 64), (48, 80), (80, 48))


@dataclass(frozen=True)
class Request:
    """One edit of a made-up clip. seed: of its clip and its noise."""

    frames: int
    height_px: int
    width_px: int
    steps: int
    seed: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames, self.height_px, self.width_px, 3


@dataclass
class Outcome:
    """What a soak gave: seconds in all, CPU seconds, memory after each request in order, and failures."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    resident_bytes: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    peak_bytes: int = 0


def draw_requests(count: int, steps: int, seed: int = 0) -> list[Request]:
    """Requests of all of nano's sizes and lengths, mixed; from 1 to `steps` steps."""
    rng = np.random.default_rng(seed)
    requests = []
    for index in range(count):
        height, width = SIZES[rng.integers(len(SIZES))]
        frames = FRAMES[rng.integers(len(FRAMES))]
        requests.append(Request(frames, height, width, int(rng.integers(1, steps + 1)), index))
    return requests


def serve(
    bundle: str,
    requests: Sequence[Request],
    concurrency: int,
    threads: int,
    memory_budget_bytes: int | None = None,
) -> Outcome:
    """Serve the requests, so many at once on one pipeline of so many threads; failures are counted."""
    outcome, lock = Outcome(), threading.Lock()

    def note(request: Request, handle: RequestHandle) -> None:
        error = handle.exception()
        failure = None if error is None else f"{request}: {type(error).__name__}: {error}"
        if error is None and handle.result().frames.shape != request.shape:
            failure = f"{request}: the result is {handle.result().frames.shape}"
        with lock:
            outcome.resident_bytes.append(memory.current_bytes())
            if failure is not None:
                outcome.failures.append(failure)

    with (
        Pipeline.open(bundle, "ort-cpu", num_threads=threads) as pipeline,
        RequestQueue(
            pipeline,
            num_workers=concurrency,
            max_queue=concurrency,
            memory_budget_bytes=memory_budget_bytes,
        ) as queue,
    ):
        _submit_all(queue, [_largest(requests)] * WARM_UP * concurrency, lambda request, handle: None)
        wall, cpu = time.perf_counter(), time.process_time()
        for request, error in _submit_all(queue, requests, note):
            outcome.failures.append(f"{request}: {type(error).__name__}: {error}")
        outcome.wall_s, outcome.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        outcome.peak_bytes = memory.peak_bytes()
    return outcome


def _largest(requests: Sequence[Request]) -> Request:
    return max(requests, key=lambda r: (r.frames * r.height_px * r.width_px, r.steps))


def _submit_all(
    queue: RequestQueue, requests: Sequence[Request], note: Callable[[Request, RequestHandle], None]
) -> list[tuple[Request, EditVerseError]]:
    """Send requests as there is room for them, and wait for the last. Returns those that were refused."""
    refused: list[tuple[Request, EditVerseError]] = []
    unfinished: set[RequestHandle] = set()
    for request in requests:
        try:
            handle = _submit(queue, request, unfinished)
        except EditVerseError as error:
            refused.append((request, error))
            continue
        handle.add_done_callback(partial(note, request))
        unfinished = {other for other in unfinished if not other.done()} | {handle}
    wait(unfinished)
    return refused


def _submit(queue: RequestQueue, request: Request, unfinished: set[RequestHandle]) -> RequestHandle:
    """Put one request into the queue, as soon as there is a place in it."""
    clip = draw_clip(*request.shape[:3], seed=request.seed)
    source: dict[str, Any] = {"video1": clip} if request.frames > 1 else {"image1": clip[0]}
    prompt = INSTRUCTION if request.frames > 1 else INSTRUCTION.replace("video1", "image1")
    while True:
        try:
            return queue.submit(
                prompt,
                num_inference_steps=request.steps,
                size=(request.height_px, request.width_px),
                num_frames=request.frames,
                seed=request.seed,
                **source,
            )
        except QueueFull:  # noqa: PERF203 - once a request
            wait(unfinished, return_when=FIRST_COMPLETED)


def fit_slope(resident_bytes: Sequence[int]) -> float:
    """Bytes a request that memory grows by in the second half, least squares. At least 4 requests."""
    second = np.asarray(resident_bytes[len(resident_bytes) // 2 :], float)
    if len(second) < 2:
        raise ValueError(f"a slope of {len(resident_bytes)} requests; expected at least 4")
    return float(np.polyfit(np.arange(len(second)), second, 1)[0])


def _serve_apart(arguments: Sequence[str], concurrency: int, threads: int) -> Outcome:
    command = [
        sys.executable, __file__, *arguments,
        "--serve", str(concurrency), "--threads", str(threads),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    add = parser.add_argument
    add("--bundle", default="nano", help="name or folder (default: nano)")
    add("--requests", type=int, default=200, help="(default: 200)")
    add("--concurrency", type=int, default=4, help="requests at once (default: 4)")
    add("--steps", type=int, default=6, help="at most, of a request (default: 6)")
    add("--threads", type=int, default=1, help="of each request, where they run at once (default: 1)")
    add("--memory-budget-mb", type=float, help="for weights and running requests (default: no limit)")
    add("--serve", type=int, help="so many at once in this process; prints JSON and writes nothing")
    add("--out", type=Path, default=FOLDER / "soak.json")
    args = parser.parse_args(arguments)
    if args.serve is not None:
        budget = None if args.memory_budget_mb is None else round(args.memory_budget_mb * 1e6)
        requests = draw_requests(args.requests, args.steps)
        print(json.dumps(asdict(serve(args.bundle, requests, args.serve, args.threads, budget))))
        return 0
    rows = []
    # One at a time on as many threads as a request has at concurrency, and on all cores.
    ways = ((1, args.threads), (1, os.cpu_count() or 1), (args.concurrency, args.threads))
    for concurrency, threads in dict.fromkeys(ways):
        outcome = _serve_apart(arguments, concurrency, threads)
        rows.append(
            {
                "concurrency": concurrency,
                "threads": threads,
                "requests_per_s": args.requests / outcome.wall_s,
                "requests_per_cpu_s": args.requests / outcome.cpu_s,
                "slope_bytes": fit_slope(outcome.resident_bytes),
                "failures": outcome.failures,
                "peak_bytes": outcome.peak_bytes,
                "resident_bytes": outcome.resident_bytes,
            }
        )
    facts = {"bundle": args.bundle, "requests": args.requests, "threads": args.threads}
    print(write_report(write_results(args.out, "soak", rows, facts, arguments), args.out))
    return 1 if any(row["failures"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
