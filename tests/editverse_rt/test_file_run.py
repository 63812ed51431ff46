"""From files to a file, window by window, and going on after an end at any window."""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from editverse_rt import media
from editverse_rt.errors import MediaError, RequestCancelled, RequestError
from editverse_rt.file_run import run_to_file
from editverse_rt.media import probe, read_clip, write_clip
from editverse_rt.media.lossless import write_lossless
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.window_parts import WindowParts

Frames = NDArray[np.uint8]
PROMPT = "<video1> Turn the circle green"


@pytest.fixture
def request_of(tmp_path: Path, slow_clip: Callable[..., Frames]) -> EditRequest:
    write_clip(tmp_path / "in.mp4", slow_clip(33, 48, 48), 10.0)
    return EditRequest(PROMPT, {"video1": str(tmp_path / "in.mp4")}, length="whole")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


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


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "is gone":
        path.unlink()
    elif how == "is cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "has another bit":
        path.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["is gone", "is cut", "has another bit", "is empty"])
@pytest.mark.parametrize(
    ("name", "whole"), [("window_000000.mkv", 0), ("window_000001.mkv", 1), ("window_000001.json", 1)]
)
def test_a_damaged_window_is_computed_again(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path, how: str, name: str, whole: int
) -> None:
    """What FFV1 has lost at its end is no error for the decoder: only the length of the result would tell."""
    run_to_file(windowed_pipeline, request_of, tmp_path / "whole.mp4")
    with pytest.raises(Stop):
        run_to_file(
            windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=stop_in(3, Stop())
        )
    damage(tmp_path / "out.mp4.parts" / name, how)
    seen = []
    run = run_to_file(
        windowed_pipeline,
        request_of,
        tmp_path / "out.mp4",
        resume=True,
        callback_on_step_end=lambda p, step, t, facts: seen.append(facts["window"]),
    )
    assert set(seen) == set(range(whole, 4))
    assert (run.num_windows, run.num_frames) == (4, 33)
    if (name, how) != ("window_000001.json", "is gone"):  # that window was never whole
        assert f"window {whole + 1} of the run that is gone on with is damaged" in run.notices[0]
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not (tmp_path / "out.mp4.parts").exists()


def test_a_window_that_is_damaged_while_the_run_goes_on_is_an_error(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path
) -> None:
    def callback(pipeline: object, step: int, timestep: float, facts: dict[str, Any]) -> None:
        if facts["window"] == 2 and step == 0:
            damage(tmp_path / "out.mp4.parts" / "window_000000.mkv", "is cut")

    with pytest.raises(MediaError, match=r"of its 9 frames; it is damaged; run again; 4 windows are kept"):
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=callback)
    assert not (tmp_path / "out.mp4").exists()
    run = run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=True)
    assert run.num_frames == probe(tmp_path / "out.mp4").num_frames == 33


def test_windows_of_another_length_than_the_result_are_refused(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = WindowParts.add
    monkeypatch.setattr(WindowParts, "add", lambda parts, frames: real(parts, frames[:-1]))
    with pytest.raises(
        RequestError, match=r"holds 29 frames, and the result has 33; remove the folder to begin anew$"
    ):
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', "null", None])
@pytest.mark.parametrize("resume", [False, True])
def test_what_a_run_says_of_itself_is_damaged(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path, text: str | None, resume: bool
) -> None:
    with pytest.raises(Stop):
        run_to_file(
            windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=stop_in(2, Stop())
        )
    folder = tmp_path / "out.mp4.parts"
    (folder / "run.json").unlink()
    if text is not None:
        (folder / "run.json").write_text(text)
    before = names(folder)
    with pytest.raises((RequestError, MediaError), match=r"remove the folder|move it away") as caught:
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=resume)
    assert caught.value.code in ("request.unfinished", "media.place")
    assert "export" not in str(caught.value)
    assert names(folder) == before


@pytest.mark.parametrize("foreign", [["thesis.txt"], ["run.json", "notes/a.txt"], ["window_000000.mkv"]])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_of_that_name_that_is_not_of_a_run_is_left_alone(
    windowed_pipeline: Pipeline,
    request_of: EditRequest,
    tmp_path: Path,
    foreign: list[str],
    resume: bool,
    fails: bool,
) -> None:
    folder = tmp_path / "out.mp4.parts"
    for name in foreign:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"mine": true}')
    before = names(folder)
    with pytest.raises(MediaError, match="move it away, or write elsewhere") as caught:
        run_to_file(
            windowed_pipeline,
            request_of,
            tmp_path / "out.mp4",
            resume=resume,
            callback_on_step_end=stop_in(0, Stop()) if fails else None,
        )
    assert caught.value.code == "media.place"
    assert names(folder) == before
    assert (folder / foreign[0]).read_text() == '{"mine": true}'


