"""A batch's rows: read from a manifest or a folder, their ids, and the keys that name their results."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editverse_rt import media
from editverse_rt.batch.tables import SUFFIXES, objects_of_table
from editverse_rt.bundle.description import BUNDLE_JSON
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import EditVerseError, MediaError, RequestError
from editverse_rt.fields import Fields, json_from_text
from editverse_rt.files import check_input_file, hash_file
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.prompt import with_tags

__all__ = ["BatchRow", "Failure", "KeyMaker", "check_ids", "read_manifest", "rows_of_folder"]

_FIX = "correct the row"
_ID = re.compile(r'[^\x00-\x1f\x7f\ud800-\udfff<>:"/\\|?*.\s-][^\x00-\x1f\x7f\ud800-\udfff<>:"/\\|?*]{0,99}')
"""What every file system takes at the head of a name, without a leading dot, dash or space."""
_MAX_ID_BYTES = 180
_KEY_FORMAT = 1
_KEY_DIGITS = 16


@dataclass(frozen=True)
class BatchRow:
    """A row of a batch. id: names its result. line: in the manifest, from 1, or 0. key: "" until it is known."""

    id: str
    request: EditRequest
    line: int = 0
    key: str = ""

    @property
    def stem(self) -> str:
        """The name of its result without the suffix."""
        return f"{self.id}-{self.key}"


@dataclass(frozen=True)
class Failure:
    """A row that has no result, and why."""

    id: str
    line: int
    error: Exception

    def to_json(self) -> dict[str, Any]:
        """A line of `failed.jsonl`: id, line, code, field, found, expected, hint, message."""
        error = self.error
        if not isinstance(error, EditVerseError):
            error = EditVerseError(f"{type(error).__name__}: {error}", code="internal")
        return {"id": self.id, "line": self.line, **error.to_json()}


def read_manifest(path: Path) -> tuple[list[BatchRow], list[Failure]]:
    """The rows of a manifest, and the lines that are none: JSONL with one `EditRequest` as JSON with an `id` a line, or
    a table, .csv or .parquet, see `objects_of_table`.

    Inputs' paths are relative to the file. Empty lines are passed over. Raises RequestError (`batch.manifest`)
    for a file that cannot be read, and (`batch.id`) for an id that stands twice; BackendError for Parquet without
    pyarrow.
    """
    values: Iterable[tuple[int, Any]]
    values = objects_of_table(path) if path.suffix.lower() in SUFFIXES else _lines_of(path)
    rows: list[BatchRow] = []
    failures: list[Failure] = []
    for number, given in values:
        where, name = f"{path}:{number}", ""
        try:
            value: Any = given
            if isinstance(given, str):
                value = json_from_text(given, where, error=RequestError, fix=_FIX)
            reader = Fields(value, where, "", error=RequestError, fix=_FIX)
            name = checked_id(reader.string("id"), where)
            rest = {key: reader.value(key) for key in reader if key != "id"}
            request = EditRequest.from_json(rest, where).with_paths_from(path.parent)
            request = replace(request, prompt=with_tags(request.prompt, request.inputs))
            rows.append(BatchRow(name, request, number))
        except RequestError as error:
            failures.append(Failure(name, number, error))
    check_ids([(row.id, row.line) for row in rows] + [(f.id, f.line) for f in failures if f.id])
    return rows, failures


def _lines_of(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1. Raises RequestError (`batch.manifest`)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{path} cannot be read as UTF-8 text ({error})",
            expected="a JSON object a line",
            hint="check the path",
            code="batch.manifest",
        ) from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def rows_of_folder(folder: Path, prompt: str) -> tuple[list[BatchRow], list[Failure]]:
    """A row for each video and picture of a folder, in the order of their names, all with one instruction.

    A row's id is the file's name without its suffix, or with it where two would be the same.
    """
    suffixes = media.VIDEO_SUFFIXES | media.IMAGE_SUFFIXES
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in suffixes)
    files = [path for path in files if not path.name.startswith(".")]
    stems = [path.stem.casefold() for path in files]
    rows: list[BatchRow] = []
    failures: list[Failure] = []
    for path in files:
        name = path.stem if stems.count(path.stem.casefold()) == 1 else path.name
        try:
            kind = f"{media.probe(path).kind}1"
            request = EditRequest(with_tags(prompt, [kind]), {kind: os.fspath(path)})
            rows.append(BatchRow(checked_id(name, os.fspath(path)), request))
        except EditVerseError as error:
            failures.append(Failure(name, 0, error))
    check_ids([(row.id, 0) for row in rows])
    return rows, failures


def checked_id(name: str, where: str) -> str:
    """An id that can stand in a file's name. Raises RequestError (`batch.id`) for another."""
    if _ID.fullmatch(name) is None or len(name.encode("utf-8", "surrogatepass")) > _MAX_ID_BYTES:
        raise RequestError(
            f"{where}: the id is {name!r}",
            expected="1 to 100 characters that a file's name may have, not beginning with a dot, a dash or a space",
            hint=_FIX,
            code="batch.id",
            field="id",
        )
    return name


def check_ids(ids: Iterable[tuple[str, int]]) -> None:
    """Raise RequestError (`batch.id`) for an id that stands twice; capitals count as small letters, because
    some file systems do the same. ids: each with its line."""
    seen: dict[str, tuple[str, int]] = {}
    for name, line in ids:
        other = seen.setdefault(name.casefold(), (name, line))
        if other != (name, line):
            raise RequestError(
                f"the id {name!r} of line {line} stands in line {other[1]} as {other[0]!r}",
                expected="ids that differ by more than capitals",
                hint="give each row its own",
                code="batch.id",
                field="id",
            )


class KeyMaker:
    """Makes rows' keys for one bundle; an input that several rows have is read once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = hash_file(bundle.root / BUNDLE_JSON)
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}

    def __call__(self, request: EditRequest) -> str:
        """The first 16 hexadecimal digits of the sha256 of request, inputs' contents and bundle.

        Raises MediaError for an input that cannot be read, RequestError for one that is no path.
        """
        facts = request.to_json()
        inputs = {name: self._digest(path) for name, path in facts.get("inputs", {}).items()}
        facts = {"format": _KEY_FORMAT, "bundle": self._bundle, "request": {**facts, "inputs": inputs}}
        text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]

    def _digest(self, path: str) -> str:
        check_input_file(path)
        try:
            stamp = _stamp(path)
            known = self._digests.get(path)
            if known is None or known[0] != stamp:
                known = self._digests[path] = (stamp, hash_file(Path(path)))
        except OSError as error:
            raise MediaError(f"{path}: cannot be read ({error.strerror})", code="media.permission") from error
        return known[1]


def _stamp(path: str) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns
