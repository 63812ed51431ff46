"""The server's heart: jobs from the store go to workers, and what workers tell goes to the store.

One event loop runs all of it; what touches the disk is done in threads.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar

from editverse_rt.serve.choosing import choose_next, shape_of
from editverse_rt.serve.job import FINISHED, Job
from editverse_rt.serve.live import LiveRun, Speeds
from editverse_rt.serve.logs import Log
from editverse_rt.serve.meters import Meters
from editverse_rt.serve.problems import not_kept
from editverse_rt.serve.process import STOPPED, Message, WorkerOptions, WorkerProcess
from editverse_rt.serve.repeating import repeat, tell_error, write_until_done
from editverse_rt.serve.store import JobStore
from editverse_rt.serve.watching import Watchers

__all__ = ["Dispatcher", "MakeWorker"]

Answer = TypeVar("Answer")
MakeWorker = Callable[
    [WorkerOptions, Callable[[WorkerProcess, Message], None], Callable[[WorkerProcess, str, bool], None]],
    WorkerProcess,
]
SWEEP_S = 30.0
_WATCH_S = 1.0


class Dispatcher:
    """Runs the store's jobs on workers. Use start() and stop() inside one event loop."""

    def __init__(
        self,
        store: JobStore,
        workers: Iterable[WorkerOptions],
        log: Log,
        meters: Meters,
        silence_s: float = 60.0,
        make_worker: MakeWorker = WorkerProcess,
    ) -> None:
        """silence_s: for which a run may at least tell nothing before its worker is killed. make_worker: of the
        options, and the two listeners of `WorkerProcess`."""
        self._silence_s = silence_s
        self.store, self.log, self.meters = store, log, meters
        self.workers = [make_worker(options, self._on_event, self._on_end) for options in workers]
        self.live: dict[str, LiveRun] = {}
        self.speeds = Speeds(store.speeds())
        self.is_draining = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        # Held while the store and `live` say different things of what runs.
        self._turn = asyncio.Lock()
        self._watchers = Watchers()
        self._last_shapes: dict[str, tuple[object, ...]] = {}

    # --- for the routes -----------------------------------------------------------------------------------

    async def start(self, *, all_up: bool = True) -> None:
        """Start the workers, and wait until all are up, or the first. Raises what one of them cannot open with."""
        loop = asyncio.get_running_loop()
        up = []
        for worker in self.workers:
            up.append(loop.create_future())
            self._spawn(worker.keep_running(up[-1]))
        if all_up:
            await asyncio.gather(*up)
        else:
            done, _ = await asyncio.wait(up, return_when=asyncio.FIRST_COMPLETED)
            for first in done:
                first.result()
        for work in (self._pump, self._watch, self._sweep):
            self._spawn(repeat(work, self.log, self._wake.set))

    async def stop(self, drain_s: float) -> None:
        """Let what runs end for a while, then put it back into the queue, and end the workers."""
        self.begin_draining()
        end = time.monotonic() + drain_s
        while self.live and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for run in list(self.live.values()):
            run.worker.send({"do": "cancel", "job": run.job.id})
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for run in list(self.live.values()):
            with suppress(sqlite3.Error):  # the next start does it then
                self.store.give_back(run.job.id, run.job.runs, died=False)
                self.log.write("job_given_back", job_id=run.job.id)

    def begin_draining(self) -> None:
        """Take nothing more, and wake all who wait for events, so that they leave."""
        self.is_draining = True
        self._watchers.tell_all()
        self._wake.set()

    async def do(self, act: Callable[[], Answer]) -> Answer:
        """Do in a thread what touches the disk."""
        return await asyncio.to_thread(act)

    @property
    def is_up(self) -> bool:
        return any(worker.is_up for worker in self.workers)

    @property
    def models(self) -> list[dict[str, Any]]:
        """The models, with the devices that serve each; the first is the default."""
        found: dict[str, dict[str, Any]] = {}
        for worker in self.workers:
            for model in worker.models:
                found.setdefault(model["id"], {**model, "devices": []})["devices"].append(worker.name)
        return [{**model, "default": i == 0} for i, model in enumerate(found.values())]

    async def prepare(
        self,
        model: str,
        request: dict[str, Any],
        inputs: dict[str, Path],
        unnamed: Sequence[Path],
        file_format: str | None,
        timeout_s: float,
    ) -> Message:
        """Have a worker check a request. Returns its answer, "prepared" or "refused"."""
        up = [worker for worker in self.workers if worker.is_up] or self.workers
        worker = min(up, key=lambda worker: sum(run.worker is worker for run in self.live.values()))
        return await worker.ask(
            {
                "do": "prepare",
                "model": model,
                "request": request,
                "inputs": {name: str(path) for name, path in inputs.items()},
                "unnamed": [str(path) for path in unnamed],
                "format": file_format,
            },
            timeout_s,
        )

    def submitted(self, job: Job) -> None:
        """A job was added to the store."""
        self.log.write("job_queued", job_id=job.id)
        self._wake.set()

    async def cancel(self, job: str, patience_s: float = 120.0) -> Job | None:
        """Cancel a job, and return when its device is free; it may have ended otherwise just before."""
        with self.watch(job) as event:
            async with self._turn:
                state = await self.do(lambda: self.store.cancel(job))
            run = self.live.get(job)
            if state == "in_progress" and run is not None:
                self._stop_run(run)
            elif state is not None:
                self._watchers.tell(job)
            end = time.monotonic() + patience_s
            while job in self.live and (left := end - time.monotonic()) > 0:
                event.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(event.wait(), min(left, 1.0))
        return await self.do(lambda: self.store.get(job))

    async def delete(self, job: str) -> None:
        """Delete a job for good; returns when its device is free and its files are gone."""
        async with self._turn:
            await self.do(lambda: self.store.delete(job))
        run = self.live.get(job)
        if run is not None:
            with self.watch(job) as event:
                self._stop_run(run)
                while job in self.live:
                    event.clear()
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(event.wait(), 1.0)
            await self.do(lambda: self.store.discard(job))
        self._watchers.tell(job)

    def watch(self, job: str) -> AbstractContextManager[asyncio.Event]:
        """A context whose event is set whenever something about the job changes."""
        return self._watchers.watch(job)

    async def wait_for_end(self, job: str) -> Job | None:
        """The job once it is over; None if it was deleted."""
        with self.watch(job) as event:
            while True:
                event.clear()
                found = await self.do(lambda: self.store.get(job))
                if found is None or found.state in FINISHED:
                    return found
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(event.wait(), 5.0)

    async def wait_seconds(self, ahead_of: Job | None = None) -> float | None:
        """How long what waits and runs will take; None before a speed was learnt. ahead_of: only up to that job."""
        slots = max(1, sum(worker.slots for worker in self.workers))
        total = 0.0
        for run in self.live.values():
            left = run.left_s(self.speeds)
            if left is None:
                return None
            total += left
        for job in await self.do(self.store.queued):
            if ahead_of is not None and job.id == ahead_of.id:
                break
            seconds = self.expected_seconds(job.model, job.estimate)
            if seconds is None:
                return None
            total += seconds
        return total / slots

    def expected_seconds(self, model: str, estimate: dict[str, Any]) -> float | None:
        """How long a job takes once it runs."""
        flops = float(sum(estimate["flops"].values()))
        found = [self.speeds.seconds(worker.name, model, flops) for worker in self.workers]
        return min((seconds for seconds in found if seconds is not None), default=None)

    # --- inside -------------------------------------------------------------------------------------------

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, act: Callable[[], Answer]) -> Answer:
        """Record something of a run that must not be lost."""
        return await write_until_done(act, self.log)

    def _stop_run(self, run: LiveRun) -> None:
        run.cancelled_s = run.cancelled_s or time.monotonic()
        run.worker.send({"do": "cancel", "job": run.job.id})

    async def _pump(self) -> None:
        """Give free workers their next jobs, when something has changed."""
        await self._wake.wait()
        self._wake.clear()
        if self.is_draining:
            return
        # A run whose job is queued again is live until its files are gone; its end wakes this again.
        queued = [job for job in await self.do(self.store.queued) if job.id not in self.live]
        for worker in self.workers:
            while (
                job := choose_next(queued, worker, self.live, self._last_shapes.get(worker.name))
            ) is not None:
                queued = [other for other in queued if other.id != job.id]
                await self._begin(job, worker)

    async def _begin(self, queued: Job, worker: WorkerProcess) -> None:
        async with self._turn:
            job = await self.do(lambda: self.store.begin(queued.id))
            if job is None:  # cancelled or deleted meanwhile
                return
            self.live[job.id] = LiveRun(job, worker)
        self._last_shapes[worker.name] = shape_of(job)
        self.meters.queue_wait_s.observe(max(0.0, time.time() - job.queued_at))
        self.log.write("job_begun", job_id=job.id, device=worker.name, attempt=job.runs)
        if not worker.is_up:
            self._end_by(self.live[job.id], self._give_back(self.live[job.id], died=False))
            return
        worker.send(
            {
                "do": "run",
                "job": job.id,
                "run": job.runs,
                "model": job.model,
                "request": job.request,
                "inputs": {name: str(self.store.input_path(job, name)) for name in job.inputs},
                "folder": str(self.store.output_folder(job.id)),
                "format": job.format,
                "deadline_s": job.deadline_s,
            }
        )
        self._watchers.tell(job.id)

    def _on_event(self, worker: WorkerProcess, message: Message) -> None:
        event = message["event"]
        if event == "ready":
            self.log.write("worker_up", device=worker.name, slots=worker.slots)
            self._wake.set()
            return
        if event == "log":
            self.log.write("worker_error", level=message["level"], device=worker.name, text=message["text"])
            return
        run = self.live.get(message["job"])
        if run is None or run.job.runs != message["run"] or run.worker is not worker or run.is_ending:
            return
        if event == "progress":
            run.hear(message["phase"], message["step"], message["window"])
            self._watchers.tell(run.job.id)
            if run.phase == "write":  # the device is free for the next
                self._wake.set()
        else:
            self._end_by(run, self._finish(run, message))

    def _end_by(self, run: LiveRun, work: Coroutine[Any, Any, None]) -> None:
        """Record a run's end, once: a report and the end of the process may come at the same time."""
        run.is_ending = True
        self._spawn(work)

    async def _finish(self, run: LiveRun, message: Message) -> None:
        job, store, event = run.job, self.store, message["event"]
        run.hear(run.phase, run.step, run.window)
        error: dict[str, Any] = message.get("error", {})
        if event == "done":
            result = dict(message["result"])
            folder = store.output_folder(job.id)
            parts = {variant: folder / name for variant, name in result.pop("parts").items()}
            try:
                await self._write(lambda: store.finish(job.id, job.runs, parts, result))
                self._learn(run)
            except OSError as refused:  # the files cannot be kept
                tell_error(self.log, refused)
                event, error = "failed", not_kept(refused).to_json()
        if event == "failed":
            await self._write(lambda: store.fail(job.id, job.runs, error))
        elif event == "cancelled" and self.is_draining and run.cancelled_s is None:
            await self._write(lambda: store.give_back(job.id, job.runs, died=False))
        elif event == "cancelled":
            await self._write(lambda: store.end_cancelled(job.id, job.runs))
        outcome = "completed" if event == "done" else str(event)
        self._over(run, outcome, error.get("code"))

    def _learn(self, run: LiveRun) -> None:
        seconds = sum(run.stage_s.get(phase, 0.0) for phase in ("encode", "denoise", "decode"))
        learnt = self.speeds.learn(
            run.worker.name, run.job.model, float(sum(run.job.estimate["flops"].values())), seconds
        )
        if learnt is not None:
            self._spawn(self._write(lambda: self.store.keep_speed(*learnt)))

    def _over(self, run: LiveRun, outcome: str, code: str | None = None) -> None:
        job, now = run.job, time.monotonic()
        self.live.pop(job.id, None)
        run.stage_s[run.phase] = run.stage_s.get(run.phase, 0.0) + now - run.phase_begun_s
        self.meters.job_over(run, outcome, now)
        self.log.write(
            f"job_{outcome}",
            job_id=job.id,
            device=run.worker.name,
            attempt=job.runs,
            code=code,
            ms=round(1000 * (now - run.begun_s)),
        )
        self._watchers.tell(job.id)
        self._wake.set()

    def _on_end(self, worker: WorkerProcess, reason: str, was_asked: bool) -> None:
        """A worker's process has ended: its jobs go back. Where it looked at an upload then, that is to blame."""
        if reason == STOPPED:
            self.log.write("worker_ended", device=worker.name, reason=reason)
        else:
            self.log.write("worker_ended", level="error", device=worker.name, reason=reason)
            self.meters.worker_ended(worker.name, reason)
        for run in [run for run in self.live.values() if run.worker is worker and not run.is_ending]:
            is_blamed = run.is_blamed if reason == "silent" else not was_asked and not self.is_draining
            self._end_by(run, self._give_back(run, died=is_blamed))

    async def _give_back(self, run: LiveRun, *, died: bool) -> None:
        job = run.job
        state = await self._write(lambda: self.store.give_back(job.id, job.runs, died=died))
        # None: deleted meanwhile.
        self._over(run, "given_back" if state in ("queued", None) else str(state))

    async def _watch(self) -> None:
        await asyncio.sleep(_WATCH_S)
        for run in list(self.live.values()):
            seconds = self.expected_seconds(run.job.model, run.job.estimate)
            steps = run.job.num_windows * max(1, run.num_steps)
            step_s = None if seconds is None else seconds / steps
            if not run.is_ending and run.is_silent(step_s, self._silence_s):
                run.is_blamed = True
                self.log.write("worker_silent", level="error", device=run.worker.name, job_id=run.job.id)
                run.worker.kill("silent")

    async def _sweep(self) -> None:
        for job in await self.do(self.store.sweep):
            self.log.write("job_expired", job_id=job)
        await asyncio.sleep(SWEEP_S)
