"""Good requests of every endpoint, and changes to them, by random numbers of a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["HEADERS", "Requests"]

GOOD = {"prompt": "A red circle", "schedule": "fast", "num_frames": 1, "seed": 3}
TEXT = {**GOOD, "num_frames": "1", "seed": "3"}
JOB = {"request": GOOD}
FIELDS = (
    *("prompt", "seed", "num_frames", "num_inference_steps", "guidance_scale", "size", "fps", "start_s", "inputs"),
    *("schedule", "negative_prompt", "strength", "model", "format", "deadline_s", "request", "n", "seconds", "user"),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        10**30,
        0.0,
        -0.5,
        1e308,
        5e-324,
        "",
        " ",
        "x",
        "0",
        "-1",
    ),
    *(
        "1e999",
        "nan",
        "64x64",
        "0x0",
        "99999x1",
        "<video1> x",
        "<video1><video1>",
        "../../etc/passwd",
        "\x00",
        "\u202e",
    ),
    *(
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "a" * 3000,
        "é" * 500,
        [],
        [1],
        [[]],
        {},
        {"job": "x"},
    ),
    *(
        {"video1": {"job": "job_0"}},
        {"video1": "/etc/passwd"},
        {"__proto__": 1},
        "png",
        "mp4",
        "exe",
        "fast",
        "nano",
    ),
)
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "get", "BREW")
HEADERS = (
    *(
        ("Content-Type", value)
        for value in ("application/json", "text/plain", "multipart/form-data", "x", "")
    ),
    *(("Idempotency-Key", value) for value in ("a", "b", "a b", "", "k" * 300)),
    *(
        ("Range", value)
        for value in ("bytes=0-9", "bytes=-1", "bytes=9-0", "bytes=0-0,2-3", "x", "bytes=999999999-")
    ),
    *(("Host", value) for value in ("localhost", "evil.example", "", "[::1]", "127.0.0.1:1")),
    *(("Origin", value) for value in ("null", "http://evil.example", "http://localhost")),
    *(("Authorization", value) for value in ("Bearer x", "Basic eDp5", "Bearer")),
    *(("X-Request-Id", value) for value in ("abc", "a" * 500, "<script>")),
    *(("Accept", "text/html"), ("Cookie", "editverse_session=x; =; a"), ("Expect", "100-continue")),
    *(("Content-Length", value) for value in ("-1", "x", "1e3", "99999999999999999999")),
    *(("Content-Encoding", "gzip"), ("traceparent", "00-x"), ("If-None-Match", "*"), ("If-Range", "x")),
)
QUERIES = (
    *(
        "limit=5",
        "limit=x",
        "order=asc",
        "after=job_0",
        "variant=source",
        "variant=x",
        "download=1",
        "a=b",
        "%00",
        "=",
    ),
)


class Requests:
    """Draws requests. video, picture: files that are sent, whole or altered."""

    def __init__(self, video: bytes, picture: bytes) -> None:
        self._video, self._picture = video, picture

    def draw(self, rng: random.Random, jobs: Sequence[str]) -> tuple[str, str, str, bytes | None, str]:
        """Method, path's template, path, body and its content type."""
        job = "/{id}"
        choices: list[tuple[str, str, Callable[[random.Random], tuple[bytes, str]] | None]] = [
            ("POST", "/v1/jobs", self._job_json),
            ("POST", "/v1/jobs", self._job_form),
            ("POST", "/v1/jobs?dry_run=1", self._job_form),
            ("POST", "/v1/videos", self._video_form),
            ("POST", "/v1/videos", lambda rng: self._json(rng, GOOD)),
            ("POST", "/v1/videos/edits", self._edit_form),
            ("POST", f"/v1/videos{job}/remix", lambda rng: self._json(rng, {"prompt": "Make it night"})),
            ("POST", "/v1/images/generations", lambda rng: self._json(rng, GOOD)),
            ("POST", "/v1/images/edits", self._image_form),
            ("POST", "/session", lambda rng: self._json(rng, {"key": "x"})),
            ("DELETE", "/session", None),
            ("POST", f"/v1/jobs{job}/cancel", None),
            *(("DELETE", f"/v1/{name}{job}", None) for name in ("jobs", "videos")),
            *(("GET", f"/v1/{name}{job}", None) for name in ("jobs", "videos")),
            *(("GET", f"/v1/{name}{job}/content", None) for name in ("jobs", "videos")),
            *(("GET", f"/v1/jobs{job}/{name}", None) for name in ("events", "recipe")),
            *(
                ("GET", f"/{name}", None)
                for name in ("", "healthz", "readyz", "metrics", "session", "openapi.json")
            ),
            *(("GET", f"/v1/{name}", None) for name in ("models", "jobs", "videos")),
            ("GET", "/static/app.js", None),
        ]
        method, template, make = rng.choice(choices)
        path = template.replace("{id}", self._draw_id(rng, jobs))
        if rng.random() < 0.1:
            method = rng.choice(METHODS)
        if rng.random() < 0.1:
            path += ("&" if "?" in path else "?") + rng.choice(QUERIES)
        if rng.random() < 0.03:
            path = "/" + "".join(rng.choice("/.%20aZ~;:@") for _ in range(rng.randrange(1, 40)))
        if make is None:
            return method, template, path, None, ""
        body, kind = make(rng)
        return method, template, path, body, kind

    def _draw_id(self, rng: random.Random, jobs: Sequence[str]) -> str:
        if jobs and rng.random() < 0.7:
            return rng.choice(jobs)
        return rng.choice(("job_" + "0" * 24, "x", "%00", "..%2f..", "job_'or'1", "a" * 2000, "%F0%9F%98%80"))

    def _alter(self, rng: random.Random, value: Any) -> Any:
        """A value of JSON with a change somewhere in it."""
        if not isinstance(value, dict) or rng.random() < 0.1:
            return rng.choice(VALUES)
        changed = dict(value)
        kind = rng.random()
        if kind < 0.2 and changed:
            changed.pop(rng.choice(list(changed)))
        elif kind < 0.6:
            changed[rng.choice(FIELDS)] = rng.choice(VALUES)
        elif changed:
            name = rng.choice(list(changed))
            changed[name] = self._alter(rng, changed[name])
        return changed

    def _json(self, rng: random.Random, value: Any) -> tuple[bytes, str]:
        while rng.random() < 0.5:
            value = self._alter(rng, value)
        return self._bytes(rng, json.dumps(value).encode()), "application/json"

    def _bytes(self, rng: random.Random, text: bytes) -> bytes:
        """The bytes with, now and then, some that are others, missing, doubled or put in."""
        if rng.random() > 0.2:
            return text
        data = bytearray(text)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(4)
            if kind == 0 and data:
                data[at % len(data)] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randrange(1, 50)]
            elif kind == 2:
                data[at:at] = data[at : at + rng.randrange(1, 50)]
            else:
                data[at:at] = rng.choice(
                    (b"\0", b"\r\n", b"--b", b"--b--\r\n", b"\xff", b"[" * 500, b'"', b"1" * 90)
                )
        return bytes(data)

    def _form(
        self, rng: random.Random, fields: dict[str, Any], files: list[tuple[str, bytes]]
    ) -> tuple[bytes, str]:
        parts = []
        for name, value in fields.items():
            text = value if isinstance(value, str) else json.dumps(value)
            parts.append((f'form-data; name="{name}"', text.encode("utf-8", "surrogatepass")))
        for name, content in files:
            given = rng.choice(("a.mp4", "../../x", "a\\b", "é", "x" * 400)) if rng.random() < 0.2 else "a"
            parts.append((f'form-data; name="{name}"; filename="{given}"', self._bytes(rng, content)))
        if rng.random() < 0.1:
            parts.append(rng.choice(parts) if parts else ("form-data", b""))
        body = b"".join(
            b"--b\r\nContent-Disposition: " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
            for head, content in parts
        )
        return self._bytes(rng, body + b"--b--\r\n"), "multipart/form-data; boundary=b"

    def _fields(self, rng: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
        while rng.random() < 0.4:
            changed = self._alter(rng, fields)
            fields = changed if isinstance(changed, dict) else fields
        return fields

    def _file(self, rng: random.Random) -> bytes:
        large = b"x" * 250_000
        return rng.choice((self._video, self._picture, self._video, self._picture, b"", b"no media", large))

    def _job_json(self, rng: random.Random) -> tuple[bytes, str]:
        return self._json(rng, JOB)

    def _job_form(self, rng: random.Random) -> tuple[bytes, str]:
        name = rng.choice(("video1", "image1", "video1", "image1", "video0", "video99", "../x", "file"))
        request = self._fields(rng, {"prompt": "Make it night", "schedule": "fast"})
        return self._form(rng, self._fields(rng, {"request": request}), [(name, self._file(rng))])

    def _video_form(self, rng: random.Random) -> tuple[bytes, str]:
        name = rng.choice(("input_reference", "input_reference[]", "video1", "x"))
        files = [(name, self._file(rng))] if rng.random() < 0.7 else []
        return self._form(rng, self._fields(rng, {**TEXT, "model": "nano"}), files)

    def _edit_form(self, rng: random.Random) -> tuple[bytes, str]:
        fields = {"prompt": "Make it night", "schedule": "fast"}
        return self._form(rng, self._fields(rng, fields), [("video", self._file(rng))])

    def _image_form(self, rng: random.Random) -> tuple[bytes, str]:
        fields = {"prompt": "Make it night", "schedule": "fast", "n": "1"}
        return self._form(
            rng, self._fields(rng, fields), [(rng.choice(("image", "image[]", "mask")), self._file(rng))]
        )
