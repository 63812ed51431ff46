"""Decoding of videos and images.

Frames are decoded one at a time, and only those that are taken are resized and kept: memory does not grow
with the source.

Choices that shape the pixels: transparency is laid over white; a YUV video that does not name its matrix is
read as BT.709 from 720 lines on and as BT.601 below; high dynamic range is not tone-mapped; rotation and
mirroring (display matrix, EXIF) are applied.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from editverse_rt.errors import MediaError
from editverse_rt.files import check_input_file, exif_orientation, reason
from editverse_rt.media.frames import (
    Clip,
    Frames,
    MediaInfo,
    check_fps,
    check_sampling,
    checked_frames,
    take_clip,
)
from editverse_rt.media.libav import (
    BICUBIC,
    BT709,
    EXACT,
    MAX_SOURCE_AREA_PX,
    UNSPECIFIED,
    PathLike,
    frame_from_rgb,
    open_input,
    resized,
    rgb_array,
)

__all__ = ["clip_from_array", "probe", "read_clip"]

TimedFrame = tuple[float, float, VideoFrame]

_HD_LINES = 720
_TEXT_ART_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}


class _Placement(NamedTuple):
    """How stored pixels become the picture shown: swap the axes first, then flip."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False


# EXIF orientations 1 to 8.
_EXIF_PLACEMENTS = (
    _Placement(False, False, False),
    _Placement(False, True, False),
    _Placement(False, True, True),
    _Placement(False, False, True),
    _Placement(True, False, False),
    _Placement(True, True, False),
    _Placement(True, True, True),
    _Placement(True, False, True),
)


def probe(path: PathLike) -> MediaInfo:
    """Say what `path` holds, after decoding its first frame.

    `fps` is the container's average rate, which holds for variable frame rates too.
    Raises MediaError if there is no such file or no frame of it can be decoded.
    """
    with _open_video(path) as source:
        first = next(source.decode(), None)
        if first is None:
            raise _no_frame_error(source)
        frame, stream = first[2], source.stream
        width, height = frame.width, frame.height
        aspect = stream.sample_aspect_ratio
        if aspect and Fraction(1, 8) < aspect < 8:
            width = max(1, round(width * aspect))
        if _placement(frame, source).transpose:
            width, height = height, width
        if source.is_image:
            return MediaInfo("image", width, height, None, None, 1, False)
        has_audio = bool(source.container.streams.audio)
        return MediaInfo(
            "video", width, height, float(source.rate), source.duration_s, stream.frames or None, has_audio
        )


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
    taken and the rate of the result is their average rate. Each is put upright and resized to
    height_px x width_px (the aspect ratio is the caller's business). An image's `fps` is the one asked for,
    or 1. Packets that cannot be decoded are skipped and counted. Returns uint8 frames [T, H, W, 3], T >= 1.
    Raises MediaError if not a single frame can be had, or `start_s` lies beyond the end.
    """
    check_sampling(start_s, num_frames, fps, height_px, width_px)
    if start_s > 0:
        with _open_video(source) as video:
            if video.is_image:
                start_s = 0.0
            elif video.duration_s is not None and start_s > video.duration_s:
                raise _start_error(video, start_s, video.duration_s)
            else:
                frames = video.decode_from(start_s)
                if frames is not None:
                    return _clip_from_frames(frames, video, start_s, num_frames, fps, height_px, width_px)
    # From the beginning, also where an index is missing or leads too far.
    with _open_video(source) as video:
        if video.is_image:
            fps = fps or 1.0
        return _clip_from_frames(video.decode(), video, start_s, num_frames, fps, height_px, width_px)


def _clip_from_frames(
    frames: Iterable[TimedFrame],
    source: _Source,
    start_s: float,
    num_frames: int,
    fps: float | None,
    height_px: int,
    width_px: int,
) -> Clip:
    clip = take_clip(
        frames,
        lambda frame: _rgb_from_frame(frame, source, height_px, width_px),
        start_s=start_s,
        num_frames=1 if source.is_image else num_frames,
        fps=fps,
        source_fps=float(source.rate),
    )
    if clip is None:
        raise _start_error(source, start_s, source.end_s) if source.end_s > 0 else _no_frame_error(source)
    return replace(clip, num_frames_asked=num_frames, num_damaged=source.num_damaged)


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
            f"found a start of {start_s:g} s; the array ends at {len(frames) / source_fps:.2f} s"
        )
    return clip


class _Source:
    """One video stream being decoded; times count from the stream's beginning."""

    def __init__(self, path: str, container: InputContainer, stream: VideoStream) -> None:
        self.path = path
        self.container = container
        self.stream = stream
        # guessed_rate is a multiple of the true rate where the frame rate varies: a last resort.
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.num_damaged = 0
        self.end_s = 0.0
        self._origin = stream.start_time or 0
        # Bounded, because every frame in flight is a whole picture in memory.
        stream.codec_context.thread_count = min(4, os.cpu_count() or 1)
        stream.codec_context.thread_type = "AUTO"

    @property
    def is_image(self) -> bool:
        name = self.container.format.name
        if name == "gif":
            return self.stream.frames == 1
        brand = self.container.metadata.get("major_brand", "")
        return name.endswith("_pipe") or name == "image2" or brand in ("avif", "mif1", "heic")

    @property
    def duration_s(self) -> float | None:
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        return self.container.duration / 1_000_000 if self.container.duration else None

    def decode_from(self, start_s: float) -> Iterator[TimedFrame] | None:
        """Decode from the key frame at or before `start_s`; None if this source cannot be entered there."""
        time_base = self.stream.time_base
        if not time_base:
            return None
        try:
            self.container.seek(self._origin + int(start_s / time_base), stream=self.stream)
        except (av.FFmpegError, OverflowError):
            return None
        frames = self.decode()
        first = next(frames, None)
        return None if first is None or first[0] > start_s else chain([first], frames)

    def decode(self) -> Iterator[TimedFrame]:
        """Yield (time, end, frame) in order of time; others follow at the average rate."""
        interval_s = 1 / float(self.rate)
        last_s = float("-inf")
        for frame in self._frames():
            base = frame.time_base
            time_s = float((frame.pts - self._origin) * base) if frame.pts is not None and base else last_s
            if time_s <= last_s:
                time_s = max(self.end_s, last_s + interval_s) if self.end_s else 0.0
            duration_s = float(frame.duration * base) if base else 0.0
            self.end_s = time_s + (duration_s if duration_s > 0 else interval_s)
            last_s = time_s
            yield time_s, self.end_s, frame

    def _frames(self) -> Iterator[VideoFrame]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                packet = None
                self.num_damaged += 1
            if packet is None:
                return
            # What is missing of a packet that was cut would be concealed by guesswork.
            if packet.is_corrupt:
                self.num_damaged += 1
                continue
            try:
                yield from packet.decode()
            except EOFError:
                return
            except av.FFmpegError:
                self.num_damaged += 1


@contextmanager
def _open_video(path: PathLike) -> Iterator[_Source]:
    """Open a file with its first video stream; what libav raises inside becomes MediaError."""
    name = os.fspath(path)
    check_input_file(name)
    try:
        with open_input(name) as container:
            if container.format.name in _TEXT_ART_FORMATS:
                raise MediaError(f"{name}: found a text file; expected a video or an image")
            # The cover picture of an audio file is no video.
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                found = "only audio" if container.streams.audio else "no picture"
                raise MediaError(f"{name}: found {found} in the file; expected a video or an image")
            area = streams[0].width * streams[0].height
            if area > MAX_SOURCE_AREA_PX:
                raise MediaError(f"{name}: found frames of {area} px; expected {MAX_SOURCE_AREA_PX} or fewer")
            yield _Source(name, container, streams[0])
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{name}: no video or image that can be decoded ({reason(error)}); "
            "it may be cut short or of another type, make or convert it again"
        ) from error


