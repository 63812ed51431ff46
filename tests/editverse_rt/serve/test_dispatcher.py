"""The dispatcher at moments that are short on a live server: between what the store says and what runs."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editverse_rt.serve import store as store_module
from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.job import Job
from editverse_rt.serve.logs import Log
from editverse_rt.serve.meters import Meters
from editverse_rt.serve.process import WorkerOptions
from editverse_rt.serve.store import JobStore

ESTIMATE = {
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "memory_bytes": 10,
    "num_inference_steps": 4,
    "num_windows": 1,
    "flops": {"denoise": 10},
}


class Device:
    """A worker that does what the test says; it answers a cancel at once."""

    def __init__(self, options: WorkerOptions, on_event: Any, on_end: Any) -> None:
        self.options, self.name = options, options.name
        self.on_event, self.on_end = on_event, on_end
        self.is_up, self.slots, self.weight_bytes, self.models = True, 1, 0, [{"id": "nano"}]
        self.runs: list[dict[str, Any]] = []
        self.cancelled: list[str] = []

    async def keep_running(self, is_first_up: asyncio.Future[None]) -> None:
        is_first_up.set_result(None)
        await asyncio.Event().wait()

    def send(self, message: dict[str, Any]) -> None:
        if message["do"] == "run":
            self.runs.append(message)
        else:
            self.cancelled.append(message["job"])
            run = next((run["run"] for run in self.runs if run["job"] == message["job"]), 0)
            told = {"event": "cancelled", "job": message["job"], "run": run}
            asyncio.get_running_loop().call_soon(self.on_event, self, told)

    def complete(self, message: dict[str, Any]) -> None:
        folder = Path(message["folder"])
        folder.mkdir(exist_ok=True)
        (folder / "part.mp4").write_bytes(b"result")
        told = {"event": "done", "job": message["job"], "run": message["run"]}
        self.on_event(self, {**told, "result": {"parts": {"result": "part.mp4"}}})


class Bench:
    """A dispatcher with devices in this process."""

    def __init__(self, folder: Path, devices: int = 1) -> None:
        self.store = JobStore(folder)
        options = [WorkerOptions(("nano",), device=number) for number in range(devices)]
        self.dispatcher = Dispatcher(self.store, options, Log(None), Meters(), 1e9, Device)  # type: ignore[arg-type]
        self.devices: list[Any] = self.dispatcher.workers

    async def __aenter__(self) -> Bench:
        await self.dispatcher.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.dispatcher.stop(0.0)
        self.store.close()

    def submit(self) -> str:
        job = Job(
            id=self.store.new_id(), owner="one", view="native", model="nano", format="mp4",
            request={"prompt": "x"}, inputs={}, estimate=ESTIMATE, deadline_s=3600.0, created_at=time.time(),
        )  # fmt: skip
        self.dispatcher.submitted(self.store.add(job))
        return job.id

    async def until(self, is_so: Callable[[], Any]) -> None:
        end = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < end, self.store.counts()
            await asyncio.sleep(0.005)


def test_a_job_runs_again_only_when_the_files_of_its_dead_run_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is queued before they go, which takes long on a slow disk, and the other device is free all the while."""
    may_go, really_remove = threading.Event(), shutil.rmtree

    def remove(path: Path, **options: Any) -> None:
        may_go.wait(30)
        really_remove(path, **options)

    async def act() -> None:
        async with Bench(tmp_path, devices=2) as bench:
            first, second = bench.devices
            second.is_up = False
            job = bench.submit()
            await bench.until(lambda: first.runs)
            monkeypatch.setattr(store_module.shutil, "rmtree", remove)
            first.is_up, second.is_up = False, True
            first.on_end(first, "exit -9", False)
            await bench.until(bench.store.queued)
            for _ in range(20):  # as a submission, or the end of another job
                bench.dispatcher._wake.set()
                await asyncio.sleep(0.005)
            assert second.runs == []
            may_go.set()
            await bench.until(lambda: second.runs)
            second.complete(second.runs[0])
            await bench.until(lambda: bench.store.counts() == {"completed": 1})
            assert bench.dispatcher.live == {}
            found = bench.store.get(job)
            assert found is not None
            assert found.runs == 2

    asyncio.run(act())


@pytest.mark.parametrize("act_on", ["cancel", "delete"])
def test_a_job_that_is_just_beginning_is_stopped(tmp_path: Path, act_on: str) -> None:
    """The request comes when the row says that the job runs, and no worker has it yet."""

    async def act() -> None:
        async with Bench(tmp_path) as bench:
            (device,) = bench.devices
            begin, has_begun, goes_on = bench.store.begin, threading.Event(), threading.Event()

            def begin_slowly(job: str) -> Job | None:
                begun = begin(job)
                has_begun.set()
                goes_on.wait(30)
                return begun

            bench.store.begin = begin_slowly  # type: ignore[method-assign]
            job = bench.submit()
            await bench.until(has_begun.is_set)
            asked = asyncio.ensure_future(getattr(bench.dispatcher, act_on)(job))
            await asyncio.sleep(0.1)
            goes_on.set()
            await asyncio.wait_for(asked, 30)
            assert device.cancelled == [job]
            assert bench.dispatcher.live == {}
            found = bench.store.get(job)
            assert (
                (found is None) if act_on == "delete" else (found is not None and found.state == "cancelled")
            )
            assert not bench.store.output_folder(job).exists()

    asyncio.run(act())
