"""What a user is told of pixels and frames that a result does not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from editverse_rt import media
from editverse_rt.commands.losses import describe_loss, find_main
from editverse_rt.request.edit_request import EditRequest


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    media.write_clip(path, np.zeros((3, 96, 160, 3), np.uint8), 8.0)
    return path


def lines(request: EditRequest, output: str, size: tuple[int, int], num_frames: int) -> list[str]:
    return describe_loss(request, find_main(request), Path(output), size, num_frames)


def test_a_result_much_smaller_than_its_source_is_told(clip: Path) -> None:
    request = EditRequest("x", {"image1": clip, "video2": clip, "video1": clip})
    assert lines(request, "out.mp4", (48, 80), 3) == [
        "video1: its 160x96 px became 80x48, the most that the bundle takes of this shape"
    ]
    assert lines(request, "out.mp4", (80, 128), 3) == []


def test_a_size_that_was_asked_for_is_no_loss(clip: Path) -> None:
    assert lines(EditRequest("x", {"video1": clip}, size=(48, 80)), "out.mp4", (48, 80), 3) == []


def test_a_picture_of_a_video_is_told(clip: Path) -> None:
    (line,) = lines(EditRequest("x", {"video1": clip}), "out.png", (96, 160), 1)
    assert line.startswith("out.png: holds one frame of video1")


def test_sources_that_cannot_be_looked_at_have_none(tmp_path: Path) -> None:
    frames = np.zeros((3, 96, 160, 3), np.uint8)
    for inputs in ({"video1": frames}, {}, {"video1": tmp_path / "gone.mp4"}):
        assert lines(EditRequest("x", inputs), "out.png", (48, 80), 1) == []
