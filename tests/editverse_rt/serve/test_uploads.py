"""Bodies that come slowly, stop, or whose sender leaves: an answer with a code, no file, no job, no open handle."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer

SILENCE_S = 1.0
FORMS = {
    "/v1/jobs": "video1",
    "/v1/videos": "input_reference",
    "/v1/videos/edits": "video",
    "/v1/images/edits": "image",
}
TEXTS = ("/v1/jobs", "/v1/videos", "/v1/images/generations", "/session")
CUTS = ("in the headers", "in a part's headers", "in a file", "before the last boundary")


class Watched:
    """A server, and what it holds: uploads and handles."""

    def __init__(self, server: LiveServer, data: Path) -> None:
        self.server, self._data = server, data

    def uploads(self) -> set[str]:
        return {path.name for path in (self._data / "in").iterdir()}

    def num_sockets(self) -> int:
        """How many sockets the server's process has open; 0 where the system does not say."""
        count = 0
        for handle in Path(f"/proc/{self.server.process.pid}/fd").glob("*"):
            try:
                count += os.readlink(handle).startswith("socket:")
            except OSError:  # noqa: PERF203
                continue
        return count

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=30)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    data = tmp_path_factory.mktemp("uploads") / "data"
    with LiveServer(data, "--body-silence-s", str(SILENCE_S)) as running:
        yield Watched(running, data)


@pytest.fixture(autouse=True)
def nothing_is_left(watched: Watched) -> Iterator[None]:
    assert watched.uploads() == set()
    before = watched.num_sockets()
    yield
    end = time.monotonic() + 15
    while watched.uploads() or watched.num_sockets() > before:
        assert time.monotonic() < end, (watched.uploads(), watched.num_sockets(), before)
        time.sleep(0.05)
    with watched.server.client() as client:
        assert client.get("/v1/jobs").json()["data"] == []
        assert client.get("/v1/videos").json()["data"] == []
        assert client.get("/healthz").status_code == 200
    assert not [line for line in watched.server.lines if line["event"] == "error"]


def head_of(path: str, kind: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nContent-Type: {kind}\r\n\r\n"
    ).encode()


def form_of(name: str) -> bytes:
    """A form as far as into its file."""
    return (
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nMake it night\r\n'
        b'--b\r\nContent-Disposition: form-data; name="'
        + name.encode()
        + b'"; filename="a"\r\n\r\n'
        + b"x" * 40_000
    )


def answer_of(link: socket.socket) -> tuple[int, str]:
    """Status and error's code of an answer, after which the server has closed the connection."""
    data = b""
    while piece := link.recv(65_536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("path", FORMS)
def test_a_form_that_stops_coming_is_408(watched: Watched, path: str) -> None:
    with watched.connect() as link:
        link.sendall(head_of(path, "multipart/form-data; boundary=b", 100_000) + form_of(FORMS[path]))
        time.sleep(0.2)
        assert len(watched.uploads()) == 1
        assert answer_of(link) == (408, "serve.slow")


@pytest.mark.parametrize("path", TEXTS)
def test_json_that_stops_coming_is_408(watched: Watched, path: str) -> None:
    with watched.connect() as link:
        link.sendall(head_of(path, "application/json", 1000) + b'{"prompt": "A red')
        assert answer_of(link) == (408, "serve.slow")


def test_a_body_that_drips_is_408(watched: Watched) -> None:
    """It is never silent for long, and would take days."""
    begin = time.monotonic()
    with watched.connect() as link:
        link.sendall(head_of("/v1/jobs", "application/json", 10_000))
        link.setblocking(False)
        while time.monotonic() - begin < 20:
            try:
                if link.recv(1, socket.MSG_PEEK):
                    break
            except BlockingIOError:
                link.send(b" ")
                time.sleep(SILENCE_S / 4)
        link.setblocking(True)
        assert answer_of(link) == (408, "serve.slow")
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("path", FORMS)
def test_a_sender_that_leaves_leaves_nothing(watched: Watched, path: str, cut: str, how: str) -> None:
    head, form = head_of(path, "multipart/form-data; boundary=b", 100_000), form_of(FORMS[path])
    sent = {
        CUTS[0]: head[: len(head) // 2],
        CUTS[1]: head + form[:100],
        CUTS[2]: head + form,
        CUTS[3]: head + form + b"\r\n--b",
    }[cut]
    with watched.connect() as link:
        link.sendall(sent)
        if cut in CUTS[2:]:
            end = time.monotonic() + 10
            while not watched.uploads():
                assert time.monotonic() < end, "the upload has not begun"
                time.sleep(0.01)
        if how == "half-close":
            link.shutdown(socket.SHUT_WR)
            link.settimeout(30)
            while link.recv(65_536):
                pass
        elif how == "reset":
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
