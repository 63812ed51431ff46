"""Clips and pictures as arrays, without any codec: sampling by time, checks, the contact sheet."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from editverse_rt.errors import MediaError

__all__ = [
    "FPS_RANGE",
    "Clip",
    "FrameTaker",
    "Frames",
    "MediaInfo",
    "PathLike",
    "WriteReport",
    "check_fps",
    "check_sampling",
    "checked_frames",
    "contact_sheet",
    "flat_pictures",
    "sample_by_time",
    "take_clip",
    "uneven_times_s",
]

Frames = NDArray[np.uint8]
PathLike = str | os.PathLike[str]
T = TypeVar("T")

# A slot takes the frame on screen this share of a frame after its beginning: far enough from both ends of
# a frame for the usual ratios of rates (24:30, 25:30, 60:24 ...) that rounded timestamps change nothing.
_SLOT_SHARE = 0.3
# Matroska and WebM round timestamps to milliseconds.
_TIMESTAMP_ROUNDING_S = 0.002
# Frames that stay within this share of their mean gap of an even grid count as evenly spaced.
_EVEN_SHARE = 0.25
_MAX_SIDE_PX = 16384
FPS_RANGE = (0.001, 1000.0)
"""Of a video that is read by time or written."""
_SEPARATOR_LEVEL = 230


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames taken from a source: uint8 [T, H, W, 3], RGB, at `fps` frames a second.

    `source_times_s` holds for each frame when it appears in the source. T is smaller than `num_frames_asked`
    where the source ended first (`is_short`). `covers_source` says that nothing of the source was left out
    before or after, so that the result keeps its length. `end_s` is when the last frame ends in the source.
    `is_sampled`: frames stand for evenly spaced slots, and not each for itself.
    `num_damaged` counts packets that could not be decoded and were skipped, and frames that were decoded
    with errors. `notices` are lines for the user about what was changed or is missing.
    """

    frames: Frames
    fps: float
    source_times_s: tuple[float, ...]
    num_frames_asked: int
    covers_source: bool
    end_s: float = 0.0
    is_sampled: bool = False
    num_damaged: int = 0
    notices: tuple[str, ...] = ()

    @property
    def is_short(self) -> bool:
        """Whether the source held fewer frames than were asked for."""
        return len(self.frames) < self.num_frames_asked

    def uneven_times_s(self, num_frames: int) -> tuple[float, ...] | None:
        """When the first `num_frames` frames begin, as the function `uneven_times_s` says it."""
        if self.is_sampled:
            return None
        times_s = self.source_times_s
        end_s = times_s[num_frames] if num_frames < len(times_s) else self.end_s
        return uneven_times_s(times_s[:num_frames], end_s)


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds, as it is shown: upright, with square pixels.

    `fps` and `duration_s` are None for an image, `duration_s` and `num_frames` also where the file does not
    say them. An image is one still picture; an animated GIF or PNG is a video.
    """

    kind: Literal["video", "image"]
    width_px: int
    height_px: int
    fps: float | None
    duration_s: float | None
    num_frames: int | None
    has_audio: bool


@dataclass(frozen=True)
class WriteReport:
    """What was written where; `notices` are lines for the user (audio left out, an odd side padded)."""

    path: Path
    num_frames: int
    notices: tuple[str, ...] = ()


def sample_by_time(
    frames: Iterable[tuple[float, float, T]],
    *,
    start_s: float,
    fps: float | None,
    source_fps: float,
    moments_s: Sequence[float] | None = None,
) -> Iterator[tuple[float, T]]:
    """Choose which of `frames`, (time, end, frame) in order of time, stand for the slots from `start_s` on.

    Slot k begins at start_s + k / fps and takes the frame on screen then (a touch later, see _SLOT_SHARE):
    frames are left out where the source is faster and repeated where it is slower or pauses. With fps None
    the first is the one on screen at `start_s`, and every later frame follows once. `moments_s` are the
    beginnings of slots, from `start_s` on, that are not evenly spaced; `fps` is their average rate. Nothing
    is read ahead but the one frame that ends the last one's time. Yields (time, frame) until the source ends.
    """
    # Without slots, the share would pass over frames that are shown for less than it.
    share_s = (
        _SLOT_SHARE / max(source_fps, fps) if fps else min(_TIMESTAMP_ROUNDING_S, _SLOT_SHARE / source_fps)
    )
    slot_s = 1 / fps if fps else 0.0
    slot = 0
    shown: tuple[float, T] | None = None
    shown_until_s = 0.0

    def slots_before(until_s: float, held: tuple[float, T]) -> Iterator[tuple[float, T]]:
        nonlocal slot
        while moments_s is None or slot < len(moments_s):
            begin_s = slot * slot_s if moments_s is None else moments_s[slot]
            if start_s + begin_s + share_s >= until_s:
                break
            yield held
            slot += 1
            if fps is None:
                break

    for time_s, end_s, frame in frames:
        if shown is not None:
            yield from slots_before(time_s, shown)
        shown, shown_until_s = (time_s, frame), end_s
    if shown is not None:
        yield from slots_before(shown_until_s, shown)


class FrameTaker(Generic[T]):
    """(time, end, frame) `items`, sampled, and rendered a few at a time: memory does not grow with their number.

    times_s: when each frame that was taken appears in the source.
    """

    def __init__(
        self,
        items: Iterable[tuple[float, float, T]],
        render: Callable[[T], Frames],
        *,
        start_s: float,
        fps: float | None,
        source_fps: float,
        moments_s: Sequence[float] | None = None,
    ) -> None:
        """The options are those of `sample_by_time`; `moments_s` may grow while frames are taken."""
        self.times_s: list[float] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=3)
        self._chosen = sample_by_time(
            self._noted(items), start_s=start_s, fps=fps, source_fps=source_fps, moments_s=moments_s
        )
        self._render = render
        self._fps, self._source_fps = fps, source_fps
        self._ahead: list[tuple[float, T]] = []
        self._last: T | None = None
        self._picture: Frames | None = None

    def _noted(self, items: Iterable[tuple[float, float, T]]) -> Iterator[tuple[float, float, T]]:
        for item in items:
            self._recent.append(item[:2])
            yield item

    def take(self, num_frames: int) -> list[Frames]:
        """The next frames, [H, W, 3] each; fewer than asked for at the end of the source."""
        pictures: list[Frames] = []
        while len(pictures) < num_frames:
            found = self._ahead.pop() if self._ahead else next(self._chosen, None)
            if found is None:
                break
            time_s, frame = found
            if self._picture is None or frame is not self._last:
                self._picture, self._last = self._render(frame), frame
            pictures.append(self._picture)
            self.times_s.append(time_s)
        return pictures

    def has_more(self) -> bool:
        """Whether another frame follows; decodes it."""
        if not self._ahead:
            found = next(self._chosen, None)
            if found is None:
                return False
            self._ahead.append(found)
        return True

    @property
    def end_s(self) -> float:
        """When the last frame that was taken ends: where the next begins, or after its own duration.

        Where the source is over and none was taken, when it ended.
        """
        if not self.times_s:
            return self._recent[-1][1] if self._recent else 0.0
        later = [(begin, end) for begin, end in self._recent if begin >= self.times_s[-1]]
        return later[1][0] if len(later) > 1 else later[0][1]

    @property
    def fps(self) -> float:
        """Frames a second: what was asked for, else the average of what was taken."""
        return self._fps or _average_fps(self.times_s, self._source_fps)


def take_clip(
    items: Iterable[tuple[float, float, T]],
    render: Callable[[T], Frames],
    *,
    start_s: float,
    num_frames: int,
    fps: float | None,
    source_fps: float,
    moments_s: Sequence[float] | None = None,
) -> Clip | None:
    """Sample (time, end, frame) `items` and render what was chosen; None where nothing was left."""
    taker = FrameTaker(items, render, start_s=start_s, fps=fps, source_fps=source_fps, moments_s=moments_s)
    pictures = taker.take(num_frames)
    if not pictures:
        return None
    covers_source = start_s <= 0 and not taker.has_more()
    return Clip(
        np.stack(pictures),
        taker.fps,
        tuple(taker.times_s),
        num_frames,
        covers_source,
        taker.end_s,
        is_sampled=fps is not None,
    )


def uneven_times_s(times_s: Sequence[float], end_s: float) -> tuple[float, ...] | None:
    """When frames that appear at `times_s` begin, from 0 on, and when the last of them ends, in seconds.

    None where they are spaced evenly, so that a rate says all. end_s: when the last one ends.
    """
    gap_s = (times_s[-1] - times_s[0]) / max(1, len(times_s) - 1)
    limit_s = max(_TIMESTAMP_ROUNDING_S, _EVEN_SHARE * gap_s)
    if all(abs(time_s - times_s[0] - k * gap_s) <= limit_s for k, time_s in enumerate(times_s)):
        return None
    end_s = max(end_s, times_s[-1] + _TIMESTAMP_ROUNDING_S)
    return tuple(time_s - times_s[0] for time_s in (*times_s, end_s))


def _average_fps(times_s: list[float], source_fps: float) -> float:
    """Average rate of consecutive frames: the container's where they agree but for rounded timestamps."""
    span_s, count = times_s[-1] - times_s[0], len(times_s) - 1
    if span_s <= 0 or abs(count / source_fps - span_s) <= _TIMESTAMP_ROUNDING_S:
        return source_fps
    return count / span_s


