"""When each frame of a result is shown."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import grey_frames

from editverse_rt.errors import MediaError
from editverse_rt.media import write_clip
from editverse_rt.media.timing import CLOCKS, timed_pictures


def gif_delays(path: Path) -> list[int]:
    """Hundredths of a second, from the graphic control extensions."""
    data, delays, at = path.read_bytes(), [], 0
    while (at := data.find(b"\x21\xf9\x04", at)) >= 0:
        delays.append(data[at + 4] | data[at + 5] << 8)
        at += 8
    return delays


@pytest.mark.parametrize(("fps", "count"), [(50.0, 20), (60.0, 17), (100.0, 25), (120.0, 25), (1000.0, 40)])
def test_a_gif_keeps_the_speed_and_no_frame_is_shorter_than_players_show(
    tmp_path: Path, fps: float, count: int
) -> None:
    report = write_clip(tmp_path / "out.gif", grey_frames(count), fps)
    delays = gif_delays(tmp_path / "out.gif")
    assert min(delays) >= 2
    assert sum(delays) == pytest.approx(count / fps * 100, abs=2)
    assert report.num_frames == len(delays)
    left_out = count - len(delays)
    expected = f"{left_out} frames were left out: .gif holds at most 50 a second"
    assert report.notices == ((expected,) if left_out else ())


def presented(path: Path) -> list[tuple[float, float]]:
    """(time, duration) of each frame, by libav's decoding."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [(float(f.pts * f.time_base), float(f.duration * f.time_base)) for f in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_times_are_written_to_within_a_tick(tmp_path: Path, suffix: str) -> None:
    times_s = [0.0, 0.04, 1.16, 1.2, 2.28, 2.32, 3.456]
    write_clip(tmp_path / f"out{suffix}", grey_frames(6), 3.0, times_s=times_s)
    tick_s = 1 / CLOCKS[suffix]
    found = presented(tmp_path / f"out{suffix}")
    assert [time_s for time_s, _ in found] == pytest.approx(times_s[:-1], abs=tick_s)
    if suffix in (".mp4", ".mov"):
        assert found[-1][0] + found[-1][1] == pytest.approx(times_s[-1], abs=tick_s)


def test_evenly_spaced_times_are_those_of_the_rate(tmp_path: Path) -> None:
    write_clip(tmp_path / "rate.mp4", grey_frames(6), 25.0)
    write_clip(tmp_path / "times.mp4", grey_frames(6), 25.0, times_s=[k / 25 for k in range(7)])
    rate, times = (np.array(presented(tmp_path / name)) for name in ("rate.mp4", "times.mp4"))
    assert rate == pytest.approx(times, abs=2e-5)


@pytest.mark.parametrize("times_s", [[0.0, 0.1], [0.0, 0.1, 0.1, 0.2], [0.0, 0.2, 0.1, 0.3], []])
def test_times_that_do_not_fit_are_refused(tmp_path: Path, times_s: list[float]) -> None:
    with pytest.raises(MediaError, match=f"{len(times_s)} times for "):
        write_clip(tmp_path / "out.mp4", grey_frames(3), 10.0, times_s=times_s)
    assert list(tmp_path.iterdir()) == []


@given(
    st.lists(st.floats(1e-4, 2.0), min_size=1, max_size=40),
    st.sampled_from([".gif", ".mp4", ".mkv"]),
)
@settings(deadline=None)
def test_ticks_follow_one_another(gaps: list[float], suffix: str) -> None:
    times_s = np.concatenate([[0.0], np.cumsum(gaps)]).tolist()
    pictures = iter(grey_frames(1).repeat(len(gaps), axis=0))
    timed = timed_pictures(pictures, Fraction(10), times_s, suffix)
    shown = [(begin, duration) for begin, duration, _ in timed]
    assert timed.count + timed.num_dropped == len(gaps)
    assert shown[0][0] == 0
    assert all(duration >= (2 if suffix == ".gif" else 1) for _, duration in shown)
    assert all(a + d == b for (a, d), (b, _) in pairwise(shown))
    total = shown[-1][0] + shown[-1][1]
    assert total == pytest.approx(times_s[-1] * CLOCKS[suffix], abs=2.5)
