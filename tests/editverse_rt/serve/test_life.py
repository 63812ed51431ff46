"""Servers that are stopped, locked, guarded by keys, or whose workers die of a job."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer, worker_pids

from editverse_rt.serve.auth import check_host, check_origin
from editverse_rt.serve.problems import HttpError

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
    with LiveServer(tmp_path, "--memory-budget", "20MB") as server, server.client() as client:
        large = {"request": {"prompt": "A red circle", "num_frames": 17, "schedule": "fast"}}
        refused = client.post("/v1/jobs", json=large)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["code"] == "request.too_large"


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


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("keys")
    keys = folder / "keys"
    lines = [f"{name}:{hashlib.sha256(f'key-of-{name}'.encode()).hexdigest()}\n" for name in ("ann", "bob")]
    keys.write_text("".join(lines))
    keys.chmod(0o600)
    options = (
        "--api-keys",
        str(keys),
        "--cors-origin",
        "https://app.example",
        "--allow-host",
        "edit.example",
    )
    with LiveServer(folder / "data", *options) as running:
        yield running


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-{name}"}


def test_another_keys_job_is_not_there(guarded: LiveServer) -> None:
    with guarded.client() as client:
        job = client.post("/v1/jobs", json=FAST, headers=bearer("ann")).json()["id"]
        assert client.get(f"/v1/jobs/{job}", headers=bearer("ann")).status_code == 200
        for method, path in (
            ("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/content"), ("GET", "/recipe"),
            ("POST", "/cancel"),
        ):  # fmt: skip
            answer = client.request(method, f"/v1/jobs/{job}{path}", headers=bearer("bob"))
            assert answer.status_code == 404, (method, path)
        assert client.get("/v1/jobs", headers=bearer("bob")).json()["data"] == []
        uses = {"request": {**FAST["request"], "inputs": {"video1": {"job": job}}}}
        assert client.post("/v1/jobs", json=uses, headers=bearer("bob")).status_code == 404
        assert client.get(f"/v1/videos/{job}", headers=bearer("bob")).status_code == 404


@pytest.mark.parametrize(
    "value", [None, "Bearer", "Bearer wrong", "Basic a2V5", "Bearer key-of-ann x", "Bearer é"]
)
def test_without_a_key_there_is_nothing(guarded: LiveServer, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value.encode()}
    with guarded.client() as client:
        for path in ("/v1/jobs", "/v1/models", "/metrics", "/v1/videos"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz", headers=headers).status_code == 200
        assert client.get("/", headers=headers).status_code == 200


def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_get(guarded: LiveServer) -> None:
    with guarded.client() as client:
        assert client.get("/session").json() == {"auth": "key", "name": None}
        assert client.post("/session", json={"key": "wrong"}).status_code == 401
        answer = client.post("/session", json={"key": "key-of-ann"})
        assert answer.json() == {"auth": "key", "name": "ann"}
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/v1/jobs").status_code == 200
        # The cookie does not work from another origin, not even from one that may call with a key.
        assert client.get("/v1/jobs", headers={"Origin": "https://app.example"}).status_code == 401
        client.delete("/session")
        assert client.get("/v1/jobs").status_code == 401


def test_only_exact_origins_and_known_hosts_may_call(guarded: LiveServer) -> None:
    with guarded.client(headers=bearer("ann")) as client:
        allowed = client.get("/v1/models", headers={"Origin": "https://app.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        assert client.options("/v1/jobs", headers={"Origin": "https://app.example"}).status_code == 204
        for origin in ("https://app.example.evil", "http://app.example", "null", "https://evil"):
            answer = client.get("/v1/models", headers={"Origin": origin})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        assert client.get("/v1/models", headers={"Origin": guarded.url}).status_code == 200
        assert client.get("/healthz", headers={"Host": "rebound.example"}).status_code == 403
        assert client.get("/healthz", headers={"Host": "edit.example"}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "[::1]:8000", "10.0.0.3", "a.example"])
def test_addresses_and_given_names_are_hosts(host: str) -> None:
    check_host(host, ("a.example",))


@pytest.mark.parametrize(
    "host", [None, "", "b.example", "localhost.evil", "a.example@b", "x/localhost", "[::1", "a b"]
)
def test_other_names_are_not(host: str | None) -> None:
    with pytest.raises(HttpError):
        check_host(host, ("a.example",))


def test_an_origin_is_ours_or_exactly_a_given_one() -> None:
    assert not check_origin(None, "a", ())
    assert not check_origin("http://a:1", "a:1", ())
    assert check_origin("https://b", "a", ("https://b",))
    for origin in ("https://b.c", "https://B@a", "file://a", "http://a/x", "http://a:2"):
        with pytest.raises(HttpError):
            check_origin(origin, "a", ("https://b",))


def test_a_file_of_keys_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann:{'0' * 64}\n")
    keys.chmod(0o644)
    command = [sys.executable, "-m", "editverse_rt", "serve", "--data", str(tmp_path / "d"), "--port", "0"]
    ended = subprocess.run(
        [*command, "--api-keys", str(keys)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 2
    assert "chmod 600" in ended.stderr
