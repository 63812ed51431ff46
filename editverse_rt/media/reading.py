"""Decoding of videos and images.

Frames are decoded one at a time, and only those that are taken are resized and kept: memory does not grow
with the source. docs/media.md has a table of the formats and of the properties that shape pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Protocol, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile, reason
from editverse_rt.media.assembled import AnimatedWebp, HeifStill, too_large_error
from editverse_rt.media.choosing import choose_stream
from editverse_rt.media.frames import (
    Clip,
    MediaInfo,
    PathLike,
    check_fps,
    check_sampling,
    checked_frames,
    take_clip,
)
from editverse_rt.media.headers import HEAD_BYTES, Header, examine, is_list, is_picture_type
from editverse_rt.media.libav import (
    MAX_SOURCE_AREA_PX,
    frame_from_rgb,
    open_input,
    resized,
    rgb_array,
)
from editverse_rt.media.pixels import (
    Placement,
    picture_from_frame,
    pixel_notices,
)
from editverse_rt.media.sound import Sound, read_sound
from editverse_rt.media.streams import StreamSource, TimedFrame

__all__ = ["MediaFile", "clip_from_array", "open_media", "probe", "read_clip"]

MAX_PICTURE_BYTES = 1 << 28


class _Source(Protocol):
    """A video or an image being decoded once; times count from its beginning."""

    path: str
    num_damaged: int
    end_s: float
    notices: list[str]
    rate: Fraction

    @property
    def is_image(self) -> bool: ...
    def placement(self, frame: VideoFrame) -> Placement: ...
    def decode(self) -> Iterator[TimedFrame]: ...
    def decode_from(self, start_s: float) -> Iterator[TimedFrame] | None: ...


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
                raise _start_error(source, start_s) if source.end_s > 0 else _no_frame_error(source)
            return clip

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
                raise _no_frame_error(source)
            return decoding.describe(first[2])

    def _decoding(self) -> _Decoding:
        return _Decoding(self._file, self._header, self._data)


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
    source: _Source,
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
    on_frame()
    # The rate of an elementary stream is known when its first frame is.
    first = next(frames, None)
    if first is None:
        return None

    def render(frame: VideoFrame) -> NDArray[np.uint8]:
        source.num_damaged += frame.is_corrupt
        notices.extend(line for line in pixel_notices(frame) if line not in notices)
        placement = source.placement(frame)
        return picture_from_frame(frame, placement, height_px, width_px, is_image=source.is_image)

    def announced() -> Iterator[TimedFrame]:
        yield first
        on_frame()
        for frame in frames:
            yield frame
            on_frame()

    clip = take_clip(
        announced(),
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
    check_fps(source_fps)
    frames = checked_frames(array)
    clip = take_clip(
        ((i / source_fps, (i + 1) / source_fps, frame) for i, frame in enumerate(frames)),
        lambda frame: rgb_array(resized(frame_from_rgb(frame), height_px, width_px)),
        start_s=start_s,
        num_frames=num_frames,
        fps=fps,
        source_fps=source_fps,
    )
    if clip is None:
        raise MediaError(
            f"found a start of {start_s:g} s; the array ends at {len(frames) / source_fps:.2f} s",
            hint="start earlier",
            code="media.start",
        )
    return clip


class _Decoding:
    """One pass over a file, from its beginning; what libav raises inside becomes MediaError."""

    def __init__(self, file: OpenFile, header: Header, data: bytes) -> None:
        self._file, self._header, self._data = file, header, data
        self._container: InputContainer | None = None
        self.source: _Source

    def __enter__(self) -> _Decoding:
        try:
            self.source = self._open()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._container is not None:
            self._container.close()
        if isinstance(error, (av.FFmpegError, OSError, EOFError)):
            if is_list(self._file.read_at(0, HEAD_BYTES)):
                raise MediaError(
                    f"{self._file.name}: found a list of other files",
                    expected="a video or an image",
                    hint="give one of those files",
                    code="media.unsupported",
                ) from error
            raise MediaError(
                f"{self._file.name}: no video or image that can be decoded ({reason(error)})",
                hint="it may be cut short or of another type, make or convert it again",
                code="media.undecodable",
            ) from error

    def _open(self) -> _Source:
        if self._header.kind == "heif":
            return HeifStill(self._file.name, self._data)
        if self._header.kind == "webp" and self._header.is_animated:
            return AnimatedWebp(self._file.name, self._data, self._header)
        self._container = open_input(self._file.reader())
        stream = choose_stream(self._container, self._file.name)
        if stream.width * stream.height > MAX_SOURCE_AREA_PX:
            raise too_large_error(self._file.name, stream.width, stream.height)
        return StreamSource(self._file.name, self._container, stream, self._header)

    def describe(self, first: VideoFrame) -> MediaInfo:
        """What the source is, by its headers and its first frame."""
        source = self.source
        width, height = first.width, first.height
        if isinstance(source, (HeifStill, AnimatedWebp)):
            if source.is_image:
                return MediaInfo("image", width, height, None, None, 1, False)
            return MediaInfo(
                "video", width, height, float(source.rate), source.duration_s, source.num_frames, False
            )
        source = cast(StreamSource, source)
        aspect = source.stream.sample_aspect_ratio
        if aspect and Fraction(1, 8) < aspect < 8:
            width = max(1, round(width * aspect))
        if source.placement(first).transpose:
            width, height = height, width
        if source.is_image:
            return MediaInfo("image", width, height, None, None, 1, False)
        has_audio = self._container is not None and bool(self._container.streams.audio)
        return MediaInfo(
            "video",
            width,
            height,
            float(source.rate),
            source.duration_s,
            source.stream.frames or None,
            has_audio,
        )


def _no_frame_error(source: _Source) -> MediaError:
    damaged = f" ({source.num_damaged} damaged)" if source.num_damaged else ""
    return MediaError(
        f"{source.path}: found no frame that can be decoded{damaged}",
        expected="at least one",
        hint="make it again",
        code="media.undecodable",
    )


def _start_error(source: _Source, start_s: float) -> MediaError:
    return MediaError(
        f"{source.path}: found a start of {start_s:g} s; the video ends at {source.end_s:.2f} s",
        hint="start earlier",
        code="media.start",
    )
