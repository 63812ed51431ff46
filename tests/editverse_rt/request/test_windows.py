"""Windows of long requests: every frame once, in order, and none across a cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import MediaError, RequestError
from editverse_rt.media import write_clip
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.inputs import examine_inputs
from editverse_rt.request.sizes import count_windows
from editverse_rt.request.windows import OneWindow, Window, read_windows

GEOMETRY = Geometry(
    temporal_ratio=4,
    spatial_ratio=8,
    patch_size=2,
    patch_dim=64,
    clean_dim=64,
    min_area_px=32 * 32,
    max_area_px=32 * 32,
    max_side_px=32,
    max_frames=9,
    default_height_px=32,
    default_width_px=32,
    default_frames=5,
    default_fps=8.0,
    shared_frames=1,
)
Frames = NDArray[np.uint8]


def numbered(num_frames: int, level: int = 0) -> Frames:
    """Frames whose grey level says which they are."""
    return np.repeat(
        (level + np.arange(num_frames, dtype=np.uint8))[:, None, None, None], 32 * 32 * 3, 1
    ).reshape(-1, 32, 32, 3)


def windows_of(
    inputs: dict[str, Any], geometry: Geometry = GEOMETRY, **options: Any
) -> tuple[list[Window], Any]:
    request = EditRequest("", inputs, **{"length": "whole", **options})
    reader = read_windows(examine_inputs(request, geometry))
    return list(reader), reader


@given(st.integers(1, 60), st.sampled_from([1, 5]))
@settings(deadline=None)
def test_every_frame_is_new_once_and_in_order(num_frames: int, shared: int) -> None:
    source = numbered(num_frames)
    windows, reader = windows_of({"video1": source}, replace(GEOMETRY, shared_frames=shared))
    new = [w.footage.clips["video1"][w.num_shared : w.num_frames] for w in windows]
    assert np.array_equal(np.concatenate(new), source)
    assert [w.index for w in windows] == list(range(len(windows)))
    assert [w.num_shared for w in windows] == [0] + [shared] * (len(windows) - 1)
    assert len(windows) == count_windows(num_frames, replace(GEOMETRY, shared_frames=shared))
    assert reader.num_frames == num_frames
    for window in windows:
        clip = window.footage.clips["video1"]
        assert len(clip) == window.footage.num_frames <= 9
        assert (len(clip) - 1) % 4 == 0
        assert np.array_equal(
            clip[: window.num_frames], source[window.begin : window.begin + window.num_frames]
        )
        assert (clip[window.num_frames :] == clip[window.num_frames - 1]).all()
        assert len(clip) - window.num_frames < 4


@given(st.lists(st.integers(2, 25), min_size=1, max_size=4))
@settings(deadline=None)
def test_a_scene_begins_a_window(lengths: list[int]) -> None:
    source = np.concatenate([numbered(n, level=100 * (i % 2)) for i, n in enumerate(lengths)])
    windows, _ = windows_of({"video1": source})
    begins = {w.begin for w in windows if w.num_shared == 0}
    assert begins == {0, *np.cumsum(lengths)[:-1].tolist()}
    new = [w.footage.clips["video1"][w.num_shared : w.num_frames] for w in windows]
    assert np.array_equal(np.concatenate(new), source)
    for before, after in pairwise(windows):
        assert after.begin + after.num_shared == before.begin + before.num_frames


def test_a_mask_is_read_in_step_and_held_where_it_ends() -> None:
    source, mask = numbered(20), numbered(13, level=60)
    windows, reader = windows_of({"video1": source, "video2": mask})
    seen = np.concatenate([w.footage.clips["video2"][w.num_shared : w.num_frames] for w in windows])
    assert np.array_equal(seen[:13], mask)
    assert (seen[13:] == mask[-1]).all()
    assert reader.notices == ["video2: ends after 13 frames; its last one was held to the end"]


def test_pictures_are_in_every_window() -> None:
    picture = np.full((32, 32, 3), 9, np.uint8)
    windows, _ = windows_of({"video1": numbered(20), "image1": picture})
    assert all(np.array_equal(w.footage.clips["image1"][0], picture) for w in windows)


def test_a_number_of_frames_beyond_a_window_is_that_many() -> None:
    windows, reader = windows_of({"video1": numbered(40)}, length=None, num_frames=12)
    assert reader.num_frames == 12
    assert [w.num_frames for w in windows] == [9, 4]


def test_a_number_of_frames_within_a_window_is_one() -> None:
    assert isinstance(windows_of({"video1": numbered(40)}, num_frames=9)[1], OneWindow)


def test_a_result_without_inputs() -> None:
    windows, reader = windows_of({}, length=None, num_frames=22)
    assert [(w.begin, w.num_shared, w.num_frames) for w in windows] == [(0, 0, 9), (8, 1, 9), (16, 1, 6)]
    assert [w.footage.num_frames for w in windows] == [9, 9, 9]
    assert reader.num_frames == 22


def test_cut_takes_what_one_window_holds() -> None:
    windows, reader = windows_of({"video1": numbered(40)}, length="cut")
    assert [w.num_frames for w in windows] == [9]
    assert "took frames 0-8" in reader.notices[0]


def test_files_give_times_and_sound_of_the_whole(tmp_path: Path) -> None:
    times_s = [0.0, *np.cumsum(np.linspace(0.03, 0.2, 20)).tolist()]
    write_clip(tmp_path / "in.mkv", numbered(20), 25.0, times_s=times_s)
    _, reader = windows_of({"video1": str(tmp_path / "in.mkv")})
    assert reader.times_s == pytest.approx(times_s, abs=2e-3)
    _, reader = windows_of({"video1": str(tmp_path / "in.mkv")}, fps=10.0)
    assert reader.times_s is None
    assert reader.fps == 10.0


def test_a_start_beyond_the_end(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mp4", numbered(20), 10.0)
    with pytest.raises(MediaError, match=r"found a start of 9 s; the video ends at 2\.00 s; start earlier"):
        windows_of({"video1": str(tmp_path / "in.mp4")}, start_s=9.0)


def test_a_bundle_without_windows_says_so() -> None:
    for options in ({"length": "whole"}, {"length": None, "num_frames": 12}):
        with pytest.raises(RequestError):
            windows_of({"video1": numbered(20)}, replace(GEOMETRY, shared_frames=0), **options)


def test_a_video_that_breaks_off_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from editverse_rt.media.video_reader import VideoReader

    take = VideoReader.take

    def breaking(self: VideoReader, num_frames: int) -> list[Frames]:
        if len(self.times_s) >= 18:
            raise MediaError("video1: broken", code="media.undecodable")
        return take(self, num_frames)

    monkeypatch.setattr(VideoReader, "take", breaking)
    _, reader = windows_of({"video1": numbered(40)})
    assert reader.num_frames == 18
    assert reader.notices == ["video1: broken; the result ends where the video does"]
    assert reader.sound is None


@given(num_frames=st.integers(1, 40), first=st.integers(0, 39), fps=st.sampled_from([None, 3.0, 8.0, 20.0]))
@settings(deadline=None, max_examples=40)
def test_the_expected_frames_are_those_that_are_read(
    num_frames: int, first: int, fps: float | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By what a file says of itself, from any start and at any rate."""
    path = tmp_path_factory.mktemp("clips") / "in.mp4"
    write_clip(path, numbered(num_frames), 8.0)
    start_s = min(first, num_frames - 1) / 8.0
    for source in (path, numbered(num_frames)):
        # Frames in memory have the rate that is given.
        rate = fps if source is path else None
        examined = examine_inputs(EditRequest("", {"video1": source}, fps=rate, start_s=start_s), GEOMETRY)
        expected = examined.expected_frames
        reader = read_windows(examined)
        list(reader)
        assert expected == reader.num_frames
