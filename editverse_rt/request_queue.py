"""Many requests on one pipeline: a bounded queue, workers, cancelling, and admission by memory.

Each running request calls graphs with its own lengths, so requests of unequal length share the processor
graph by graph and none is padded to another's length.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from editverse_rt.errors import BackendError, QueueFull, RequestCancelled, RequestError
from editverse_rt.file_run import FileRun, check_file_run, run_to_file
from editverse_rt.native_calls import at_exit
from editverse_rt.pipeline import Pipeline, StepCallback
from editverse_rt.planning.planner import Work, check_budget, count_weights
from editverse_rt.request.checked import CheckedRequest
from editverse_rt.request.edit_request import EditRequest, request_of_call
from editverse_rt.result import Result

__all__ = ["FileHandle", "RequestHandle", "RequestQueue"]

Value = TypeVar("Value")
AnyHandle = TypeVar("AnyHandle", bound="_Handle[Any]")

LAST_PATIENCE_S = 1.0
"""How long the end of the program waits for workers that are in no graph."""
_GLANCE_S = 0.05


class _Handle(Future[Value]):
    """One submitted request: a `concurrent.futures.Future`, so `wait` and `asyncio.wrap_future` take it.

    result() raises what the request raised, RequestCancelled after cancel(), see there. num_steps_done of
    num_inference_steps: how far it is, over all windows of a long video. memory_bytes: what it is estimated to hold
    beside the weights, 0 for a queue without a memory budget.
    """

    def __init__(self, queue: RequestQueue, num_inference_steps: int, memory_bytes: int) -> None:
        super().__init__()
        self.num_steps_done = 0
        self.num_inference_steps = num_inference_steps
        self.memory_bytes = memory_bytes
        self._queue = queue
        self._stop = threading.Event()
        # Future's own cancel() works for futures that do not run yet. Here the queue decides, so the state is set
        # to running at once.
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Stop the request: at once where it waits, before its next graph or frame where it runs.

        False if it is done already. After True, result() raises RequestCancelled, and nothing was written; but a
        request that was past its last frame by then, or failed, ends as if nobody had cancelled it.
        """
        return self._queue._cancel(self)

    def cancelled(self) -> bool:
        """Whether it was cancelled and is over."""
        return self.done() and isinstance(self.exception(), RequestCancelled)


class RequestHandle(_Handle[Result]):
    """One request of `RequestQueue.submit`: a future of its `Result`, see there."""


class FileHandle(_Handle[FileRun]):
    """One request of `RequestQueue.submit_to_file`: a future of its `FileRun`, see there."""


