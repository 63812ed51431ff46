"""A full disk: at the upload, in the table, and when a result is kept. Nothing is left, and no job stands still."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer

from editverse_rt.serve import repeating
from editverse_rt.serve.app import make_app
from editverse_rt.serve.auth import Keys
from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.job import Job
from editverse_rt.serve.live import LiveRun
from editverse_rt.serve.logs import Log
from editverse_rt.serve.meters import Meters
from editverse_rt.serve.process import WorkerOptions
from editverse_rt.serve.settings import ServerSettings
from editverse_rt.serve.store import JobStore

PICTURE = {"request": {"prompt": "A red circle", "schedule": "fast", "num_frames": 1}}


def refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "serve.disk"), answer.text


def test_less_than_what_must_stay_free_is_507_everywhere(tmp_path: Path, video: bytes) -> None:
    with LiveServer(tmp_path / "data", "--min-free", "900000GB") as server, server.client() as client:
        files = {"video1": ("a.mp4", video)}
        refused(client.post("/v1/jobs", json=PICTURE))
        refused(client.post("/v1/jobs?dry_run=1", json=PICTURE))
        refused(client.post("/v1/jobs", data={"request": '{"prompt": "x"}'}, files=files))
        refused(client.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": files["video1"]}))
        refused(client.post("/v1/videos/edits", data={"prompt": "x"}, files={"video": files["video1"]}))
        refused(client.post("/v1/images/generations", json={"prompt": "x"}))
        refused(client.post("/v1/images/edits", data={"prompt": "x"}, files={"image": files["video1"]}))
        assert list((tmp_path / "data" / "in").iterdir()) == []
        assert 'editverse_rejected_total{reason="disk"} 7.0' in client.get("/metrics").text
        assert client.get("/v1/jobs").json()["data"] == []


class Disk:
    """A store whose table cannot grow, in an application in this process."""

    def __init__(self, folder: Path) -> None:
        self.settings = ServerSettings(data=folder)
        self.store = JobStore(folder)
        self.dispatcher = Dispatcher(self.store, [WorkerOptions(("nano",))], Log(None), Meters())
        app = make_app(self.settings, self.dispatcher, Keys(None))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)

    async def __aenter__(self) -> Disk:
        await self.dispatcher.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.client.aclose()
        await self.dispatcher.stop(0.0)
        self.store.close()

    def fill(self) -> None:
        """From now on SQLite says what it says on a full disk."""
        with self.store._table.turn:  # so that it is the connection that writes
            pages = self.store._table.one("PRAGMA page_count")["page_count"]
            self.store._table.all(f"PRAGMA max_page_count = {pages}")

    def free(self) -> None:
        with self.store._table.turn:
            self.store._table.all("PRAGMA max_page_count = 1000000")

    async def wait(self, job: str, *states: str) -> Any:
        end = time.monotonic() + 60
        while (shown := (await self.client.get(f"/v1/jobs/{job}")).json())["state"] not in states:
            assert time.monotonic() < end, shown
            await asyncio.sleep(0.02)
        return shown


def test_a_table_that_cannot_grow_is_507_and_the_upload_is_gone(tmp_path: Path, video: bytes) -> None:
    async def act() -> None:
        async with Disk(tmp_path) as disk:
            disk.fill()
            body = {"request": {**PICTURE["request"], "prompt": "A red circle " + "and more " * 10}}
            # SQLite has a few free pages; then there is no room for a row.
            for _ in range(200):
                answer = await disk.client.post("/v1/jobs", json=body)
                if answer.status_code != 201:
                    break
                await disk.client.post(f"/v1/jobs/{answer.json()['id']}/cancel")
            refused(answer)
            form = {"request": '{"prompt": "Make it night", "schedule": "fast"}'}
            before = set((tmp_path / "in").iterdir())
            refused(await disk.client.post("/v1/jobs", data=form, files={"video1": ("a.mp4", video)}))
            assert set((tmp_path / "in").iterdir()) == before
            assert (await disk.client.get("/healthz")).status_code == 200
            disk.free()
            answer = await disk.client.post("/v1/jobs", json=PICTURE)
            await disk.wait(answer.json()["id"], "completed")

    asyncio.run(act())


def test_the_end_of_a_job_is_recorded_once_the_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is in its place and its row is not: what is written again and again must find it there."""
    monkeypatch.setattr(repeating, "AGAIN_S", 0.05)
    refusals: list[str] = []

    async def act() -> None:
        async with Disk(tmp_path) as disk:
            real_end = disk.store._end

            def end(*given: Any, **values: Any) -> bool:
                if len(refusals) < 3:
                    refusals.append("refused")
                    disk.fill()
                    while True:  # until SQLite itself says that the disk is full
                        disk.store._table.execute(
                            "INSERT INTO speeds VALUES (hex(randomblob(1000)), zeroblob(1000))"
                        )
                disk.free()
                return real_end(*given, **values)

            monkeypatch.setattr(disk.store, "_end", end)
            job = (await disk.client.post("/v1/jobs", json=PICTURE)).json()["id"]
            shown = await disk.wait(job, "completed", "failed")
            assert (shown["state"], shown["attempts"]) == ("completed", 1), shown
            content = await disk.client.get(f"/v1/jobs/{job}/content")
            assert len(content.content) == shown["result"]["bytes"]
            assert disk.dispatcher.live == {}

    asyncio.run(act())
    assert len(refusals) == 3


