"""A server as a process of its own, for tests and for `kills.py`."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

__all__ = ["LiveServer", "find_stray_files", "make_png", "worker_pids"]

PATIENCE_S = 120.0
REMOVAL_S = 10.0
"""A job is told to have ended just before the files of its unfinished run go."""


class LiveServer:
    """`editverse-rt serve` on a free port. `lines` has its log so far."""

    def __init__(
        self,
        data: Path,
        *options: str,
        host: str = "127.0.0.1",
        wait: bool = True,
        program: tuple[str, ...] = ("-m", "editverse_rt"),
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self.host = host
        self._news: queue.Queue[dict[str, Any]] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", "--data", str(data), "--port", "0", *options],
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.wait_for("listening")["port"]) if wait else 0

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def wait_for(self, event: str, **facts: Any) -> dict[str, Any]:
        """The next line of the log with this event; fails where the server ends first."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                line = self._news.get(timeout=0.2)
            except queue.Empty:
                if self.process.poll() is not None and self._news.empty():
                    raise AssertionError(f"the server has ended: {self.lines[-3:]}") from None
                continue
            if line.get("event") == event and all(line.get(name) == value for name, value in facts.items()):
                return line
        raise AssertionError(f"no {event} in the log: {self.lines[-5:]}")

    def kill(self) -> None:
        """End it with SIGKILL, as a crash or the system would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it with SIGTERM, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                facts = json.loads(line)
            except ValueError:
                facts = {"event": "text", "text": line}
            self.lines.append(facts)
            self._news.put(facts)


def worker_pids(server: int) -> list[int]:
    """The workers' processes of a server's process (Linux)."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if _is_worker(path, server)]


def _is_worker(path: Path, server: int) -> bool:
    try:
        parent = int(path.read_text().rpartition(")")[2].split()[1])
        return parent == server and b"worker" in (path.parent / "cmdline").read_bytes()
    except (OSError, ValueError):  # it has ended meanwhile
        return False


def find_stray_files(client: httpx.Client, data: Path) -> list[str]:
    """What lies below a server's folder once its jobs have ended, and should not.

    A folder of uploads has a job, and one of outputs has a job that has completed: it holds the result and, if the
    request had one, the source.
    """
    end = time.monotonic() + REMOVAL_S
    while (stray := _find_stray_files(client, data)) and time.monotonic() < end:
        time.sleep(0.05)
    return stray


def _find_stray_files(client: httpx.Client, data: Path) -> list[str]:
    stray = []
    for folder in [*(data / "in").iterdir(), *(data / "out").iterdir()]:
        answer = client.get(f"/v1/jobs/{folder.name}")
        state = answer.json()["state"] if answer.status_code == 200 else "no job"
        is_output = folder.parent.name == "out"
        if state == "no job" or (is_output and state != "completed"):
            stray.append(f"{folder} is left of {state}")
        elif is_output:
            names = sorted(path.name.split("-")[0] for path in folder.iterdir())
            if names not in (["result"], ["result", "source"]):
                stray.append(f"{folder} has {names}")
    return stray


def make_png(folder: Path, width: int = 64, height: int = 64) -> bytes:
    """A small picture."""
    import numpy as np

    from editverse_rt import media

    path = folder / "picture.png"
    ramp = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3) % 251
    media.write_image(path, ramp.astype(np.uint8))
    return path.read_bytes()
