"""What a server refuses before it does the work, and the status that a failure has: in this process, nothing live."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from editverse_rt.serve import forms
from editverse_rt.serve.app import make_app
from editverse_rt.serve.auth import Keys
from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.forms import LOOK_BYTES, BodyLimits, read_form
from editverse_rt.serve.logs import Log
from editverse_rt.serve.meters import Meters
from editverse_rt.serve.problems import HttpError, RefusedError
from editverse_rt.serve.process import WorkerOptions
from editverse_rt.serve.settings import ServerSettings
from editverse_rt.serve.store import JobStore
from editverse_rt.serve.submitting import Submitter

FAST = {"prompt": "A large red circle", "schedule": "fast", "size": "64x64"}


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[JobStore, httpx.AsyncClient]]:
    """The store and a client of an application with one worker."""
    settings, store = ServerSettings(data=folder), JobStore(folder)
    dispatcher = Dispatcher(store, [WorkerOptions(("nano",))], Log(None), Meters())
    transport = httpx.ASGITransport(make_app(settings, dispatcher, Keys(None)), raise_app_exceptions=False)
    await dispatcher.start()
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            yield store, client
    finally:
        await dispatcher.stop(0.0)
        store.close()


def test_an_image_that_is_asked_for_again_after_it_expired_is_gone(tmp_path: Path) -> None:
    async def act() -> None:
        async with running(tmp_path) as (store, client):
            send = {"json": FAST, "headers": {"Idempotency-Key": "once"}}
            assert (await client.post("/v1/images/generations", **send)).status_code == 200
            store._keep_s = 0.0
            assert len(store.sweep()) == 1
            again = await client.post("/v1/images/generations", **send)
            assert (again.status_code, again.json()["error"]["code"]) == (410, "serve.gone")

    asyncio.run(act())


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("serve.disk", 507),
        ("serve.deadline", 500),
        ("backend.memory", 500),
        ("worker_died", 500),
        ("serve.input_crash", 400),
        ("media.damaged", 400),
        ("request.option", 400),
    ],
)
def test_the_status_says_whose_fault_a_failure_is(code: str, status: int) -> None:
    facts = {"code": code, "field": "", "found": "x", "expected": "", "hint": ""}
    assert RefusedError(facts).status == status


def test_too_many_references_are_refused_before_a_file_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[Any] = []

    async def take(self: Submitter, *what: Any) -> Any:
        touched.append(what)
        raise HttpError(404, "not looked for", code="serve.not_found")

    async def act() -> None:
        async with running(tmp_path) as (_, client):
            monkeypatch.setattr(Submitter, "_take_file", take)
            for count in (16, 17, 1000):
                inputs = {f"video{i + 1}": {"job": "job_1"} for i in range(count)}
                body = {"request": {"prompt": "x", "inputs": inputs}}
                answer = await client.post("/v1/jobs?dry_run=1", json=body)
                if count == 16:
                    assert answer.status_code == 404
                    assert len(touched) == 1
                else:
                    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request.too_large")
                    assert str(count) in answer.text
            assert len(touched) == 1

    asyncio.run(act())


def test_a_disk_that_fills_while_a_body_comes_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body tells no length, and is looked at every `LOOK_BYTES`."""
    head = b'--x\r\nContent-Disposition: form-data; name="video1"; filename="a"\r\n\r\n'
    pieces = iter([head, *[bytes(1 << 20)] * 40, b"\r\n--x--\r\n"])
    come = 0

    async def receive() -> dict[str, Any]:
        nonlocal come
        piece = next(pieces)
        come += len(piece)
        return {"type": "http.request", "body": piece, "more_body": not piece.endswith(b"--\r\n")}

    limits = BodyLimits(min_free_bytes=1000)
    monkeypatch.setattr(
        forms,
        "shutil",
        SimpleNamespace(disk_usage=lambda folder: shutil.disk_usage(folder)._replace(free=free)),
    )
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    free = 999
    with pytest.raises(HttpError) as caught:
        asyncio.run(read_form(request, tmp_path / "in", limits))
    assert (caught.value.status, caught.value.code) == (507, "serve.disk")
    assert come <= LOOK_BYTES + (2 << 20)
