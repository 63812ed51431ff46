"""The windows of a long result that are done, on disk beside it, so that a run that ended early can go on.

A folder OUT.parts holds `run.json`, which says of what request, inputs and bundle the windows are, and one file for
each window. Frames are kept without loss: the result is the same whether or not a run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from editverse_rt.bundle.description import BUNDLE_JSON
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import EditVerseError, MediaError, RequestCancelled, RequestError
from editverse_rt.fields import read_json
from editverse_rt.files import FolderLock, hash_file, write_json
from editverse_rt.media.frames import Frames
from editverse_rt.media.lossless import read_lossless, write_lossless
from editverse_rt.request.edit_request import EditRequest

__all__ = ["WindowParts", "parts_folder"]

_RUN_JSON = "run.json"
_VERSION = 1
"""Of how a video is divided: another one's windows do not fit."""


def parts_folder(output: Path) -> Path:
    """Where the windows of an output are kept until it is complete."""
    return output.with_name(output.name + ".parts")


class WindowParts:
    """The folder of one run. count: how many windows are done, from the first on."""

    def __init__(self, output: Path, request: EditRequest, bundle: Bundle, *, resume: bool) -> None:
        """resume: whether to go on with windows that are there. Raises RequestError for an input that is no path."""
        self.folder = parts_folder(output)
        self.count = 0
        self._facts = _facts_of(request, bundle)
        self._resume = resume
        self._lock: FolderLock | None = None

    def __enter__(self) -> WindowParts:
        """Make the folder, or open the one of the same request.

        Raises RequestError where windows are there and `resume` is False, or they are of another request, input or
        bundle; MediaError where the folder cannot be made.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = FolderLock(self.folder / "lock")
            self._open()
        except BlockingIOError as error:
            raise RequestError(
                f"{self.folder} is in use by another run",
                hint="wait for it, or write elsewhere",
                code="request.unfinished",
                field="resume",
            ) from error
        except OSError as error:
            raise MediaError(
                f"{self.folder}: {error.strerror}", hint="write elsewhere", code="media.unwritable"
            ) from error
        except EditVerseError:
            self._unlock()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Remove the folder after success, or where it holds nothing; else the error says what is kept."""
        self._unlock()
        if error is None or self.count == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        kept = f"{self.count} windows are kept in {self.folder}, and can be resumed"
        if isinstance(error, KeyboardInterrupt):
            error = RequestCancelled("stopped by Ctrl-C", hint="no result was written", code="cancelled")
        if isinstance(error, EditVerseError):
            raise error.with_hint(kept) from error

    def _open(self) -> None:
        """Count the windows that are there, or begin with none."""
        if not self._path(0).is_file():
            write_json(self.folder / _RUN_JSON, self._facts)
            return
        self._check()
        while self._path(self.count).is_file():
            self.count += 1

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _check(self) -> None:
        """Refuse windows that are not wanted, or are of another run."""
        facts = self._facts
        if not self._resume:
            raise RequestError(
                f"{self.folder} is there, with windows of a run that was not finished",
                hint="resume it, or remove the folder to begin anew",
                code="request.unfinished",
                field="resume",
            )
        try:
            found = read_json(self.folder / _RUN_JSON)
        except (OSError, ValueError, RequestError) as error:
            raise RequestError(
                f"{self.folder / _RUN_JSON} cannot be read",
                hint="remove the folder to begin anew",
                code="request.unfinished",
                field="resume",
            ) from error
        if found != facts:
            known = found if isinstance(found, dict) else {}
            changed = ", ".join(name for name in facts if known.get(name) != facts[name])
            raise RequestError(
                f"{self.folder} is of a run with another {changed}",
                hint="give what that run had, or remove the folder to begin anew",
                code="request.unfinished",
                field="resume",
            )

    def add(self, frames: Frames) -> None:
        """Keep the frames uint8 [T, H, W, 3] of the next window. Raises MediaError."""
        write_lossless(self._path(self.count), frames)
        self.count += 1

    def last_frames(self, num_frames: int) -> Frames | None:
        """The last frames of what is done, uint8 [T, H, W, 3]; None where there are none."""
        frames: list[Frames] = []
        for index in reversed(range(self.count)):
            frames = [*read_lossless(self._path(index)), *frames]
            if len(frames) >= num_frames:
                break
        return np.stack(frames[-num_frames:]) if frames else None

    def frames(self) -> Iterator[Frames]:
        """Every frame [H, W, 3] of what is done, in order."""
        for index in range(self.count):
            yield from read_lossless(self._path(index))

    def _path(self, index: int) -> Path:
        return self.folder / f"window_{index:06d}.mkv"


def _facts_of(request: EditRequest, bundle: Bundle) -> dict[str, Any]:
    """What a run is bound to: the request, its files' contents, the bundle."""
    value = request.to_json()
    inputs = value.pop("inputs", {})
    return {
        "version": _VERSION,
        "request": hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest(),
        "inputs": {name: hash_file(Path(path)) for name, path in inputs.items()},
        "bundle": hash_file(bundle.root / BUNDLE_JSON),
    }
