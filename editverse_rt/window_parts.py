"""The windows of a long result that are done, on disk beside it, so that a run that ended early can go on.

A folder OUT.parts holds `run.json`, which says of what request, inputs and bundle the windows are, and two files for
each window: its frames, and how many they are with the sha256 of their file. Frames are kept without loss: the result
is the same whether or not a run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from editverse_rt.bundle.description import BUNDLE_JSON
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import EditVerseError, MediaError, RequestCancelled, RequestError
from editverse_rt.fields import Fields, read_json
from editverse_rt.files import FolderLock, hash_file, reason, write_json
from editverse_rt.media.frames import Frames
from editverse_rt.media.lossless import read_lossless, write_lossless
from editverse_rt.request.edit_request import EditRequest

__all__ = ["WindowParts", "parts_folder"]

_RUN_JSON, _LOCK = "run.json", "lock"
_VERSION = 2
"""Of how a video is divided, and of what is kept: another one's windows do not fit."""
_WINDOW = re.compile(r"window_([0-9]{6})\.(?:mkv|json|json\.partial)")
_UNFINISHED_FILE = re.compile(r"run\.json\.partial|\.[0-9a-f]{12}\.part")
_UNFINISHED = "request.unfinished"
_ANEW = "remove the folder to begin anew"


def parts_folder(output: Path) -> Path:
    """Where the windows of an output are kept until it is complete."""
    return output.with_name(output.name + ".parts")


@dataclass(frozen=True)
class _Kept:
    """One window that is done, as it was when it was written."""

    num_frames: int
    sha256: str


