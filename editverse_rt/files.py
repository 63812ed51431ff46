"""Files as such: hashes, checks before they are opened, outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from editverse_rt.errors import MediaError

__all__ = [
    "FolderLock",
    "OpenFile",
    "check_input_file",
    "hash_file",
    "move_files",
    "reason",
    "replacing",
    "working_folder",
    "write_json",
]

_CHUNK_BYTES = 1 << 20


def hash_file(path: Path) -> str:
    """The sha256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_input_file(name: str) -> None:
    """Raise MediaError unless `name` is a readable file that is not empty."""
    if not os.path.exists(name):
        raise MediaError(
            f"{name}: no such file",
            expected="a video or an image",
            hint="check the path",
            code="media.not_found",
        )
    if not os.path.isfile(name):
        raise MediaError(
            f"{name}: found a folder or a device", expected="a video or image file", code="media.not_a_file"
        )
    if not os.access(name, os.R_OK):
        raise MediaError(
            f"{name}: no permission to read it",
            expected="a readable file",
            hint="change its permissions",
            code="media.permission",
        )
    if os.path.getsize(name) == 0:
        raise MediaError(
            f"{name}: the file is empty",
            expected="a video or an image",
            hint="make it again",
            code="media.empty",
        )


class FolderLock:
    """A file that one process at a time holds open as its own; the system gives it back when the process ends."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError if another process holds it, OSError where the file cannot be opened."""
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            _lock(self._handle)
        except OSError:
            os.close(self._handle)
            raise

    def close(self) -> None:
        """Give it back; safe to call twice."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from error

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class OpenFile:
    """A file that is open for reading, by one handle that several readers share; each has a place of its own.

    What was opened stays readable after the file's name is gone. Raises MediaError as `check_input_file`.
    """

    def __init__(self, name: str) -> None:
        check_input_file(name)
        self.name = name
        try:
            self._handle = os.open(name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise MediaError(
                f"{name}: cannot be opened ({reason(error)})", code="media.permission"
            ) from error
        self._turn = threading.Lock()
        self._finalizer = weakref.finalize(self, os.close, self._handle)
        self.num_bytes = os.fstat(self._handle).st_size

    def close(self) -> None:
        """Give the handle back; safe to call twice."""
        self._finalizer()

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """Read up to `num_bytes` from a place in the file; fewer only at its end."""
        if not self._finalizer.alive:
            raise MediaError(f"{self.name}: the file was closed", hint="open it again", code="media.closed")
        parts, left = [], num_bytes
        with self._turn:
            os.lseek(self._handle, offset, os.SEEK_SET)
            while left and (part := os.read(self._handle, min(left, 1 << 24))):
                parts.append(part)
                left -= len(part)
        return b"".join(parts)

    def reader(self) -> _Reader:
        """A reader with a place of its own, at the beginning."""
        return _Reader(self)


class _Reader:
    def __init__(self, file: OpenFile) -> None:
        self._file, self._at = file, 0

    def read(self, num_bytes: int, /) -> bytes:
        data = self._file.read_at(self._at, num_bytes)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.num_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside `path` to prepare it in; it goes, with what is left in it, in any case.

    Raises MediaError where the system refuses, here or inside: no such folder, no permission, a full disk.
    """
    if not path.parent.is_dir():
        raise MediaError(
            f"{path}: found no folder {path.parent}",
            expected="an existing one",
            hint="create it first",
            code="media.place",
        )
    folder = path.with_name(f".{secrets.token_hex(6)}.part")
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise MediaError(f"{path}: cannot be written: {_advice(error)}", code="media.unwritable") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, of the same name; at the end, and only then, it becomes `path`.

    A file that stands at `path` is replaced. Raises MediaError as `working_folder`, and on a folder there.
    """
    if path.is_dir():
        raise MediaError(
            f"{path}: found a folder of that name",
            expected="a file name",
            hint="choose another",
            code="media.place",
        )
    with working_folder(path) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


def move_files(sources: list[Path], targets: list[Path]) -> None:
    """Move every file over its target; if one cannot be moved, those that were are removed again."""
    moved: list[Path] = []
    try:
        for source, target in zip(sources, targets, strict=True):
            os.replace(source, target)
            moved.append(target)
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> Path:
    """Write a JSON file in one step; it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def reason(error: Exception) -> str:
    """The system's or libav's word for an error, without numbers and paths."""
    return str(getattr(error, "strerror", None) or error)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "the disk is full; free some space or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission to write there; change the folder's permissions or write elsewhere"
    return f"{reason(error)}; write elsewhere or under another name"
