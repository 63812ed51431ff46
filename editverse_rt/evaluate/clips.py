"""Clips of benchmarks on disk: videos, pictures, and folders of numbered pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from editverse_rt import media
from editverse_rt.errors import MediaError
from editverse_rt.files import hash_file, working_folder
from editverse_rt.media.frames import Frames
from editverse_rt.media.plain import read_frames_plain

__all__ = ["clip_exists", "hash_clip", "read_clip_shown", "read_clip_stored", "write_pictures"]

_MOST_FRAMES = 100_000


def clip_exists(path: Path) -> bool:
    """Whether there is a file that is not empty, or a folder with a picture."""
    if path.is_dir():
        return bool(_pictures(path))
    return path.is_file() and path.stat().st_size > 0


def hash_clip(path: Path) -> str:
    """The sha256 of a file, or of a folder's pictures."""
    if not path.is_dir():
        return hash_file(path)
    digest = hashlib.sha256()
    for picture in _pictures(path):
        digest.update(f"{picture.name} {hash_file(picture)}\n".encode())
    return digest.hexdigest()


def read_clip_stored(path: Path) -> Frames:
    """All frames at their stored size and without colour tags, as published scores read them.

    Returns uint8 [T, H, W, 3]. Raises MediaError where there is no frame, or sizes differ.
    """
    return _joined(path, read_frames_plain)


def read_clip_shown(path: Path) -> Frames:
    """All frames as they are shown and as requests read them: upright, colours by their tags.

    Returns uint8 [T, H, W, 3]. Raises MediaError as `read_clip_stored`.
    """
    return _joined(path, _shown)


def write_pictures(folder: Path, frames: Frames) -> None:
    """Write frames as `00000.jpg`, `00001.jpg` ... into a folder that appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(folder) as part:
        (part / "frames").mkdir()
        for number, frame in enumerate(frames):
            media.write_image(part / "frames" / f"{number:05d}.jpg", frame)
        os.replace(part / "frames", folder)


def _shown(path: Path) -> Frames:
    info = media.probe(path)
    return media.read_clip(
        path, num_frames=_MOST_FRAMES, height_px=info.height_px, width_px=info.width_px
    ).frames


def _joined(path: Path, read: Callable[[Path], Frames]) -> Frames:
    if not path.is_dir():
        return read(path)
    clips = [read(picture) for picture in _pictures(path)]
    if not clips:
        raise MediaError(f"{path}: found no pictures", expected="00000.jpg, 00001.jpg and so on")
    if len({clip.shape[1:] for clip in clips}) > 1:
        raise MediaError(f"{path}: found pictures of several sizes", expected="one")
    return np.concatenate(clips)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
