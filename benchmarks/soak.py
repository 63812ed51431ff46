"""`python -m benchmarks.soak`: many mixed requests at once in one process, and what its memory does.

Requests of unequal size and length wait in a bounded queue; each of the lanes takes the next one. The same
requests run one at a time before, in a process of their own, for the throughput to compare with. Memory must
not grow: the slope is that of a line through the resident memory after each request of the second half.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import memory
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from benchmarks.work import INSTRUCTION, draw_clip
from editverse_rt.pipeline import Pipeline

__all__ = ["Outcome", "draw_requests", "fit_slope", "serve"]

FRAMES = (1, 5, 9, 17)
SIZES = ((64, 64), (48, 80), (80, 48))


@dataclass(frozen=True)
class Request:
    """One edit of a made-up clip. seed: of its clip and its noise."""

    frames: int
    height_px: int
    width_px: int
    steps: int
    seed: int


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


def serve(bundle: str, requests: Sequence[Request], lanes: int, threads: int) -> Outcome:
    """Serve the requests by so many lanes at once, each with a pipeline of its own; failures are counted."""
    waiting: queue.Queue[Request | None] = queue.Queue(maxsize=2 * lanes)
    outcome, lock = Outcome(), threading.Lock()

    def work(pipeline: Pipeline) -> None:
        while (request := waiting.get()) is not None:
            failure = _edit(pipeline, request)
            with lock:
                outcome.resident_bytes.append(memory.current_bytes())
                if failure is not None:
                    outcome.failures.append(failure)

    pipelines = [Pipeline.open(bundle, "ort-cpu", num_threads=threads) for _ in range(lanes)]
    workers = [threading.Thread(target=work, args=(pipeline,)) for pipeline in pipelines]
    wall, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for item in (*requests, *[None] * lanes):
        waiting.put(item)
    for worker in workers:
        worker.join()
    outcome.wall_s, outcome.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    outcome.peak_bytes = memory.peak_bytes()
    for pipeline in pipelines:
        pipeline.close()
    return outcome


def _edit(pipeline: Pipeline, request: Request) -> str | None:
    """One request; what went wrong, or None."""
    size = (request.height_px, request.width_px)
    clip = draw_clip(request.frames, *size, seed=request.seed)
    source = {"video1": clip} if request.frames > 1 else {"image1": clip[0]}
    prompt = INSTRUCTION if request.frames > 1 else INSTRUCTION.replace("video1", "image1")
    options: dict[str, Any] = {"num_inference_steps": request.steps, "size": size, "seed": request.seed}
    try:
        frames = pipeline(prompt, num_frames=request.frames, **options, **source).frames
    except Exception as error:
        return f"{request}: {type(error).__name__}: {error}"
    return None if frames.shape == clip.shape else f"{request}: the result is {frames.shape}"


def fit_slope(resident_bytes: Sequence[int]) -> float:
    """Bytes a request that memory grows by in the second half, least squares. At least 4 requests."""
    second = np.asarray(resident_bytes[len(resident_bytes) // 2 :], float)
    if len(second) < 2:
        raise ValueError(f"a slope of {len(resident_bytes)} requests; expected at least 4")
    return float(np.polyfit(np.arange(len(second)), second, 1)[0])


def _serve_apart(arguments: Sequence[str], lanes: int) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.soak", *arguments, "--lanes", str(lanes)]
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
    add("--threads", type=int, default=1, help="of each request (default: 1)")
    add("--lanes", type=int, help="serve in this process, print the outcome as JSON, and write nothing")
    add("--out", type=Path, default=FOLDER / "soak.json")
    args = parser.parse_args(arguments)
    if args.lanes is not None:
        requests = draw_requests(args.requests, args.steps)
        print(json.dumps(asdict(serve(args.bundle, requests, args.lanes, args.threads))))
        return 0
    rows = []
    for lanes in dict.fromkeys((1, args.concurrency)):
        outcome = _serve_apart(arguments, lanes)
        rows.append(
            {
                "concurrency": lanes,
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
