"""Ctrl-C at any moment of a submission: the server has no job of it afterwards, or a cancelled one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer

from editverse_rt.client import Client
from editverse_rt.errors import BackendError

BODY = {"prompt": "A red circle", "num_inference_steps": 3000}


class Proxy:
    """Stands before a server. The first connection is held up after `num_bytes` of the request, or with its answer."""

    def __init__(self, server: LiveServer, num_bytes: int | None) -> None:
        self._port, self._num_bytes = server.port, num_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_held = threading.Event()
        self._num_connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._num_connections += 1
            threading.Thread(target=self._serve, args=(near, self._num_connections == 1), daemon=True).start()

    def _serve(self, near: socket.socket, is_first: bool) -> None:
        far = socket.create_connection(("127.0.0.1", self._port))
        with near, far:
            answers = threading.Thread(target=self._pass_answer, args=(far, near, is_first), daemon=True)
            answers.start()
            sent = 0
            while data := near.recv(4096):
                if is_first and self._num_bytes is not None and sent + len(data) > self._num_bytes:
                    self.is_held.set()
                    while near.recv(4096):  # until the client leaves
                        pass
                    return
                far.sendall(data)
                sent += len(data)
            far.shutdown(socket.SHUT_WR)
            answers.join(30)

    def _pass_answer(self, far: socket.socket, near: socket.socket, is_first: bool) -> None:
        try:
            while data := far.recv(65_536):
                if is_first and self._num_bytes is None:
                    self.is_held.set()
                    continue
                near.sendall(data)
        except OSError:
            pass


@contextmanager
def proxy_of(server: LiveServer, num_bytes: int | None) -> Iterator[Proxy]:
    proxy = Proxy(server, num_bytes)
    try:
        yield proxy
    finally:
        proxy.close()


def jobs_of(client: httpx.Client) -> dict[str, str]:
    return {job["id"]: job["state"] for job in client.get("/v1/jobs", params={"limit": 100}).json()["data"]}


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("num_bytes", [20_000, None], ids=["in mid-upload", "before the answer"])
def test_ctrl_c_during_a_submission_leaves_no_job_behind(
    server: LiveServer, client: httpx.Client, video: bytes, tmp_path: Path, num_bytes: int | None
) -> None:
    # The video and then bytes that no reader looks at: an upload that takes a while.
    (tmp_path / "in.mp4").write_bytes(video + b"\0" * 200_000)
    before = jobs_of(client)
    with proxy_of(server, num_bytes) as proxy:
        words = ["edit", str(tmp_path / "in.mp4"), "Make it night", "-o", str(tmp_path / "out.mp4")]
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "editverse_rt",
                "--server",
                proxy.url,
                *words,
                "--num-inference-steps",
                "5000",
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert proxy.is_held.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert "stopped by Ctrl-C" in process.stderr.read()
    new = {job: state for job, state in jobs_of(client).items() if job not in before}
    assert list(new.values()) == ([] if num_bytes else ["cancelled"])
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_submission_that_arrives_after_its_cancel_is_refused(
    client: httpx.Client, video: bytes, server: LiveServer
) -> None:
    headers = {"Idempotency-Key": "late"}
    answer = client.post("/v1/jobs/cancel", headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"object": "submission.cancelled", "job": None})
    before = jobs_of(client)
    form: dict[str, Any] = {"data": {"request": '{"prompt": "x"}'}, "files": {"video1": ("a", video)}}
    for body in ({"json": {"request": BODY}}, form):
        late = client.post("/v1/jobs", headers=headers, **body)
        assert (late.status_code, late.json()["error"]["code"]) == (409, "cancelled")
    assert client.post("/v1/videos", headers=headers, json={"prompt": "x"}).status_code == 409
    assert jobs_of(client) == before
    assert client.post("/v1/jobs/cancel", headers=headers).json()["job"] is None


def test_the_job_of_a_key_is_cancelled_and_shown(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "running"}
    job = client.post("/v1/jobs", headers=headers, json={"request": BODY}).json()["id"]
    for _ in range(2):
        shown = client.post("/v1/jobs/cancel", headers=headers).json()["job"]
        assert (shown["id"], shown["state"]) == (job, "cancelled")
    client.delete(f"/v1/jobs/{job}")
    assert client.post("/v1/jobs/cancel", headers=headers).json()["job"] is None


@pytest.mark.parametrize("key", [None, "", "a b", "x" * 300])
def test_a_cancel_without_a_key_is_refused(client: httpx.Client, key: str | None) -> None:
    answer = client.post("/v1/jobs/cancel", headers={} if key is None else {"Idempotency-Key": key})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "serve.idempotency")
    assert error["field"] == "Idempotency-Key"


def test_ctrl_c_between_two_tries_cancels_as_well(
    server: LiveServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first try is lost on its way; the client is interrupted while it waits for the second."""
    before = jobs_of(client)
    with Client(server.url) as ours:
        real = ours._json

        def lose(method: str, path: str, **more: Any) -> dict[str, Any]:
            answer = real(method, path, **more)
            if path == "/v1/jobs":
                raise BackendError("lost", code="backend.unavailable")
            return answer

        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(ours, "_json", lose)
        monkeypatch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ours.submit(BODY)
        monkeypatch.undo()
    new = {job: state for job, state in jobs_of(client).items() if job not in before}
    assert list(new.values()) == ["cancelled"]
