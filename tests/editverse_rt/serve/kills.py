"""Kill the server, its worker or both with SIGKILL while jobs wait and run, and look at what is left.

`python kills.py --kills 200` is `make test-serve-kills`. One folder goes through all kills. What is promised:
each job whose submission was answered is there afterwards and ends as completed, unless it was cancelled, deleted,
or its process was killed three times; a completed job's file has the hash that its row says; what was deleted or
cancelled never comes back; no file is left that no row mentions.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from live_server import LiveServer, find_stray_files, worker_pids

__all__ = ["PHASES", "Campaign"]

PHASES = ("upload", "queued", "read", "encode", "denoise", "decode", "write", "random")
VICTIMS = ("server", "worker", "both")
PATIENCE_S = 180.0


class Campaign:
    """Kills on one folder. accepted: the ids whose submission was answered, with what must become of each."""

    def __init__(self, data: Path, video: bytes, seed: int = 0) -> None:
        self._data, self._video, self._random = data, video, random.Random(seed)
        self.expected: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self.kills: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self._server: LiveServer | None = None
        self._num_keys = 0

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._server is not None:
            self._server.kill()

    @property
    def server(self) -> LiveServer:
        if self._server is None or self._server.process.poll() is not None:
            self._server = LiveServer(self._data, "--max-queued", "1000", "--max-queued-per-key", "1000")
        return self._server

    def submit(self, client: httpx.Client, steps: int) -> str | None:
        """Send a job with a key of its own; its id, None where no answer came: it may be there or not."""
        self._num_keys += 1
        key = f"key{self._num_keys}"
        request = f'{{"prompt": "<video1> Make it night", "num_inference_steps": {steps}}}'
        try:
            answer = client.post(
                "/v1/jobs",
                data={"request": request},
                files={"video1": ("a.mp4", self._video)},
                headers={"Idempotency-Key": key},
            )
        except httpx.TransportError:
            return None
        if answer.status_code != 201:
            # Only where the worker has just been killed, before the job was taken.
            assert answer.status_code in (400, 503), answer.text
            assert answer.json()["error"]["code"] in ("serve.starting", "serve.input_crash"), answer.text
            return None
        job = str(answer.json()["id"])
        self.expected[job], self.keys[job] = "completed", key
        return job

    def kill_once(self, victim: str, phase: str) -> None:
        """Submit two jobs, wait for the phase of one, kill, and let the server come up again where it must."""
        server = self.server
        with server.client() as client:
            watched = [self.submit(client, self._random.choice((2, 30))) for _ in range(2)]
            if self._random.random() < 0.2 and watched[1] is not None:
                self._take_back(client, watched[1])
            self._wait_for(client, watched[0], phase)
            pids = worker_pids(server.process.pid)
            if victim in ("worker", "both"):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if victim in ("server", "both"):
                server.kill()
        self.kills[f"{victim} in {phase}"] += 1
        # A worker whose server was killed must end by itself.
        end = time.monotonic() + 20
        while victim != "worker" and any(map(_is_alive, pids)):
            assert time.monotonic() < end, "a worker has outlived its server"
            time.sleep(0.02)

    def finish(self) -> None:
        """Let all jobs end, and check each; then what lies in the folder."""
        server = self.server
        with server.client() as client:
            for job, expected in self.expected.items():
                self._check(client, job, expected)
            for folder in [*(self._data / "in").iterdir(), *(self._data / "out").iterdir()]:
                self._wait_for_end(client, folder.name)
            stray = find_stray_files(client, self._data)
            assert not stray, stray
        assert server.stop() == 0

    def _take_back(self, client: httpx.Client, job: str) -> None:
        """Cancel or delete a job."""
        if self._random.random() < 0.5:
            with suppress(httpx.TransportError):
                answer = client.post(f"/v1/jobs/{job}/cancel")
                if answer.status_code == 200:
                    self.expected[job] = answer.json()["state"]
                    return
            self.expected[job] = "completed or cancelled"
        else:
            self.expected[job] = "deleted"
            client.delete(f"/v1/jobs/{job}")

    def _wait_for(self, client: httpx.Client, job: str | None, phase: str) -> None:
        if phase in ("upload", "queued") or job is None:
            return
        if phase == "random":
            time.sleep(self._random.uniform(0, 1.5))
            return
        end = time.monotonic() + 30
        while time.monotonic() < end:
            shown = client.get(f"/v1/jobs/{job}").json()
            # Short phases are missed now and then; what comes after them will do.
            if shown["phase"] is not None and _at(shown["phase"]) >= _at(phase):
                return
            if shown["state"] not in ("queued", "in_progress"):
                return

    def _check(self, client: httpx.Client, job: str, expected: str) -> None:
        shown = self._wait_for_end(client, job)
        if expected == "deleted":
            assert shown is None, f"{job} was deleted and is {shown}"
            self.outcomes["deleted"] += 1
            return
        assert shown is not None, f"{job} is lost"
        state = shown["state"]
        self.outcomes[state] += 1
        if state == "failed":
            assert shown["error"]["code"] == "worker_died", shown
            assert shown["attempts"] >= 3, shown
            return
        assert state in expected, shown
        replay = client.post(
            "/v1/jobs",
            data={"request": "{}"},
            files={"video1": ("a.mp4", b"x")},
            headers={"Idempotency-Key": self.keys[job]},
        )
        assert replay.status_code == 409, replay.text
        if state == "completed":
            content = client.get(f"/v1/jobs/{job}/content")
            assert content.status_code == 200
            assert hashlib.sha256(content.content).hexdigest() == shown["result"]["sha256"]

    def _wait_for_end(self, client: httpx.Client, job: str) -> dict[str, Any] | None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            answer = client.get(f"/v1/jobs/{job}")
            if answer.status_code == 404:
                return None
            shown: dict[str, Any] = answer.json()
            if shown["state"] not in ("queued", "in_progress"):
                return shown
            time.sleep(0.05)
        raise AssertionError(f"{job} does not end: {shown}")


def _at(phase: str) -> int:
    return PHASES.index(phase)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video", type=Path, required=True)
    args = parser.parse_args()
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        Campaign(Path(folder) / "data", args.video.read_bytes(), args.seed) as campaign,
    ):
        for number in range(args.kills):
            campaign.kill_once(VICTIMS[number % 3], PHASES[number // 3 % len(PHASES)])
        campaign.finish()
    lines = (
        f"{args.kills} kills in {time.monotonic() - begin:.0f} s: {dict(campaign.kills)}",
        f"{len(campaign.expected)} jobs were accepted; they ended as {dict(campaign.outcomes)}; none was lost",
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
