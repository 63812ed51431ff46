"""A client of `editverse-rt serve` with the standard library alone.

with Client("http://127.0.0.1:8000") as client:
    job = client.submit({"prompt": "Make it night"}, video1="in.mp4")
    client.wait(job["id"])
    client.download(job["id"], "out.mp4")
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from editverse_rt.errors import BackendError, EditVerseError, QueueFull, RequestCancelled, RequestError
from editverse_rt.files import replacing

__all__ = ["Client"]

_PIECE_BYTES = 1 << 16
_FINISHED = ("completed", "failed", "cancelled", "expired")


class Client:
    """One server. Each call has a connection of its own, so several threads may call.

    A submission carries a key of its own and is repeated where the connection breaks or the queue is full, without
    making a second job. Errors of the server are raised as the runtime's own, with their codes.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0, patience_s: float = 60.0
    ) -> None:
        """timeout_s: of one answer. patience_s: how long a submission is repeated. Raises RequestError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError(
                f'"{url}"',
                is_value=True,
                expected="an address such as http://127.0.0.1:8000",
                code="request.option",
                field="server",
            )
        self._parts, self._api_key = parts, api_key
        self._timeout_s, self._patience_s = timeout_s, patience_s

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def models(self) -> list[dict[str, Any]]:
        """What the server's bundles are and can do."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/models")["data"]
        return found

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        model: str | None = None,
        format: str | None = None,
        **inputs: str | os.PathLike[str],
    ) -> dict[str, Any]:
        """Queue a request; the job. request: JSON of an edit request without inputs; inputs: paths by tag name.

        format: such as "mp4" or "png"; "zip" for the frames as PNGs. Ctrl-C cancels what the server may have taken.
        Raises EditVerseError: what the server refuses, or BackendError where it cannot be reached.
        """
        fields = {"request": json.dumps(dict(request)), "model": model, "format": format}
        given = {name: value for name, value in fields.items() if value is not None}
        key = secrets.token_urlsafe(24)
        try:
            return self._submit({"Idempotency-Key": key}, given, inputs)
        except KeyboardInterrupt:
            # The server may have taken the job, or be about to, although no answer has come.
            with contextlib.suppress(EditVerseError):
                self._json("POST", "/v1/jobs/cancel", headers={"Idempotency-Key": key})
            raise

    def _submit(
        self,
        headers: Mapping[str, str],
        fields: Mapping[str, str],
        inputs: Mapping[str, str | os.PathLike[str]],
    ) -> dict[str, Any]:
        """Send a submission, again and again where that may help."""
        end = time.monotonic() + self._patience_s
        pause_s = 1.0
        while True:
            try:
                return self._json("POST", "/v1/jobs", headers=headers, form=(fields, inputs))
            except (QueueFull, BackendError) as error:
                is_passing = isinstance(error, QueueFull) or error.code == "backend.unavailable"
                if not is_passing or time.monotonic() + pause_s > end:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 30.0)

    def get(self, job: str) -> dict[str, Any]:
        """A job as it is now."""
        return self._json("GET", f"/v1/jobs/{job}")

    def cancel(self, job: str) -> dict[str, Any]:
        """Cancel a job, and return when its device is free."""
        return self._json("POST", f"/v1/jobs/{job}/cancel")

    def delete(self, job: str) -> None:
        """Cancel a job and remove its files."""
        self._json("DELETE", f"/v1/jobs/{job}")

    def wait(
        self,
        job: str,
        *,
        on_progress: Callable[[dict[str, Any]], object] = lambda job: None,
        poll_s: float = 0.5,
    ) -> dict[str, Any]:
        """The job once it is completed; on_progress is told of it at each change.

        The server's events say when that is. Where their stream ends early, such as at a proxy, the job is asked for
        again after poll_s. Raises RequestCancelled, and BackendError with the job's own code where it has failed.
        """
        while (shown := self._follow(job, on_progress)) is None:
            time.sleep(poll_s)
            shown = self.get(job)
            if shown["state"] in _FINISHED:
                break
            on_progress(shown)
        on_progress(shown)
        if shown["state"] == "cancelled":
            raise RequestCancelled(f"job {job} was cancelled", hint="submit it again", code="cancelled")
        if shown["error"] is not None:
            raise _error_from(shown["error"], 500)
        return shown

    def _follow(self, job: str, on_progress: Callable[[dict[str, Any]], object]) -> dict[str, Any] | None:
        """Read a job's events until it is finished; None where their stream ends before."""
        connection, answer = self._open("GET", f"/v1/jobs/{job}/events", {}, None)
        try:
            if answer.status >= 400:
                raise _error_of_answer(answer)
            while line := answer.readline():
                if not line.startswith(b"data: "):
                    continue
                shown: dict[str, Any] = json.loads(line[6:])
                if shown.get("state") in _FINISHED:
                    return shown
                if shown:  # that of a deleted job is empty
                    on_progress(shown)
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return None

    def download(self, job: str, path: str | os.PathLike[str], *, variant: str = "result") -> None:
        """Write a job's file in one step. Raises EditVerseError."""
        connection, answer = self._open("GET", f"/v1/jobs/{job}/content?variant={variant}", {}, None)
        try:
            if answer.status != 200:
                raise _error_of_answer(answer)
            with replacing(Path(path)) as part, part.open("wb") as stream:
                for piece in self._pieces(answer):
                    stream.write(piece)
        finally:
            connection.close()

    def _pieces(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        """The body of an answer. Raises BackendError where it ends early, which `read` alone does not tell."""
        size, told = 0, answer.getheader("Content-Length")
        try:
            while piece := answer.read(_PIECE_BYTES):
                size += len(piece)
                yield piece
            if told is not None and size != int(told):
                raise http.client.IncompleteRead(b"", int(told) - size)
        except (OSError, http.client.HTTPException) as error:
            raise BackendError(
                f"the connection to {self._parts.geturl()} ended after {size} bytes of the file",
                expected="all of it" if told is None else f"{told} bytes",
                hint="download it again",
                code="backend.unavailable",
            ) from error

    def _json(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        form: tuple[Mapping[str, str], Mapping[str, str | os.PathLike[str]]] | None = None,
    ) -> dict[str, Any]:
        connection, answer = self._open(method, path, dict(headers or {}), form)
        try:
            if answer.status >= 400:
                raise _error_of_answer(answer)
            value: dict[str, Any] = json.loads(answer.read())
            return value
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, headers: dict[str, str], form: Any
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        parts = self._parts
        connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=self._timeout_s)
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        body: Any = None
        if form is not None:
            boundary = secrets.token_hex(16)
            fields, files = form
            head, tail = _form_of(fields, files, boundary)
            sizes = [os.path.getsize(place) for _, place in head]
            length = sum(len(text) for text, _ in head) + sum(sizes) + len(tail)
            headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
            headers["Content-Length"] = str(length)
            body = _stream(head, tail)
        try:
            try:
                connection.request(method, parts.path.rstrip("/") + path, body, headers)
            except (BrokenPipeError, ConnectionResetError) as broken:
                # The server did not want all of the body. It has said why before it closed, if it could.
                try:
                    return connection, connection.getresponse()
                except (OSError, http.client.HTTPException):
                    raise broken from None
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> BackendError:
        return BackendError(
            f"the server at {self._parts.geturl()} does not answer ({error})",
            hint="check the address, and whether it runs",
            code="backend.unavailable",
        )


