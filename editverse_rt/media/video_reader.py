"""A video read a few frames at a time, so that memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from av.video.frame import VideoFrame
from numpy.typing import NDArray

from editverse_rt.media.decoding import Decoding, Source
from editverse_rt.media.frames import Frames, FrameTaker, check_fps, check_sampling, checked_frames
from editverse_rt.media.libav import frame_from_rgb, resized, rgb_array
from editverse_rt.media.pixels import picture_from_frame, pixel_notices
from editverse_rt.media.streams import TimedFrame

__all__ = ["VideoReader", "array_renderer", "frames_and_renderer", "open_array_frames", "timed_array"]


class VideoReader:
    """A video a few frames at a time, chosen and made as `MediaFile.read_clip` chooses and makes them.

    Memory does not grow with the length of the video. Use it as a context manager, or close() it.
    """

    def __init__(self, taker: FrameTaker[Any], decoding: Decoding | None, notices: list[str]) -> None:
        """Prefer `MediaFile.open_frames` or `open_array_frames`."""
        self._taker, self._decoding, self._notices = taker, decoding, notices

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoder; safe to call twice."""
        if self._decoding is not None:
            self._decoding.close()

    def take(self, num_frames: int) -> list[Frames]:
        """The next frames, uint8 [H, W, 3] each, fewer at the end. Raises MediaError where decoding fails."""
        with nullcontext() if self._decoding is None else self._decoding.translating():
            return self._taker.take(num_frames)

    def has_more(self) -> bool:
        """Whether another frame follows; decodes it. Raises MediaError where decoding fails."""
        with nullcontext() if self._decoding is None else self._decoding.translating():
            return self._taker.has_more()

    @property
    def times_s(self) -> list[float]:
        """When each frame that was taken appears in the source; it grows."""
        return self._taker.times_s

    @property
    def end_s(self) -> float:
        """When the last frame that was taken ends; where the source is over and none was, when it ended."""
        return self._taker.end_s

    @property
    def fps(self) -> float:
        """Frames a second of what was taken."""
        return self._taker.fps

    @property
    def num_damaged(self) -> int:
        """Packets and frames so far that could not be decoded, or not without errors."""
        return 0 if self._decoding is None else self._decoding.source.num_damaged

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines for the user so far."""
        source = () if self._decoding is None else self._decoding.source.notices
        return (*source, *self._notices)


def open_array_frames(
    array: NDArray[Any],
    source_fps: float,
    *,
    start_s: float = 0.0,
    fps: float | None = None,
    height_px: int,
    width_px: int,
) -> VideoReader:
    """The frames that `clip_from_array` would take with no limit, a few at a time."""
    check_sampling(start_s, 1, fps, height_px, width_px)
    taker = FrameTaker(
        timed_array(array, source_fps),
        array_renderer(height_px, width_px),
        start_s=start_s,
        fps=fps,
        source_fps=source_fps,
    )
    return VideoReader(taker, None, [])


def timed_array(array: NDArray[Any], source_fps: float) -> Iterator[tuple[float, float, Frames]]:
    """(time, end, frame) of an array [T, H, W, 3] or [H, W, 3]. Raises MediaError for another."""
    check_fps(source_fps)
    frames = checked_frames(array)
    return ((i / source_fps, (i + 1) / source_fps, frame) for i, frame in enumerate(frames))


def array_renderer(height_px: int, width_px: int) -> Callable[[Frames], Frames]:
    """What resizes a frame of an array."""
    return lambda frame: rgb_array(resized(frame_from_rgb(frame), height_px, width_px))


def frames_and_renderer(
    frames: Iterator[TimedFrame],
    source: Source,
    height_px: int,
    width_px: int,
    notices: list[str],
    on_frame: Callable[[], None],
) -> tuple[Iterator[TimedFrame], Callable[[VideoFrame], Frames]]:
    """The frames, with `on_frame` before each is decoded, and what makes pictures of them.

    The renderer adds to `notices` and to the source's damaged frames.
    """

    def render(frame: VideoFrame) -> Frames:
        source.num_damaged += frame.is_corrupt
        notices.extend(line for line in pixel_notices(frame) if line not in notices)
        placement = source.placement(frame)
        return picture_from_frame(frame, placement, height_px, width_px, is_image=source.is_image)

    def announced() -> Iterator[TimedFrame]:
        on_frame()
        for frame in frames:
            yield frame
            on_frame()

    return announced(), render
