"""Sampling by time, checks of arrays, and the contact sheet."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.errors import MediaError
from editverse_rt.media.frames import check_sampling, checked_frames, contact_sheet, sample_by_time, take_clip

RATES = [Fraction(24), Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(50), Fraction(60)]


def frames_at(rate: Fraction, count: int, rounding: float = 0.0) -> list[tuple[float, float, int]]:
    times = [float(i / rate) for i in range(count + 1)]
    if rounding:
        times = [round(t / rounding) * rounding for t in times]
    return [(times[i], times[i + 1], i) for i in range(count)]


def indices(
    frames: list[tuple[float, float, int]], start_s: float, fps: float | None, source_fps: float
) -> list[int]:
    return [i for _, i in sample_by_time(frames, start_s=start_s, fps=fps, source_fps=source_fps)]


@given(st.sampled_from(RATES), st.integers(1, 200), st.sampled_from([0.0, 0.001]))
@settings(deadline=None)
def test_own_rate_takes_every_frame_once(rate: Fraction, count: int, rounding: float) -> None:
    frames = frames_at(rate, count, rounding)
    for fps in (None, float(rate)):
        assert indices(frames, 0.0, fps, float(rate)) == list(range(count))


@given(st.sampled_from(RATES), st.integers(1, 60), st.integers(2, 5), st.sampled_from([0.0, 0.001]))
@settings(deadline=None)
def test_whole_ratios_leave_out_or_repeat_evenly(
    rate: Fraction, count: int, ratio: int, rounding: float
) -> None:
    frames = frames_at(rate, count, rounding)
    assert indices(frames, 0.0, float(rate / ratio), float(rate)) == list(range(0, count, ratio))
    if rate * ratio <= 120:  # a slot must be wider than the rounding of the timestamps
        assert indices(frames, 0.0, float(rate * ratio), float(rate)) == [
            i // ratio for i in range(count * ratio)
        ]


@given(
    st.lists(st.floats(0.005, 2.0), min_size=1, max_size=30),
    st.floats(0.5, 60.0),
    st.floats(0.0, 5.0),
)
@settings(deadline=None)
def test_variable_rate_takes_the_frame_on_screen(durations: list[float], fps: float, start_s: float) -> None:
    edges = np.concatenate([[0.0], np.cumsum(durations)]).tolist()
    frames = [(edges[i], edges[i + 1], i) for i in range(len(durations))]
    source_fps = len(durations) / edges[-1]
    got = indices(frames, start_s, fps, source_fps)
    # The oracle looks each moment up in all edges at once.
    moments = start_s + np.arange(10_000) / fps + 0.3 / max(fps, source_fps)
    inside = moments < edges[-1]
    near_an_edge = np.abs(moments[:, None] - np.asarray(edges)[None, :]).min(axis=1) < 1e-9
    want = np.searchsorted(edges, moments, side="right") - 1
    assert abs(len(got) - inside.sum()) <= near_an_edge.any()
    for i, index in enumerate(got):
        assert near_an_edge[i] or index == want[i]
    assert got == sorted(got)


@given(st.integers(1, 50), st.integers(0, 60), st.integers(1, 20))
@settings(deadline=None)
def test_without_a_rate_frames_follow_from_the_start(count: int, start: int, num_frames: int) -> None:
    frames = frames_at(Fraction(25), count)
    clip = take_clip(
        frames,
        lambda i: np.full((1, 1, 3), i, np.uint8),
        start_s=start / 25,
        num_frames=num_frames,
        fps=None,
        source_fps=25.0,
    )
    expected = list(range(count))[start : start + num_frames]
    if not expected:
        assert clip is None
        return
    assert clip is not None
    assert clip.frames[:, 0, 0, 0].tolist() == expected
    assert clip.fps == 25.0
    assert clip.is_short == (len(expected) < num_frames)
    assert clip.covers_source == (start == 0 and num_frames >= count)


def test_reads_no_further_than_one_frame_after_the_last_taken() -> None:
    read = []

    def frames():
        for i in range(1000):
            read.append(i)
            yield i / 30, (i + 1) / 30, i

    take_clip(
        frames(),
        lambda i: np.zeros((1, 1, 3), np.uint8),
        start_s=0.0,
        num_frames=17,
        fps=None,
        source_fps=30.0,
    )
    assert max(read) <= 18


def test_a_held_frame_is_rendered_once() -> None:
    rendered = []

    def render(index: int) -> np.ndarray:
        rendered.append(index)
        return np.full((1, 1, 3), index, np.uint8)

    clip = take_clip(frames_at(Fraction(5), 4), render, start_s=0.0, num_frames=16, fps=20.0, source_fps=5.0)
    assert clip is not None
    assert clip.frames[:, 0, 0, 0].tolist() == [i // 4 for i in range(16)]
    assert rendered == [0, 1, 2, 3]


def test_average_rate_of_a_variable_source() -> None:
    frames = [(0.0, 0.1, 0), (0.1, 0.5, 1), (0.5, 0.6, 2)]
    clip = take_clip(
        frames, lambda i: np.zeros((1, 1, 3), np.uint8), start_s=0.0, num_frames=3, fps=None, source_fps=10.0
    )
    assert clip is not None
    assert clip.fps == pytest.approx(4.0)
    assert clip.source_times_s == (0.0, 0.1, 0.5)


@pytest.mark.parametrize(
    "bad",
    [(-1.0, 1, None, 8, 8), (float("nan"), 1, None, 8, 8), (0.0, 0, None, 8, 8), (0.0, 1, 0.0, 8, 8)]
    + [(0.0, 1, float("inf"), 8, 8), (0.0, 1, None, 0, 8), (0.0, 1, None, 8, 100_000)],
)
def test_impossible_samplings_are_refused(bad: tuple[float, int, float | None, int, int]) -> None:
    with pytest.raises(MediaError, match="expected"):
        check_sampling(*bad)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((1, 0, 4, 3), np.uint8),
        [[0]],
    ],
)
def test_other_arrays_are_refused(bad: object) -> None:
    with pytest.raises(MediaError, match="expected"):
        checked_frames(bad)  # type: ignore[arg-type]


def test_one_picture_is_a_clip_of_one() -> None:
    assert checked_frames(np.zeros((4, 5, 3), np.uint8)).shape == (1, 4, 5, 3)


def test_contact_sheet_places_uniformly_chosen_frames() -> None:
    clip = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 48, 3), np.uint8)
    sheet = contact_sheet([clip, clip[:1]], num_columns=3, frame_px=200, separator_px=4)
    # 64 px three times is the nearest to 200.
    assert sheet.shape == (2 * 192 + 4, 3 * 144 + 2 * 4, 3)
    for column, level in enumerate([0, 4, 8]):
        tile = sheet[:192, column * 148 : column * 148 + 144]
        assert (tile == level).all()
    assert (sheet[192:196] == 230).all()
    assert (sheet[:192, 144:148] == 230).all()
    assert (sheet[196:, :144] == 0).all()
    assert (sheet[196:, 144:] == 230).all()


def test_contact_sheet_shrinks_large_frames_by_averaging() -> None:
    checker = np.indices((512, 512)).sum(axis=0) % 2 * 200
    clip = np.repeat(checker.astype(np.uint8)[None, :, :, None], 3, axis=3)
    sheet = contact_sheet([clip], frame_px=256)
    assert sheet.shape == (256, 256, 3)
    assert (sheet == 100).all()


@given(st.integers(1, 20), st.integers(1, 700), st.integers(1, 700), st.integers(1, 7))
@settings(deadline=None, max_examples=30)
def test_contact_sheet_takes_any_size(count: int, height: int, width: int, columns: int) -> None:
    sheet = contact_sheet([np.zeros((count, height, width, 3), np.uint8)], num_columns=columns)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert max(sheet.shape[0], sheet.shape[1] / min(columns, count)) < 420


def test_contact_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(MediaError, match="at least one"):
        contact_sheet([])
