"""The types of files that a job's result can be, and how it is written as each."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

from editverse_rt import media
from editverse_rt.media.frames import Frames
from editverse_rt.media.sound import Sound

__all__ = ["FORMATS", "TYPES", "write_result"]

TYPES = {
    "mp4": "video/mp4", "mov": "video/quicktime", "mkv": "video/x-matroska", "webm": "video/webm",
    "gif": "image/gif", "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp",
    "zip": "application/zip",
}  # fmt: skip
"""Media types by format. zip: the frames as PNGs, frame_00001.png and so on, without loss and without sound."""
FORMATS = tuple(sorted(TYPES))


def write_result(
    path: Path,
    frames: Iterable[Frames],
    fps: float,
    *,
    times_s: tuple[float, ...] | None = None,
    sound: Sound | None = None,
) -> tuple[str, ...]:
    """Write frames [H, W, 3] as the suffix of `path` says; the notices for its user. Raises MediaError, OSError."""
    if path.suffix == ".zip":
        with _folder_beside(path) as folder:
            pictures = Path(folder) / "frames"
            notices = media.write_clip(pictures, frames, fps, audio_from=sound).notices
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed
                for picture in sorted(pictures.iterdir()):
                    archive.write(picture, picture.name)
        return notices
    return media.write_clip(path, frames, fps, times_s=times_s, audio_from=sound).notices


def _folder_beside(path: Path) -> AbstractContextManager[str]:
    return TemporaryDirectory(dir=path.parent, prefix="frames-")
