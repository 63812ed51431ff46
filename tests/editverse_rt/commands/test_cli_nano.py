"""The command line as a person meets it: the bundle that ships, a real process, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import editverse_rt
from editverse_rt import media

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(editverse_rt.__file__).parents[1])}
COMMAND = [sys.executable, "-m", "editverse_rt"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    frames = np.full((9, 90, 120, 3), (30, 60, 90), np.uint8)
    for i in range(9):
        frames[i, 30:60, 8 * i : 8 * i + 30] = (200, 60, 20)
    media.write_clip(path, frames, 12.0)
    return path


def test_edit_end_to_end(clip: Path, tmp_path: Path) -> None:
    words = ["Make it grayscale", "-o", "out.mp4", "--preview", "sheet.png", "--json"]
    options = ["--num-inference-steps", "2", "--frames", "5", "--seed", "4"]
    done = subprocess.run(
        [*COMMAND, "edit", clip.name, *words, *options],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| 2/2 [" in done.stderr
    facts = json.loads(done.stdout)
    assert facts["prompt"] == "<video1> Make it grayscale"
    assert (facts["frames"], facts["fps"], facts["seed"]) == (5, 12.0, 4)
    written = media.probe(tmp_path / "out.mp4")
    assert (written.kind, written.num_frames, written.fps) == ("video", 5, 12.0)
    assert (written.height_px, written.width_px) == (facts["height"], facts["width"])
    assert facts["width"] > facts["height"]
    assert media.probe(tmp_path / "sheet.png").kind == "image"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "sheet.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    words = ["A red circle", "-o", "out.mp4", "--num-inference-steps", "5000"]
    with subprocess.Popen(
        [*COMMAND, "generate", *words],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert "| 1/5000 [" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
