"""Edits what a benchmark's results lack, through a queue or over a cluster; what it would cost on a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editverse_rt import media
from editverse_rt.cluster import ClusterOptions, run_on_devices
from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.evaluate.benchmarks import Benchmark, BenchmarkItem
from editverse_rt.evaluate.clips import clip_exists, read_clip_shown, write_pictures
from editverse_rt.fields import read_json
from editverse_rt.files import write_json
from editverse_rt.pipeline import Pipeline, Result
from editverse_rt.planning.planner import estimate_work
from editverse_rt.planning.targets import load_target
from editverse_rt.request.edit_request import EditRequest, Source
from editverse_rt.request.prompt import with_tags
from editverse_rt.request_queue import RequestQueue

__all__ = [
    "ESTIMATED_TARGETS",
    "Edited",
    "EditingOptions",
    "ItemEditor",
    "edit_missing",
    "estimate_seconds",
    "request_of",
]

ESTIMATED_TARGETS = ("rtx4090", "h100")
EDITS_FILE = "edits.json"
_FIX = "delete it, or choose another folder"


@dataclass(frozen=True)
class EditingOptions:
    """How all items are edited. None leaves an option to the bundle.

    num_workers: requests at once.
    """

    schedule: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    num_workers: int = 1

    def to_json(self) -> dict[str, Any]:
        """The options as the report shows them."""
        return {
            "schedule": self.schedule,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
        }


@dataclass
class Edited:
    """What editing gave: how many were edited in how many seconds, and a line by key of those that were not.

    num_at_once: requests at once. made_with: `Pipeline.info` of what edits, None where it is a cluster that had
    nothing to edit.
    """

    num_at_once: int = 1
    num_edited: int = 0
    seconds: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)
    made_with: dict[str, Any] | None = None


def request_of(benchmark: Benchmark, item: BenchmarkItem, options: EditingOptions) -> EditRequest:
    """The request of an item; folders of pictures are read. Raises MediaError, RequestError."""
    inputs: dict[str, Source] = {
        name: read_clip_shown(path) if path.is_dir() else path for name, path in item.inputs.items()
    }
    return EditRequest(with_tags(item.instruction, inputs), inputs, size=benchmark.size, **options.to_json())


def edit_missing(
    benchmark: Benchmark,
    items: Sequence[BenchmarkItem],
    results: Path,
    pipeline: Pipeline,
    options: EditingOptions,
    say: Callable[[str], None] = lambda line: None,
    cluster: ClusterOptions | None = None,
) -> Edited:
    """Edit every item without a result; a result appears whole or not at all, as soon as it is done.

    cluster: where items are edited in place of the pipeline, one at a time on each device; results are the same.
    An item that cannot be edited is a problem, and the others go on. Raises RequestError where the folder
    holds results of another bundle or of other options, and as `run_on_devices`.
    """
    _check_same_run(results, pipeline, options)
    missing = [item for item in items if not clip_exists(benchmark.result(results, item))]
    edited, start = Edited(num_at_once=options.num_workers), time.perf_counter()

    def take(item: BenchmarkItem, error: Exception | None) -> None:
        if isinstance(error, EditVerseError):
            edited.problems[item.key] = str(error)
        elif error is not None:
            raise error
        else:
            edited.num_edited += 1
            say(f"edited {item.key} ({edited.num_edited} of {len(missing)})")

    if cluster is None:
        _edit_by_queue(benchmark, missing, results, pipeline, options, take)
        edited.made_with = pipeline.info()
    else:
        _edit_on_devices(benchmark, missing, results, cluster, options, take, edited)
    edited.seconds = time.perf_counter() - start
    return edited


class ItemEditor:
    """What each actor of a cluster is: a pipeline on one device, which edits items one after another."""

    def __init__(
        self,
        bundle: str,
        backend: str,
        open_options: Mapping[str, Any],
        benchmark: Benchmark,
        results: Path,
        options: EditingOptions,
    ) -> None:
        self._pipeline = Pipeline.open(bundle, backend, **open_options)
        self._benchmark, self._results, self._options = benchmark, results, options

    def run(self, item: BenchmarkItem) -> Exception | dict[str, Any]:
        """Write an item's result; what it was made with, or the error where there is none."""
        try:
            result = self._pipeline(request_of(self._benchmark, item, self._options))
            _save(self._benchmark, item, self._results, result)
        except Exception as error:
            return error
        return self._pipeline.info()


