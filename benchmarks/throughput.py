"""`python -m benchmarks.throughput`: what a request costs, stage by stage and end to end.

A made-up clip is decoded, edited and encoded again; every graph's calls are timed. The first request, with
all that is made once, is told apart from the steady state. Memory is that of this whole process, and so is CPU time:
with more than one lane no stage has any, since the others' work is in it; a request has its share of the whole.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

if not __package__:  # run as a file: `python benchmarks/throughput.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import memory
from benchmarks.clock import Sample, time_call, wait_for_device
from benchmarks.machine import measure_peak_apart
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from benchmarks.work import INSTRUCTION, draw_clip
from editverse_rt import media
from editverse_rt.backends import Array, Runner, RunnerTraits, select_backend
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.pipeline import Pipeline, Result
from editverse_rt.planning.planner import Estimate, estimate_work
from editverse_rt.request.laid_out import LaidOutRequest

__all__ = ["Request", "measure_throughput"]

# The stages of a request in order, and the graphs that make each.
STAGES = {
    "decode": (),
    "text": ("text_encoder",),
    "vae encode": ("vae_encoder_first", "vae_encoder_next"),
    "condition": ("condition",),
    "noise": ("noise", "add_noise"),
    "transformer": ("transformer", "transformer_2"),
    "solver": ("solver_step", "keep_known"),
    "vae decode": ("vae_decoder_first", "vae_decoder_next"),
    "encode": (),
}
# How the planner calls the stages whose operations it counts.
COUNTED = {
    "text": ("text_encoder",),
    "vae encode": ("vae_encoder",),
    "transformer": ("transformer", "transformer, unconditional"),
    "vae decode": ("vae_decoder",),
}


@dataclass(frozen=True)
class Request:
    """One request: its size, its steps (None for the schedule's) and its schedule (None for the bundle's)."""

    frames: int
    height_px: int
    width_px: int
    steps: int | None = None
    schedule: str | None = None
    guidance_scale: float | None = None


@dataclass
class TimedRunner:
    """A runner that notes what each call of each graph took."""

    runner: Runner
    wait: Callable[[], None] = lambda: None
    taken: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def __enter__(self) -> TimedRunner:
        self.runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.runner.__exit__(kind, error, traceback)

    @property
    def traits(self) -> RunnerTraits:
        return self.runner.traits

    def hold(self, array: Array) -> Array:
        return self.runner.hold(array)

    def run(self, graph: str, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        sample, outputs = time_call(lambda: self.runner.run(graph, inputs), self.wait)
        self.taken[graph].append(sample)
        found: Mapping[str, Array] = outputs
        return found


class Lane:
    """A pipeline with its clip, which serves requests one after another."""

    def __init__(
        self, bundle: Bundle, backend: str, threads: int | None, request: Request, folder: Path
    ) -> None:
        selection = select_backend(backend, bundle)
        self.backend = selection.backend.name
        runner = selection.backend.open_runner(bundle, threads)
        self.timed = TimedRunner(runner, wait_for_device(self.backend))
        self.pipeline = Pipeline(bundle, self.timed, selection)
        self.request = request
        self.source, self.output = folder / "source.mp4", folder / "result.mp4"
        clip = draw_clip(request.frames, request.height_px, request.width_px)
        media.write_clip(self.source, clip, fps=8.0)

    def serve(self) -> tuple[dict[str, Sample], Result]:
        """One request; what each stage took, "end to end" and "other" among them."""
        self.timed.taken.clear()
        request = self.request
        whole, (result, encode) = time_call(self._edit_and_save)
        stages = {"decode": Sample(result.timings["read"], float("nan")), "encode": encode}
        for stage, graphs in STAGES.items():
            samples = [sample for graph in graphs for sample in self.timed.taken.get(graph, [])]
            if samples:
                stages[stage] = Sample(sum(s.wall_s for s in samples), sum(s.cpu_s for s in samples))
        known = sum(sample.wall_s for sample in stages.values())
        stages["other"] = Sample(whole.wall_s - known, float("nan"))
        stages["end to end"] = whole
        assert result.frames.shape[:3] == (request.frames, request.height_px, request.width_px)
        return stages, result

    def _edit_and_save(self) -> tuple[Result, Sample]:
        request = self.request
        result = self.pipeline(
            INSTRUCTION,
            video1=self.source,
            num_inference_steps=request.steps,
            schedule=request.schedule,
            guidance_scale=request.guidance_scale,
            size=(request.height_px, request.width_px),
            num_frames=request.frames,
        )
        encode, _ = time_call(lambda: result.save(self.output))
        return result, encode


def measure_throughput(
    bundle: str | Path,
    backend: str,
    request: Request,
    *,
    threads: int | None = None,
    batch: int = 1,
    concurrency: int = 1,
    repeats: int = 5,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, one a stage, and facts of the whole.

    batch: requests one after another in a turn of a lane. concurrency: lanes that work at once, each a
    pipeline of its own in this process; stages are those of the first lane, without CPU time if there are others.
    repeats: turns after the first.
    Raises what the pipeline raises, for a size that the bundle does not take for one.
    """
    loaded = load_bundle(bundle)
    before = memory.current_bytes()
    memory.forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        lanes = []
        for index in range(concurrency):
            (Path(folder) / str(index)).mkdir()
            lanes.append(Lane(loaded, backend, threads, request, Path(folder) / str(index)))
        first, result = lanes[0].serve()
        for lane in lanes[1:]:
            lane.serve()
        turns: list[dict[str, Sample]] = []
        wall, cpu = time.perf_counter(), time.process_time()
        _run_lanes(lanes, lambda lane: [lane.serve()[0] for _ in range(batch * repeats)], turns)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = memory.peak_bytes()
        for lane in lanes:
            lane.pipeline.close()
    requests = batch * repeats * concurrency
    laid_out = result.laid_out
    estimate = estimate_work(loaded.spec, laid_out.work)
    rows = [
        _row(stage, first, turns, estimate, is_alone=concurrency == 1)
        for stage in [*STAGES, "other", "end to end"]
        if stage in first
    ]
    solve_s = next(row["wall_s"] for row in rows if row["stage"] == "transformer")
    facts = {
        "bundle": loaded.spec.name,
        "backend": lanes[0].backend,
        **_work_facts(laid_out, estimate, solve_s),
        "threads": threads,
        "batch": batch,
        "concurrency": concurrency,
        "requests": requests,
        "requests_per_s": requests / wall,
        "frames_per_s": requests * laid_out.num_frames / wall,
        "cpu_s_per_request": cpu / requests,
        "flops": estimate.flops,
        "peak_bytes": peak,
        "bytes_before": before,
        "seconds_of_first": first["end to end"].wall_s,
    }
    return rows, facts


