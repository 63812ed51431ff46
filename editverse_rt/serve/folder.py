"""The server's folder: its lock, and names and files that are really on the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from editverse_rt.errors import RequestError

__all__ = ["DataFolder", "remove", "sync_file", "sync_folder"]


class DataFolder:
    """A folder of mode 0700 that one server holds; close() gives it back."""

    def __init__(self, path: Path) -> None:
        """Create it where it is missing. Raises RequestError (`serve.data`) where another server has it."""
        self._lock = -1
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                path.chmod(0o700)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in ("in", "out"):
                (path / name).mkdir(mode=0o700, exist_ok=True)
        except BlockingIOError as error:
            self.close()
            raise _error(path, "is used by another server", "stop it or choose another folder") from error
        except OSError as error:
            self.close()
            raise _error(path, f"cannot be used ({error.strerror})", "choose another") from error

    def close(self) -> None:
        """Give the lock back; safe to call twice."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def sync_file(path: Path) -> None:
    """Have the system put a file's bytes on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


sync_folder = sync_file
"""The same for the names in a folder."""


def remove(path: Path) -> None:
    """Remove a file or a folder; what is not there, or cannot be removed, is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _error(path: Path, found: str, hint: str) -> RequestError:
    return RequestError(f"the data folder {path} {found}", hint=hint, code="serve.data", field="data")
