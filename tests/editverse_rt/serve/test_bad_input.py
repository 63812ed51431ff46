"""What must be refused is refused, by name, and the server goes on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

GOOD = {"prompt": "A red circle", "schedule": "fast"}
FORM = {"request": json.dumps({"prompt": "Make it night", "schedule": "fast"})}


def refuse(answer: httpx.Response, status: int, code: str, field: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert field is None or error["field"] == field, answer.text
    assert error["found"]
    assert error["message"]
    assert "/in/" not in answer.text, "a path of the server is told"


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "request.field", "request"),
        ({"request": GOOD, "webhook": "http://x"}, "request.field", "webhook"),
        ({"request": {**GOOD, "steps": 3}}, "request.field", "steps"),
        ({"request": {**GOOD, "seed": "3"}}, "request.option", "seed"),
        ({"request": {**GOOD, "seed": 2**63}}, "request.option", "seed"),
        ({"request": {**GOOD, "seed": True}}, "request.option", "seed"),
        ({"request": {**GOOD, "num_frames": 20_001}}, "request.too_large", "num_frames"),
        ({"request": {**GOOD, "size": [64, 64]}}, "request.field", "size"),
        ({"request": {**GOOD, "size": "4000x4000"}}, "request.size", None),
        ({"request": {**GOOD, "schedule": "none"}}, "request.unknown_schedule", "schedule"),
        ({"request": {**GOOD, "negative_prompt": "x"}}, "request.unsupported", "negative_prompt"),
        ({"request": {"prompt": 3}}, "request.field", "prompt"),
        ({"request": {"prompt": ""}}, "request.prompt", None),
        ({"request": {"prompt": "word " * 500}}, "request.prompt_length", None),
        ({"request": {"prompt": "<video1> x"}}, "request.tag", None),
        ({"request": {**GOOD, "inputs": {"video1": "/etc/passwd"}}}, "request.field", "inputs.video1"),
        ({"request": {**GOOD, "inputs": {"video1": "http://169.254.169.254/"}}}, "request.field", "inputs.video1"),
        ({"request": {**GOOD, "inputs": {"video1": {"url": "file:///x"}}}}, "request.field", "inputs.video1.job"),
        ({"request": {**GOOD, "inputs": {"../x": {"job": "a"}}}}, "request.input_name", None),
        ({"request": GOOD, "model": "another"}, "serve.model", "model"),
        ({"request": GOOD, "format": "exe"}, "request.field", "format"),
        ({"request": GOOD, "format": "../mp4"}, "request.field", "format"),
        ({"request": {**GOOD, "num_frames": 5}, "format": "png"}, "request.option", "num_frames"),
        ({"request": GOOD, "deadline_s": 10**9}, "request.option", "deadline_s"),
        ({"request": GOOD, "deadline_s": -1}, "request.field", "deadline_s"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_by_name(
    client: httpx.Client, body: dict[str, Any], code: str, field: str | None
) -> None:
    refuse(client.post("/v1/jobs", json=body), 400, code, field)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{", b'{"a":1,"a":2}', b'{"request":NaN}', b"\xff", b'"\\ud800"', b"[" * 50_000,
        b'{"request":{"prompt":"x","seed":' + b"9" * 5000 + b"}}",
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(client: httpx.Client, text: bytes) -> None:
    for path in ("/v1/jobs", "/v1/videos", "/v1/images/generations", "/session"):
        answer = client.post(path, content=text, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (path, answer.text)


def test_a_job_that_is_not_there_is_404_on_every_route(client: httpx.Client) -> None:
    for name in ("job_" + "0" * 24, "..%2f..%2fetc%2fpasswd", "job_'or'1'='1", "%00", "x" * 5000):
        for root in ("jobs", "videos"):
            for method, rest in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
                answer = client.request(method, f"/v1/{root}/{name}{rest}")
                assert answer.status_code == 404, answer.text
        for method, rest in (("GET", "/events"), ("GET", "/recipe"), ("POST", "/cancel")):
            assert client.request(method, f"/v1/jobs/{name}{rest}").status_code == 404
    missing = {"request": {**GOOD, "inputs": {"video1": {"job": "job_none"}}}}
    refuse(client.post("/v1/jobs", json=missing), 404, "serve.not_found")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "media.empty"),
        (b"not a video", "media.undecodable"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "media.unsupported"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "media"),
    ],
)
def test_a_file_that_is_no_video_is_refused_at_once(client: httpx.Client, data: bytes, code: str) -> None:
    answer = client.post("/v1/jobs", data=FORM, files={"video1": ("../../x.mp4", data)})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"].startswith(code), answer.text
    assert "/in/" not in answer.text


def test_a_video_that_is_cut_short_is_refused_or_told(client: httpx.Client, video: bytes) -> None:
    answer = client.post("/v1/jobs", data=FORM, files={"video1": ("a.mp4", video[: len(video) // 2])})
    assert answer.status_code in (201, 400), answer.text


def test_a_picture_as_a_video_and_a_name_that_is_none_are_refused(
    client: httpx.Client, picture: bytes, video: bytes
) -> None:
    files = {"video1": ("a.png", picture)}
    refuse(client.post("/v1/jobs", data=FORM, files=files), 400, "request.input_kind")
    for name in ("video0", "video", "../video1", "file", "x" * 300):
        answer = client.post("/v1/jobs", data=FORM, files={name: ("a.mp4", video)})
        refuse(answer, 400, "request.input_name")
    twice = [("video1", ("a.mp4", video)), ("video1", ("b.mp4", video))]
    refuse(client.post("/v1/jobs", data=FORM, files=twice), 400, "serve.field", "video1")
    many = [(f"video{i}", ("a.mp4", video)) for i in range(1, 18)]
    refuse(client.post("/v1/jobs", data=FORM, files=many), 400, "request.too_large")


def test_a_body_that_is_too_large_is_413(client: httpx.Client) -> None:
    big = b"x" * 1_100_000
    refuse(client.post("/v1/jobs", data=FORM, files={"video1": ("a", big)}), 413, "serve.too_large")

    def endless() -> Any:
        for _ in range(40):
            yield b"x" * 65536

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="video1"; filename="a"\r\n\r\n'

    def parts() -> Any:
        yield head
        yield from endless()

    try:
        answer = client.post("/v1/jobs", content=parts(), headers=kind)
    except (httpx.WriteError, httpx.ReadError):
        pass  # the server has answered and closed while the body was sent
    else:
        refuse(answer, 413, "serve.too_large")
    text = json.dumps({"request": {"prompt": "x" * 70_000}}).encode()
    answer = client.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    refuse(answer, 413, "serve.too_large")
    refuse(client.post("/v1/jobs", data={"request": "x" * 70_000}, files={"a": b""}), 413, "serve.too_large")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{}',
        b'--b\r\nContent-Disposition: form-data; name="video1"; filename="a"\r\n\r\nhalf a file\r\n',
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n\xff\r\n--b--\r\n',
        b"--b\r\nX: " + b"y" * 20_000 + b"\r\n\r\nx\r\n--b--\r\n",
        b"garbage",
    ],
)
def test_a_malformed_form_is_refused(client: httpx.Client, body: bytes) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for path in ("/v1/jobs", "/v1/videos", "/v1/videos/edits", "/v1/images/edits"):
        answer = client.post(path, content=body, headers=kind)
        assert answer.status_code == 400, (path, answer.status_code, answer.text)


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "multipart/form-data; boundary=", ""])
def test_other_content_types_are_refused(client: httpx.Client, kind: str) -> None:
    answer = client.post("/v1/jobs", content=b"x", headers={"Content-Type": kind})
    refuse(answer, 415, "serve.content_type")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "0"}, "limit"), ({"limit": "x"}, "limit"), ({"limit": "1000"}, "limit"),
        ({"order": "up"}, "order"), ({"page": "2"}, "page"),
    ],
)  # fmt: skip
def test_a_wrong_query_is_refused_by_name(client: httpx.Client, query: dict[str, str], field: str) -> None:
    for path in ("/v1/jobs", "/v1/videos"):
        refuse(client.get(path, params=query), 400, "serve.query", field)


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/"]
)
def test_the_pages_folder_is_not_left(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_another_method_and_another_path_are_told(client: httpx.Client) -> None:
    assert client.put("/v1/jobs", json={}).status_code == 405
    refuse(client.get("/v2/jobs"), 404, "serve.not_found")


@pytest.mark.parametrize("key", ["", "x" * 300, "a b", "é".encode()])
def test_a_key_of_other_characters_is_refused(client: httpx.Client, key: Any) -> None:
    answer = client.post("/v1/jobs", json={"request": GOOD}, headers={"Idempotency-Key": key})
    refuse(answer, 400, "serve.idempotency", "Idempotency-Key")


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a job": ("/v1/jobs", {"json": {"request": GOOD}}),
    "a job as a form": ("/v1/jobs", {"data": FORM}),
    "a video": ("/v1/videos", {"json": GOOD}),
    "a video as a form": ("/v1/videos", {"data": {"prompt": "x"}}),
    "an edit of a video": ("/v1/videos/edits", {"data": {"prompt": "x"}}),
    "an image": ("/v1/images/generations", {"json": GOOD}),
    "an edit of an image": ("/v1/images/edits", {"data": {"prompt": "x"}}),
    "a session": ("/session", {"json": {"key": "x"}}),
}
AS_A_FORM = {"files": {"image1": ("a", b"")}}


def changed(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """The body of an endpoint with other fields beside its own."""
    path, body = BODIES[kind]
    (name, value) = next(iter(body.items()))
    return path, {name: {**value, **fields}, **(AS_A_FORM if name == "data" else {})}


@pytest.mark.parametrize("kind", BODIES)
def test_an_unknown_field_is_refused_by_name_everywhere(client: httpx.Client, kind: str) -> None:
    path, body = changed(kind, webhook_url="http://169.254.169.254/")
    answer = client.post(path, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (400, "webhook_url"), answer.text
    assert error["code"] in ("serve.field", "request.field")


@pytest.mark.parametrize("kind", BODIES)
def test_a_huge_body_is_413_everywhere(client: httpx.Client, kind: str) -> None:
    path, body = changed(kind, prompt="x" * 200_000)
    refuse(client.post(path, **body), 413, "serve.too_large")


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], ["x"], {}, {"x": 1}], ids=repr)
@pytest.mark.parametrize("kind", [kind for kind, (_, body) in BODIES.items() if "json" in body])
def test_a_prompt_or_a_key_of_another_type_is_refused_everywhere(
    client: httpx.Client, kind: str, value: Any
) -> None:
    path, body = BODIES[kind]
    given = {"request": {"prompt": value}} if "request" in body["json"] else {next(iter(body["json"])): value}
    answer = client.post(path, json=given)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["field"] in ("prompt", "key"), answer.text