def _no_frame_error(source: _Source) -> MediaError:
    damaged = f" ({source.num_damaged} damaged)" if source.num_damaged else ""
    return MediaError(
        f"{source.path}: found no frame that can be decoded{damaged}; expected at least one, make it again"
    )


def _start_error(source: _Source, start_s: float, end_s: float) -> MediaError:
    return MediaError(
        f"{source.path}: found a start of {start_s:g} s; the video ends at {end_s:.2f} s, start earlier"
    )


# --- pixels ---


def _rgb_from_frame(frame: VideoFrame, source: _Source, height_px: int, width_px: int) -> Frames:
    """Convert a decoded frame to an upright uint8 picture [height_px, width_px, 3]."""
    placement = _placement(frame, source)
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        frame = _over_white(frame)
    size = (width_px, height_px) if placement.transpose else (height_px, width_px)
    is_unnamed_hd = frame.colorspace == UNSPECIFIED and frame.height >= _HD_LINES and not source.is_image
    picture = rgb_array(resized(frame, *size, BT709 if is_unnamed_hd else None))
    if placement.transpose:
        picture = picture.swapaxes(0, 1)
    if placement.flip_x:
        picture = picture[:, ::-1]
    if placement.flip_y:
        picture = picture[::-1]
    return np.ascontiguousarray(picture, dtype=np.uint8)


def _over_white(frame: VideoFrame) -> VideoFrame:
    rgba = frame.reformat(format="rgba", interpolation=EXACT | BICUBIC, threads=1).to_ndarray()
    alpha = rgba[..., 3:].astype(np.uint16)
    blended = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return frame_from_rgb(blended.astype(np.uint8))


def _placement(frame: VideoFrame, source: _Source) -> _Placement:
    """How a frame is to be put upright, from its display matrix (of the container, or made from EXIF)."""
    try:
        # PyAV's stubs take the container of side data for a dictionary.
        side_data: Iterable[Any] = frame.side_data
        entries = [entry for entry in side_data if entry.type.name == "DISPLAYMATRIX"]
    except ValueError:
        # PyAV 18 lists no side data at all where there is a kind that it does not know, as EXIF.
        if source.is_image:
            return _EXIF_PLACEMENTS[exif_orientation(Path(source.path).read_bytes()) - 1]
        return _EXIF_PLACEMENTS[(1, 8, 3, 6)[round(frame.rotation / 90) % 4] - 1]
    if not entries:
        return _Placement()
    a, b, _, c, d = np.frombuffer(bytes(entries[0]), np.int32)[:5].tolist()
    # A point (x, y) is shown at (a x + c y, b x + d y), up to a shift; turns of 90 degrees only.
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Placement(True, c < 0, b < 0)
    return _Placement(False, a < 0, d < 0)
