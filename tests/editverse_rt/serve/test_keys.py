"""Who may call what: every endpoint with no key, wrong ones, the right one and another's; sessions, hosts, origins."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer

from editverse_rt.serve.auth import check_host, check_origin
from editverse_rt.serve.openapi import describe_api
from editverse_rt.serve.problems import HttpError
from editverse_rt.serve.settings import ServerSettings

LONG = {"request": {"prompt": "A red circle", "num_inference_steps": 3000}}
FAST = {"request": {"prompt": "A red circle", "schedule": "fast", "num_frames": 1}}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("keys")
    keys = folder / "keys"
    lines = [f"{name}:{hashlib.sha256(f'key-of-{name}'.encode()).hexdigest()}\n" for name in ("ann", "bob")]
    keys.write_text("".join(lines))
    keys.chmod(0o600)
    options = (
        "--api-keys",
        str(keys),
        "--cors-origin",
        "https://app.example",
        "--allow-host",
        "edit.example",
    )
    with LiveServer(folder / "data", *options) as running:
        yield running


def session_of(client: httpx.Client, name: str) -> dict[str, str]:
    """The header of a session that was begun with a name's key."""
    answer = client.post("/session", json={"key": f"key-of-{name}"})
    client.cookies.clear()
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-{name}"}


OPEN = {"/healthz", "/readyz", "/session"}
ENDPOINTS = [
    (path, method.upper())
    for path, operations in describe_api(ServerSettings(data=Path()))["paths"].items()
    for method in operations
]
WRONG = [None, "Bearer", "Bearer wrong", "Basic a2V5", "Bearer key-of-ann x", "Bearer é"]
OF_A_JOB = [(path, method) for path, method in ENDPOINTS if "{id}" in path]


def call(client: httpx.Client, method: str, path: str, headers: dict[str, Any]) -> httpx.Response:
    """Call an endpoint; one that takes a body gets one that asks for something."""
    body: dict[str, Any] = {}
    if method == "POST" and not path.endswith("/cancel"):
        body = {
            "json": {"key": "wrong"}
            if path == "/session"
            else FAST
            if path == "/v1/jobs"
            else FAST["request"]
        }
    return client.request(method, path, headers=headers, **body)


@pytest.fixture(scope="module")
def anns(guarded: LiveServer) -> Iterator[str]:
    """A job of ann's that waits or runs through all tests, whatever others try."""
    with guarded.client(headers=bearer("ann")) as client:
        job = client.post("/v1/jobs", json=LONG).json()["id"]
        yield job
        shown = client.get(f"/v1/jobs/{job}").json()
        assert shown["state"] in ("queued", "in_progress")
        assert not shown["is_cancelling"]
        client.delete(f"/v1/jobs/{job}")


@pytest.mark.parametrize(("path", "method"), ENDPOINTS)
def test_no_endpoint_but_the_open_ones_answers_without_a_key(
    guarded: LiveServer, anns: str, path: str, method: str
) -> None:
    with guarded.client() as client:
        for value in WRONG:
            headers: dict[str, Any] = {} if value is None else {"Authorization": value.encode()}
            answer = call(client, method, path.replace("{id}", anns), headers)
            if path in OPEN:
                assert answer.status_code in ((401,) if method == "POST" else (200,)), answer.text
                continue
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "serve.key"), value
            assert answer.headers["www-authenticate"] == "Bearer"
            assert anns not in answer.text


@pytest.mark.parametrize(("path", "method"), OF_A_JOB)
def test_another_keys_job_is_not_there(guarded: LiveServer, anns: str, path: str, method: str) -> None:
    with guarded.client() as client:
        for headers in (bearer("bob"), session_of(client, "bob")):
            answer = call(client, method, path.replace("{id}", anns), headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "serve.not_found")
            client.cookies.clear()


@pytest.mark.parametrize(("path", "method"), ENDPOINTS)
def test_every_endpoint_takes_the_right_key(guarded: LiveServer, path: str, method: str) -> None:
    with guarded.client(headers=bearer("ann")) as client:
        job = client.post("/v1/jobs", json=FAST).json()["id"]
        headers = {"Idempotency-Key": f"right-{path}"}
        with client.stream(method, path.replace("{id}", job), headers=headers) as answer:
            # Without a body, or before the job's end, some refuse what is asked; none refuses who asks.
            assert answer.status_code in (200, 400, 409, 415)
        client.delete(f"/v1/jobs/{job}")


