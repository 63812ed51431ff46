"""The folder of a batch's results: its lock, its files, and the two lists beside them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from editverse_rt.batch.rows import BatchRow, Failure
from editverse_rt.errors import MediaError, RequestError
from editverse_rt.files import FolderLock
from editverse_rt.pipeline import Result

__all__ = ["BatchFolder", "keep_result", "partial_path", "save_result"]

_PARTIAL = ".partial"
_WINDOWS = ".windows"


def save_result(folder: Path, row: BatchRow, result: Result) -> Path:
    """Write a row's result; its name appears when the file is whole and on the disk. Raises MediaError."""
    partial = partial_path(folder, row, is_picture=len(result.frames) == 1)
    result.save(partial)
    return keep_result(folder, row, partial)


def partial_path(folder: Path, row: BatchRow, *, is_picture: bool = False) -> Path:
    """Where a row's result is written before it has its name. Raises MediaError where nothing can be written."""
    # A name of its own: a process of a run that was killed may still be at work on the same row.
    return _make(folder / _PARTIAL) / f"{secrets.token_hex(4)}-{row.stem}{BatchFolder.SUFFIXES[is_picture]}"


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MediaError(f"{folder}: cannot be made ({error.strerror})", code="media.unwritable") from error
    return folder


def keep_result(folder: Path, row: BatchRow, partial: Path) -> Path:
    """Give a result that is whole its name, once it is on the disk. Raises MediaError."""
    path = folder / (row.stem + partial.suffix)
    try:
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise MediaError(f"{path}: cannot be written ({error.strerror})", code="media.unwritable") from error
    return path


class BatchFolder:
    """The folder that a batch writes to, held by one process; a context manager."""

    RESULTS, FAILED = "results.jsonl", "failed.jsonl"
    SUFFIXES = (".mp4", ".png")
    """Of a video, and of a result of one frame."""

    def __init__(self, path: Path) -> None:
        """Create it where it is missing, and remove what a killed run left half-written.

        Raises MediaError (`media.place`) where it cannot be used, RequestError (`batch.locked`) where another
        batch writes to it.
        """
        self.path = path
        self._partial, self._windows = path / _PARTIAL, path / _WINDOWS
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(path / ".lock")
        except BlockingIOError as error:
            raise RequestError(
                f"another batch writes to {path}",
                hint="wait for it, or choose another folder",
                code="batch.locked",
            ) from error
        except OSError as error:
            raise MediaError(
                f"{path}: cannot be used as a folder ({error.strerror})",
                hint="choose another",
                code="media.place",
            ) from error
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> BatchFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        with suppress(OSError):  # it holds windows, or was never there
            self._windows.rmdir()
        self._lock.close()

    def windows_path(self, row: BatchRow) -> Path:
        """Where a long result of this process is put together: the same in each run, so that its windows are kept
        beside it until it is whole. Raises MediaError where nothing can be written."""
        return _make(self._windows) / (row.stem + self.SUFFIXES[False])

    def drop_windows(self) -> None:
        """Remove what is kept of rows that will not go on, such as those whose input was changed."""
        shutil.rmtree(self._windows, ignore_errors=True)

    def find(self, row: BatchRow) -> Path | None:
        """The row's result, None if it is not there."""
        paths = (self.path / (row.stem + suffix) for suffix in self.SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def write_results(self, rows: Iterable[BatchRow]) -> int:
        """Write `results.jsonl` anew, from the files that are there: id, line, file and bytes of each."""
        found = [(row, path) for row in rows if row.key and (path := self.find(row)) is not None]
        self._write_lines(
            self.RESULTS,
            (
                {"id": row.id, "line": row.line, "file": path.name, "num_bytes": path.stat().st_size}
                for row, path in found
            ),
        )
        return len(found)

    def write_failures(self, failures: Iterable[Failure]) -> None:
        """Write `failed.jsonl` anew; without any failure it is removed."""
        lines = [failure.to_json() for failure in failures]
        if lines:
            self._write_lines(self.FAILED, lines)
        else:
            (self.path / self.FAILED).unlink(missing_ok=True)

    def _write_lines(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        self._partial.mkdir(exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (self._partial / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(self._partial / name, self.path / name)
