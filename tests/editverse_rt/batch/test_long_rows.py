"""Rows whose video has more windows than one."""

from __future__ import annotations

import time
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
from editverse_rt.window_parts import WindowParts

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


@pytest.mark.parametrize("ends", ["cancelled", "killed"])
def test_a_long_video_that_was_stopped_goes_on_where_it_was(
    windowed_pipeline: Pipeline,
    windowed_runner: Any,
    slow_clip: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: str,
) -> None:
    media.write_clip(tmp_path / "in.mp4", slow_clip(25, 48, 48), 8.0)
    row = BatchRow("long", EditRequest(f"<video1> {PROMPT}", {"video1": tmp_path / "in.mp4"}))
    windowed_pipeline(row.request).save(tmp_path / "expected.mp4")
    whole = windowed_runner.count("vae_decoder_first")
    windowed_runner.calls.clear()
    out = tmp_path / "out"
    real_add = WindowParts.add

    def add(self: WindowParts, frames: Any) -> None:
        real_add(self, frames)
        time.sleep(1)  # the batch looks for interrupts five times a second

    def interrupts() -> int:
        return 2 if list(out.glob(".windows/*.parts/window_*")) else 0

    monkeypatch.setattr(WindowParts, "add", add)
    with BatchFolder(out) as folder:
        report = run_batch(windowed_pipeline, [row], folder, num_interrupts=interrupts)
    assert (report.num_done, report.num_left) == (0, 1)
    (kept,) = out.glob(".windows/long-*.mp4.parts")
    if ends == "killed":  # in the middle of a window: what is written of it is not whole, and has no name yet
        (kept / "window_000001.partial.mkv").write_bytes(b"x")
    windowed_runner.calls.clear()
    with BatchFolder(out) as folder:
        assert run_batch(windowed_pipeline, [row], folder).is_complete
    assert windowed_runner.count("vae_decoder_first") < whole
    (found,) = out.glob("long-*.mp4")
    assert found.read_bytes() == (tmp_path / "expected.mp4").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [".lock", found.name, "results.jsonl"]


def test_windows_of_a_row_that_has_changed_go_when_the_batch_is_complete(
    windowed_pipeline: Pipeline, slow_clip: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stale = out / ".windows" / "long-0000.mp4.parts"
    stale.mkdir(parents=True)
    (stale / "window_000000.mkv").write_bytes(b"x")
    media.write_clip(tmp_path / "in.mp4", slow_clip(9, 48, 48), 8.0)
    rows = [BatchRow("short", EditRequest(f"<video1> {PROMPT}", {"video1": tmp_path / "in.mp4"}))]
    with BatchFolder(out) as folder:
        run_batch(windowed_pipeline, rows, folder, num_interrupts=lambda: 1)
    assert stale.exists()
    with BatchFolder(out) as folder:
        assert run_batch(windowed_pipeline, rows, folder).is_complete
    assert not (out / ".windows").exists()