def test_lists_files_and_keys_of_others_cannot_be_used(guarded: LiveServer, anns: str) -> None:
    with guarded.client(headers=bearer("bob")) as client:
        for path in ("/v1/jobs", "/v1/videos"):
            assert client.get(path).json()["data"] == []
            assert client.get(path, params={"after": anns}).json()["data"] == []
        uses = {"request": {**FAST["request"], "inputs": {"video1": {"job": anns}}}}
        assert client.post("/v1/jobs", json=uses).status_code == 404
        form = {"prompt": (None, "x"), "video[id]": (None, anns)}
        assert client.post("/v1/videos/edits", files=form).status_code == 404
        # The same Idempotency-Key of another name is another one.
        with guarded.client(headers=bearer("ann")) as ann:
            headers = {"Idempotency-Key": "shared"}
            first = ann.post("/v1/jobs", json=FAST, headers=headers).json()["id"]
            second = client.post("/v1/jobs", json=FAST, headers=headers).json()["id"]
            assert first != second
            client.post("/v1/jobs/cancel", headers=headers)
            assert ann.get(f"/v1/jobs/{first}").json()["state"] != "cancelled"
            for one, job in ((ann, first), (client, second)):
                one.delete(f"/v1/jobs/{job}")


def test_no_key_is_written_anywhere(guarded: LiveServer, anns: str) -> None:
    with guarded.client() as client:
        session = session_of(client, "ann")["Cookie"].partition("=")[2]
    data = Path(guarded.process.args[guarded.process.args.index("--data") + 1])
    texts = [path.read_bytes() for path in data.rglob("*") if path.is_file()]
    texts.append(str(guarded.lines).encode())
    for secret in ("key-of-ann", session):
        assert len(secret) > 8
        assert not [text for text in texts if secret.encode() in text]


def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_get(guarded: LiveServer) -> None:
    with guarded.client() as client:
        assert client.get("/session").json() == {"auth": "key", "name": None}
        assert client.post("/session", json={"key": "wrong"}).status_code == 401
        answer = client.post("/session", json={"key": "key-of-ann"})
        assert answer.json() == {"auth": "key", "name": "ann"}
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/v1/jobs").status_code == 200
        # The cookie does not work from another origin, not even from one that may call with a key.
        assert client.get("/v1/jobs", headers={"Origin": "https://app.example"}).status_code == 401
        client.delete("/session")
        assert client.get("/v1/jobs").status_code == 401


def test_only_exact_origins_and_known_hosts_may_call(guarded: LiveServer) -> None:
    with guarded.client(headers=bearer("ann")) as client:
        allowed = client.get("/v1/models", headers={"Origin": "https://app.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        assert client.options("/v1/jobs", headers={"Origin": "https://app.example"}).status_code == 204
        for origin in ("https://app.example.evil", "http://app.example", "null", "https://evil"):
            answer = client.get("/v1/models", headers={"Origin": origin})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        assert client.get("/v1/models", headers={"Origin": guarded.url}).status_code == 200
        assert client.get("/healthz", headers={"Host": "rebound.example"}).status_code == 403
        assert client.get("/healthz", headers={"Host": "edit.example"}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "[::1]:8000", "10.0.0.3", "a.example"])
def test_addresses_and_given_names_are_hosts(host: str) -> None:
    check_host(host, ("a.example",))


@pytest.mark.parametrize(
    "host", [None, "", "b.example", "localhost.evil", "a.example@b", "x/localhost", "[::1", "a b"]
)
def test_other_names_are_not(host: str | None) -> None:
    with pytest.raises(HttpError):
        check_host(host, ("a.example",))


def test_an_origin_is_ours_or_exactly_a_given_one() -> None:
    assert not check_origin(None, "a", ())
    assert not check_origin("http://a:1", "a:1", ())
    assert check_origin("https://b", "a", ("https://b",))
    for origin in ("https://b.c", "https://B@a", "file://a", "http://a/x", "http://a:2"):
        with pytest.raises(HttpError):
            check_origin(origin, "a", ("https://b",))


def test_a_file_of_keys_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann:{'0' * 64}\n")
    keys.chmod(0o644)
    command = [sys.executable, "-m", "editverse_rt", "serve", "--data", str(tmp_path / "d"), "--port", "0"]
    ended = subprocess.run(
        [*command, "--api-keys", str(keys)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 2
    assert "chmod 600" in ended.stderr
