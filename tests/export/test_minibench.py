"""The miniature benchmark: its layout, and nano evaluated on a part of it from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editverse_rt.commands.main import main as run_command
from editverse_rt.evaluate.benchmarks import BENCHMARKS
from editverse_rt.evaluate.clips import read_clip_shown
from export.minibench import TASK_OF_CATEGORY, main
from reference.nano.tasks import EDIT_TASKS


def test_it_has_the_benchmarks_layout(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--frames", "5"]) == 0
    found = BENCHMARKS["editverse-bench"].load(tmp_path)
    assert not found.problems
    assert len(found.items) == 40
    assert {item.category for item in found.items} == set(TASK_OF_CATEGORY)
    assert len(TASK_OF_CATEGORY) == 20
    assert set(TASK_OF_CATEGORY.values()) == set(EDIT_TASKS)
    by_direction = dict.fromkeys(("horizontal", "vertical"), 0)
    for item in found.items:
        by_direction[item.groups["direction"]] += 1
        assert item.answer is not None
        answer, source = read_clip_shown(item.answer), read_clip_shown(item.inputs[item.source])
        assert answer.shape == source.shape
        is_wide = answer.shape[2] > answer.shape[1]
        assert item.groups["direction"] == ("horizontal" if is_wide else "vertical")
        assert item.source_prompt
        assert item.target_prompt
    assert by_direction == {"horizontal": 20, "vertical": 20}
    entry = json.loads((tmp_path / "test.json").read_text("utf-8"))["0"]
    assert {"<text>", "<video1>", "<video1> link", "direction", "type", "source_prompt"} <= set(entry)


@pytest.mark.parametrize("arguments", [["--items", "0"], ["--frames", "6"], ["--frames", "1"]])
def test_numbers_that_it_cannot_write_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), *arguments])


def test_nano_is_evaluated_on_a_part_of_it(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="the extra evaluate is not installed")
    data, out = tmp_path / "data", tmp_path / "out"
    assert main([str(data), "--items", "4", "--frames", "5"]) == 0
    words = ["evaluate", "editverse-bench", "--data", str(data), "-o", str(out)]
    assert run_command([*words, "--judge", "offline", "--threads", "1", "--quiet"]) == 0
    report = json.loads((out / "report.json").read_text("utf-8"))
    metrics = report["metrics"]
    assert set(metrics) == {"judge", "psnr_db", "ssim", "success"}
    assert all(metric["count"] == 4 and not metric["random"] for metric in metrics.values())
    # Copies of the sources reach neither: nano really edits.
    assert metrics["success"]["mean"] >= 0.5
    assert metrics["psnr_db"]["mean"] > 20
    assert (out / "page.html").read_text("utf-8").count("data:image/jpeg") == 8
