"""Files as such: hashes, checks before they are opened, outputs that appear whole or not at all, EXIF."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from editverse_rt.errors import MediaError

__all__ = [
    "check_input_file",
    "exif_orientation",
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
        raise MediaError(f"{name}: no such file; expected a video or an image, check the path")
    if not os.path.isfile(name):
        raise MediaError(f"{name}: found a folder or a device; expected a video or image file")
    if not os.access(name, os.R_OK):
        raise MediaError(
            f"{name}: no permission to read it; expected a readable file, change its permissions"
        )
    if os.path.getsize(name) == 0:
        raise MediaError(f"{name}: the file is empty; expected a video or an image, make it again")


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside `path` to prepare it in; it goes, with what is left in it, in any case.

    Raises MediaError where the system refuses, here or inside: no such folder, no permission, a full disk.
    """
    if not path.parent.is_dir():
        raise MediaError(f"{path}: found no folder {path.parent}; expected an existing one, create it first")
    folder = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.part")
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise MediaError(f"{path}: cannot be written: {_advice(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, of the same name; at the end, and only then, it becomes `path`.

    A file that stands at `path` is replaced. Raises MediaError as `working_folder`, and on a folder there.
    """
    if path.is_dir():
        raise MediaError(f"{path}: found a folder of that name; expected a file name, choose another")
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


def exif_orientation(data: bytes) -> int:
    """Find EXIF tag 0x0112 (1 to 8) in the bytes of a JPEG, PNG or WebP file; 1 where there is none."""
    for marker in (b"Exif\0\0", b"eXIf", b"EXIF"):
        at = data.find(marker)
        if at < 0:
            continue
        for order, magic in (("<", b"II*\0"), (">", b"MM\0*")):
            tiff = data.find(magic, at, at + len(marker) + 16)
            if tiff < 0:
                continue
            try:
                entries = tiff + struct.unpack_from(order + "I", data, tiff + 4)[0]
                (count,) = struct.unpack_from(order + "H", data, entries)
                for i in range(count):
                    tag, _, _, value = struct.unpack_from(order + "HHIH", data, entries + 2 + 12 * i)
                    if tag == 0x0112 and 1 <= value <= 8:
                        return int(value)
            except struct.error:
                return 1
    return 1
