"""Servers that are stopped, locked, guarded by keys, or whose workers die of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer, worker_pids

LONG = {"request": {"prompt": "A red circle", "num_inference_steps": 3000}}
FAST = {"request": {"prompt": "A red circle", "schedule": "fast"}}


def wait(client: httpx.Client, job: str, *states: str) -> Any:
    end = time.monotonic() + 90
    while (shown := client.get(f"/v1/jobs/{job}").json())["state"] not in states:
        assert time.monotonic() < end, shown
        time.sleep(0.03)
    return shown


def test_sigterm_drains_and_what_is_left_is_done_after_the_next_start(tmp_path: Path) -> None:
    with LiveServer(tmp_path, "--drain-s", "1") as server, server.client() as client:
        jobs = [client.post("/v1/jobs", json=LONG).json()["id"] for _ in range(3)]
        short = client.post("/v1/jobs", json=FAST).json()["id"]
        wait(client, jobs[0], "in_progress")
        with client.stream("GET", f"/v1/jobs/{jobs[0]}/events") as stream:
            events = stream.iter_lines()
            assert next(events) == "event: job"
            server.process.send_signal(signal.SIGTERM)
            # The stream ends at once, not with the job.
            begin = time.monotonic()
            for _ in events:
                pass
            assert time.monotonic() - begin < 5
        assert server.process.wait(30) == 0
        assert server.lines[-1]["event"] == "stopped"
        # A stop that was asked for is no error.
        ended = next(line for line in server.lines if line["event"] == "worker_ended")
        assert (ended["level"], ended["reason"]) == ("info", "stopped")
        assert next(line for line in server.lines if line["event"] == "listening")["url"] == server.url
    with LiveServer(tmp_path) as server, server.client() as client:
        for job in jobs:
            shown = client.get(f"/v1/jobs/{job}").json()
            assert shown["state"] in ("queued", "in_progress")
            client.post(f"/v1/jobs/{job}/cancel")
        assert wait(client, short, "completed")["attempts"] == 1


def test_a_server_that_drains_takes_nothing_and_still_answers(tmp_path: Path) -> None:
    with LiveServer(tmp_path, "--drain-s", "20") as server, server.client() as client:
        job = client.post("/v1/jobs", json=LONG).json()["id"]
        wait(client, job, "in_progress")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        refused = client.post("/v1/jobs", json=FAST)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "serve.draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
        assert server.process.wait(30) == 0


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with LiveServer(tmp_path):
        second = subprocess.run(
            [sys.executable, "-m", "editverse_rt", "serve", "--data", str(tmp_path), "--port", "0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert second.returncode == 2
    assert "another server" in second.stderr
    assert len(second.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--host", "0.0.0.0"), "--api-keys"),
        (("--bundle", "nowhere"), "nowhere"),
        (("--bundle", "nano", "--bundle", "nano"), "two bundles"),
        (("--backend", "none"), "none"),
    ],
)
def test_what_cannot_be_started_is_told_in_one_line(
    tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "editverse_rt",
        "serve",
        "--data",
        str(tmp_path),
        "--port",
        "0",
        *options,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert told in ended.stderr.splitlines()[-1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it finds the workers in /proc")
def test_a_job_whose_process_dies_three_times_has_failed_and_takes_no_other_with_it(tmp_path: Path) -> None:
    with LiveServer(tmp_path, "--slots", "2") as server, server.client() as client:
        poison = client.post("/v1/jobs", json=LONG).json()["id"]
        for death in range(3):
            wait(client, poison, "in_progress")
            if death:
                # It has died, so it runs alone: a job beside it waits.
                other = client.post("/v1/jobs", json=FAST).json()["id"]
                time.sleep(0.3)
                assert client.get(f"/v1/jobs/{other}").json()["state"] in ("queued", "completed")
            for pid in worker_pids(server.process.pid):
                os.kill(pid, signal.SIGKILL)
            server.wait_for("worker_up")
        shown = wait(client, poison, "failed")
        assert (shown["error"]["code"], shown["attempts"]) == ("worker_died", 3)
        assert wait(client, other, "completed", "failed")["state"] == "completed"
        assert (
            'editverse_worker_restarts_total{device="cpu",reason="exit"} 3.0' in client.get("/metrics").text
        )


def test_what_can_never_fit_is_refused_at_once(tmp_path: Path) -> None:
    with LiveServer(tmp_path, "--memory-budget", "31MB") as server, server.client() as client:
        large = {"request": {"prompt": "A red circle", "num_frames": 17, "schedule": "fast"}}
        refused = client.post("/v1/jobs", json=large)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["code"] == "request.too_large"


def test_a_budget_that_does_not_hold_the_weights_is_refused_at_the_start(tmp_path: Path) -> None:
    words = ["serve", "--data", str(tmp_path), "--port", "0", "--memory-budget", "20MB"]
    ended = subprocess.run(
        [sys.executable, "-m", "editverse_rt", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "the memory budget is 20000000 bytes; expected more than the" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_full_queue_is_429_with_a_time_to_come_back(tmp_path: Path) -> None:
    with (
        LiveServer(tmp_path, "--max-queued-per-key", "2", "--slots", "1") as server,
        server.client() as client,
    ):
        wait(client, client.post("/v1/jobs", json=LONG).json()["id"], "in_progress")
        headers = {"Idempotency-Key": "again"}
        first = client.post("/v1/jobs", json=LONG, headers=headers).json()
        client.post("/v1/jobs", json=LONG)
        refused = client.post("/v1/jobs", json=LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        # What was accepted is answered again even now.
        assert client.post("/v1/jobs", json=LONG, headers=headers).json()["id"] == first["id"]
        assert 'editverse_rejected_total{reason="queue_full"} 1.0' in client.get("/metrics").text
