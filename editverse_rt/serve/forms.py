"""Bodies of requests: counted while they stream, files written to the job's folder, the rest kept small.

No name from a request becomes a file's name.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from editverse_rt.fields import LARGEST
from editverse_rt.serve.job import StoredInput
from editverse_rt.serve.problems import HttpError, disk_full, is_disk_full

__all__ = ["BodyLimits", "Form", "read_form", "read_json_body"]

MAX_PART_HEADER_BYTES = 8192
MAX_FIELDS = 64
LOOK_BYTES = 8 << 20
"""After so many bytes of a body the disk is looked at again."""
LEAST_BYTES_PER_S = 1024
"""A body that is slower than this on average, after its first `silence_s` seconds, is given up."""


@dataclass(frozen=True)
class BodyLimits:
    """max_bytes: of a body; max_text_bytes: of JSON, and of all fields that are no files; silence_s: between two
    pieces of a body; min_free_bytes: what must stay free on the disk."""

    max_bytes: int = 256 << 20
    max_text_bytes: int = 64 << 10
    max_files: int = 16
    silence_s: float = 30.0
    min_free_bytes: int = 512 << 20


@dataclass
class Form:
    """Fields by name, and files (in the folder) as pairs of field and stored file, both in their order."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, StoredInput]] = field(default_factory=list)
    digest: str = ""


async def read_json_body(request: Request, limits: BodyLimits) -> dict[str, Any]:
    """The object of a JSON body. Raises HttpError: 400, 413, 415, and 408 for one that stops coming."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HttpError(
            415,
            f"the content type is {request.headers.get('content-type', 'missing')!r}",
            expected="application/json",
            code="serve.content_type",
        )
    pieces = []
    size = 0
    async for piece in _pieces(request, limits):
        size += len(piece)
        if size > limits.max_text_bytes:
            raise _too_large("the JSON", limits.max_text_bytes)
        pieces.append(piece)
    return parse_object(b"".join(pieces), "the body")


def parse_object(text: bytes | str, what: str) -> dict[str, Any]:
    """The object of a JSON text, as strict as bundles are: UTF-8, no field twice, no NaN, no giant numbers."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    def integer(digits: str) -> int:
        return int(digits) if len(digits) < 30 else LARGEST + 1

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a field stands twice")
        return dict(pairs)

    try:
        value = json.loads(text, parse_constant=refuse, parse_int=integer, object_pairs_hook=unique)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise HttpError(
            400,
            f"{what} is not JSON ({str(error)[:100]})",
            expected="an object in UTF-8",
            code="serve.json",
        ) from error
    if not isinstance(value, dict):
        raise HttpError(400, f"{what} is no JSON object", expected="an object", code="serve.json")
    return value


