"""A job's frames: in memory for one window, on disk for more, and the same either way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from editverse_rt.errors import RequestError
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.serve.kept_windows import KeptClip, KeptWindows

Frames = NDArray[np.uint8]
PROMPT = "<video1> Turn the circle green"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(deadline=None, max_examples=20)
def test_frames_come_back_as_they_were_added(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    frames = np.random.default_rng(0).integers(0, 256, (sum(lengths), 6, 10, 3), np.uint8)
    clip = KeptClip(folder, "a")
    for part in np.split(frames, np.cumsum(lengths)[:-1]):
        clip.add(part)
    assert (clip.num_frames, clip.size) == (sum(lengths), (6, 10))
    for _ in range(2):
        assert np.array_equal(np.stack(list(clip)), frames)
    assert len(list(folder.iterdir())) == (0 if len(lengths) == 1 else len(lengths))


def kept(pipeline: Pipeline, folder: Path, max_frames: int = 100, **settings: Any) -> KeptWindows:
    folder.mkdir(exist_ok=True)
    inputs = {name: settings.pop(name) for name in list(settings) if name[-1].isdigit()}
    checked = pipeline.prepare(EditRequest(settings.pop("prompt", PROMPT), inputs, **settings))
    return KeptWindows(pipeline.run_windows(checked), checked.inputs.main, folder, max_frames)


@pytest.mark.parametrize("num_frames", [9, 25])
def test_what_is_kept_is_the_result(
    windowed_pipeline: Pipeline, slow_clip: Callable[..., Frames], tmp_path: Path, num_frames: int
) -> None:
    clip = slow_clip(num_frames, 48, 48)
    expected = windowed_pipeline(PROMPT, video1=clip)
    found = kept(windowed_pipeline, tmp_path / "kept", video1=clip)
    assert np.array_equal(np.stack(list(found.frames)), expected.frames)
    assert found.source is not None
    assert np.array_equal(np.stack(list(found.source)), expected.sources[0])
    assert (found.fps, found.times_s, found.notices) == (expected.fps, expected.times_s, expected.notices)
    assert any((tmp_path / "kept").iterdir()) == (num_frames > 9)


def test_a_picture_is_a_source_once_however_long_the_result_is(
    windowed_pipeline: Pipeline, slow_clip: Callable[..., Frames], tmp_path: Path
) -> None:
    picture = slow_clip(1, 48, 48)[0]
    found = kept(windowed_pipeline, tmp_path / "kept", prompt="<image1> Move", image1=picture, num_frames=10)
    assert found.frames.num_frames == 10
    assert found.source is not None
    assert found.source.num_frames == 1
    nothing = kept(windowed_pipeline, tmp_path / "kept", prompt="A star", num_frames=10)
    assert (nothing.source, nothing.frames.num_frames) == (None, 10)


def test_a_video_that_is_longer_than_it_said_ends_the_run(
    windowed_pipeline: Pipeline, slow_clip: Callable[..., Frames], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="more than 20 frames") as caught:
        kept(windowed_pipeline, tmp_path / "kept", max_frames=20, video1=slow_clip(25, 48, 48))
    assert caught.value.code == "request.too_large"
    assert kept(windowed_pipeline, tmp_path / "kept", max_frames=25, video1=slow_clip(25, 48, 48))
