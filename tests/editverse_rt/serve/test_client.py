"""The project's own client against a live server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer

from editverse_rt import media
from editverse_rt.client import Client
from editverse_rt.errors import BackendError, RequestCancelled, RequestError


def test_a_job_is_submitted_waited_for_and_downloaded(
    server: LiveServer, video: bytes, tmp_path: Path
) -> None:
    (tmp_path / "in.mp4").write_bytes(video)
    told: list[Any] = []
    with Client(server.url) as client:
        assert client.models()[0]["id"] == "nano"
        request = {"prompt": "Make it night", "schedule": "fast"}
        job = client.submit(request, video1=tmp_path / "in.mp4")
        done = client.wait(job["id"], on_progress=told.append, poll_s=0.05)
        client.download(done["id"], tmp_path / "out.mp4")
        client.delete(done["id"])
        with pytest.raises(RequestError) as caught:
            client.get(done["id"])
    assert caught.value.code == "serve.not_found"
    assert media.probe(tmp_path / "out.mp4").num_frames == 9
    assert told[-1]["state"] == "completed"


def test_errors_of_the_server_have_their_codes(server: LiveServer) -> None:
    with Client(server.url) as client:
        with pytest.raises(RequestError) as caught:
            client.submit({"prompt": "x", "seed": -1})
        assert (caught.value.code, caught.value.field) == ("request.option", "seed")
        job = client.submit({"prompt": "A red circle", "num_inference_steps": 3000})
        client.cancel(job["id"])
        with pytest.raises(RequestCancelled):
            client.wait(job["id"])


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(BackendError) as caught:
        Client("http://127.0.0.1:9", patience_s=0).submit({"prompt": "x"})
    assert caught.value.code == "backend.unavailable"
    with pytest.raises(RequestError):
        Client("ftp://x")


def test_a_stream_of_events_that_ends_early_is_gone_on_with() -> None:
    """As behind a proxy that closes connections, and one that lets none of them through."""
    running, done = {"state": "in_progress", "step": 1}, {"state": "completed", "step": 2, "error": None}
    streams = iter([_event(running), b"", b": beat\n\n" + _event(running)[:-9], _event(done)])
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.rsplit("/", 1)[1])
            body = next(streams) if asked[-1] == "events" else json.dumps(running).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    told: list[dict[str, Any]] = []
    with HTTPServer(("127.0.0.1", 0), Answers) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            client = Client(f"http://127.0.0.1:{served.server_port}")
            assert client.wait("job", on_progress=told.append, poll_s=0.01) == done
        finally:
            served.shutdown()
            thread.join()
    assert asked == ["events", "job"] * 3 + ["events"]
    assert told == [running, running, running, running, done]


def _event(shown: dict[str, Any]) -> bytes:
    return f"event: job\ndata: {json.dumps(shown)}\n\n".encode()


class Answers(BaseHTTPRequestHandler):
    """Answers by what `act` does with the handler."""

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def served(**acts: Callable[[Any], None]) -> Iterator[Client]:
    """A client of a server whose methods are given, such as do_GET."""
    with HTTPServer(("127.0.0.1", 0), type("Acting", (Answers,), acts)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{server.server_port}", patience_s=5)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_download_that_ends_early_is_no_file(tmp_path: Path, is_chunked: bool) -> None:
    def answer(handler: Any) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        if is_chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.write((b"493e0\r\n" if is_chunked else b"") + bytes(300_000))
        handler.close_connection = True

    (tmp_path / "out.mp4").write_bytes(b"before")
    with served(do_GET=answer) as client, pytest.raises(BackendError) as caught:
        client.download("job", tmp_path / "out.mp4")
    assert caught.value.code == "backend.unavailable"
    assert "ended after" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"before"


def test_a_refusal_in_the_middle_of_an_upload_is_heard_and_not_repeated(tmp_path: Path) -> None:
    """The server answers at the headers and closes before it has read the file."""
    (tmp_path / "in.mp4").write_bytes(bytes(32 << 20))
    uploads = []

    def refuse(handler: Any) -> None:
        uploads.append(handler.path)
        error = {"found": "the body is too large", "code": "serve.too_large", "expected": "fewer bytes"}
        body = json.dumps({"error": error}).encode()
        handler.send_response(413)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RD)
        time.sleep(0.2)

    with served(do_POST=refuse) as client, pytest.raises(RequestError) as caught:
        client.submit({"prompt": "x"}, video1=tmp_path / "in.mp4")
    assert caught.value.code == "serve.too_large"
    assert len(uploads) == 1
