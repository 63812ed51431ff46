"""Decoding of videos and images.

Frames are decoded one at a time, and only those that are taken are resized and kept: memory does not grow
with the source. docs/media.md has a table of the formats and of the properties that shape pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from numpy.typing import NDArray

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile
from editverse_rt.media.assembled import too_large_error
from editverse_rt.media.decoding import Decoding, Source, no_frame_error, start_error
from editverse_rt.media.frames import (
    Clip,
    FrameTaker,
    MediaInfo,
    PathLike,
    check_sampling,
    take_clip,
)
from editverse_rt.media.headers import HEAD_BYTES, Header, examine, is_picture_type
from editverse_rt.media.libav import (
    MAX_SOURCE_AREA_PX,
)
from editverse_rt.media.sound import Sound, read_sound
from editverse_rt.media.streams import TimedFrame
from editverse_rt.media.video_reader import VideoReader, array_renderer, frames_and_renderer, timed_array

__all__ = [
    "MediaFile",
    "clip_from_array",
    "open_media",
    "probe",
    "read_clip",
]

MAX_PICTURE_BYTES = 1 << 28


class MediaFile:
    """A video or an image that is open, so that what `info` says holds for what is read later.

    The file is opened once, and may be deleted or replaced afterwards. Between calls no decoder is kept: a
    waiting request holds a file handle and no pictures. Use it as a context manager, or close() it. It stands
    for its path, and may be given to a request in place of it; the request closes it once it is read.
    """

    def __init__(self, path: PathLike) -> None:
        """Prefer `open_media`."""
        self.path = os.fspath(path)
        self._file = OpenFile(self.path)
        try:
            self._data = b""
            self._header = self._examine()
            self.info = self._probe()
        except BaseException:
            self._file.close()
            raise

    def __fspath__(self) -> str:
        return self.path

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file handle back; safe to call twice."""
        self._file.close()

    def read_clip(
        self,
        *,
        start_s: float = 0.0,
        num_frames: int,
        fps: float | None = None,
        height_px: int,
        width_px: int,
        moments_s: Sequence[float] | None = None,
        on_frame: Callable[[], None] = lambda: None,
    ) -> Clip:
        """As the function `read_clip`. moments_s: see `sample_by_time`; taken only with `fps`.

        on_frame: called before each frame is decoded; what it raises stops the reading.
        """
        check_sampling(start_s, num_frames, fps, height_px, width_px)
        with self._decoding() as decoding:
            source = decoding.source
            if source.is_image:
                start_s, fps = 0.0, fps or 1.0
            frames = source.decode_from(start_s) if start_s > 0 else None
            options = (start_s, num_frames, fps, height_px, width_px, moments_s, on_frame)
            if frames is not None:
                clip = _clip_from_frames(frames, source, *options)
                if clip is not None and not clip.num_damaged:
                    return clip
        # From the beginning, also where an index is missing or leads astray.
        with self._decoding() as decoding:
            source = decoding.source
            frames = source.decode()
            clip = _clip_from_frames(frames, source, *options)
            if clip is None:
                if source.end_s > 0:
                    raise start_error(source.path, start_s, source.end_s)
                raise no_frame_error(source)
            return clip

    def open_frames(
        self,
        *,
        start_s: float = 0.0,
        fps: float | None = None,
        height_px: int,
        width_px: int,
        moments_s: Sequence[float] | None = None,
        on_frame: Callable[[], None] = lambda: None,
    ) -> VideoReader:
        """The frames that `read_clip` would take with no limit, a few at a time. `moments_s` may grow.

        It is decoded from the beginning, whatever `start_s` is.
        """
        check_sampling(start_s, 1, fps, height_px, width_px)
        decoding, notices = self._decoding(), list[str]()
        with decoding.translating():
            source = decoding.__enter__().source
            items, render = frames_and_renderer(
                source.decode(), source, height_px, width_px, notices, on_frame
            )
            first = list(islice(items, 1))
            taker = FrameTaker(
                chain(first, items),
                render,
                start_s=start_s,
                fps=fps,
                source_fps=float(source.rate),
                moments_s=moments_s,
            )
        return VideoReader(taker, decoding, notices)

    def read_sound(self) -> Sound | None:
        """The file's audio in memory, or None. Raises MediaError where it cannot be read."""
        return read_sound(self._file)

    def _examine(self) -> Header:
        """Read the header, and of a picture the whole file; refuse what is too large before it is decoded."""
        if not is_picture_type(self._file.read_at(0, HEAD_BYTES)):
            return Header("container")
        if self._file.num_bytes > MAX_PICTURE_BYTES:
            raise MediaError(
                f"{self.path}: found a picture of {self._file.num_bytes} bytes",
                expected=f"{MAX_PICTURE_BYTES} bytes or fewer",
                hint="make it smaller first",
                code="media.too_large",
            )
        data = self._file.read_at(0, self._file.num_bytes)
        header = examine(data)
        if header.width_px * header.height_px > MAX_SOURCE_AREA_PX:
            raise too_large_error(self.path, header.width_px, header.height_px)
        self._data = data if header.kind in ("heif", "webp") else b""
        return header

    def _probe(self) -> MediaInfo:
        with self._decoding() as decoding:
            source = decoding.source
            first = next(source.decode(), None)
            if first is None:
                raise no_frame_error(source)
            return decoding.describe(first[2])

    def _decoding(self) -> Decoding:
        return Decoding(self._file, self._header, self._data)


