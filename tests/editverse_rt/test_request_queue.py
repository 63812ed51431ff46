"""The queue, on the runner of conftest.py, held at gates instead of by time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt import (
    BackendError,
    EditRequest,
    FileHandle,
    MediaError,
    Pipeline,
    QueueFull,
    RequestCancelled,
    RequestError,
    RequestQueue,
    load_bundle,
    media,
)
from editverse_rt.planning.planner import estimate_work

PATIENCE_S = 60
"""How long a test that hangs is waited for."""
PROMPT = "<video1> Go"
pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Gate:
    """Stands before one graph: notes who is there at once, and lets nobody through before it is opened."""

    def __init__(self, runner: Any, graph: str = "transformer") -> None:
        self.arrived, self.opened = threading.Semaphore(0), threading.Event()
        self.most_at_once, self._there, self._lock = 0, 0, threading.Lock()
        self._graph = getattr(runner, graph)
        setattr(runner, graph, self)

    def __call__(self, **inputs: Any) -> Any:
        with self._lock:
            self._there += 1
            self.most_at_once = max(self.most_at_once, self._there)
        self.arrived.release()
        assert self.opened.wait(PATIENCE_S)
        with self._lock:
            self._there -= 1
        return self._graph(**inputs)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=PATIENCE_S)


@pytest.fixture
def pipeline(fake_bundle: Any, runner: Any) -> Pipeline:
    """A pipeline whose runner says that it runs graphs side by side, on a bundle that the planner knows."""
    runner.traits = replace(runner.traits, runs_concurrently=True)
    bundle, nano = load_bundle(fake_bundle.root), load_bundle("nano")
    spec = replace(bundle.spec, model=nano.spec.model, costs=nano.spec.costs)
    return Pipeline(replace(bundle, spec=spec), runner)


@contextmanager
def held(pipeline: Pipeline, gate: Gate, **options: Any) -> Iterator[RequestQueue]:
    """A queue whose gate is opened at the latest when the block ends, or its workers would never."""
    with RequestQueue(pipeline, **options) as queue:
        try:
            yield queue
        finally:
            gate.opened.set()


def test_requests_at_once_get_what_each_gets_alone(pipeline: Pipeline, blocky_clip: Any) -> None:
    clips = [blocky_clip(frames, seed=seed) for seed, frames in enumerate((1, 9, 5, 1, 5, 9, 9, 1))]
    requests = [
        (PROMPT, {"video1": clip, "num_inference_steps": 1 + seed % 3, "seed": seed})
        for seed, clip in enumerate(clips)
    ]
    alone = [pipeline(prompt, **options) for prompt, options in requests]
    with RequestQueue(pipeline, num_workers=3) as queue:
        handles = [queue.submit(prompt, **options) for prompt, options in requests]
        for handle, expected in zip(handles, alone, strict=True):
            found = handle.result(PATIENCE_S)
            np.testing.assert_array_equal(found.frames, expected.frames)
            assert found.notices == expected.notices
            assert (
                handle.num_steps_done
                == handle.num_inference_steps
                == found.laid_out.schedule.num_inference_steps
            )
    assert queue.num_waiting == queue.num_running == 0


def test_as_many_run_at_once_as_there_are_workers(pipeline: Pipeline, runner: Any) -> None:
    gate = Gate(runner)
    with held(pipeline, gate, num_workers=2) as queue:
        handles = [queue.submit("A ring") for _ in range(5)]
        gate.wait_for(2)
        assert (queue.num_running, queue.num_waiting) == (2, 3)
        assert not any(handle.done() for handle in handles)
        gate.opened.set()
        assert not wait(handles, PATIENCE_S).not_done
    assert gate.most_at_once == 2


def test_a_full_queue_says_so_and_takes_more_later(pipeline: Pipeline, runner: Any) -> None:
    gate = Gate(runner)
    with held(pipeline, gate, max_queue=2) as queue:
        handles = [queue.submit("A ring") for _ in range(3)]
        with pytest.raises(
            QueueFull, match="3 requests run or wait, and 1 may run and 2 wait; submit again when"
        ):
            queue.submit("A ring")
        gate.opened.set()
        handles[0].result(PATIENCE_S)
        handles.append(queue.submit("A ring"))
        assert not wait(handles, PATIENCE_S).not_done


def test_a_waiting_request_is_cancelled_at_once(pipeline: Pipeline, runner: Any) -> None:
    gate = Gate(runner)
    with held(pipeline, gate, max_queue=1) as queue:
        first, second = queue.submit("A ring"), queue.submit("A ring")
        gate.wait_for(1)
        assert second.cancel()
        with pytest.raises(RequestCancelled, match="before it began; nothing was written"):
            second.result(0)
        assert second.cancelled()
        assert second.cancel(), "it stays cancelled"
        third = queue.submit("A ring")
        gate.opened.set()
        assert first.result(PATIENCE_S).frames.shape == third.result(PATIENCE_S).frames.shape
    assert runner.count("text_encoder") == 2


def test_a_running_request_stops_before_its_next_graph(pipeline: Pipeline, runner: Any) -> None:
    gate = Gate(runner)
    with held(pipeline, gate) as queue:
        first, second = queue.submit("A ring", seed=1), queue.submit("A ring", seed=2)
        gate.wait_for(1)
        assert first.cancel()
        gate.opened.set()
        with pytest.raises(RequestCancelled, match="cancelled by its caller; nothing was written"):
            first.result(PATIENCE_S)
        assert first.cancelled()
        np.testing.assert_array_equal(
            second.result(PATIENCE_S).frames, pipeline("A ring", seed=2).frames, "the next one is served"
        )
    assert len(runner.inputs_of("noise")) == 3
    # The cancelled one never came to its second evaluation: 8 each of the two others, and its first.
    assert runner.count("transformer") == 17


def test_cancelled_in_its_last_graph_it_gives_no_result(pipeline: Pipeline, runner: Any) -> None:
    gate = Gate(runner, "vae_decoder_next")
    with held(pipeline, gate) as queue:
        handle = queue.submit("A ring")
        gate.wait_for(1)
        assert handle.cancel()
        gate.opened.set()
        with pytest.raises(RequestCancelled):
            handle.result(PATIENCE_S)


def test_what_is_done_cannot_be_cancelled(pipeline: Pipeline) -> None:
    with RequestQueue(pipeline) as queue:
        handle = queue.submit("A ring")
        frames = handle.result(PATIENCE_S).frames
        assert not handle.cancel()
        assert not handle.cancelled()
        assert handle.result(0).frames is frames


def test_a_result_that_is_not_there_yet(pipeline: Pipeline, runner: Any) -> None:
    gate = Gate(runner)
    # Python 3.10 has two errors of that name.
    with held(pipeline, gate) as queue, pytest.raises(FutureTimeoutError):
        queue.submit("A ring").result(0.01)


def test_progress_and_a_callback_that_stops(pipeline: Pipeline) -> None:
    seen: list[tuple[int, int]] = []

    def callback(given: Pipeline, step: int, timestep: float, facts: dict[str, Any]) -> bool:
        assert given is pipeline
        seen.append((step, facts["num_inference_steps"]))
        return step < 2

    with RequestQueue(pipeline) as queue:
        handle = queue.submit("A ring", callback_on_step_end=callback)
        with pytest.raises(RequestCancelled, match="stopped by its callback after step 3 of 4"):
            handle.result(PATIENCE_S)
    assert seen == [(0, 4), (1, 4), (2, 4)]
    assert handle.num_steps_done == 3
    assert handle.cancelled()


def test_a_failure_is_its_requests_own(
    pipeline: Pipeline, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**inputs: Any) -> Any:
        raise BackendError("the device is gone")

    with RequestQueue(pipeline) as queue:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "transformer", fail)
            with pytest.raises(BackendError, match="the device is gone"):
                queue.submit("A ring").result(PATIENCE_S)
        assert queue.submit("A ring").result(PATIENCE_S).frames.shape[0] == 5


def test_bad_requests_are_refused_when_they_are_submitted(pipeline: Pipeline, runner: Any) -> None:
    with RequestQueue(pipeline) as queue:
        with pytest.raises(RequestError, match="num_inference_steps is 0"):
            queue.submit("A ring", num_inference_steps=0)
        with pytest.raises(RequestError, match="no video1 is given"):
            queue.submit(PROMPT)
        with pytest.raises(MediaError, match=r"no/such/file\.mp4"):
            queue.submit(PROMPT, video1="no/such/file.mp4")
    assert runner.calls == []


# --- memory -------------------------------------------------------------------------------------------------


@pytest.fixture
def bytes_of(pipeline: Pipeline, blocky_clip: Any) -> Callable[[int], tuple[int, int]]:
    """What an edit of so many frames takes: of weights, and beside them."""

    def estimate(num_frames: int) -> tuple[int, int]:
        request = pipeline.prepare(EditRequest(PROMPT, {"video1": blocky_clip(num_frames)}))
        found = estimate_work(pipeline.bundle.spec, request.expected_work)
        return found.weight_bytes, found.peak_bytes - found.weight_bytes

    return estimate


def test_what_never_fits_is_refused_with_what_would(
    pipeline: Pipeline, blocky_clip: Any, bytes_of: Callable[[int], tuple[int, int]]
) -> None:
    weights, held_bytes = bytes_of(5)
    with RequestQueue(pipeline, memory_budget_bytes=weights + held_bytes) as queue:
        with pytest.raises(
            RequestError, match=r"with 9 frames needs .* the largest that fits at this size is 5 frames"
        ):
            queue.submit(PROMPT, video1=blocky_clip(9))
        handle = queue.submit(PROMPT, video1=blocky_clip(5))
        assert handle.memory_bytes == held_bytes
        assert len(handle.result(PATIENCE_S).frames) == 5
    with (
        RequestQueue(pipeline, memory_budget_bytes=weights + 1) as queue,
        pytest.raises(RequestError, match="not even one frame fits: take a smaller size or a larger budget"),
    ):
        queue.submit(PROMPT, video1=blocky_clip(5))
    with pytest.raises(RequestError, match=f"the weights alone take {weights}; give more"):
        RequestQueue(pipeline, memory_budget_bytes=weights)


def test_no_more_run_at_once_than_memory_holds(
    pipeline: Pipeline, runner: Any, blocky_clip: Any, bytes_of: Callable[[int], tuple[int, int]]
) -> None:
    weights, held_bytes = bytes_of(9)
    gate = Gate(runner)
    with held(pipeline, gate, num_workers=4, memory_budget_bytes=weights + 2 * held_bytes) as queue:
        handles = [queue.submit(PROMPT, video1=blocky_clip(9)) for _ in range(6)]
        gate.wait_for(2)
        assert (queue.num_running, queue.num_waiting) == (2, 4)
        gate.opened.set()
        assert not wait(handles, PATIENCE_S).not_done
    assert gate.most_at_once == 2


def test_a_large_request_is_not_overtaken_for_ever(
    pipeline: Pipeline, runner: Any, blocky_clip: Any, bytes_of: Callable[[int], tuple[int, int]]
) -> None:
    weights, held_bytes = bytes_of(9)
    gate = Gate(runner)
    with held(pipeline, gate, num_workers=2, memory_budget_bytes=weights + held_bytes) as queue:
        handles = [queue.submit(PROMPT, video1=blocky_clip(n), seed=n) for n in (1, 9, 1, 5)]
        gate.wait_for(1)
        assert queue.num_running == 1, "the small one behind the large one would fit, and waits"
        gate.opened.set()
        assert not wait(handles, PATIENCE_S).not_done
    assert [int(inputs["seed"]) for inputs in runner.inputs_of("noise")][:2] == [1, 9]


def test_cancelling_the_large_one_lets_the_next_run(
    pipeline: Pipeline, runner: Any, blocky_clip: Any, bytes_of: Callable[[int], tuple[int, int]]
) -> None:
    weights, held_bytes = bytes_of(9)
    gate = Gate(runner)
    with held(pipeline, gate, num_workers=2, memory_budget_bytes=weights + held_bytes) as queue:
        _, large, _ = (queue.submit(PROMPT, video1=blocky_clip(n)) for n in (1, 9, 1))
        gate.wait_for(1)
        assert large.cancel()
        gate.wait_for(1)
        assert queue.num_running == 2


# --- ends ---------------------------------------------------------------------------------------------------


def test_leaving_the_block_waits_for_all(pipeline: Pipeline) -> None:
    with RequestQueue(pipeline, num_workers=2) as queue:
        handles = [queue.submit("A ring") for _ in range(5)]
    assert all(handle.done() and not handle.cancelled() for handle in handles)
    queue.close()
    with pytest.raises(BackendError, match="the queue is closed; make a new RequestQueue"):
        queue.submit("A ring")


def test_an_exception_in_the_block_cancels_all(pipeline: Pipeline, runner: Any) -> None:
    gate = Gate(runner)
    handles = []

    def leave() -> None:
        with RequestQueue(pipeline) as queue:
            handles.extend(queue.submit("A ring") for _ in range(3))
            gate.wait_for(1)
            # The worker is joined on the way out and stands at the gate; it was told to stop before.
            handles[2].add_done_callback(lambda handle: gate.opened.set())
            raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        leave()
    assert all(handle.cancelled() for handle in handles)
    assert runner.count("vae_decoder_first") == 0


def test_a_handle_is_a_future_of_asyncio_too(pipeline: Pipeline, runner: Any) -> None:
    gate = Gate(runner)

    async def serve(queue: RequestQueue) -> int:
        first, second = (asyncio.wrap_future(queue.submit("A ring")) for _ in range(2))
        second.cancel()
        await asyncio.sleep(0)  # the loop's turn, in which the queue hears of it
        gate.opened.set()
        result = await asyncio.wait_for(first, PATIENCE_S)
        with pytest.raises(asyncio.CancelledError):
            await second
        return len(result.frames)

    with held(pipeline, gate) as queue:
        assert asyncio.run(serve(queue)) == 5
    assert runner.count("vae_decoder_first") == 1


@pytest.mark.parametrize("option", ["num_workers", "max_queue"])
def test_numbers_below_one(pipeline: Pipeline, option: str) -> None:
    with pytest.raises(RequestError, match=f"{option} is 0; give at least 1"):
        RequestQueue(pipeline, **{option: 0})


def test_a_backend_that_runs_one_request_at_a_time(fake_bundle: Any, runner: Any) -> None:
    """Several workers are refused; threads that call the pipeline all the same go one after another."""
    pipeline = Pipeline(load_bundle(fake_bundle.root), runner)
    with pytest.raises(
        RequestError, match="num_workers is 2, but this backend runs one request at a time; give 1"
    ):
        RequestQueue(pipeline, num_workers=2)
    gate = Gate(runner)
    threads = [threading.Thread(target=pipeline, args=("A ring",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.wait_for(1)
    gate.opened.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert gate.most_at_once == 1
    assert runner.count("transformer") == 3 * 8


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"seed": 7}, {"seed": 7}),
        ({"seed": 0, "start_s": 0.0}, {"seed": 0}),
        ({"num_inference_steps": 2, "schedule": None}, {"num_inference_steps": 2}),
        ({"size": (32, 32)}, {"size": (32, 32)}),
        ({}, {}),
    ],
)
def test_options_beside_a_request_replace_its_own(
    pipeline: Pipeline, blocky_clip: Any, options: dict[str, Any], changed: dict[str, Any]
) -> None:
    """In a call of the pipeline and in the queue alike."""
    request = EditRequest(PROMPT, {"video1": blocky_clip(5)}, seed=3, num_inference_steps=1)
    expected = pipeline(replace(request, **changed))
    called = pipeline(request, **options)
    with RequestQueue(pipeline) as queue:
        queued = queue.submit(request, **options).result(PATIENCE_S)
    for found in (called, queued):
        np.testing.assert_array_equal(found.frames, expected.frames)
        assert found.laid_out.seed == expected.laid_out.seed == changed.get("seed", 3)


def test_inputs_beside_a_request_replace_its_own(pipeline: Pipeline, blocky_clip: Any) -> None:
    one, two = blocky_clip(5, seed=1), blocky_clip(5, seed=2)
    request = EditRequest(PROMPT, {"video1": one})
    with RequestQueue(pipeline) as queue:
        queued = queue.submit(request, video1=two).result(PATIENCE_S)
        np.testing.assert_array_equal(queued.frames, two)
        np.testing.assert_array_equal(pipeline(request, video1=two).frames, two)
        for wrong, code in (
            ({"seed": -1}, "request.option"),
            ({"sed": 1}, "request.input_name"),
            ({"lora": "x"}, "request.unsupported"),
            ({"image1": one}, "request.tag"),
        ):
            for call in (pipeline, queue.submit):
                with pytest.raises(RequestError) as caught:
                    call(request, **wrong)
                assert caught.value.code == code


def test_a_cancelled_file_can_be_resumed(
    windowed_pipeline: Pipeline, windowed_runner: Any, slow_clip: Callable[..., Any], tmp_path: Path
) -> None:
    media.write_clip(tmp_path / "in.mp4", slow_clip(25, 48, 48), 8.0)
    request = EditRequest(PROMPT, {"video1": tmp_path / "in.mp4"})
    with RequestQueue(windowed_pipeline) as queue:
        handles: list[FileHandle] = []

        def cancel(pipeline: object, step: int, timestep: float, facts: dict[str, Any]) -> None:
            if facts["window"] == 1:
                handles[0].cancel()

        gate = Gate(windowed_runner)
        handles.append(queue.submit_to_file(request, tmp_path / "out.mp4", callback_on_step_end=cancel))
        gate.opened.set()
        with pytest.raises(RequestCancelled, match="1 windows are kept"):
            handles[0].result(PATIENCE_S)
        assert not (tmp_path / "out.mp4").exists()
        run = queue.submit_to_file(request, tmp_path / "out.mp4", resume=True).result(PATIENCE_S)
    assert run.num_windows == 3
