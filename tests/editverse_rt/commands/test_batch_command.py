"""The command `batch`: its words, its exit codes, what it prints, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt import media
from editverse_rt.commands import batch
from editverse_rt.commands.main import main
from editverse_rt.pipeline import Pipeline

ROW = {"prompt": "Turn the circle green", "num_frames": 1}


@pytest.fixture(autouse=True)
def opened(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The command opens the pipeline in numpy; what it asked for."""
    asked: list[Any] = []

    class Opener:
        @staticmethod
        def open(bundle: str, backend: str, **options: Any) -> Pipeline:
            asked.append((bundle, backend, options["num_threads"]))
            return pipeline

    monkeypatch.setattr(batch, "Pipeline", Opener)
    return asked


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": name, **ROW}) + "\n" for name in "abc"), "utf-8")
    return path


def test_all_done_is_0(
    manifest: Path, tmp_path: Path, opened: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [
        "batch",
        str(manifest),
        "-o",
        str(out),
        "--bundle",
        "my/bundle",
        "--backend",
        "x",
        "--threads",
        "3",
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 3 of 3 done, 0 of them before\n"
    assert "| 3/3 [" in said.err
    assert opened == [("my/bundle", "x", 3)]
    assert main([*words, "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "output": str(out), "rows": 3, "done": 3, "found": 3, "failed": 0, "left": 0
    }  # fmt: skip
    assert said.err == ""


def test_a_failed_row_is_2_and_one_line(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with manifest.open("a") as stream:
        stream.write(json.dumps({"id": "d", **ROW, "seed": -1}) + "\n")
    assert main(["batch", str(manifest), "-o", str(tmp_path / "out"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("editverse-rt: error: 1 of 4 failed, d first (seed is -1; expected a whole number")
    assert said.endswith("failed.jsonl lists them\n")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_a_folder_takes_an_instruction(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    media.write_image(tmp_path / "clips" / "one.png", np.full((48, 48, 3), 90, np.uint8))
    words = [
        "batch",
        str(tmp_path / "clips"),
        "Make it night",
        "-o",
        str(tmp_path / "out"),
        "--schedule",
        "interval",
    ]
    assert main(words) == 0
    assert [path.name.split("-")[0] for path in (tmp_path / "out").glob("*.png")] == ["one"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["."], "is a folder, and no instruction is given"),
        (["rows.jsonl", "Make it night"], "which is no folder"),
        (["nowhere.jsonl"], "nowhere.jsonl cannot be read as UTF-8 text"),
        (["rows.jsonl", "--workers", "0"], "--workers"),
        (["rows.jsonl", "--workers", "2"], "num_workers is 2, but this backend runs one request at a time"),
        (["rows.jsonl", "--memory", "much"], "--memory"),
        (["rows.jsonl", "--ray", "--workers", "2"], "--workers is given with --ray"),
        (["rows.jsonl", "--ray", "--memory", "1GB"], "--memory is given with --ray"),
        (["rows.jsonl", "--ray", "--device", "0"], "--device is given with --ray"),
    ],
)
def test_what_cannot_be_a_batch_is_one_line(
    words: list[str],
    line: str,
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(manifest.parent)
    assert main(["batch", *words, "-o", "out", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert len(said.splitlines()) == 1


def test_ctrl_c_finishes_what_runs_and_is_130(
    manifest: Path, tmp_path: Path, runner: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    encode, before = runner.text_encoder, signal.getsignal(signal.SIGINT)

    def interrupt(ids: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return encode(ids)

    runner.text_encoder = interrupt
    assert main(["batch", str(manifest), "-o", str(tmp_path / "out"), "--quiet"]) == 130
    assert "2 of 3 are left: run the same command again" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert signal.getsignal(signal.SIGINT) is before
