"""Names of results: the types that can be written, names that stand for several files, what is refused."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from editverse_rt.errors import MediaError
from editverse_rt.media.frames import FPS_RANGE

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FPS",
    "VIDEO_SUFFIXES",
    "check_rate",
    "check_target",
    "is_pattern",
    "numbered",
]

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".gif"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAX_FPS = {".gif": 50.0}
"""The highest rate of a type; GIF counts hundredths of a second, and players slow single ones down."""
# One number, as in out_%04d.png or out_%d.png. A letter behind it, as in "50%done.png", makes it a word.
_PATTERN = re.compile(r"%(?:0([1-9]))?d(?![A-Za-z])")
_SPARE_NAME_BYTES = 255


def is_pattern(name: str) -> bool:
    """Whether a file name stands for numbered pictures: it has exactly one %d or %0Nd, N from 1 to 9.

    A letter behind the d makes it a word; every other percent sign is a character like any other.
    """
    return len(_PATTERN.findall(name)) == 1


def numbered(pattern: str, number: int) -> str:
    """The name that a pattern has for a number."""
    return _PATTERN.sub(lambda match: str(number).zfill(int(match[1] or 1)), pattern)


def check_target(path: Path, *, fps: float | None = None, is_picture: bool = False) -> None:
    """Refuse a name that could not be written, before anything is computed.

    fps: the rate that was asked for, None for the source's. is_picture: only one picture's name will do.
    Raises MediaError: an unknown type, a name that is none, a folder in the way, a place where nothing can be
    written, a name that is too long there, a rate that the type cannot hold.
    """
    _check_name(path)
    suffix = path.suffix.lower()
    known = IMAGE_SUFFIXES if is_picture else IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if path.name in ("", "-", "..") or (not suffix and path.name.lower() in known):
        raise MediaError(
            f"{path}: found no file name",
            expected="a name such as out.mp4",
            hint="results are not written to standard output",
            code="media.type",
        )
    if (suffix or is_picture) and suffix not in known:
        raise MediaError(
            f"{path}: found {suffix or 'no suffix'}, which is not a type that can be written here",
            expected=f"one of {' '.join(sorted(known))}" + ("" if is_picture else ", or none for a folder"),
            code="media.type",
        )
    if suffix and path.is_dir():
        raise MediaError(
            f"{path} is a folder", expected="the name of a file", hint="choose another", code="media.place"
        )
    if not suffix and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise MediaError(
            f"{path} is {'a folder that is not empty' if path.is_dir() else 'a file without a type'}",
            expected="a new or an empty folder, or a file with a type",
            hint=f"choose another name, such as {path}.mp4",
            code="media.place",
        )
    if suffix in VIDEO_SUFFIXES and fps is not None and fps > MAX_FPS.get(suffix, FPS_RANGE[1]):
        raise MediaError(
            f"{path}: found {fps:g} frames a second",
            expected=f"at most {MAX_FPS.get(suffix, FPS_RANGE[1]):g} in {suffix}",
            hint="ask for fewer" + (" or write .mp4" if suffix in MAX_FPS else ""),
            code="media.rate",
        )
    _check_place(path)


def check_rate(path: Path, fps: float) -> None:
    """Refuse a rate that a video of that name cannot have, before anything is computed. Raises MediaError.

    fps: the result's, by what its source says of itself. A rate above that of a GIF is none: frames are left out.
    """
    least, most = FPS_RANGE
    if path.suffix.lower() in VIDEO_SUFFIXES and not least <= fps <= most:
        raise MediaError(
            f"{path}: the result would have {fps:g} frames a second",
            expected=f"{least:g} to {most:g} in {path.suffix}",
            hint="choose its rate with fps, --fps on the command line, or write pictures",
            code="media.rate",
            field="fps",
        )


def _check_name(path: Path) -> None:
    name = numbered(path.name, 999_999) if is_pattern(path.name) else path.name
    try:
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        longest = _SPARE_NAME_BYTES
    if len(os.fsencode(name)) > longest:
        raise MediaError(
            f"{path}: found a name of {len(os.fsencode(name))} bytes",
            expected=f"at most {longest}",
            hint="choose a shorter one",
            code="media.place",
        )


def _check_place(path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise MediaError(
            f"{path}: nothing can be written in {path.parent} ({error.strerror})",
            hint="choose another place",
            code="media.place",
        ) from error
