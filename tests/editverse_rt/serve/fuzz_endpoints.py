"""Send altered requests to every endpoint of a server, and look at each answer and at what is left of them.

`python fuzz_endpoints.py --requests 10000` is `make test-serve-fuzz`. A request is a good one with some changes: values
of other types and extremes, unknown fields, altered bytes, another method, path, query or header; some are cut short
by a sender that leaves. What must hold: each whole request gets an answer; an error is JSON with a code and what was
found, never 500, and tells no traceback and no path of the server; at the end all jobs are over, each folder has its
job, the server holds no more sockets than before, and its log has no error.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from fuzz_requests import HEADERS, Requests
from live_server import LiveServer, find_stray_files

__all__ = ["OPTIONS", "Fuzzer"]

OPTIONS = (
    *("--max-body", "0.2MB", "--body-silence-s", "1", "--max-queued", "12", "--max-queued-per-key", "12"),
    *("--max-deadline-s", "2"),
)
SECRETS = ("Traceback", 'File "', "/in/job_", "/out/job_", "jobs.sqlite3")
PATIENCE_S = 60.0


class Fuzzer:
    """Requests to one server. counts: of answers by method, path and status; faults: what must not have been."""

    def __init__(self, server: LiveServer, data: Path, video: bytes, picture: bytes) -> None:
        self._server, self._data, self._requests = server, data, Requests(video, picture)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.num_cut = 0
        self._jobs: list[str] = []
        self._turn = threading.Lock()

    def run(self, requests: int, seed: int, threads: int = 4) -> None:
        """Send so many requests from several threads, each with random numbers of its own."""
        share = [requests // threads + (number < requests % threads) for number in range(threads)]
        workers = [
            threading.Thread(target=self._send_many, args=(count, random.Random(f"{seed} {number}")))
            for number, count in enumerate(share)
        ]
        before = self.num_sockets()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self._check_end(before)

    def num_sockets(self) -> int:
        """Sockets of the server's process; 0 where the system does not say."""
        count = 0
        for handle in Path(f"/proc/{self._server.process.pid}/fd").glob("*"):
            try:
                count += str(handle.readlink()).startswith("socket:")
            except OSError:  # noqa: PERF203
                continue
        return count

    def _send_many(self, count: int, rng: random.Random) -> None:
        for _ in range(count):
            try:
                self._send_one(rng)
            except Exception as error:  # noqa: PERF203
                self._blame(f"{type(error).__name__}: {error}")

    def _blame(self, fault: str) -> None:
        with self._turn:
            self.faults.append(fault)

    # --- a request ----------------------------------------------------------------------------------------

    def _send_one(self, rng: random.Random) -> None:
        with self._turn:
            jobs = self._jobs[-20:]
        method, template, path, body, kind = self._requests.draw(rng, jobs)
        headers = {"Host": "localhost", "Connection": "close"}
        if body is not None:
            headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        if rng.random() < 0.2:
            name, value = rng.choice(HEADERS)
            headers[name] = value
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        message = "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")
        cut = rng.randrange(len(message)) if rng.random() < 0.1 else None
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=PATIENCE_S) as link:
            with suppress(OSError):  # the server has answered and closed: too large, say
                link.sendall(message[:cut])
            if cut is not None:
                with self._turn:
                    self.num_cut += 1
                if rng.random() < 0.5:
                    return
                link.shutdown(socket.SHUT_WR)
            answer = self._read(link, template)
        if cut is None:
            self._check_answer(method, template, message, answer)

    def _read(self, link: socket.socket, template: str) -> bytes:
        data = b""
        end = time.monotonic() + (0.3 if template.endswith("/events") else PATIENCE_S)
        with suppress(TimeoutError, ConnectionResetError):
            while time.monotonic() < end and (piece := link.recv(1 << 16)):
                data += piece
                link.settimeout(max(0.05, end - time.monotonic()))
        return data.removeprefix(b"HTTP/1.1 100 \r\n\r\n").removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _check_answer(self, method: str, template: str, message: bytes, answer: bytes) -> None:
        sent = message[:300]
        head, _, body = answer.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.1 (\d{3})", head)
        if match is None:
            # A body that was refused while it came: the system may drop the answer with what was not read.
            if len(message) < 100_000:
                self._blame(f"no answer to {sent!r}: {answer[:100]!r}")
            return
        status = int(match[1])
        with self._turn:
            self.counts[f"{status}"] += 1
            self.counts[f"{method} {template}"] += 1
        text = body.decode("latin-1")
        if any(secret in text for secret in SECRETS) and b"text/html" not in head:
            self._blame(f"{sent!r} is told {text[:300]}")
        if status >= 500 and status not in (503, 507):
            self._blame(f"{status} to {sent!r}: {text[:300]}")
        if status == 201:
            with self._turn:
                self._jobs.append(json.loads(body)["id"])
        if status < 400 or method in ("HEAD", "OPTIONS") or text.startswith("Invalid HTTP request"):
            return
        try:
            error = json.loads(body)["error"]
            is_told = bool(error["code"] and error["found"])
        except (ValueError, KeyError):
            is_told = False
        if not is_told:
            self._blame(f"{status} without a code to {sent!r}: {text[:200]}")

    # --- what is left -------------------------------------------------------------------------------------

    def _check_end(self, sockets_before: int) -> None:
        with self._server.client() as client:
            end = time.monotonic() + 4 * PATIENCE_S
            counts = "queued in_progress"
            while counts:
                metrics = client.get("/metrics").text
                counts = " ".join(
                    re.findall(r'editverse_jobs{state="(?:queued|in_progress)"} [1-9].*', metrics)
                )
                if time.monotonic() > end:
                    self.faults.append(f"jobs that do not end: {counts}")
                    break
                time.sleep(0.2)
            self.faults += find_stray_files(client, self._data)
            restarts = re.findall(r"^editverse_worker_restarts_total{.*} .*$", metrics, re.MULTILINE)
            self.faults += [f"a worker has ended: {line}" for line in restarts]
        end = time.monotonic() + 35
        while self.num_sockets() > sockets_before and time.monotonic() < end:
            time.sleep(0.1)
        if self.num_sockets() > sockets_before:
            self.faults.append(f"{self.num_sockets()} sockets, {sockets_before} before")
        for line in self._server.lines:
            if line.get("level") == "error" or line["event"] == "text":
                self.faults.append(str(line)[:2000])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with LiveServer(data, *OPTIONS) as server:
            fuzzer = Fuzzer(server, data, args.video.read_bytes(), args.picture.read_bytes())
            fuzzer.run(args.requests, args.seed)
    statuses = {name: count for name, count in sorted(fuzzer.counts.items()) if name.isdigit()}
    seconds = time.monotonic() - begin
    lines = [
        f"{args.requests} requests in {seconds:.0f} s, {fuzzer.num_cut} of them cut short; by status: {statuses}",
        f"{len(fuzzer.faults)} faults",
        *fuzzer.faults[:50],
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if fuzzer.faults else 0


if __name__ == "__main__":
    sys.exit(main())
