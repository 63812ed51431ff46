"""A pipeline that edits window by window, on graphs in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from editverse_rt import result
from editverse_rt.errors import RequestCancelled, RequestError
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.edit_request import EditRequest

Frames = NDArray[np.uint8]
Clip = Callable[..., Frames]
PROMPT = "<video1> Turn the circle green"


def test_the_windows_together_are_the_whole(
    windowed_pipeline: Pipeline, windowed_runner: Any, slow_clip: Clip
) -> None:
    """The runner's model gives back its source, so a joined result is its source as well."""
    clip = slow_clip(25, 48, 48)
    result = windowed_pipeline(PROMPT, video1=clip, length="whole")
    assert result.num_windows == 3
    assert np.abs(result.frames.astype(int) - clip).max() <= 1
    assert np.array_equal(result.sources[0], clip)
    assert result.notices == ()
    assert windowed_runner.count("text_encoder") == 1


def test_the_first_frame_is_known_at_each_step_and_at_the_end(
    windowed_pipeline: Pipeline, windowed_runner: Any, slow_clip: Clip
) -> None:
    windowed_pipeline(PROMPT, video1=slow_clip(17, 48, 48), length="whole")
    calls = [inputs for graph, inputs in windowed_runner.calls if graph == "keep_known"]
    assert [float(inputs["time"]) for inputs in calls] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(inputs["rows"].tolist() == list(range(9)) for inputs in calls)
    graphs = [
        graph for graph, _ in windowed_runner.calls if graph in ("keep_known", "transformer", "solver_step")
    ]
    assert graphs[12:] == ["keep_known", *(["transformer"] * 2 + ["solver_step", "keep_known"]) * 4]


def test_one_window_calls_what_it_always_called(
    windowed_pipeline: Pipeline, windowed_runner: Any, slow_clip: Clip
) -> None:
    clip = slow_clip(9, 48, 48)
    whole = windowed_pipeline(PROMPT, video1=clip, length="whole")
    calls = [graph for graph, _ in windowed_runner.calls]
    windowed_runner.calls.clear()
    plain = windowed_pipeline(PROMPT, video1=clip)
    assert [graph for graph, _ in windowed_runner.calls] == calls
    assert np.array_equal(whole.frames, plain.frames)
    assert "keep_known" not in calls


def test_frames_beyond_the_vae_s_lengths_are_edited_too(windowed_pipeline: Pipeline, slow_clip: Clip) -> None:
    clip = slow_clip(13, 48, 48)[:12]
    assert len(windowed_pipeline(PROMPT, video1=clip, length="whole").frames) == 12


def test_a_video_is_edited_whole_unless_it_is_to_be_cut(windowed_pipeline: Pipeline, slow_clip: Clip) -> None:
    clip = slow_clip(25, 48, 48)
    whole, cut = windowed_pipeline(PROMPT, video1=clip), windowed_pipeline(PROMPT, video1=clip, length="cut")
    assert (len(whole.frames), whole.num_windows, whole.notices) == (25, 3, ())
    assert (len(cut.frames), cut.num_windows) == (9, 1)
    assert cut.notices[0].startswith("video1: took frames 0-8")


def test_a_result_beyond_the_machine_s_memory_is_refused_before_it_begins(
    windowed_pipeline: Pipeline, windowed_runner: Any, slow_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = slow_clip(25, 48, 48)
    # Windows and what they are joined to, of the result and of its source.
    needed = 2 * 2 * clip.nbytes
    monkeypatch.setattr(result, "_memory_bytes", lambda: needed - 1)
    with pytest.raises(RequestError, match="25 frames") as caught:
        windowed_pipeline(PROMPT, video1=clip)
    assert (caught.value.code, caught.value.field) == ("request.too_large", "length")
    assert windowed_runner.calls == []
    assert len(windowed_pipeline(PROMPT, video1=clip[:9]).frames) == 9
    request = EditRequest(PROMPT, {"video1": clip})
    assert len(list(windowed_pipeline.run_windows(windowed_pipeline.prepare(request)))) == 3
    monkeypatch.setattr(result, "_memory_bytes", lambda: needed)
    assert len(windowed_pipeline(PROMPT, video1=clip).frames) == 25


def test_a_run_goes_on_from_a_window(windowed_pipeline: Pipeline, slow_clip: Clip) -> None:
    request = EditRequest(PROMPT, {"video1": slow_clip(25, 48, 48)}, length="whole")
    all_windows = list(windowed_pipeline.run_windows(windowed_pipeline.prepare(request)))
    rest = list(
        windowed_pipeline.run_windows(
            windowed_pipeline.prepare(request), first=1, known=all_windows[0].frames[-1:]
        )
    )
    assert [window.index for window in rest] == [1, 2]
    assert [window.begin for window in all_windows] == [0, 9, 17]
    for found, expected in zip(rest, all_windows[1:], strict=True):
        assert np.array_equal(found.frames, expected.frames)


def test_the_callback_is_told_the_window(windowed_pipeline: Pipeline, slow_clip: Clip) -> None:
    seen = []

    def callback(pipeline: object, step: int, timestep: float, facts: dict[str, Any]) -> None:
        seen.append((facts["window"], step, facts["num_windows"]))

    windowed_pipeline(PROMPT, video1=slow_clip(17, 48, 48), length="whole", callback_on_step_end=callback)
    assert seen == [(window, step, 2) for window in range(2) for step in range(4)]


def test_a_callback_stops_in_the_second_window(windowed_pipeline: Pipeline, slow_clip: Clip) -> None:
    with pytest.raises(RequestCancelled):
        windowed_pipeline(
            PROMPT,
            video1=slow_clip(17, 48, 48),
            length="whole",
            callback_on_step_end=lambda p, step, t, facts: facts["window"] == 0,
        )


def test_a_generated_video_may_be_longer(windowed_pipeline: Pipeline) -> None:
    result = windowed_pipeline("A yellow ring", num_frames=20)
    assert result.frames.shape == (20, 48, 48, 3)
    assert result.num_windows == 3


def test_a_bundle_without_windows_refuses(pipeline: Pipeline, slow_clip: Clip) -> None:
    with pytest.raises(RequestError, match="no window for longer videos") as caught:
        pipeline(PROMPT, video1=slow_clip(17, 48, 48), length="whole")
    assert caught.value.code == "request.unsupported"
    assert caught.value.field == "length"
    with pytest.raises(RequestError, match="num_frames is 20"):
        pipeline("A yellow ring", num_frames=20)