async def read_form(request: Request, folder: Path, limits: BodyLimits) -> Form:
    """Read a multipart body; its files go to `folder`, which is made for them, and are synced.

    Raises HttpError: 400 for one that is cut short or malformed, 413, 408, 507; ClientDisconnect. The folder may
    then hold a part of it, and is the caller's to remove.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not 0 < len(options.get(b"boundary", b"")) <= 200:
        raise HttpError(
            415,
            f"the content type is {request.headers.get('content-type', 'missing')[:100]!r}",
            expected="multipart/form-data with a boundary, or application/json",
            code="serve.content_type",
        )
    reader = _FormReader(folder, limits)
    parser = MultipartParser(options[b"boundary"], reader.callbacks())  # type: ignore[arg-type]
    digest = hashlib.sha256()
    try:
        size, looked = 0, 0
        async for piece in _pieces(request, limits):
            parser.write(piece)
            size += len(piece)
            if size - looked >= LOOK_BYTES:  # others write as well, and a length need not be told
                looked = size
                if shutil.disk_usage(folder.parent).free < limits.min_free_bytes:
                    raise disk_full()
        parser.finalize()
        reader.close(is_whole=True)
        await asyncio.to_thread(reader.sync)
    except MultipartParseError as error:
        raise HttpError(
            400, f"the multipart body is malformed ({error})", expected="parts", code="serve.form"
        ) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full() from error
    finally:
        reader.close()
    for name, value in sorted(reader.form.fields.items()):
        digest.update(f"{name}\0{value}\0".encode())
    for name, stored in reader.form.files:
        digest.update(f"{name}\0{stored.sha256}\0".encode())
    reader.form.digest = digest.hexdigest()
    return reader.form


async def _pieces(request: Request, limits: BodyLimits) -> AsyncIterator[bytes]:
    """The pieces of a body. Raises HttpError: 413 at once where it is too large, 408 where it is too slow."""
    told = request.headers.get("content-length", "0")
    if not re.fullmatch(r"\d{1,18}", told):
        raise HttpError(400, f"Content-Length is {told[:40]!r}", expected="a number", code="serve.form")
    if int(told) > limits.max_bytes:
        raise _too_large("the body", limits.max_bytes)
    stream = request.stream()
    size, begin = 0, time.monotonic()
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream), limits.silence_s)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise _too_slow(f"nothing of the body came for {limits.silence_s:g} s") from error
        size += len(piece)
        seconds = time.monotonic() - begin
        if size < LEAST_BYTES_PER_S * (seconds - limits.silence_s):
            raise _too_slow(f"{size} bytes of the body came in {seconds:.0f} s")
        if size > limits.max_bytes:
            raise _too_large("the body", limits.max_bytes)
        yield piece


def _too_slow(found: str) -> HttpError:
    return HttpError(
        408, found, expected=f"{LEAST_BYTES_PER_S} bytes a second", hint="send it again", code="serve.slow"
    )


def _too_large(what: str, limit: int) -> HttpError:
    return HttpError(
        413,
        f"{what} is larger than {limit} bytes",
        expected="fewer",
        hint="send less",
        code="serve.too_large",
    )


class _FormReader:
    """Takes what the parser calls back: a part's headers, its data, its end."""

    def __init__(self, folder: Path, limits: BodyLimits) -> None:
        self.form = Form()
        self._folder, self._limits = folder, limits
        self._headers: dict[str, bytes] = {}
        self._header, self._value, self._header_bytes = b"", b"", 0
        self._name = ""
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._size, self._text, self._text_bytes = 0, bytearray(), 0
        self._is_over = False

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def close(self, *, is_whole: bool = False) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if is_whole and not self._is_over:
            raise HttpError(
                400,
                "the multipart body ends before its last boundary",
                hint="send it again",
                code="serve.form",
            )

    def sync(self) -> None:
        for _, stored in self.form.files:
            handle = os.open(self._folder / stored.file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _on_part_begin(self) -> None:
        if len(self.form.fields) + len(self.form.files) >= MAX_FIELDS:
            raise HttpError(400, f"more than {MAX_FIELDS} parts", expected="fewer", code="serve.form")
        self._headers, self._header_bytes = {}, 0
        self._size, self._text, self._digest = 0, bytearray(), hashlib.sha256()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._count_header(end - start)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count_header(end - start)

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_PART_HEADER_BYTES:
            raise HttpError(400, "a part's header is too long", expected="a shorter one", code="serve.form")

    def _on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        try:
            self._name = options.get(b"name", b"").decode()
        except UnicodeDecodeError:
            self._name = ""
        if not self._name:
            raise HttpError(400, "a part has no name", expected="a name in UTF-8", code="serve.form")
        if b"filename" not in options:
            if self._name in self.form.fields:
                raise HttpError(
                    400, "it stands twice", expected="one", code="serve.field", field=self._name[:60]
                )
            return
        if len(self.form.files) >= self._limits.max_files:
            raise HttpError(
                400, f"more than {self._limits.max_files} files", expected="fewer", code="request.too_large"
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._file = (self._folder / f"upload{len(self.form.files) + 1}").open("xb")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._file is not None:
            self._file.write(piece)
            self._digest.update(piece)
            self._size += len(piece)
            return
        self._text_bytes += len(piece)
        if self._text_bytes > self._limits.max_text_bytes:
            raise _too_large("what is no file in the form", self._limits.max_text_bytes)
        self._text += piece

    def _on_part_end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            file = f"upload{len(self.form.files) + 1}"
            self.form.files.append((self._name, StoredInput(file, self._size, self._digest.hexdigest())))
            return
        try:
            self.form.fields[self._name] = self._text.decode()
        except UnicodeDecodeError as error:
            raise HttpError(
                400, "it is not UTF-8", expected="text in UTF-8", code="serve.field", field=self._name[:60]
            ) from error

    def _on_end(self) -> None:
        self._is_over = True