class RequestQueue:
    """Serves requests on a pipeline, first come, first served; a context manager.

    Leaving the `with` block waits for all that was submitted; an exception cancels it instead. A program that
    ends without either cancels it too, and waits for the graphs that run. The pipeline is the caller's to
    close, afterwards. Give it one thread (`num_threads=1`) and a worker for each core: two
    requests at once do more than one on two threads.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        num_workers: int = 1,
        max_queue: int = 64,
        memory_budget_bytes: int | None = None,
    ) -> None:
        """Start the workers.

        Args:
            pipeline: Where the requests run. The caller closes it, after the queue.
            num_workers: Requests that run at once.
            max_queue: Requests that may wait.
            memory_budget_bytes: The limit for the weights and for what the running requests are estimated to
                hold beside them (float32 on a CPU). The next request waits until it fits, and those behind it
                wait with it, so that none waits for ever. None for no limit.

        Raises:
            RequestError: A number is below 1, the pipeline runs one request at a time and num_workers is
                larger, or the weights alone exceed the budget.
        """
        for name, number in (("num_workers", num_workers), ("max_queue", max_queue)):
            if number < 1:
                raise RequestError(f"{name} is {number}", hint="give at least 1", code="request.option")
        if num_workers > 1 and not pipeline.traits.runs_concurrently:
            raise RequestError(
                f"num_workers is {num_workers}, but this backend runs one request at a time",
                hint="give 1",
                code="request.option",
            )
        self._pipeline = pipeline
        self._num_workers, self._max_queue = num_workers, max_queue
        self._budget_bytes = memory_budget_bytes
        # Bytes beside the weights: the limit for running requests, and what they are estimated to hold now.
        self._free_bytes = None if memory_budget_bytes is None else self._leave_weights(memory_budget_bytes)
        self._held_bytes = 0
        self._waiting: dict[_Handle[Any], Callable[[], Any]] = {}
        self._running: set[_Handle[Any]] = set()
        self._is_closed = False
        self._changed = threading.Condition()
        # Daemons: a program that ends without close() is not held up by what it left waiting.
        self._workers = [
            threading.Thread(target=self._work, name=f"editverse-rt worker {index}", daemon=True)
            for index in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()
        self._forget_end = at_exit(self._end)

    def __enter__(self) -> RequestQueue:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(cancel=error is not None)

    def submit(
        self,
        request: EditRequest | str,
        *,
        callback_on_step_end: StepCallback | None = None,
        **options: Any,
    ) -> RequestHandle:
        """Put a request in the queue: an `EditRequest` or a prompt, with inputs and options as of a call of the
        pipeline.

        It is checked now, and its files are opened and read when it runs; arrays are not copied, so leave
        them alone until then. The callback is called from a worker's thread.
        Raises RequestError and MediaError for a request that cannot be served, among them one that the memory
        budget can never hold, QueueFull if max_queue requests wait, BackendError after close().
        """
        with self._changed:
            self._check_room()
        checked = self._pipeline.prepare(request_of_call(request, options))
        handle = RequestHandle(self, *self._expect(checked))
        run = partial(self._pipeline.run, checked)
        return self._put(handle, run, checked.schedule.num_inference_steps, callback_on_step_end)

    def submit_to_file(
        self,
        request: EditRequest,
        path: str | os.PathLike[str],
        *,
        resume: bool = False,
        audio: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> FileHandle:
        """Put a request in the queue whose result goes to a file, see `run_to_file`.

        A long video needs the memory of one window; its worker is taken until the file is written. Raises what
        `submit` raises, and what `run_to_file` raises before it begins.
        """
        with self._changed:
            self._check_room()
        checked = check_file_run(self._pipeline, request, path, resume=resume)
        checked.inputs.close_files()
        handle = FileHandle(self, *self._expect(checked))
        run = partial(run_to_file, self._pipeline, request, path, resume=resume, audio=audio)
        return self._put(handle, run, checked.schedule.num_inference_steps, callback_on_step_end)

    def close(self, *, cancel: bool = False) -> None:
        """Take no more requests, and return when all are done and every worker has ended; safe to call twice.

        cancel: cancel those that wait or run. Not to be called from a callback.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            left = [*self._running, *self._waiting] if cancel else []
        for handle in left:
            handle.cancel()
        for worker in self._workers:
            worker.join()
        self._forget_end()

    def _end(self) -> None:
        """At the end of the program: cancel all, and wait for the workers, which end before their next graph.

        One that is in no graph may be in a callback or wait for a file, for ever; it is left after a while.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            left = [*self._running, *self._waiting]
        for handle in left:
            handle.cancel()
        patience_s = LAST_PATIENCE_S
        for worker in self._workers:
            while worker.is_alive() and patience_s > 0:
                worker.join(_GLANCE_S)
                if not self._pipeline.is_in_native_call:
                    patience_s -= _GLANCE_S

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def _expect(self, checked: CheckedRequest) -> tuple[int, int]:
        """Steps and memory of a request. Raises RequestError where the budget never has room for it."""
        steps = checked.schedule.num_inference_steps * (checked.inputs.expected_windows or 1)
        return steps, self._estimate(checked.expected_work)

    def _put(
        self,
        handle: AnyHandle,
        run: Callable[..., Any],
        steps: int,
        callback_on_step_end: StepCallback | None,
    ) -> AnyHandle:
        """Let a request wait for its turn. steps: of a window."""

        def on_step_end(pipeline: Pipeline, step: int, timestep: float, facts: dict[str, Any]) -> Any:
            handle.num_steps_done = facts["window"] * steps + step + 1
            if callback_on_step_end is not None:
                return callback_on_step_end(pipeline, step, timestep, facts)
            return None

        job = partial(run, callback_on_step_end=on_step_end, is_cancelled=handle._stop.is_set)
        with self._changed:
            self._check_room()
            self._waiting[handle] = job
            self._changed.notify_all()
        return handle

    def _check_room(self) -> None:
        if self._is_closed:
            raise BackendError("the queue is closed", hint="make a new RequestQueue", code="backend.closed")
        there, most = len(self._waiting) + len(self._running), self._num_workers + self._max_queue
        if there >= most:
            raise QueueFull(
                f"{there} requests run or wait, and {self._num_workers} may run and {self._max_queue} wait",
                hint="submit again when one of them is done, or give a larger max_queue",
                code="queue_full",
            )

    def _leave_weights(self, budget_bytes: int) -> int:
        """What the budget leaves beside the weights. Raises RequestError if that is nothing."""
        weights = count_weights(self._pipeline.bundle.spec)
        if budget_bytes <= weights:
            raise RequestError(
                f"memory_budget_bytes is {budget_bytes}, and the weights alone take {weights}",
                hint="give more",
                code="request.option",
            )
        return budget_bytes - weights

    def _estimate(self, work: Work) -> int:
        """Bytes that the work holds beside the weights. Raises RequestError where that never fits."""
        if self._budget_bytes is None:
            return 0
        estimate = check_budget(self._pipeline.bundle.spec, work, self._budget_bytes)
        return estimate.peak_bytes - estimate.weight_bytes

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            handle, job = taken
            result, error = None, None
            try:
                result = job()
            except BaseException as raised:
                error = raised
            self._finish(handle, result, error)
            # These hold the frames, so they are released before the worker waits for the next request.
            del taken, handle, job, result, error

    def _take(self) -> tuple[_Handle[Any], Callable[[], Any]] | None:
        """The next request, once it is its turn and it fits; None when there will be no more."""
        with self._changed:
            while (handle := next(iter(self._waiting), None)) is None or not self._fits(handle):
                if handle is None and self._is_closed:
                    return None
                self._changed.wait()
            self._running.add(handle)
            self._held_bytes += handle.memory_bytes
            # The one behind it may fit as well.
            self._changed.notify_all()
            return handle, self._waiting.pop(handle)

    def _fits(self, handle: _Handle[Any]) -> bool:
        """Whether it may run beside those that run; alone it may, as `submit` has seen to."""
        return self._free_bytes is None or self._held_bytes + handle.memory_bytes <= self._free_bytes

    def _finish(self, handle: _Handle[Any], result: Any, error: BaseException | None) -> None:
        with self._changed:
            self._running.remove(handle)
            self._held_bytes -= handle.memory_bytes
            self._changed.notify_all()
        # Outside of the lock, because a future calls its callbacks here.
        if error is not None:
            handle.set_exception(error)
        else:
            handle.set_result(result)

    def _cancel(self, handle: _Handle[Any]) -> bool:
        with self._changed:
            if handle in self._running:
                handle._stop.set()
                return True
            if handle not in self._waiting:
                return handle.cancelled()
            del self._waiting[handle]
            self._changed.notify_all()
        handle.set_exception(
            RequestCancelled(
                "cancelled by its caller before it began", hint="nothing was written", code="cancelled"
            )
        )
        return True
