"""A request from files to a file: a long one window by window, kept on disk as it goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from editverse_rt import media
from editverse_rt.errors import MediaError, RequestCancelled, RequestError
from editverse_rt.media.frames import Frames, MediaInfo
from editverse_rt.pipeline import Pipeline, StepCallback
from editverse_rt.request.checked import CheckedRequest
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.result import EditedWindow, until_cancelled
from editverse_rt.window_parts import WindowParts, parts_folder

__all__ = ["FileRun", "check_file_run", "run_to_file"]

_MOST_SHOWN = 64


@dataclass(frozen=True, eq=False)
class FileRun:
    """What was written, and what is said about it.

    main: the input that the result follows, as it was found, by its name; None without inputs. size: (height, width) in
    pixels. sources, shown: some frames of each input and of the result, evenly taken, uint8
    [T, H, W, 3], for a preview. num_windows: how many were edited, those of an earlier run among them. timings: seconds
    of each stage, of this run.
    """

    path: Path
    num_frames: int
    size: tuple[int, int]
    fps: float
    num_windows: int
    timings: Mapping[str, float]
    notices: tuple[str, ...]
    sources: tuple[Frames, ...]
    shown: Frames
    main: tuple[str, MediaInfo] | None = None


def run_to_file(
    pipeline: Pipeline,
    request: EditRequest,
    path: str | os.PathLike[str],
    *,
    resume: bool = False,
    audio: bool = True,
    callback_on_step_end: StepCallback | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> FileRun:
    """Run a request and write its result in one step, as `Pipeline.__call__` and `Result.save` do together.

    A request of several windows needs memory for one of them, whatever its length. Each window that is done is kept
    in the folder PATH.parts, without loss, until the result is complete: a run that was stopped goes on there.
    resume: go on with the windows that an earlier run of the same request left; without it, their folder is an error.
    The other options are those of `Pipeline.__call__`, `Result.save` and `Pipeline.run`.
    Raises what those raise; what is kept is named in the error's hint.
    """
    output = Path(path)
    checked = check_file_run(pipeline, request, output, resume=resume)
    try:
        if checked.inputs.expected_windows == 1:
            return _run_one(pipeline, checked, output, audio, callback_on_step_end, is_cancelled)
        with WindowParts(output, request, pipeline.bundle, resume=resume) as parts:
            return _run_windows(pipeline, checked, parts, output, audio, callback_on_step_end, is_cancelled)
    except KeyboardInterrupt:
        raise RequestCancelled("stopped by Ctrl-C", hint="nothing was written", code="cancelled") from None


def check_file_run(
    pipeline: Pipeline, request: EditRequest, path: str | os.PathLike[str], *, resume: bool = False
) -> CheckedRequest:
    """What `run_to_file` does before it begins: look at the request, its inputs and its output. Raises the same."""
    output = Path(path)
    media.check_target(output, fps=request.fps)
    if resume and not parts_folder(output).exists():
        raise RequestError(
            f"{parts_folder(output)} is not there",
            expected="the windows of a run that was not finished",
            hint="run without resume",
            code="request.unfinished",
            field="resume",
        )
    checked = pipeline.prepare(request)
    try:
        media.check_rate(output, checked.inputs.expected_fps)
    except MediaError:
        checked.inputs.close_files()
        raise
    return checked


def _main_of(checked: CheckedRequest) -> tuple[str, MediaInfo] | None:
    name = checked.inputs.main
    return None if name is None else (name, checked.inputs.media[name])


def _run_one(
    pipeline: Pipeline,
    checked: CheckedRequest,
    output: Path,
    audio: bool,
    callback_on_step_end: StepCallback | None,
    is_cancelled: Callable[[], bool],
) -> FileRun:
    result = pipeline.run(checked, callback_on_step_end=callback_on_step_end, is_cancelled=is_cancelled)
    notices = result.save(output, audio=audio, is_cancelled=is_cancelled)
    return FileRun(
        path=output,
        num_frames=len(result.frames),
        size=(result.frames.shape[1], result.frames.shape[2]),
        fps=result.fps,
        num_windows=1,
        timings=result.timings,
        notices=(*result.notices, *notices),
        sources=result.sources,
        shown=result.frames,
        main=_main_of(checked),
    )


def _run_windows(
    pipeline: Pipeline,
    checked: CheckedRequest,
    parts: WindowParts,
    output: Path,
    audio: bool,
    callback_on_step_end: StepCallback | None,
    is_cancelled: Callable[[], bool],
) -> FileRun:
    shared = pipeline.bundle.spec.geometry.shared_frames
    run = pipeline.run_windows(
        checked,
        callback_on_step_end=callback_on_step_end,
        is_cancelled=is_cancelled,
        first=parts.count,
        known=parts.last_frames(shared),
    )
    shown = _Shown()
    for edited in run:
        parts.add(edited.frames)
        shown.add(edited)
    windows, clips = run.windows, shown.clips() or (np.stack(list(islice(parts.frames(), 1))),)
    parts.check_num_frames(windows.num_frames)
    report = media.write_clip(
        output,
        until_cancelled(parts.frames(), is_cancelled),
        windows.fps,
        times_s=windows.times_s,
        audio_from=windows.sound if audio else None,
    )
    return FileRun(
        path=output,
        num_frames=windows.num_frames,
        size=checked.inputs.size,
        fps=windows.fps,
        num_windows=parts.count,
        timings=dict(run.timings),
        notices=(*parts.notices, *windows.notices, *report.notices),
        sources=clips[:-1],
        shown=clips[-1],
        main=_main_of(checked),
    )


class _Shown:
    """Some frames of every clip, evenly taken, of which there are never more than a few."""

    def __init__(self) -> None:
        self._stride, self._rows = 1, list[tuple[Frames, ...]]()
        self._count = 0
        self._stills: tuple[Frames | None, ...] = ()

    def add(self, edited: EditedWindow) -> None:
        """Frames of one more window; pictures are the same in all of them."""
        length = len(edited.frames)
        clips = (*edited.sources, edited.frames)
        self._stills = tuple(None if len(clip) == length else clip for clip in clips)
        for index in range(length):
            if self._count % self._stride == 0:
                row = [clip[index if len(clip) == length else 0].copy() for clip in clips]
                self._rows.append(tuple(row))
            self._count += 1
            if len(self._rows) > _MOST_SHOWN:
                self._stride *= 2
                del self._rows[1::2]

    def clips(self) -> tuple[Frames, ...]:
        """The inputs and last the result, uint8 [T, H, W, 3] each; none where every window is of an earlier run."""
        columns = zip(*self._rows, strict=True)
        return tuple(
            np.stack(column) if still is None else still
            for still, column in zip(self._stills, columns, strict=True)
        )
