"""Rows whose video has more windows than one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editverse_rt import media
from editverse_rt.batch.folder import BatchFolder
from editverse_rt.batch.rows import BatchRow
from editverse_rt.batch.running import run_batch
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.result import WindowRun

PROMPT = "Turn the circle green"


def test_a_long_video_is_written_window_by_window(
    windowed_pipeline: Pipeline,
    slow_clip: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the memory of one window: nothing puts the whole together."""
    rows = []
    for name, num_frames in (("long", 25), ("short", 9)):
        path = tmp_path / f"{name}.mp4"
        media.write_clip(path, slow_clip(num_frames, 48, 48), 8.0)
        rows.append(BatchRow(name, EditRequest(f"<video1> {PROMPT}", {"video1": path})))
        windowed_pipeline(rows[-1].request).save(tmp_path / f"{name}-expected.mp4")
    joined: list[int] = []
    real = WindowRun.join

    def join(self: WindowRun, edited: Any) -> Any:
        joined.append(len(edited))
        return real(self, edited)

    monkeypatch.setattr(WindowRun, "join", join)
    with BatchFolder(tmp_path / "out") as folder:
        assert run_batch(windowed_pipeline, rows, folder).is_complete
    assert joined == [1]
    for row in rows:
        (found,) = (tmp_path / "out").glob(f"{row.id}-*.mp4")
        assert found.read_bytes() == (tmp_path / f"{row.id}-expected.mp4").read_bytes()
    assert not (tmp_path / "out" / ".partial").exists()


def test_a_long_video_that_is_cancelled_is_run_again(
    windowed_pipeline: Pipeline, windowed_runner: Any, slow_clip: Callable[..., Any], tmp_path: Path
) -> None:
    media.write_clip(tmp_path / "in.mp4", slow_clip(25, 48, 48), 8.0)
    row = BatchRow("long", EditRequest(f"<video1> {PROMPT}", {"video1": tmp_path / "in.mp4"}))

    def interrupts() -> int:
        return 2 if windowed_runner.count("vae_decoder_first") else 0

    with BatchFolder(tmp_path / "out") as folder:
        report = run_batch(windowed_pipeline, [row], folder, num_interrupts=interrupts)
    assert report.num_done + report.num_left == 1
    with BatchFolder(tmp_path / "out") as folder:
        assert run_batch(windowed_pipeline, [row], folder).is_complete
    assert len(list((tmp_path / "out").glob("long-*.mp4"))) == 1
