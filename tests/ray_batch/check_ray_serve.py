"""A server whose workers are on two nodes of a Ray cluster on this machine. `make test-ray`.

Workers, the actors that carry their lines, a node and the server are killed with -9 while jobs run; each job ends
completed, its result is that of a run without Ray, and it is there once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "editverse_rt" / "serve"))

from live_server import LiveServer
from processes import find_processes

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.pipeline import Pipeline

REQUEST = {"prompt": "A red circle", "num_frames": 1, "seed": 3, "num_inference_steps": 400}
PATIENCE_S = 240.0
FAULTY = (str(Path(__file__).parents[1] / "editverse_rt" / "serve" / "faulty_server.py"),)


@pytest.fixture(scope="module")
def sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the result without Ray and without a server."""
    path = tmp_path_factory.mktemp("alone") / "out.png"
    with Pipeline.open("nano", num_threads=1) as pipeline:
        pipeline(
            REQUEST["prompt"], **{name: value for name, value in REQUEST.items() if name != "prompt"}
        ).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def start(cluster: Cluster, data: Path) -> LiveServer:
    return LiveServer(data, "--ray", cluster.address, "--ray-workers", "2")


def submit(client: httpx.Client, **changes: Any) -> str:
    end = time.monotonic() + PATIENCE_S
    while (answer := client.post("/v1/jobs", json={"request": {**REQUEST, **changes}})).status_code == 503:
        assert time.monotonic() < end, answer.text
        time.sleep(0.2)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def wait(client: httpx.Client, job: str, *states: str) -> Any:
    end = time.monotonic() + PATIENCE_S
    while (shown := client.get(f"/v1/jobs/{job}").json())["state"] not in (states or ("completed", "failed")):
        assert time.monotonic() < end, shown
        time.sleep(0.05)
    return shown


def wait_for_two(client: httpx.Client) -> list[str]:
    """The ids of two jobs that are past their first step, one on each node."""
    end = time.monotonic() + PATIENCE_S
    while True:
        shown = client.get("/v1/jobs", params={"limit": 100}).json()["data"]
        running = [job["id"] for job in shown if job["state"] == "in_progress" and job["step"]]
        if len(running) == 2:
            return running
        assert time.monotonic() < end, shown
        time.sleep(0.05)


def test_each_node_has_a_worker_and_results_are_those_without_ray(
    nodes: Cluster, tmp_path: Path, sha256: str
) -> None:
    with start(nodes, tmp_path / "data") as server, server.client() as client:
        jobs = [submit(client) for _ in range(4)]
        wait_for_two(client)
        assert client.get("/v1/models").json()["data"][0]["devices"] == ["ray0", "ray1"]
        assert len(find_processes(b"serve.worker")) == 2
        for job in jobs:
            shown = wait(client, job)
            assert (shown["state"], shown["attempts"], shown["result"]["sha256"]) == ("completed", 1, sha256)
        long = submit(client, num_inference_steps=10_000)
        wait(client, long, "in_progress")
        begin = time.monotonic()
        assert client.post(f"/v1/jobs/{long}/cancel").json()["state"] == "cancelled"
        assert time.monotonic() - begin < 30
        events = client.get(f"/v1/jobs/{long}/events").text
        assert events.startswith("event: job\n")
        assert server.stop() == 0
    end = time.monotonic() + 30
    while find_processes(b"serve.worker"):
        assert time.monotonic() < end, "a worker has outlived its server"
        time.sleep(0.1)


def test_a_worker_that_hangs_while_it_opens_its_bundles_is_started_again(
    nodes: Cluster, tmp_path: Path, sha256: str
) -> None:
    shutil.copytree(load_bundle("nano").root, tmp_path / "nano")
    (tmp_path / "nano/hang-once").touch()
    options = ["--ray", nodes.address, "--ray-workers", "1", "--worker-open-s", "10"]
    words = [*options, "--bundle", str(tmp_path / "nano")]
    with LiveServer(tmp_path / "data", *words, program=FAULTY) as server, server.client() as client:
        texts = [line["text"] for line in server.lines if line["event"] == "worker_error"]
        assert len(texts) == 1
        assert "has not opened its bundles within 10 s" in texts[0]
        assert [line["reason"] for line in server.lines if line["event"] == "worker_ended"] == ["silent"]
        assert wait(client, submit(client))["result"]["sha256"] == sha256
        assert server.stop() == 0


@pytest.mark.parametrize("victim", ["worker", "actor", "node", "server"])
def test_nothing_is_lost_to_a_kill_and_nothing_is_done_twice(
    nodes: Cluster, tmp_path: Path, sha256: str, victim: str
) -> None:
    server = start(nodes, tmp_path / "data")
    try:
        with server.client() as client:
            jobs = [submit(client) for _ in range(5)]
            wait_for_two(client)
            if victim in ("worker", "actor"):
                word = b"serve.worker" if victim == "worker" else b"ray::WorkerHost"
                pids = find_processes(word)
                assert len(pids) == 2
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            elif victim == "node":
                # Its raylet and all that it has started, without a farewell.
                nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
                nodes.add_node(num_cpus=1)
            else:
                server.kill()
                server = start(nodes, tmp_path / "data")
        with server.client() as client:
            for job in jobs:
                shown = wait(client, job)
                assert (shown["state"], shown["result"]["sha256"]) == ("completed", sha256), shown
                assert shown["attempts"] <= 2
                files = sorted(path.name for path in (tmp_path / "data" / "out" / job).iterdir())
                assert files == [f"result-{shown['attempts']}.png"]
            assert server.stop() == 0
    finally:
        server.kill()
