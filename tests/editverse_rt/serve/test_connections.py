"""Connections that send no headers, or a part of them: closed in the end, and the service goes on meanwhile."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from live_server import LiveServer

LIMIT_S = 1.0
HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    data = tmp_path_factory.mktemp("connections") / "data"
    with LiveServer(data, "--header-s", str(LIMIT_S)) as running:
        yield running
        assert not [line for line in running.lines if line["event"] in ("error", "library")]


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_all(link: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    data = b""
    while piece := link.recv(65_536):
        data += piece
    return data


def check_ok(link: socket.socket) -> None:
    """The answer of `WHOLE`, to its end."""
    data = b""
    while not data.endswith(b'{"status":"ok"}'):
        piece = link.recv(65_536)
        assert piece, data
        data += piece
    assert data.startswith(b"HTTP/1.1 200 ")


def check_408(data: bytes) -> None:
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in head
    assert json.loads(body)["error"]["code"] == "serve.slow"


def test_half_a_header_is_408_and_closed(server: LiveServer) -> None:
    with connect(server) as link:
        link.sendall(HALF)
        check_408(read_all(link))


def test_nothing_is_closed_without_an_answer(server: LiveServer) -> None:
    with connect(server) as link:
        assert read_all(link) == b""


def test_a_header_that_drips_is_closed(server: LiveServer) -> None:
    """It is never silent for long, and each byte is a new one."""
    end = time.monotonic() + 30
    with connect(server) as link:
        link.sendall(HALF)
        link.setblocking(False)
        while time.monotonic() < end:
            try:
                if link.recv(1, socket.MSG_PEEK):
                    break
            except BlockingIOError:
                link.send(b"x")
                time.sleep(LIMIT_S / 10)
        link.setblocking(True)
        check_408(link.recv(65_536))


def test_half_a_header_behind_a_request_is_closed_without_an_answer(server: LiveServer) -> None:
    """An answer could be taken for that of the request before."""
    with connect(server) as link:
        link.sendall(WHOLE)
        check_ok(link)
        time.sleep(LIMIT_S * 1.5)  # a pause between requests may be longer
        link.sendall(WHOLE)
        check_ok(link)
        link.sendall(HALF)
        assert read_all(link) == b""


def test_headers_in_pieces_are_taken_in_time(server: LiveServer) -> None:
    with connect(server) as link:
        for _ in range(2):
            for begin in range(0, len(WHOLE), 9):
                link.sendall(WHOLE[begin : begin + 9])
                time.sleep(0.01)
            check_ok(link)


def test_a_body_and_an_answer_may_take_longer(server: LiveServer) -> None:
    body = json.dumps(
        {"request": {"prompt": "A red circle", "num_frames": 1, "num_inference_steps": 5000}}
    ).encode()
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with connect(server) as link:
        link.sendall(head % len(body))
        for begin in range(0, len(body), 10):
            time.sleep(LIMIT_S / 5)
            link.sendall(body[begin : begin + 10])
        answer = b""
        while not answer.endswith(b"}"):
            piece = link.recv(65_536)
            assert piece, answer
            answer += piece
        assert answer.startswith(b"HTTP/1.1 201 "), answer
        job = json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
        link.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        end = time.monotonic() + 3 * LIMIT_S
        while time.monotonic() < end:
            assert link.recv(65_536) != b"", "the stream has ended before its job"
    with server.client() as client:
        assert client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"


def test_200_of_them_do_not_stop_the_service(server: LiveServer) -> None:
    with ExitStack() as stack:
        links = [stack.enter_context(connect(server)) for _ in range(200)]
        for link in links[::2]:
            link.sendall(HALF)
        with server.client() as client:
            assert client.get("/healthz").status_code == 200
            request = {"prompt": "A red circle", "num_frames": 1, "schedule": "fast"}
            job = client.post("/v1/jobs", json={"request": request}).json()["id"]
            end = time.monotonic() + 60
            while client.get(f"/v1/jobs/{job}").json()["state"] != "completed":
                assert time.monotonic() < end
                time.sleep(0.05)
        for index, link in enumerate(links):
            data = read_all(link)
            check_408(data) if index % 2 == 0 else None
            assert index % 2 == 0 or data == b""
