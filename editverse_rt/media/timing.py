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
        self, pictures: Iterator[Frames], rate: Fraction, tick_s: Fraction, ticks: Sequence[int] | None
    ) -> None:
        self.rate, self.tick_s, self.count, self.num_dropped = rate, tick_s, 0, 0
        self._pictures, self._ticks = pictures, ticks
        self._first = next(pictures)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._first.shape

    def __iter__(self) -> Iterator[tuple[int, int, Frames]]:
        for number, picture in enumerate(chain([self._first], self._pictures)):
            begin, end = (number, number + 1) if self._ticks is None else self._ticks[number : number + 2]
            if begin == end:
                self.num_dropped += 1
                continue
            self.count += 1
            yield begin, end - begin, picture


def timed_pictures(
    pictures: Iterator[Frames], rate: Fraction, times_s: Sequence[float] | None, suffix: str
) -> TimedPictures:
    """Lay pictures out in time. A GIF shows each for two hundredths of a second or longer, or not at all."""
    clock = CLOCKS[suffix]
    if times_s is None and float(rate) <= MAX_FPS.get(suffix, float(rate)):
        return TimedPictures(pictures, rate, 1 / rate, None)
    held = list(pictures)
    if times_s is None:
        times_s = [float(number / rate) for number in range(len(held) + 1)]
    if len(times_s) != len(held) + 1 or any(b <= a for a, b in pairwise(times_s)):
        raise MediaError(
            f"found {len(times_s)} times for {len(held)} frames",
            expected="one more than frames, each later than the one before",
            code="media.frames",
        )
    ticks = [round((time_s - times_s[0]) * clock) for time_s in times_s]
    shortest = 2 if suffix == ".gif" else 1
    # A frame that would be too short lends its place to the next: its ticks are none.
    for i in range(len(ticks) - 2, 0, -1):
        if ticks[i + 1] - ticks[i] < shortest:
            ticks[i] = ticks[i + 1]
    ticks[-1] = max(ticks[-1], ticks[0] + shortest)
    return TimedPictures(iter(held), rate, Fraction(1, clock), ticks)