def _edit_on_devices(
    benchmark: Benchmark,
    missing: Sequence[BenchmarkItem],
    results: Path,
    cluster: ClusterOptions,
    options: EditingOptions,
    take: Callable[[BenchmarkItem, Exception | None], None],
    edited: Edited,
) -> None:
    def on_over(item: BenchmarkItem, outcome: Exception | dict[str, Any]) -> None:
        if isinstance(outcome, dict):
            edited.made_with = outcome
        take(item, outcome if isinstance(outcome, Exception) else None)

    # Another node has another working directory, and reads folders of pictures itself.
    waiting = [
        replace(item, inputs={name: path.absolute() for name, path in item.inputs.items()})
        for item in missing
    ][::-1]
    arguments = (benchmark, results.absolute(), options)
    edited.num_at_once = run_on_devices(ItemEditor, arguments, cluster, waiting, on_over)


def _edit_by_queue(
    benchmark: Benchmark,
    missing: Sequence[BenchmarkItem],
    results: Path,
    pipeline: Pipeline,
    options: EditingOptions,
    take: Callable[[BenchmarkItem, Exception | None], None],
) -> None:
    waiting, running = deque(missing), dict[Future[Result], BenchmarkItem]()
    with RequestQueue(pipeline, num_workers=options.num_workers) as queue:
        while waiting or running:
            # No more requests than workers: waiting ones would only occupy memory.
            while waiting and len(running) < options.num_workers:
                item = waiting.popleft()
                try:
                    handle = queue.submit(request_of(benchmark, item, options))
                except EditVerseError as error:
                    take(item, error)
                    continue
                running[handle] = item
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(done)
                try:
                    _save(benchmark, item, results, done.result())
                except EditVerseError as error:
                    take(item, error)
                else:
                    take(item, None)


def estimate_seconds(
    benchmark: Benchmark, items: Sequence[BenchmarkItem], pipeline: Pipeline, options: EditingOptions
) -> dict[str, dict[str, Any]]:
    """The planner's estimate of editing the full benchmark, by target: mean seconds an item and the total.

    Only edits are counted: not reading, writing, metric models or a judge. Items that cannot be edited are
    left out of the mean; a target that they do not fit says how many.
    """
    works = []
    for item in items:
        try:
            works.append(pipeline.prepare(request_of(benchmark, item, options)).expected_work)
        except EditVerseError:  # noqa: PERF203
            continue
    found: dict[str, dict[str, Any]] = {}
    for name in ESTIMATED_TARGETS if works else ():
        estimates = [estimate_work(pipeline.bundle.spec, work, load_target(name)) for work in works]
        seconds = sum(estimate.seconds or 0.0 for estimate in estimates) / len(estimates)
        num_items = benchmark.num_items or len(items)
        found[name] = {
            "seconds_an_item": seconds,
            "seconds_all": seconds * num_items,
            "num_items": num_items,
            "without_room": sum(not estimate.fits for estimate in estimates),
        }
    return found


def _check_same_run(results: Path, pipeline: Pipeline, options: EditingOptions) -> None:
    spec = pipeline.bundle.spec
    wanted = {
        "bundle": spec.name,
        "files": {file.path: file.sha256 for file in spec.files},
        "options": options.to_json(),
    }
    path = results / EDITS_FILE
    if path.exists():
        if read_json(path, error=RequestError, fix=_FIX) != wanted:
            raise RequestError(
                f"{results}: found results of another bundle or of other options",
                expected="those of this run",
                hint="choose another folder, or score them with evaluate score",
                code="request.benchmark",
            )
        return
    results.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _save(benchmark: Benchmark, item: BenchmarkItem, results: Path, result: Result) -> None:
    path = benchmark.result(results, item)
    if not path.suffix:
        write_pictures(path, result.frames)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if result.sources:
        media.write_clip(path.with_name("video1.mp4"), result.sources[0], result.fps)
    result.save(path, audio=False)
