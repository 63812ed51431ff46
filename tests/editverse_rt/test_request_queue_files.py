"""Requests of a queue that go from file to file: in their turn, cancelled while they are written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from editverse_rt import (
    EditRequest,
    MediaError,
    Pipeline,
    RequestCancelled,
    RequestError,
    RequestQueue,
    media,
)

PATIENCE_S = 60
"""How long a test that hangs is waited for."""
PROMPT = "<video1> Go"
pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_a_long_video_goes_to_a_file_in_its_turn(
    windowed_pipeline: Pipeline, windowed_runner: Any, slow_clip: Callable[..., Any], tmp_path: Path
) -> None:
    media.write_clip(tmp_path / "in.mp4", slow_clip(25, 48, 48), 8.0)
    request = EditRequest(PROMPT, {"video1": tmp_path / "in.mp4"})
    windowed_pipeline(request).save(tmp_path / "expected.mp4")
    with RequestQueue(windowed_pipeline) as queue:
        handle = queue.submit_to_file(request, tmp_path / "out.mp4")
        run = handle.result(PATIENCE_S)
        assert (run.path, run.num_frames, run.num_windows) == (tmp_path / "out.mp4", 25, 3)
        assert handle.num_steps_done == handle.num_inference_steps == 3 * 4
        with pytest.raises(MediaError, match=r"out\.txt"):
            queue.submit_to_file(request, tmp_path / "out.txt")
        with pytest.raises(RequestError) as caught:
            queue.submit_to_file(request, tmp_path / "other.mp4", resume=True)
        assert caught.value.code == "request.unfinished"
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "expected.mp4").read_bytes()


@pytest.fixture
def short_request(slow_clip: Callable[..., Any], tmp_path: Path) -> EditRequest:
    media.write_clip(tmp_path / "in.mp4", slow_clip(9, 48, 48), 8.0)
    return EditRequest(PROMPT, {"video1": tmp_path / "in.mp4"})


def test_cancelled_while_its_file_is_written_nothing_is_there(
    windowed_pipeline: Pipeline, short_request: EditRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = media.write_clip

    def write_clip(*args: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return real(*args, **options)

    monkeypatch.setattr(media, "write_clip", write_clip)
    with RequestQueue(windowed_pipeline) as queue:
        handle = queue.submit_to_file(short_request, tmp_path / "out.mp4")
        assert begun.wait(PATIENCE_S)
        assert handle.cancel()
        go_on.set()
        with pytest.raises(RequestCancelled, match="nothing was written"):
            handle.result(PATIENCE_S)
        assert handle.cancelled()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == []


@pytest.mark.parametrize("ends", ["written", "failed"])
def test_cancelled_after_its_last_frame_it_ends_as_it_did(
    windowed_pipeline: Pipeline,
    short_request: EditRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: str,
) -> None:
    """A file that is there is told of, and an error of its own is not taken for a cancelled request."""
    done, go_on = threading.Event(), threading.Event()
    real = media.write_clip

    def write_clip(*args: Any, **options: Any) -> Any:
        report = real(*args, **options)
        done.set()
        assert go_on.wait(PATIENCE_S)
        if ends == "failed":
            raise MediaError("the disk is gone", code="media.unwritable")
        return report

    monkeypatch.setattr(media, "write_clip", write_clip)
    with RequestQueue(windowed_pipeline) as queue:
        handle = queue.submit_to_file(short_request, tmp_path / "out.mp4")
        assert done.wait(PATIENCE_S)
        assert handle.cancel()
        go_on.set()
        if ends == "written":
            assert handle.result(PATIENCE_S).num_frames == 9
            assert (tmp_path / "out.mp4").exists()
        else:
            with pytest.raises(MediaError, match="the disk is gone"):
                handle.result(PATIENCE_S)
        assert not handle.cancelled()


def test_a_file_that_the_caller_opened_is_read(
    windowed_pipeline: Pipeline, short_request: EditRequest, tmp_path: Path
) -> None:
    """Looking at a request leaves it open, as often as it is looked at; reading closes it."""
    file = media.open_media(tmp_path / "in.mp4")
    request = replace(short_request, inputs={"video1": file})
    with RequestQueue(windowed_pipeline) as queue:
        with pytest.raises(RequestError, match="is not there"):
            queue.submit_to_file(request, tmp_path / "out.mp4", resume=True)
        with pytest.raises(MediaError, match=r"out\.txt"):
            queue.submit_to_file(request, tmp_path / "out.txt")
        run = queue.submit_to_file(request, tmp_path / "out.mp4").result(PATIENCE_S)
    assert run.num_frames == 9
    with pytest.raises(MediaError, match="the file was closed"):
        file.read_sound()
