"""From files to a file, window by window, and going on after an end at any window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from editverse_rt.errors import MediaError, RequestCancelled, RequestError
from editverse_rt.file_run import run_to_file
from editverse_rt.media import probe, read_clip, write_clip
from editverse_rt.media.lossless import write_lossless
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.edit_request import EditRequest

Frames = NDArray[np.uint8]
PROMPT = "<video1> Turn the circle green"


@pytest.fixture
def request_of(tmp_path: Path, slow_clip: Callable[..., Frames]) -> EditRequest:
    write_clip(tmp_path / "in.mp4", slow_clip(33, 48, 48), 10.0)
    return EditRequest(PROMPT, {"video1": str(tmp_path / "in.mp4")}, length="whole")


class Stop(BaseException):
    """What ends the process in these tests."""


def stop_in(window: int, error: BaseException) -> Callable[..., None]:
    def callback(pipeline: object, step: int, timestep: float, facts: dict[str, Any]) -> None:
        if facts["window"] == window:
            raise error

    return callback


def test_a_long_video_is_written_whole(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path
) -> None:
    run = run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4")
    assert (run.num_frames, run.num_windows, run.fps, run.size) == (33, 4, 10.0, (48, 48))
    assert probe(tmp_path / "out.mp4").num_frames == 33
    memory = windowed_pipeline(request_of)
    memory.save(tmp_path / "memory.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "memory.mp4").read_bytes()
    assert len(run.shown) == len(run.sources[0]) == 33
    assert not (tmp_path / "out.mp4.parts").exists()


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt()])
def test_a_run_that_ended_early_goes_on(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path, window: int, error: BaseException
) -> None:
    run_to_file(windowed_pipeline, request_of, tmp_path / "whole.mp4")
    with pytest.raises((Stop, RequestCancelled)) as caught:
        run_to_file(
            windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=stop_in(window, error)
        )
    if isinstance(error, KeyboardInterrupt):
        assert f"{window} windows are kept in" in str(caught.value)
    assert not (tmp_path / "out.mp4").exists()
    seen = []
    run = run_to_file(
        windowed_pipeline,
        request_of,
        tmp_path / "out.mp4",
        resume=True,
        callback_on_step_end=lambda p, step, t, facts: seen.append(facts["window"]),
    )
    assert set(seen) == set(range(window, 4))
    assert run.num_windows == 4
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not (tmp_path / "out.mp4.parts").exists()


def test_a_run_that_ended_in_its_first_window_leaves_nothing(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run_to_file(
            windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=stop_in(0, Stop())
        )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == []


def test_what_is_there_is_not_thrown_away(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run_to_file(
            windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=stop_in(2, Stop())
        )
    with pytest.raises(RequestError, match="windows of a run that was not finished; resume it") as caught:
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4")
    assert caught.value.code == "request.unfinished"
    # A refusal holds nothing back: the same process may go on.
    assert run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=True).num_frames == 33


@pytest.mark.parametrize("change", ["request", "inputs", "bundle"])
def test_another_request_input_or_bundle_is_refused(
    windowed_pipeline: Pipeline, windowed: Any, request_of: EditRequest, tmp_path: Path, change: str
) -> None:
    with pytest.raises(Stop):
        run_to_file(
            windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=stop_in(2, Stop())
        )
    other = request_of
    if change == "request":
        other = EditRequest(PROMPT, request_of.inputs, length="whole", seed=1)
    elif change == "inputs":
        write_clip(tmp_path / "in.mp4", np.zeros((33, 48, 48, 3), np.uint8), 10.0)
    else:
        file = windowed.root / "bundle.json"
        file.write_text(file.read_text() + "\n")
    with pytest.raises(RequestError, match=f"of a run with another {change}"):
        run_to_file(windowed_pipeline, other, tmp_path / "out.mp4", resume=True)


def test_nothing_to_go_on_with(windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not there; expected the windows"):
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=True)


def test_a_damaged_part_is_an_error(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run_to_file(
            windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=stop_in(2, Stop())
        )
    (tmp_path / "out.mp4.parts" / "window_000001.mkv").write_bytes(b"damaged")
    with pytest.raises(MediaError, match="begin anew"):
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=True)


def test_a_full_disk_at_a_later_window_loses_nothing(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import editverse_rt.window_parts as window_parts

    def full(path: Path, frames: Frames) -> None:
        if path.name == "window_000002.mkv":
            raise MediaError(f"{path}: cannot be written: the disk is full", code="media.unwritable")
        write_lossless(path, frames)

    monkeypatch.setattr(window_parts, "write_lossless", full)
    with pytest.raises(MediaError, match=r"the disk is full; 2 windows are kept in .*out\.mp4\.parts"):
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4")
    monkeypatch.undo()
    run = run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=True)
    assert run.num_frames == 33


def test_two_runs_of_one_output(windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path) -> None:
    def callback(pipeline: Pipeline, step: int, timestep: float, facts: dict[str, Any]) -> None:
        if facts["window"] == 1 and step == 0:
            with pytest.raises(RequestError, match="is in use by another run"):
                run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=True)

    run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=callback)


def test_a_short_request_is_the_pipeline_s(
    windowed_pipeline: Pipeline, tmp_path: Path, slow_clip: Callable[..., Frames]
) -> None:
    request = EditRequest(PROMPT, {"video1": slow_clip(9, 48, 48)})
    run = run_to_file(windowed_pipeline, request, tmp_path / "out.mp4")
    clip = read_clip(tmp_path / "out.mp4", num_frames=99, height_px=48, width_px=48)
    assert (run.num_frames, run.num_windows, len(clip.frames)) == (9, 1, 9)


def test_an_array_cannot_be_gone_on_with(
    windowed_pipeline: Pipeline, tmp_path: Path, slow_clip: Callable[..., Frames]
) -> None:
    request = EditRequest(PROMPT, {"video1": slow_clip(17, 48, 48)}, length="whole")
    with pytest.raises(RequestError, match="expected a path"):
        run_to_file(windowed_pipeline, request, tmp_path / "out.mp4")
    shutil.rmtree(tmp_path / "out.mp4.parts", ignore_errors=True)
