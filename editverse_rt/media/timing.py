"""When each frame of a result is shown, in ticks of what its container can hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, pairwise

from editverse_rt.errors import MediaError
from editverse_rt.media.frames import Frames
from editverse_rt.media.targets import MAX_FPS

__all__ = ["CLOCKS", "TimedPictures", "timed_pictures"]

# The clock of frames that are not evenly spaced: the finest that each muxer keeps.
CLOCKS = {".mp4": 90_000, ".mov": 90_000, ".mkv": 1_000, ".webm": 1_000, ".gif": 100}


class TimedPictures:
    """Pictures with the tick at which each is shown and for how many; iterated once.

    rate: nominal frames a second. tick_s: length of a tick. count: of pictures that went through.
    """

    def __init__(
        self,
        pictures: Iterator[Frames],
        rate: Fraction,
        tick_s: Fraction,
        spans: Sequence[tuple[int, int] | None] | None,
    ) -> None:
        self.rate, self.tick_s, self.count, self.num_dropped = rate, tick_s, 0, 0
        self._pictures, self._spans = pictures, spans
        self._first = next(pictures)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._first.shape

    def __iter__(self) -> Iterator[tuple[int, int, Frames]]:
        for number, picture in enumerate(chain([self._first], self._pictures)):
            span = (number, 1) if self._spans is None else self._spans[number]
            if span is None:
                self.num_dropped += 1
                continue
            self.count += 1
            yield *span, picture


def timed_pictures(
    pictures: Iterator[Frames], rate: Fraction, times_s: Sequence[float] | None, suffix: str
) -> TimedPictures:
    """Lay pictures out in time. A GIF shows each for two hundredths of a second or longer, or not at all."""
    clock = CLOCKS[suffix]
    if times_s is None and float(rate) <= MAX_FPS.get(suffix, float(rate)):
        return TimedPictures(pictures, rate, 1 / rate, None)
    if times_s is None:
        held = list(pictures)
        pictures = iter(held)
        times_s = [float(number / rate) for number in range(len(held) + 1)]
    if len(times_s) < 2 or any(b <= a for a, b in pairwise(times_s)):
        raise _times_error(times_s, "frames")
    ticks = [round((time_s - times_s[0]) * clock) for time_s in times_s]
    spans = _spans(ticks, 2 if suffix == ".gif" else 1)
    return TimedPictures(_counted(pictures, times_s), rate, Fraction(1, clock), spans)


def _counted(pictures: Iterator[Frames], times_s: Sequence[float]) -> Iterator[Frames]:
    """The pictures, held to the number of times, without holding them in memory."""
    count = 0
    for count, picture in enumerate(pictures, start=1):
        if count == len(times_s):
            raise _times_error(times_s, f"more than {count - 1} frames")
        yield picture
    if count != len(times_s) - 1:
        raise _times_error(times_s, f"{count} frames")


def _times_error(times_s: Sequence[float], frames: str) -> MediaError:
    return MediaError(
        f"found {len(times_s)} times for {frames}",
        expected="one more than frames, each later than the one before",
        code="media.frames",
    )


def _spans(ticks: list[int], shortest: int) -> list[tuple[int, int] | None]:
    """(begin, duration) of each frame, None for those that are left out; ticks has one number more.

    A frame begins a little later where the one before would be too short, and is left out where the next is due
    by then.
    """
    end = max(ticks[-1], ticks[0] + shortest)
    begins = {0: ticks[0]}
    last = ticks[0]
    for number in range(1, len(ticks) - 1):
        begin = max(ticks[number], last + shortest)
        if begin < ticks[number + 1] and begin + shortest <= end:
            begins[number] = last = begin
    kept = [*begins, len(ticks) - 1]
    spans: list[tuple[int, int] | None] = [None] * (len(ticks) - 1)
    for number, following in pairwise(kept):
        spans[number] = (begins[number], begins.get(following, end) - begins[number])
    return spans
