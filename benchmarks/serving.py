"""`python -m benchmarks.serving`: a server under load, beside a `RequestQueue` in this process.

Mixed edits of small clips are sent by some clients at once; each waits for its job, downloads the result, and sends
the next. The same edits also go through a `RequestQueue` in this process, as many at once as the server runs, from the
same files to files. Both take turns, a part of the requests each, so that other load on the machine meets both. While
the server is busy, one more client asks for `/healthz` and for the state of a job, and its waits are noted. Memory of
the server's and the worker's process is read before the first job and after the last, and over `--memory-jobs` small
jobs more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

if not __package__:  # run as a file: `python benchmarks/serving.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from benchmarks.soak import Request, draw_requests
from benchmarks.work import draw_clip
from editverse_rt import EditVerseError, Pipeline, RequestHandle, RequestQueue, media
from editverse_rt.client import Client

__all__ = ["Load", "load_server", "run_in_process", "start_server"]

PROBE_S = 0.1
POLL_S = 0.5
PATIENCE_S = 120.0


@dataclass
class Load:
    """What some clients found. done: requests that were completed, of the list's head; waits of probes in seconds."""

    done: int = 0
    wall_s: float = 0.0
    healthz_s: list[float] = field(default_factory=list)
    status_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Load) -> None:
        """Take in what another round found."""
        self.done += other.done
        self.wall_s += other.wall_s
        self.healthz_s += other.healthz_s
        self.status_s += other.status_s
        self.failures += other.failures


@dataclass(frozen=True)
class Server:
    """A server that runs. pid: of its process; the worker is its child."""

    url: str
    pid: int