@pytest.mark.parametrize("window", [0, 1, None])
def test_what_another_puts_into_the_folder_stays(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path, window: int | None
) -> None:
    folder = tmp_path / "out.mp4.parts"

    def callback(pipeline: object, step: int, timestep: float, facts: dict[str, Any]) -> None:
        (folder / "notes").mkdir(exist_ok=True)
        (folder / "notes" / "mine.txt").write_text("mine")
        if facts["window"] == window:
            raise Stop

    with contextlib.suppress(Stop):
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", callback_on_step_end=callback)
    if window == 1:
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=True)
    assert (tmp_path / "out.mp4").exists() == (window != 0)
    assert names(folder) == ["notes", "notes/mine.txt"]


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", "run.json.partial"], [".0123456789ab.part"]])
def test_an_empty_folder_and_what_a_kill_at_once_leaves_are_taken(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path, left: list[str]
) -> None:
    (tmp_path / "out.mp4.parts").mkdir()
    for name in left:
        (tmp_path / "out.mp4.parts" / name).touch()
    assert run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4").num_frames == 33
    assert not (tmp_path / "out.mp4.parts").exists()


def test_a_full_disk_at_the_note_of_a_window_keeps_those_before(
    windowed_pipeline: Pipeline, request_of: EditRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import editverse_rt.window_parts as window_parts

    real = window_parts.write_json

    def full(path: Path, value: object) -> Path:
        if path.name == "window_000002.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, value)

    monkeypatch.setattr(window_parts, "write_json", full)
    with pytest.raises(MediaError, match=r"No space left .*; 2 windows are kept in .*out\.mp4\.parts"):
        run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4")
    monkeypatch.undo()
    assert run_to_file(windowed_pipeline, request_of, tmp_path / "out.mp4", resume=True).num_frames == 33


@pytest.mark.parametrize("window", [None, 0])
def test_cancelled_while_it_is_written_nothing_is_there(
    windowed_pipeline: Pipeline,
    request_of: EditRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
) -> None:
    """Of several windows, and of one."""
    stop = threading.Event()
    real = media.write_clip

    def write_clip(path: Path, frames: Any, *args: Any, **options: Any) -> Any:
        def counted() -> Any:
            for number, frame in enumerate(frames):
                yield frame
                if number == 2:
                    stop.set()

        return real(path, counted(), *args, **options)

    monkeypatch.setattr(media, "write_clip", write_clip)
    asked = request_of if window is None else replace(request_of, length="cut")
    with pytest.raises(RequestCancelled, match="cancelled by its caller; nothing was written"):
        run_to_file(windowed_pipeline, asked, tmp_path / "out.mp4", is_cancelled=stop.is_set)
    assert not (tmp_path / "out.mp4").exists()
    if window is None:
        monkeypatch.undo()
        run_to_file(windowed_pipeline, asked, tmp_path / "out.mp4", resume=True)
        assert probe(tmp_path / "out.mp4").num_frames == 33


@pytest.mark.parametrize(("rate", "is_fast"), [(Fraction(2000), True), (Fraction(1, 3600), False)])
def test_a_rate_that_cannot_be_written_is_refused_before_anything_is_computed(
    windowed_pipeline: Pipeline, windowed_runner: Any, tmp_path: Path, rate: Fraction, is_fast: bool
) -> None:
    path = tmp_path / ("in.mp4" if is_fast else "in.mkv")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for level in range(20):
            picture = np.full((48, 48, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    request = EditRequest(PROMPT, {"video1": path})
    for length in ("whole", "cut"):
        with pytest.raises(MediaError, match=r"frames a second; expected 0\.001 to 1000 in \.mp4") as caught:
            run_to_file(windowed_pipeline, replace(request, length=length), tmp_path / "out.mp4")
        assert (caught.value.code, caught.value.field) == ("media.rate", "fps")
    assert windowed_runner.calls == []
    if is_fast:
        assert run_to_file(windowed_pipeline, replace(request, fps=500.0), tmp_path / "out.mp4").fps == 500
    run_to_file(windowed_pipeline, request, tmp_path / "frames")


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
