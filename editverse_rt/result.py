"""What a request gives: frames, when they are shown, and what the user is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from editverse_rt import media
from editverse_rt.errors import RequestCancelled, RequestError
from editverse_rt.media.frames import Frames
from editverse_rt.media.sound import Sound
from editverse_rt.request.checked import CheckedRequest
from editverse_rt.request.laid_out import LaidOutRequest
from editverse_rt.request.windows import Windows

__all__ = [
    "EditedWindow",
    "Result",
    "WindowRun",
    "check_fits_memory",
    "check_not_cancelled",
    "until_cancelled",
]


@dataclass(frozen=True, eq=False)
class Result:
    """What a request gave.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB.
        fps: Frames a second.
        laid_out: The request in integers, as the graphs were called with it; of several windows the first.
        timings: Seconds of each stage, and of the whole request as "total".
        sources: The inputs as the model saw them, uint8 [T, H, W, 3] each: videos, then images, by number.
        notices: Lines for the user, about what was cut, rounded or left out.
        times_s: When each frame begins, from 0 on, and when the last one ends, in seconds. None where frames
            are evenly spaced.
        sound: The main input's sound, if the result keeps its whole length.
        num_windows: In how many windows it was edited.
    """

    frames: Frames
    fps: float
    laid_out: LaidOutRequest
    timings: dict[str, float]
    sources: tuple[Frames, ...] = ()
    notices: tuple[str, ...] = ()
    times_s: tuple[float, ...] | None = None
    sound: Sound | None = None
    num_windows: int = 1

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        audio: bool = True,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[str, ...]:
        """Write the frames in one step: a video, a picture or a folder of pictures, by the suffix of path.

        The source's sound goes along, as it is, if the result keeps the source's length and the file can
        hold it. Returns the writer's lines for the user. is_cancelled: asked before each frame is taken, from this
        thread. Raises MediaError if path cannot be written, RequestCancelled.
        """
        return media.write_clip(
            path,
            until_cancelled(self.frames, is_cancelled),
            self.fps,
            times_s=self.times_s,
            audio_from=self.sound if audio else None,
        ).notices


@dataclass(frozen=True, eq=False)
class EditedWindow:
    """The frames that one window of a request adds to its result.

    index: of the window. begin: the number in the result of the first frame. frames, sources: uint8 [T, H, W, 3], see
    `Result`; an image is the same in every window. laid_out: of the window, its shared and repeated frames among them.
    """

    index: int
    begin: int
    frames: Frames
    sources: tuple[Frames, ...]
    laid_out: LaidOutRequest


class WindowRun:
    """A request that runs while it is iterated, once: what each window adds to the result, in order.

    After the last window, `windows` says the rate, the times, the sound and the notices of the whole. timings: seconds
    of each stage so far.
    """

    def __init__(
        self, windows: Windows, edited: Iterator[EditedWindow], timings: Mapping[str, float]
    ) -> None:
        """Prefer `Pipeline.run_windows`."""
        self.windows, self.timings = windows, timings
        self._edited = edited

    def __iter__(self) -> Iterator[EditedWindow]:
        return self._edited

    def join(self, edited: Sequence[EditedWindow]) -> Result:
        """The result of all windows, in memory."""
        first, windows = edited[0], self.windows
        is_one = len(edited) == 1

        def joined(clips: Sequence[Frames]) -> Frames:
            return clips[0] if is_one or len(clips[0]) < len(first.frames) else np.concatenate(clips)

        return Result(
            frames=joined([window.frames for window in edited]),
            fps=windows.fps,
            laid_out=first.laid_out,
            timings=dict(self.timings),
            sources=tuple(map(joined, zip(*(window.sources for window in edited), strict=True))),
            notices=tuple(windows.notices),
            times_s=windows.times_s,
            sound=windows.sound,
            num_windows=len(edited),
        )


def check_not_cancelled(is_cancelled: Callable[[], bool]) -> None:
    """Raise RequestCancelled where the caller has cancelled the request."""
    if is_cancelled():
        raise RequestCancelled("cancelled by its caller", hint="nothing was written", code="cancelled")


def until_cancelled(frames: Iterable[Frames], is_cancelled: Callable[[], bool]) -> Iterator[Frames]:
    """The frames, for a writer: where the request is cancelled before the last is taken, it leaves no file."""
    for frame in frames:
        check_not_cancelled(is_cancelled)
        yield frame
    check_not_cancelled(is_cancelled)


def check_fits_memory(checked: CheckedRequest) -> None:
    """Refuse a request of several windows whose `Result` would not fit this machine's memory. Raises RequestError.

    Windows and what they are joined to are there at the same time. Where the length or the memory is not known, nothing
    is refused.
    """
    needed, memory = checked.expected_result_bytes, _memory_bytes()
    if needed is None or memory is None or 2 * needed <= memory or checked.inputs.expected_windows == 1:
        return
    raise RequestError(
        f"a result of {checked.inputs.expected_frames} frames, which takes {2 * needed / 1e9:.1f} GB of memory",
        expected=f"at most the {memory / 1e9:.1f} GB of this machine",
        hint="write it window by window with run_to_file, iterate Pipeline.run_windows, or set num_frames",
        code="request.too_large",
        field="length",
    )


def _memory_bytes() -> int | None:
    """The memory of this machine; None on systems that do not say it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