def check_sampling(start_s: float, num_frames: int, fps: float | None, height_px: int, width_px: int) -> None:
    """Raise MediaError unless a clip can be asked for in these terms."""
    if not (math.isfinite(start_s) and start_s >= 0):
        raise MediaError(f"found a start of {start_s} s", expected="0 or more", code="media.start")
    if num_frames < 1:
        raise MediaError(f"found {num_frames} frames asked for", expected="1 or more", code="media.frames")
    if fps is not None:
        check_fps(fps)
    if not (1 <= height_px <= _MAX_SIDE_PX and 1 <= width_px <= _MAX_SIDE_PX):
        raise MediaError(
            f"found a size of {height_px}x{width_px} (height x width)",
            expected=f"1 to {_MAX_SIDE_PX} px",
            code="media.frames",
        )


def check_fps(fps: float) -> None:
    """Raise MediaError unless `fps` is a rate that a video can have."""
    least, most = FPS_RANGE
    if not least <= fps <= most:
        raise MediaError(f"found {fps} frames a second", expected=f"{least:g} to {most:g}", code="media.rate")


def checked_frames(array: NDArray[Any]) -> Frames:
    """Return `array` as uint8 [T, H, W, 3]; one picture [H, W, 3] becomes a clip of one.

    Raises MediaError on another dtype or shape, and on no frames: nothing is converted by guesswork.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise MediaError(
            f"found frames of type {found}",
            expected="a uint8 array of values 0 to 255",
            hint="convert it",
            code="media.frames",
        )
    frames = array[None] if array.ndim == 3 else array
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise MediaError(
            f"found an array of shape {array.shape}",
            expected="[T, H, W, 3] or [H, W, 3], RGB last",
            code="media.frames",
        )
    if 0 in frames.shape:
        raise MediaError(
            f"found an empty array of shape {array.shape}",
            expected="at least one frame and pixel",
            code="media.frames",
        )
    if max(frames.shape[1:3]) > _MAX_SIDE_PX:
        raise MediaError(
            f"found an array of shape {array.shape}",
            expected=f"at most {_MAX_SIDE_PX} px a side",
            code="media.frames",
        )
    return frames


def flat_pictures(frames: NDArray[Any] | Iterable[NDArray[Any]]) -> Iterator[Frames]:
    """Yield single pictures [H, W, 3], all of one size; at least one, or MediaError."""
    chunks = [frames] if isinstance(frames, np.ndarray) else frames
    shape: tuple[int, ...] | None = None
    for chunk in chunks:
        for picture in checked_frames(chunk):
            shape = shape or picture.shape
            if picture.shape != shape:
                raise MediaError(
                    f"found frames of shapes {shape} and {picture.shape}",
                    expected="one size",
                    code="media.frames",
                )
            yield picture
    if shape is None:
        raise MediaError("found no frames to write", expected="at least one", code="media.frames")


def contact_sheet(
    rows: Sequence[NDArray[Any]], *, num_columns: int = 5, frame_px: int = 200, separator_px: int = 4
) -> Frames:
    """Stack clips, each uint8 [T, H, W, 3], as rows of a few uniformly chosen frames.

    Each row is scaled by one whole number, up by repeating pixels or down by averaging them, so that its
    frames are about `frame_px` a side; a shorter clip shows each of its frames once. Thin light lines
    separate frames and rows. Returns a picture uint8 [H, W, 3]. Raises MediaError on other arrays.
    """
    if not rows:
        raise MediaError("found no clips for the picture", expected="at least one", code="media.frames")
    strips = [_strip(checked_frames(row), num_columns, frame_px, separator_px) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    height = sum(strip.shape[0] for strip in strips) + separator_px * (len(strips) - 1)
    sheet = np.full((height, width, 3), _SEPARATOR_LEVEL, np.uint8)
    top = 0
    for strip in strips:
        sheet[top : top + strip.shape[0], : strip.shape[1]] = strip
        top += strip.shape[0] + separator_px
    return sheet


def _strip(frames: Frames, num_columns: int, frame_px: int, separator_px: int) -> Frames:
    indices = np.linspace(0, len(frames) - 1, min(num_columns, len(frames))).round().astype(int)
    pictures = [_scaled(frames[i], frame_px) for i in indices]
    line = np.full((pictures[0].shape[0], separator_px, 3), _SEPARATOR_LEVEL, np.uint8)
    parts = [part for picture in pictures for part in (line, picture)][1:]
    return np.concatenate(parts, axis=1)


def _scaled(picture: Frames, frame_px: int) -> Frames:
    side = max(picture.shape[:2])
    if side <= frame_px:
        factor = max(1, round(frame_px / side))
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    factor = round(side / frame_px)
    height, width = -(-picture.shape[0] // factor), -(-picture.shape[1] // factor)
    rest = (height * factor - picture.shape[0], width * factor - picture.shape[1])
    whole = np.pad(picture, ((0, rest[0]), (0, rest[1]), (0, 0)), "edge")
    blocks = whole.reshape(height, factor, width, factor, 3)
    return np.asarray(blocks.mean(axis=(1, 3)).round(), dtype=np.uint8)