def _work_facts(laid_out: LaidOutRequest, estimate: Estimate, solve_s: float) -> dict[str, Any]:
    """What a request asks of the model, and how fast its steps were. solve_s: seconds of the transformer."""
    steps = laid_out.schedule.num_inference_steps
    evaluations = laid_out.schedule.table.num_evaluations
    tokens = steps * estimate.tokens.total + (evaluations - steps) * estimate.tokens_uncond.total
    return {
        "frames": laid_out.num_frames,
        "size": f"{laid_out.width_px}x{laid_out.height_px}",
        "steps": steps,
        "evaluations": evaluations,
        "tokens": estimate.tokens.total,
        "steps_per_s": steps / solve_s,
        "tokens_per_s": tokens / solve_s,
    }


def _run_lanes(lanes: list[Lane], work: Callable[[Lane], list[Any]], results: list[Any]) -> None:
    """Run every lane in a thread of its own; the first lane's results are kept, an error is raised."""
    errors: list[BaseException] = []

    def serve(index: int) -> None:
        try:
            found = work(lanes[index])
            if index == 0:
                results.extend(found)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(len(lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _row(
    stage: str,
    first: dict[str, Sample],
    turns: list[dict[str, Sample]],
    estimate: Estimate,
    *,
    is_alone: bool,
) -> dict[str, Any]:
    """A stage's row. is_alone: nothing else ran in the process, so that its CPU time is the stage's."""
    walls = [turn[stage].wall_s for turn in turns]
    low, high = np.percentile(walls, [25, 75])
    row: dict[str, Any] = {
        "stage": stage,
        "first_wall_s": first[stage].wall_s,
        "wall_s": median(walls),
        "wall_s_quartiles": [float(low), float(high)],
    }
    cpu = median(turn[stage].cpu_s for turn in turns) if is_alone else float("nan")
    if np.isfinite(cpu):
        row["cpu_s"] = cpu
    names = COUNTED.get(stage, ())
    flops = sum(part.flops for part in estimate.stages if part.name in names)
    if stage == "end to end":
        flops = estimate.flops
    if flops:
        row |= {"flops": flops, "flops_per_s": flops / row["wall_s"]}
    if flops and np.isfinite(cpu):
        row["flops_per_cpu_s"] = flops / cpu
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    add = parser.add_argument
    add("--bundle", default="nano", help="name or folder (default: nano)")
    add("--backend", default="ort-cpu", help="auto, or a name from `editverse-rt doctor` (default: ort-cpu)")
    add("--frames", type=int, default=17, help="(default: 17)")
    add("--size", default="80x48", metavar="WxH", help="(default: 80x48)")
    add("--steps", type=int, help="(default: the schedule's)")
    add("--schedule", help="(default: the bundle's)")
    add("--guidance-scale", type=float, help="(default: the schedule's)")
    add("--batch", type=int, default=1, help="requests one after another in a turn (default: 1)")
    add("--concurrency", type=int, default=1, help="pipelines at once (default: 1)")
    add("--threads", type=int, help="of the CPU, of each pipeline (default: one a core)")
    add("--repeats", type=int, default=5, help="turns after the first (default: 5)")
    add("--out", type=Path, default=FOLDER / "throughput.json")
    args = parser.parse_args(arguments)
    width, _, height = args.size.partition("x")
    request = Request(args.frames, int(height), int(width), args.steps, args.schedule, args.guidance_scale)
    rows, facts = measure_throughput(
        args.bundle, args.backend, request,
        threads=args.threads, batch=args.batch, concurrency=args.concurrency, repeats=args.repeats,
    )  # fmt: skip
    # One thread's peak, by CPU seconds: that holds beside other work, and for any number of threads.
    peak = measure_peak_apart(1)
    best = max(library["flops_per_cpu_s"] for library in peak.values())
    for row in rows:
        if "flops_per_cpu_s" in row:
            row["share_of_peak"] = row["flops_per_cpu_s"] / best
    results = write_results(args.out, "throughput", rows, {**facts, "matrix_peak": peak}, arguments)
    print(write_report(results, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