def open_media(path: PathLike) -> MediaFile:
    """Open a video or an image, and say what it holds, after decoding its first frame.

    Its type is found in its content. Raises MediaError if there is no such file, if it is too large, if no
    frame can be decoded, or if it is of a kind that cannot be put together here.
    """
    return MediaFile(path)


def probe(path: PathLike) -> MediaInfo:
    """Say what `path` holds, as `open_media` does."""
    with open_media(path) as file:
        return file.info


def read_clip(
    source: PathLike,
    *,
    start_s: float = 0.0,
    num_frames: int,
    fps: float | None = None,
    height_px: int,
    width_px: int,
) -> Clip:
    """Take up to `num_frames` frames of a video from `start_s` on, or the one frame of an image.

    With `fps`, frames are chosen by their timestamps, one for each 1/fps seconds; without, every frame is
    taken, and the rate of the result is their average rate (`Clip.uneven_times_s` has their times). Each is
    put upright and resized to height_px x width_px (the aspect ratio is the caller's business). An image's
    `fps` is the one asked for, or 1. Packets that cannot be decoded are skipped and counted. Returns uint8
    frames [T, H, W, 3], T >= 1.
    Raises MediaError if not a single frame can be had, or `start_s` lies beyond the end.
    """
    check_sampling(start_s, num_frames, fps, height_px, width_px)
    with open_media(source) as file:
        return file.read_clip(
            start_s=start_s, num_frames=num_frames, fps=fps, height_px=height_px, width_px=width_px
        )


def _clip_from_frames(
    frames: Iterator[TimedFrame],
    source: Source,
    start_s: float,
    num_frames: int,
    fps: float | None,
    height_px: int,
    width_px: int,
    moments_s: Sequence[float] | None,
    on_frame: Callable[[], None],
) -> Clip | None:
    """Sample frames of a source; None where nothing was left."""
    notices: list[str] = []
    items, render = frames_and_renderer(frames, source, height_px, width_px, notices, on_frame)
    # The rate of an elementary stream is known when its first frame is.
    first = next(items, None)
    if first is None:
        return None
    clip = take_clip(
        chain([first], items),
        render,
        start_s=start_s,
        num_frames=1 if source.is_image else num_frames,
        fps=fps,
        source_fps=float(source.rate),
        moments_s=moments_s,
    )
    if clip is None:
        return None
    return replace(
        clip,
        num_frames_asked=num_frames,
        num_damaged=source.num_damaged,
        notices=(*source.notices, *notices),
    )


def clip_from_array(
    array: NDArray[Any],
    source_fps: float,
    *,
    start_s: float = 0.0,
    num_frames: int,
    fps: float | None = None,
    height_px: int,
    width_px: int,
) -> Clip:
    """Treat an array uint8 [T, H, W, 3] or [H, W, 3] as `read_clip` treats a file: same sampling and filter.

    Frames of the right size are kept as they are. Raises MediaError on another dtype or shape, on no frames,
    or if `start_s` lies beyond the end.
    """
    check_sampling(start_s, num_frames, fps, height_px, width_px)
    frames = timed_array(array, source_fps)
    clip = take_clip(
        frames,
        array_renderer(height_px, width_px),
        start_s=start_s,
        num_frames=num_frames,
        fps=fps,
        source_fps=source_fps,
    )
    if clip is None:
        raise start_error("the array", start_s, len(array) / source_fps)
    return clip
