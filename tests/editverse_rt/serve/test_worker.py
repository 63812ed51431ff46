"""A worker's run in this process: where it stops when it is cancelled, and what it tells."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from editverse_rt.errors import RequestCancelled, RequestError
from editverse_rt.pipeline import Pipeline
from editverse_rt.serve import worker
from editverse_rt.serve.checking import Limits, prepare_request
from editverse_rt.serve.job import PHASES, Job
from editverse_rt.serve.live import LiveRun
from editverse_rt.serve.worker import _Run


class Recorder:
    """In place of the worker: hears what a run tells, and cancels it when a phase is told for the first time."""

    def __init__(self, stop: threading.Event, stop_in: str | None) -> None:
        self.told: list[tuple[str, int]] = []
        self._stop, self._stop_in = stop, stop_in

    def _send(self, **message: Any) -> None:
        self.told.append((message["phase"], message["step"]))
        if message["phase"] == self._stop_in:
            self._stop.set()


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline.open("nano", num_threads=1) as opened:
        yield opened


def make_run(
    tmp_path: Path, video: bytes, stop_in: str | None, deadline_s: float = 60.0
) -> tuple[_Run, Recorder]:
    source = tmp_path / "upload1"
    source.write_bytes(video)
    message = {
        "job": "job_a",
        "run": 1,
        "request": {"prompt": "<video1> Make it night", "num_inference_steps": 3},
        "inputs": {"video1": str(source)},
        "folder": str(tmp_path / "out"),
        "format": "mp4",
        "deadline_s": deadline_s,
    }
    stop = threading.Event()
    recorder = Recorder(stop, stop_in)
    return _Run(recorder, message, stop), recorder  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancelled_run_calls_no_other_graph(
    pipeline: Pipeline, tmp_path: Path, video: bytes, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    real = pipeline.run_graph
    run, recorder = make_run(tmp_path, video, phase)

    def run_graph(graph: str, **inputs: Any) -> Any:
        calls.append(any(told == phase for told, _ in recorder.told))
        return real(graph, **inputs)

    monkeypatch.setattr(pipeline, "run_graph", run_graph)
    with pytest.raises(RequestCancelled):
        run.make(pipeline, Limits())
    # A phase is told just before its first graph, which then runs; reading tells before any graph.
    assert sum(calls) <= 1
    results = list((tmp_path / "out").glob("*-source.*")) if (tmp_path / "out").exists() else []
    assert not results


def test_phases_come_in_order_and_steps_count(
    pipeline: Pipeline, tmp_path: Path, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STEP_S", 0.0)
    run, recorder = make_run(tmp_path, video, None)
    result = run.make(pipeline, Limits())
    phases = [phase for phase, _ in recorder.told]
    assert list(dict.fromkeys(phases)) == list(PHASES)
    assert {step for phase, step in recorder.told if phase == "denoise"} == {0, 1, 2, 3}
    for name in result["parts"].values():
        assert (tmp_path / "out" / name).is_file()


def test_progress_goes_forward_through_the_windows_of_a_long_result(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    request = {"prompt": "A red circle", "num_frames": 33, "num_inference_steps": 3}
    prepared = prepare_request(pipeline, request, {}, (), None, Limits())
    one = prepare_request(pipeline, {**request, "num_frames": 17}, {}, (), None, Limits())
    assert (prepared.estimate["num_windows"], prepared.estimate["num_frames"]) == (2, 33)
    flops = one.estimate["flops"]  # its encoder encodes the text, which is done once for all windows
    assert prepared.estimate["flops"] == {
        "encode": flops["encode"],
        **{p: 2 * flops[p] for p in ("denoise", "decode")},
    }
    # Windows that are done lie on disk.
    assert prepared.estimate["memory_bytes"] == one.estimate["memory_bytes"]
    job = Job("a", "ann", "native", "nano", "mp4", prepared.request, {}, prepared.estimate, 60.0, 0.0)
    live = LiveRun(job, None)  # type: ignore[arg-type]
    found: list[float] = []

    class Listener:
        def _send(self, **message: Any) -> None:
            live.hear(message["phase"], message["step"], message["window"])
            found.append(live.progress)

    message = {
        "job": "a",
        "run": 1,
        "request": request,
        "inputs": {},
        "folder": str(tmp_path / "out"),
        "format": "mp4",
        "deadline_s": 60.0,
    }
    result = _Run(Listener(), message, threading.Event()).make(pipeline, Limits())  # type: ignore[arg-type]
    assert result["num_frames"] == 33
    assert found == sorted(found)
    assert live.window == 1
    # Each step of both windows is told, and moves it on.
    assert len(set(found)) >= 2 * 3
    assert found[-1] == 0.99


def test_a_run_past_its_deadline_is_late_and_not_cancelled(
    pipeline: Pipeline, tmp_path: Path, video: bytes
) -> None:
    run, _ = make_run(tmp_path, video, None, deadline_s=0.0)
    with pytest.raises(RequestCancelled):
        run.make(pipeline, Limits())
    error = run.late_error()
    assert error is not None
    assert error.code == "serve.deadline"


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (Limits(max_side_px=63), "video1"),
        (Limits(max_video_s=1.0), "video1"),
        (Limits(max_inputs=0), "inputs"),
        (Limits(max_frames=8), "num_frames"),
    ],
)
def test_limits_refuse_by_name(
    pipeline: Pipeline, tmp_path: Path, video: bytes, limits: Limits, field: str
) -> None:
    (tmp_path / "a").write_bytes(video)
    with pytest.raises(RequestError) as caught:
        prepare_request(pipeline, {"prompt": "Make it night"}, {"video1": tmp_path / "a"}, (), None, limits)
    assert (caught.value.code, caught.value.field) == ("request.too_large", field)


def test_what_never_fits_the_memory_is_refused_with_the_largest_that_does(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    def prepare(budget: int | None, frames: int) -> Any:
        request = {"prompt": "A red circle", "num_frames": frames}
        limits = Limits(memory_budget_bytes=budget)
        return prepare_request(pipeline, request, {}, (), None, limits)

    small = prepare(None, 1).estimate["memory_bytes"]
    large = prepare(None, 17).estimate["memory_bytes"]
    assert small < large
    with pytest.raises(RequestError) as caught:
        prepare(1_000_000, 17)
    assert caught.value.code == "request.too_large"


HEAPS = """
import ctypes, sys, threading
from editverse_rt.serve.worker import limit_heaps
libc = ctypes.CDLL(None)
if int(sys.argv[1]):
    limit_heaps(int(sys.argv[1]))
together = threading.Barrier(8)
def take():
    libc.malloc(10_000)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_stats()
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_stats"),
    reason="only glibc has arenas",
)
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_threads_share_heaps(limit: int) -> None:
    """0: as it is without the limit, which shows that the count is one."""
    done = subprocess.run(
        [sys.executable, "-c", HEAPS, str(limit)], capture_output=True, text=True, check=True, timeout=60
    )
    arenas = [line for line in done.stderr.splitlines() if line.startswith("Arena ")]
    assert len(arenas) == limit if limit else len(arenas) > 2