class WindowParts:
    """The folder of one run.

    count: how many windows are done, from the first on. num_frames: of all of them. notices: lines for the user.
    """

    def __init__(self, output: Path, request: EditRequest, bundle: Bundle, *, resume: bool) -> None:
        """resume: whether to go on with windows that are there. Raises RequestError for an input that is no path."""
        self.folder = parts_folder(output)
        self.notices: list[str] = []
        self._kept: list[_Kept] = []
        self._facts = _facts_of(request, bundle)
        self._resume = resume
        self._lock: FolderLock | None = None

    @property
    def count(self) -> int:
        return len(self._kept)

    @property
    def num_frames(self) -> int:
        return sum(window.num_frames for window in self._kept)

    def __enter__(self) -> WindowParts:
        """Make the folder, or open the one of the same request.

        Raises RequestError where windows are there and `resume` is False, or they are of another request, input or
        bundle; MediaError where the folder cannot be made, or is of something else.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            self._read_facts()
            self._lock = FolderLock(self.folder / _LOCK)
            self._open()
        except BlockingIOError as error:
            raise _unfinished(
                f"{self.folder} is in use by another run", "wait for it, or write elsewhere"
            ) from error
        except OSError as error:
            self._unlock()
            raise MediaError(
                f"{self.folder}: {reason(error)}", hint="write elsewhere", code="media.unwritable"
            ) from error
        except EditVerseError:
            self._unlock()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Remove the folder after success, or where it holds nothing; else the error says what is kept."""
        if error is None or self.count == 0:
            self._remove()
            return
        self._unlock()
        kept = f"{self.count} windows are kept in {self.folder}, and can be resumed"
        if isinstance(error, KeyboardInterrupt):
            error = RequestCancelled("stopped by Ctrl-C", hint="no result was written", code="cancelled")
        # Windows that are no good for the result cannot be resumed.
        if isinstance(error, EditVerseError) and error.code != _UNFINISHED:
            raise error.with_hint(kept) from error

    def _read_facts(self) -> dict[str, Any] | None:
        """What the folder's run is bound to, None where there was none. Refuses a folder of something else."""
        names = sorted(path.name for path in self.folder.iterdir())
        # A run that was killed at once leaves a lock, and at most a part of its `run.json`.
        others = [name for name in names if name != _LOCK and not _UNFINISHED_FILE.fullmatch(name)]
        if others and _RUN_JSON not in names:
            raise self._foreign_error(f"holds {others[0]} and no {_RUN_JSON}")
        if _RUN_JSON not in names:
            return None
        try:
            found = read_json(self.folder / _RUN_JSON, error=RequestError)
        except RequestError as error:
            raise _unfinished(error.found, _ANEW) from error
        if not isinstance(found, dict) or not self._facts.keys() <= found.keys():
            raise self._foreign_error(f"its {_RUN_JSON} is not of a run of this program")
        return found

    def _foreign_error(self, found: str) -> MediaError:
        return MediaError(
            f"{self.folder} is there, and {found}",
            expected="no folder of that name, or one of a run that was not finished",
            hint="move it away, or write elsewhere",
            code="media.place",
        )

    def _open(self) -> None:
        """Take the windows that are there and whole, and remove the others. Raises OSError."""
        if self._may_go_on():
            while (window := self._look_at(self.count)) is not None:
                self._kept.append(window)
        self._remove_windows(self.count)
        write_json(self.folder / _RUN_JSON, self._facts)

    def _may_go_on(self) -> bool:
        """Whether there are windows. Refuses those that are not wanted, or are of another run."""
        found = self._read_facts()
        if found is None or not any(_WINDOW.fullmatch(path.name) for path in self.folder.iterdir()):
            return False
        if not self._resume:
            raise _unfinished(
                f"{self.folder} is there, with windows of a run that was not finished",
                f"resume it, or {_ANEW}",
            )
        if changed := [name for name, fact in self._facts.items() if found[name] != fact]:
            raise _unfinished(
                f"{self.folder} is of a run with another {', '.join(changed)}",
                f"give what that run had, or {_ANEW}",
            )
        return True

    def _look_at(self, index: int) -> _Kept | None:
        """A window that is as it was written; None, with a notice where it is damaged, where the run goes on."""
        path, note = self._frames_path(index), self._note_path(index)
        if not note.exists():
            return None
        with suppress(RequestError, OSError):
            fields = Fields(read_json(note, error=RequestError), str(note), "", error=RequestError)
            window = _Kept(fields.integer("num_frames", 1), fields.string("sha256"))
            if hash_file(path) == window.sha256:
                return window
        self.notices.append(
            f"window {index + 1} of the run that is gone on with is damaged: it and those after it were computed again"
        )
        return None

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _remove(self) -> None:
        """Remove what runs write, and the folder where nothing else is in it."""
        with suppress(OSError):
            self._remove_windows(0)
            (self.folder / _RUN_JSON).unlink(missing_ok=True)
        self._unlock()
        with suppress(OSError):
            (self.folder / _LOCK).unlink(missing_ok=True)
            self.folder.rmdir()

    def _remove_windows(self, begin: int) -> None:
        """Remove the windows from one on, and files that are not complete. Raises OSError."""
        for path in list(self.folder.iterdir()):
            window = _WINDOW.fullmatch(path.name)
            if _UNFINISHED_FILE.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif _UNFINISHED_FILE.fullmatch(path.name) or (window and int(window[1]) >= begin):
                path.unlink()

    def add(self, frames: Frames) -> None:
        """Keep the frames uint8 [T, H, W, 3] of the next window. Raises MediaError."""
        path = self._frames_path(self.count)
        write_lossless(path, frames)
        try:
            window = _Kept(len(frames), hash_file(path))
            # Last: a window without its note is one that was being written.
            write_json(self._note_path(self.count), asdict(window))
        except OSError as error:
            raise MediaError(
                f"{path}: cannot be written ({reason(error)})",
                hint="write elsewhere",
                code="media.unwritable",
            ) from error
        self._kept.append(window)

    def last_frames(self, num_frames: int) -> Frames | None:
        """The last frames of what is done, uint8 [T, H, W, 3]; None where there are none. Raises MediaError."""
        frames: list[Frames] = []
        for index in reversed(range(self.count)):
            frames = [*read_lossless(self._frames_path(index)), *frames]
            if len(frames) >= num_frames:
                break
        return np.stack(frames[-num_frames:]) if frames else None

    def frames(self) -> Iterator[Frames]:
        """Every frame [H, W, 3] of what is done, in order. Raises MediaError where one is missing."""
        for index in range(self.count):
            yield from read_lossless(self._frames_path(index))

    def check_num_frames(self, num_frames: int) -> None:
        """Refuse windows that hold another number of frames than the whole result has. Raises RequestError."""
        if self.num_frames != num_frames:
            raise _unfinished(
                f"{self.folder} holds {self.num_frames} frames, and the result has {num_frames}", _ANEW
            )

    def _frames_path(self, index: int) -> Path:
        return self.folder / f"window_{index:06d}.mkv"

    def _note_path(self, index: int) -> Path:
        return self.folder / f"window_{index:06d}.json"


def _unfinished(found: str, hint: str) -> RequestError:
    return RequestError(found, hint=hint, code=_UNFINISHED, field="resume")


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
