"""Inputs examined, then read: neither step changes what it was given, and a file is opened once."""

from __future__ import annotations

import copy
import os
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt import media
from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.inputs import examine_inputs, read_inputs


@pytest.fixture
def geometry(fake_bundle: Any) -> Geometry:
    geometry = fake_bundle.spec.geometry
    assert isinstance(geometry, Geometry)
    return geometry


def write_grey(path: Path, level: int, num_frames: int = 9, fps: float = 8.0) -> None:
    media.write_clip(path, np.full((num_frames, 48, 64, 3), level, np.uint8), fps)


def test_reading_changes_neither_the_request_nor_what_was_examined(
    geometry: Geometry, blocky_clip: Any
) -> None:
    clip = blocky_clip(8)
    before = clip.copy()
    request = EditRequest("<video1> Go", {"video1": clip}, num_frames=7)
    examined = examine_inputs(request, geometry)
    noted = {f.name: copy.copy(getattr(examined, f.name)) for f in fields(examined)}
    first, second = read_inputs(examined), read_inputs(examined)
    assert {f.name: getattr(examined, f.name) for f in fields(examined)} == noted
    np.testing.assert_array_equal(clip, before)
    # An array may be read again, and gives the same.
    np.testing.assert_array_equal(first.clips["video1"], second.clips["video1"])
    assert (first.num_frames, first.fps, first.notices) == (second.num_frames, second.fps, second.notices)
    assert (examined.num_frames, first.num_frames) == (5, 5)
    for value in (examined, first):
        with pytest.raises(FrozenInstanceError):
            value.num_frames = 1  # type: ignore[misc]


def test_a_file_that_is_replaced_in_between_is_read_as_it_was(geometry: Geometry, tmp_path: Path) -> None:
    path, other = tmp_path / "in.mp4", tmp_path / "other.mp4"
    write_grey(path, 40)
    write_grey(other, 200, num_frames=5, fps=4.0)
    examined = examine_inputs(EditRequest("<video1> Go", {"video1": path}), geometry)
    os.replace(other, path)
    footage = read_inputs(examined)
    assert (footage.num_frames, footage.fps) == (9, 8.0)
    assert abs(footage.clips["video1"].astype(int) - 40).max() <= 4


def test_files_are_closed_once_they_were_read(geometry: Geometry, tmp_path: Path) -> None:
    write_grey(tmp_path / "in.mp4", 40)
    examined = examine_inputs(EditRequest("<video1> Go", {"video1": tmp_path / "in.mp4"}), geometry)
    read_inputs(examined)
    with pytest.raises(EditVerseError, match="closed"):
        read_inputs(examined)


@pytest.mark.parametrize(("main_fps", "own_fps", "expected"), [(25.0, 25.0, None), (25.0, 12.5, 25.0)])
def test_a_second_video_follows_the_rate_of_the_first(
    geometry: Geometry, tmp_path: Path, main_fps: float, own_fps: float, expected: float | None
) -> None:
    """What is expected of it beforehand, and how it is read, are of one rate: that of the main video."""
    write_grey(tmp_path / "a.mp4", 40, 9, main_fps)
    write_grey(tmp_path / "b.mp4", 200, 5, own_fps)
    inputs = {"video1": tmp_path / "a.mp4", "video2": tmp_path / "b.mp4"}
    examined = examine_inputs(EditRequest("<video1> <video2> Go", inputs), geometry)
    assert examined.rate_for("video1") is None
    assert examined.rate_for("video2") == expected
    shapes = examined.expected_shapes()
    footage = read_inputs(examined)
    assert footage.fps == main_fps
    assert {name: clip.shape[:3] for name, clip in footage.clips.items()} == shapes
    # 0.4 s of half the rate are ten frames, each shown twice; nine are taken.
    assert shapes["video2"][0] == (5 if expected is None else 9)


def test_the_main_input_stands_first(geometry: Geometry, blocky_clip: Any) -> None:
    clips = {"image1": blocky_clip(1)[0], "video2": blocky_clip(5), "video1": blocky_clip(9)}
    examined = examine_inputs(EditRequest("x", clips), geometry)
    assert examined.names == ("video1", "video2", "image1")
    assert (examined.main, examined.has_video) == ("video1", True)
    assert list(read_inputs(examined).clips) == ["video1", "video2", "image1"]


def test_a_start_without_a_video_is_refused(geometry: Geometry, blocky_clip: Any) -> None:
    request = EditRequest("x", {"image1": blocky_clip(1)[0]}, start_s=1.0)
    with pytest.raises(RequestError, match="no video to begin in") as caught:
        examine_inputs(request, geometry)
    assert caught.value.field == "start_s"