def test_a_result_that_cannot_be_kept_fails_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from editverse_rt.serve import store

    async def act() -> None:
        async with Disk(tmp_path) as disk:

            def sync_file(path: Path) -> None:
                with open("/dev/full", "wb", buffering=0) as full:
                    full.write(b"x")

            monkeypatch.setattr(store, "sync_file", sync_file)
            job = (await disk.client.post("/v1/jobs", json=PICTURE)).json()["id"]
            shown = await disk.wait(job, "completed", "failed")
            assert (shown["state"], shown["error"]["code"]) == ("failed", "serve.disk"), shown
            assert list((tmp_path / "out").iterdir()) == []

    asyncio.run(act())


def test_an_upload_that_does_not_fit_is_507_and_gone(
    tmp_path: Path, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file of an upload is /dev/full, which takes nothing; Python says so when its buffer is written."""
    real_open = Path.open

    def open_full(self: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        if mode == "xb":
            real_open(self, mode).close()
            return real_open(Path("/dev/full"), "wb")
        return real_open(self, mode, *given, **named)

    async def act() -> None:
        async with Disk(tmp_path) as disk:
            monkeypatch.setattr(Path, "open", open_full)
            for size in (1, 3):  # at the end of the part, and within it
                form = {"request": '{"prompt": "Make it night"}'}
                files = {"video1": ("a.mp4", video * size * 20)}
                refused(await disk.client.post("/v1/jobs", data=form, files=files))
            assert list((tmp_path / "in").iterdir()) == []

    asyncio.run(act())


class Once(Dispatcher):
    """Counts how often a run was ended."""

    ends: list[str]

    def _over(self, run: LiveRun, outcome: str, code: str | None = None) -> None:
        self.ends.append(outcome)
        super()._over(run, outcome, code)


@pytest.mark.parametrize("is_late", [True, False])
def test_a_report_and_the_death_of_its_process_end_a_run_once(tmp_path: Path, is_late: bool) -> None:
    """The last line of a worker is read, and its death is noticed while that line is being recorded; or just before."""

    async def act() -> list[str]:
        with JobStore(tmp_path) as store:
            dispatcher = Once(store, [WorkerOptions(("nano",))], Log(None), Meters())
            dispatcher.ends = []
            worker = dispatcher.workers[0]
            estimate = {
                "num_inference_steps": 2,
                "num_windows": 1,
                "flops": {"denoise": 1},
                "schedule": "fast",
            }
            job = Job("job_a", "local", "native", "nano", "png", {}, {}, estimate, 60.0, time.time())
            store.add(job)
            begun = store.begin(job.id)
            assert begun is not None
            run = dispatcher.live[job.id] = LiveRun(begun, worker)
            folder = store.output_folder(job.id)
            folder.mkdir()
            (folder / "part-1-result.png").write_bytes(b"x")
            done = {
                "event": "done",
                "job": job.id,
                "run": 1,
                "result": {"parts": {"result": "part-1-result.png"}, "sha256": ""},
            }
            if is_late:
                dispatcher._on_end(worker, "exit -9", False)
                dispatcher._on_event(worker, done)
            else:
                dispatcher._on_event(worker, done)
                dispatcher._on_end(worker, "exit -9", False)
            while dispatcher._tasks:
                await asyncio.gather(*dispatcher._tasks)
            found = store.get(job.id)
            assert found is not None
            assert found.state == ("queued" if is_late else "completed")
            assert found.deaths == int(is_late)
            # Another run of the job has begun: what is late of the first must not end it.
            if is_late:
                again = store.begin(job.id)
                assert again is not None
                dispatcher.live[job.id] = LiveRun(again, worker)
                dispatcher._on_event(worker, done)
                await asyncio.sleep(0)
                assert dispatcher.live[job.id].job.runs == 2
                assert not dispatcher.live[job.id].is_ending
            assert run.is_ending
        return dispatcher.ends

    assert asyncio.run(act()) == (["given_back"] if is_late else ["completed"])
