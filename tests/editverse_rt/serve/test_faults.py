"""Workers that hang, are killed, run out of memory or disk, or talk nonsense: each job ends, and the server goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer, find_stray_files, worker_pids

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="/proc and /dev/full are Linux's"
)

FAULTY = (str(Path(__file__).with_name("faulty_server.py")),)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    data = tmp_path_factory.mktemp("faulty") / "data"
    options = ("--worker-silence-s", "2", "--slots", "2", "--worker-memory", "4GB")
    with LiveServer(data, *options, program=FAULTY) as running:
        yield running


def submit(client: httpx.Client, prompt: str, **options: Any) -> httpx.Response:
    """Submit a picture; again while a worker is being started."""
    end = time.monotonic() + 60
    while True:
        request = {"prompt": prompt, "schedule": "fast", "num_frames": 1, **options}
        answer = client.post("/v1/jobs", json={"request": request})
        if answer.status_code != 503:
            return answer
        assert answer.json()["error"]["code"] == "serve.starting"
        assert time.monotonic() < end
        time.sleep(0.1)


def wait(client: httpx.Client, job: str, *states: str) -> Any:
    end = time.monotonic() + 90
    while (shown := client.get(f"/v1/jobs/{job}").json())["state"] not in (
        states or ("completed", "failed", "cancelled")
    ):
        assert time.monotonic() < end, shown
        time.sleep(0.03)
    return shown


def wait_for_attempt(client: httpx.Client, job: str, attempt: int) -> None:
    end = time.monotonic() + 60
    while (shown := client.get(f"/v1/jobs/{job}").json())["attempts"] < attempt:
        assert time.monotonic() < end, shown
        time.sleep(0.05)


def check_nothing_is_left(server: LiveServer, client: httpx.Client) -> None:
    """No job is under way, no output of one that has not completed is there, and a job still works."""
    shown = client.get("/v1/jobs", params={"limit": 100}).json()["data"]
    assert all(job["state"] not in ("queued", "in_progress") for job in shown), shown
    data = next(Path(word) for word in server.process.args if str(word).endswith("data") and "/" in str(word))
    assert find_stray_files(client, data) == []
    assert wait(client, submit(client, "A red circle").json()["id"])["state"] == "completed"


@pytest.mark.parametrize("fault", ["hang", "die", "garbage"])
def test_what_ends_a_worker_once_is_tried_again(faulty: LiveServer, fault: str) -> None:
    with faulty.client() as client:
        job = submit(client, f"fault {fault} once").json()["id"]
        shown = wait(client, job)
        assert (shown["state"], shown["attempts"]) == ("completed", 2), shown
        text = client.get("/metrics").text
        reason = "silent" if fault == "hang" else "exit"
        assert f'editverse_worker_restarts_total{{device="cpu",reason="{reason}"}}' in text
        check_nothing_is_left(faulty, client)


@pytest.mark.parametrize("fault", ["hang", "die"])
def test_what_ends_a_worker_each_time_has_failed_after_three(faulty: LiveServer, fault: str) -> None:
    with faulty.client() as client:
        job = submit(client, f"fault {fault} always").json()["id"]
        shown = wait(client, job)
        assert (shown["state"], shown["attempts"]) == ("failed", 3), shown
        assert shown["error"]["code"] == "worker_died"
        check_nothing_is_left(faulty, client)


@pytest.mark.parametrize(
    ("fault", "code"), [("memory", "backend.memory"), ("disk", "serve.disk"), ("bug", "error")]
)
def test_what_a_worker_survives_fails_its_job_alone(faulty: LiveServer, fault: str, code: str) -> None:
    with faulty.client() as client:
        before = worker_pids(faulty.process.pid)
        assert len(before) == 1
        shown = wait(client, submit(client, f"fault {fault} always", num_frames=17).json()["id"])
        assert (shown["state"], shown["attempts"], shown["error"]["code"]) == ("failed", 1, code), shown
        assert "/" not in shown["error"]["message"], "a path of the server is told"
        assert worker_pids(faulty.process.pid) == before
        check_nothing_is_left(faulty, client)


def test_a_job_beside_one_that_hangs_is_not_blamed(faulty: LiveServer) -> None:
    with faulty.client() as client:
        # It tells its steps, and would take minutes: it is there when the worker is killed.
        beside = submit(client, "A red circle", schedule="paper", num_inference_steps=3000).json()["id"]
        wait(client, beside, "in_progress")
        hangs = submit(client, "fault hang once").json()["id"]
        wait_for_attempt(client, beside, 2)
        # The one that ended its worker runs alone, so it waits for the other.
        assert wait(client, hangs, "queued")["attempts"] == 1
        silent = [line["job_id"] for line in faulty.lines if line["event"] == "worker_silent"]
        assert hangs in silent
        assert beside not in silent
        assert client.post(f"/v1/jobs/{beside}/cancel").json()["state"] == "cancelled"
        assert wait(client, hangs)["attempts"] == 2
        check_nothing_is_left(faulty, client)


def test_a_worker_that_is_stopped_is_replaced_and_its_job_done(faulty: LiveServer) -> None:
    with faulty.client() as client:
        job = submit(client, "A red circle", schedule="paper", num_inference_steps=2000).json()["id"]
        wait(client, job, "in_progress")
        for pid in worker_pids(faulty.process.pid):
            os.kill(pid, signal.SIGSTOP)
        wait_for_attempt(client, job, 2)
        assert client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
        check_nothing_is_left(faulty, client)


def test_cancelling_a_job_that_hangs_returns_when_its_worker_was_killed(faulty: LiveServer) -> None:
    with faulty.client() as client:
        job = submit(client, "fault hang always").json()["id"]
        wait(client, job, "in_progress")
        end = time.monotonic() + 60
        while client.get(f"/v1/jobs/{job}").json()["phase"] != "encode":
            assert time.monotonic() < end
        assert client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
        check_nothing_is_left(faulty, client)


@pytest.mark.parametrize("fault", ["look-hang", "look-die"])
def test_a_request_that_ends_the_worker_while_it_is_looked_at_is_refused(
    faulty: LiveServer, fault: str
) -> None:
    with faulty.client() as client:
        running = submit(client, "A red circle", schedule="paper", num_inference_steps=3000).json()["id"]
        wait(client, running, "in_progress")
        refused = submit(client, fault)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "serve.input_crash")
        # What ran beside it goes on and was not to blame.
        wait(client, running, "in_progress")
        assert client.post(f"/v1/jobs/{running}/cancel").json()["state"] == "cancelled"
        check_nothing_is_left(faulty, client)
