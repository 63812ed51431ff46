"""One server for the tests that do not stop it, and a video to send."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from editverse_rt import media

sys.path.insert(0, str(Path(__file__).parent))

from live_server import LiveServer, make_png


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("serve") / "data", "--max-body", "1MB") as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found
        # What a test has left running holds the next one up.
        for job in found.get("/v1/jobs", params={"limit": 100}).json()["data"]:
            if job["state"] in ("queued", "in_progress"):
                found.post(f"/v1/jobs/{job['id']}/cancel")


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A disc that moves over a gradient, 9 frames of 64x64."""
    rows, columns = np.mgrid[0:64, 0:64]
    frames = []
    for step in range(9):
        frame = np.stack([rows * 3, columns * 3, np.full_like(rows, 90)], -1).astype(np.uint8)
        frame[(rows - 32) ** 2 + (columns - 12 - 4 * step) ** 2 < 100] = (220, 30, 30)
        frames.append(frame)
    path = tmp_path_factory.mktemp("video") / "in.mp4"
    media.write_clip(path, np.stack(frames), 8.0)
    return path.read_bytes()


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_png(tmp_path_factory.mktemp("picture"))