def _form_of(
    fields: Mapping[str, str], files: Mapping[str, str | os.PathLike[str]], boundary: str
) -> tuple[list[tuple[bytes, str]], bytes]:
    """The texts before each file with the file's path, and the text behind the last."""
    text = b""
    for name, value in fields.items():
        text += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    head = []
    for name, place in files.items():
        text += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        head.append((text, os.fspath(place)))
        text = b"\r\n"
    return head, text + f"--{boundary}--\r\n".encode()


def _stream(head: list[tuple[bytes, str]], tail: bytes) -> Iterator[bytes]:
    for text, place in head:
        yield text
        with open(place, "rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece
    yield tail


def _error_of_answer(answer: http.client.HTTPResponse) -> EditVerseError:
    try:
        facts = json.loads(answer.read())["error"]
    except (ValueError, KeyError, OSError, http.client.HTTPException):
        facts = {"found": f"the server answered {answer.status} {answer.reason}", "code": "backend"}
    return _error_from(facts, answer.status)


def _error_from(facts: Mapping[str, Any], status: int) -> EditVerseError:
    """An error of the server as the runtime's own class."""
    kind: type[EditVerseError] = RequestError if status < 500 else BackendError
    kind = QueueFull if status == 429 else kind
    parts = {name: str(facts.get(name) or "") for name in ("expected", "hint", "code", "field")}
    # 503: it is being started or stopped, which passes.
    if status == 503:
        parts["code"] = "backend.unavailable"
    # Where the text says "seed is -1", the command line can say "--seed is -1".
    is_value = bool(parts["field"]) and str(facts.get("message")).startswith(
        f"{parts['field']} is {facts['found']}"
    )
    return kind(
        str(facts["found"]),
        is_value=is_value,
        expected=parts["expected"],
        hint=parts["hint"],
        code=parts["code"],
        field=parts["field"],
    )