@contextmanager
def start_server(bundle: str, slots: int, data: Path) -> Iterator[Server]:
    """`editverse-rt serve` on a free port, ended with the block. Raises RuntimeError where it does not start."""
    command = [
        sys.executable, "-m", "editverse_rt", "serve", "--data", str(data), "--port", "0", "--bundle", bundle,
        "--backend", "ort-cpu", "--slots", str(slots),
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            port = next((found for line in process.stderr if (found := _port_of(line))), None)
            if port is None:
                raise RuntimeError(
                    "the server has ended before it listened; expected a line `listening` of it"
                )
            # Its log has to be read, or the pipe is full and the server stands still.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield Server(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _port_of(line: str) -> int | None:
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    return int(facts["port"]) if facts.get("event") == "listening" else None


def write_inputs(requests: Sequence[Request], folder: Path) -> list[Path]:
    """The clip of each request as a file: a picture for one frame, else a video."""
    paths = []
    for number, request in enumerate(requests):
        clip = draw_clip(*request.shape[:3], seed=request.seed)
        path = folder / f"in{number}{'.mp4' if request.frames > 1 else '.png'}"
        if request.frames > 1:
            media.write_clip(path, clip, 8.0)
        else:
            media.write_image(path, clip[0])
        paths.append(path)
    return paths


def load_server(
    server: Server,
    requests: Sequence[Request],
    inputs: Sequence[Path],
    clients: int,
    seconds: float,
    out: Path,
) -> Load:
    """Send requests by so many clients at once, until all are sent or the seconds are over, and probe meanwhile."""
    load, lock = Load(), threading.Lock()
    numbers = iter(range(len(requests)))
    latest: list[str] = []
    is_over = threading.Event()
    begin = time.perf_counter()

    def work() -> None:
        with Client(server.url) as client:
            while time.perf_counter() - begin < seconds:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    _run_one(client, requests[number], inputs[number], out, latest)
                except EditVerseError as error:
                    with lock:
                        load.failures.append(f"{requests[number]}: {type(error).__name__}: {error}")
                    continue
                with lock:
                    load.done += 1

    prober = threading.Thread(target=_probe, args=(server, load, latest, is_over))
    prober.start()
    try:
        with ThreadPoolExecutor(clients) as pool:
            for future in [pool.submit(work) for _ in range(clients)]:
                future.result()
        load.wall_s = time.perf_counter() - begin
    finally:
        is_over.set()
        prober.join()
    return load


def _run_one(client: Client, request: Request, path: Path, out: Path, latest: list[str]) -> None:
    name = "video1" if request.frames > 1 else "image1"
    body = {
        "prompt": f"<{name}> Make it night",
        "num_inference_steps": request.steps,
        "size": f"{request.width_px}x{request.height_px}",
        "num_frames": request.frames,
        "seed": request.seed,
    }
    source: dict[str, Any] = {name: path}
    job = client.submit(body, **source)
    latest[:] = [job["id"]]
    done = client.wait(job["id"], poll_s=POLL_S)
    target = out / f"{job['id']}.{done['format']}"
    client.download(job["id"], target)
    target.unlink()


def _probe(server: Server, load: Load, latest: list[str], is_over: threading.Event) -> None:
    while not is_over.wait(PROBE_S):
        load.healthz_s.append(_seconds_of(f"{server.url}/healthz"))
        for job in latest[:1]:
            load.status_s.append(_seconds_of(f"{server.url}/v1/jobs/{job}"))


def _seconds_of(url: str) -> float:
    """Seconds from before the connection to behind the answer's last byte."""
    begin = time.perf_counter()
    with urlopen(url, timeout=60) as answer:
        answer.read()
    return time.perf_counter() - begin


@contextmanager
def open_queue(bundle: str, workers: int) -> Iterator[RequestQueue]:
    """A `RequestQueue` in this process, with a thread for each of so many requests at once."""
    with (
        Pipeline.open(bundle, "ort-cpu", num_threads=1) as pipeline,
        RequestQueue(pipeline, num_workers=workers, max_queue=10_000) as queue,
    ):
        yield queue


def run_in_process(
    queue: RequestQueue, requests: Sequence[Request], inputs: Sequence[Path], out: Path
) -> float:
    """Seconds for the requests through a queue, from files to files."""
    begin = time.perf_counter()
    handles = [_submit(queue, *given) for given in zip(requests, inputs, strict=True)]
    for handle, request in zip(handles, requests, strict=True):
        handle.result().save(out / ("out.mp4" if request.frames > 1 else "out.png"))
    return time.perf_counter() - begin


def _submit(queue: RequestQueue, request: Request, path: Path) -> RequestHandle:
    name = "video1" if request.frames > 1 else "image1"
    source: dict[str, Any] = {name: path}
    return queue.submit(
        f"<{name}> Make it night",
        num_inference_steps=request.steps,
        size=(request.height_px, request.width_px),
        num_frames=request.frames,
        seed=request.seed,
        **source,
    )


def resident_bytes(server: Server) -> tuple[int, int]:
    """(of the server, of its worker): resident memory now, as Linux says it; 0 where it does not."""
    with urlopen(f"{server.url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    worker = sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith("editverse_memory_bytes") and 'what="resident"' in line
    )
    try:
        pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    except OSError:
        return 0, int(worker)
    return pages * os.sysconf("SC_PAGE_SIZE"), int(worker)


def measure(
    bundle: str, requests: Sequence[Request], clients: int, slots: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """One row: so many clients on a server of its own, and the same requests in this process, in turns."""
    load, alone_s, count = Load(), 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = write_inputs(requests, folder)
        with (
            start_server(bundle, slots, folder / "data") as server,
            open_queue(bundle, min(clients, slots)) as queue,
        ):
            # The graphs' first calls.
            load_server(server, requests[:1], inputs[:1], 1, seconds, folder)
            run_in_process(queue, requests[:1], inputs[:1], folder)
            before = resident_bytes(server)
            for number in range(rounds):
                part = slice(number * len(requests) // rounds, (number + 1) * len(requests) // rounds)
                found = load_server(server, requests[part], inputs[part], clients, seconds / rounds, folder)
                load.add(found)
                done = slice(part.start, part.start + max(1, found.done))
                count += max(1, found.done)
                alone_s += run_in_process(queue, requests[done], inputs[done], folder)
            after = resident_bytes(server)
    return {
        "clients": clients,
        "done": load.done,
        "wall_s": load.wall_s,
        "requests_per_s": load.done / load.wall_s,
        "in_process_requests_per_s": count / alone_s,
        **{f"healthz_p{share}_s": _percentile(load.healthz_s, share) for share in (50, 99)},
        **{f"status_p{share}_s": _percentile(load.status_s, share) for share in (50, 99)},
        "probes": len(load.healthz_s),
        "server_bytes": [before[0], after[0]],
        "worker_bytes": [before[1], after[1]],
        "failures": load.failures,
    }


def measure_memory(bundle: str, slots: int, jobs: int, marks: int = 10) -> dict[str, Any]:
    """Resident memory of a server and its worker after each tenth of many small jobs; the first is warm-up."""
    small = Request(1, 64, 64, 1, 0)
    failures: list[str] = []
    sizes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = write_inputs([small], folder)
        with start_server(bundle, slots, folder / "data") as server:
            for _ in range(marks):
                part = [small] * (jobs // marks)
                failures += load_server(server, part, inputs * len(part), 4, 3600.0, folder).failures
                sizes.append(resident_bytes(server))
    return {
        "jobs": jobs,
        "server_bytes": [size for size, _ in sizes],
        "worker_bytes": [size for _, size in sizes],
        "failures": failures,
    }


def _percentile(values: Sequence[float], share: int) -> float | None:
    return float(np.percentile(values, share)) if values else None


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    add = parser.add_argument
    add("--bundle", default="nano", help="name or folder (default: nano)")
    add("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once, a row each (default: 1 4 16)")
    add("--jobs", type=int, default=60, help="requests of a row at most (default: 60)")
    add("--seconds", type=float, default=120, help="after which a row sends no more (default: 120)")
    add("--steps", type=int, default=50, help="at most, of a request (default: 50)")
    add("--slots", type=int, default=os.cpu_count() or 1, help="jobs that run at once (default: one a core)")
    add("--rounds", type=int, default=4, help="turns of server and queue (default: 4)")
    add("--memory-jobs", type=int, default=1000, help="small jobs to watch memory over (default: 1000)")
    add("--out", type=Path, default=FOLDER / "serving.json")
    args = parser.parse_args(arguments)
    requests = draw_requests(args.jobs, args.steps)
    rows = [
        measure(args.bundle, requests, clients, args.slots, args.seconds, args.rounds)
        for clients in args.clients
    ]
    facts: dict[str, Any] = {"bundle": args.bundle, "jobs": args.jobs, "slots": args.slots}
    facts |= {"seconds": args.seconds, "rounds": args.rounds}
    if args.memory_jobs:
        facts["memory"] = measure_memory(args.bundle, args.slots, args.memory_jobs)
    print(write_report(write_results(args.out, "serving", rows, facts, arguments), args.out))
    return 1 if any(row["failures"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
