"""`python -m benchmarks.growth`: how waits and overheads of one server move from 1 to 1,000 GPUs.

What a job costs the server is measured here: the CPU of its process for a job and for a look at one, the time of the
store, and the pause of a device between two jobs. The rest is simulated: jobs arrive at random at a share of what the
GPUs can do, wait in one queue, and run for the seconds that the planner gives for the work, some shorter and some
longer. From both follows what breaks first.
"""

from __future__ import annotations

import argparse
import heapq
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

if not __package__:  # run as a file: `python benchmarks/growth.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from benchmarks.serving import Server, start_server
from editverse_rt import media
from editverse_rt.client import Client
from editverse_rt.serve.job import Job
from editverse_rt.serve.store import JobStore

__all__ = ["find_utilization", "measure_server", "measure_store", "simulate"]

WORKS = {"an edit in 10 s (4 steps)": 10.0, "an edit in 228 s (50 steps)": 228.0}
"""Seconds on one GPU. 228: VACE-1.3B, 81 frames of 832x480 on an A100 by the roofline (docs/wan.md)."""
UTILIZATIONS = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
SPREAD = 0.5
"""Standard deviation of the logarithm of a job's seconds."""


def measure_store(jobs: int) -> float:
    """Seconds that the store takes for a job from its row to its end, without its files."""
    facts = {"width": 64, "height": 64, "num_frames": 1, "flops": {"denoise": 1}, "num_inference_steps": 1}
    with tempfile.TemporaryDirectory() as folder, JobStore(Path(folder)) as store:
        begin = time.perf_counter()
        for number in range(jobs):
            made = Job(
                f"job_{number}", "a", "native", "nano", "png", {"prompt": "x"}, {}, facts, 60.0, time.time()
            )
            store.add(made, f"key{number}", "digest")
            begun = store.begin(made.id)
            assert begun is not None
            part = store.output_folder(made.id) / "part-1-result.png"
            part.parent.mkdir()
            part.write_bytes(b"x")
            store.finish(made.id, begun.runs, {"result": part}, {"type": "image/png"})
        return (time.perf_counter() - begin) / jobs


def measure_server(bundle: str, jobs: int, polls: int) -> dict[str, float]:
    """Seconds of the server's CPU for a job with an upload and for a look at one; a device's pause between jobs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        media.write_image(folder / "in.png", np.zeros((64, 64, 3), np.uint8))
        with start_server(bundle, 1, folder / "data") as server, Client(server.url) as client:
            _run(client, folder, 2)
            before = _cpu_s(server)
            shown = _run(client, folder, jobs)
            job_s = (_cpu_s(server) - before) / jobs
            before = _cpu_s(server)
            for _ in range(polls):
                with urlopen(f"{server.url}/v1/jobs/{shown[-1]['id']}", timeout=60) as answer:
                    answer.read()
            poll_s = (_cpu_s(server) - before) / polls
        # None where a job begins while the one before it still writes its files.
        pauses = [max(0.0, second["started_at"] - first["finished_at"]) for first, second in pairwise(shown)]
    return {"server_cpu_s_per_job": job_s, "server_cpu_s_per_poll": poll_s, "gap_s": float(np.median(pauses))}


def _run(client: Client, folder: Path, jobs: int) -> list[dict[str, Any]]:
    """Submit jobs that then run one behind the other; all of them at their ends, in order."""
    request = {"prompt": "<image1> Make it night", "num_inference_steps": 1}
    ids = [client.submit(request, image1=folder / "in.png")["id"] for _ in range(jobs)]
    return [client.wait(job, poll_s=1.0) for job in ids]


def _cpu_s(server: Server) -> float:
    """User and system time of the server's process (Linux)."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def simulate(gpus: int, service_s: float, utilization: float, jobs: int, seed: int = 0) -> np.ndarray:
    """Waits of jobs in seconds [jobs]: one queue, first come, first served, `gpus` devices.

    Arrivals are a Poisson process at `utilization` of the devices' rate; times of service are lognormal around
    `service_s`. The first tenth, in which the queue fills up, is left out.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(service_s / (gpus * utilization), jobs))
    services = rng.lognormal(-(SPREAD**2) / 2, SPREAD, jobs) * service_s
    free = [0.0] * gpus
    waits = np.empty(jobs)
    for number, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        begin = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begin + service)
        waits[number] = begin - arrival
    return waits[jobs // 10 :]


def find_utilization(gpus: int, service_s: float, jobs: int) -> float:
    """The highest share of the GPUs' time, of a grid, at which 99 of 100 jobs wait no longer than a job takes."""
    for utilization in UTILIZATIONS:
        if np.percentile(simulate(gpus, service_s, utilization, jobs), 99) <= service_s:
            return utilization
    return UTILIZATIONS[-1]


def grow(facts: dict[str, Any], work: str, gpus: int) -> dict[str, Any]:
    """One row: the simulated waits of a work on so many GPUs, and what one server has to do for it."""
    service_s = WORKS[work] + facts["gap_s"]
    rate = facts["utilization"] * gpus / service_s
    waits = simulate(gpus, service_s, facts["utilization"], facts["simulated_jobs"])
    affordable = find_utilization(gpus, service_s, facts["simulated_jobs"])
    under_way = rate * (float(waits.mean()) + service_s)
    cores = (
        rate * facts["server_cpu_s_per_job"]
        + under_way * facts["polls_per_s"] * facts["server_cpu_s_per_poll"]
    )
    return {
        "work": work,
        "gpus": gpus,
        "jobs_per_s": rate,
        "wait_p50_s": float(np.percentile(waits, 50)),
        "wait_p99_s": float(np.percentile(waits, 99)),
        "affordable_utilization": affordable,
        "paid_s_per_job": service_s / affordable,
        "gpu_share": facts["gap_s"] / service_s,
        "server_cpu_cores": cores,
        "store_share": rate * facts["store_s_per_job"],
        "network_bytes_per_s": 2 * rate * facts["media_bytes_per_job"],
        "disk_bytes_a_day": 86_400 * rate * facts["media_bytes_per_job"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    add = parser.add_argument
    add("--bundle", default="nano", help="to measure the server with (default: nano)")
    add("--gpus", type=int, nargs="+", default=[1, 10, 100, 1000], help="default: 1 10 100 1000")
    add("--utilization", type=float, default=0.8, help="of the GPUs (default: 0.8)")
    add("--polls-per-s", type=float, default=1.0, help="looks at each job under way (default: 1)")
    add("--media-mb", type=float, default=8.0, help="upload, source and result of a job (default: 8)")
    add("--jobs", type=int, default=50, help="to measure the server and the store with (default: 50)")
    add("--simulated-jobs", type=int, default=200_000, help="default: 200000")
    add("--out", type=Path, default=FOLDER / "growth.json")
    args = parser.parse_args(arguments)
    facts: dict[str, Any] = {
        "utilization": args.utilization,
        "polls_per_s": args.polls_per_s,
        "media_bytes_per_job": args.media_mb * 1e6,
        "simulated_jobs": args.simulated_jobs,
        "store_s_per_job": measure_store(args.jobs),
        **measure_server(args.bundle, args.jobs, 10 * args.jobs),
    }
    rows = [grow(facts, work, gpus) for work in WORKS for gpus in args.gpus]
    print(write_report(write_results(args.out, "growth", rows, facts, arguments), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
