"""Measured schedules that go into a bundle: their tables, and what was measured of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from editverse_rt.bundle.manifest import load_bundle
from export.name_schedules import main
from export.schedules import ScheduleSettings, build_schedule


def row(label: str, guidance: float, psnr_db: float) -> dict[str, Any]:
    return {
        "schedule": label, "settings": ScheduleSettings.from_label(label, guidance).to_json(),
        "evaluations": 12, "success_rate": 0.8, "success_rate_real": None, "psnr_db": psnr_db, "cpu_s": 0.1,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(load_bundle("nano").root, tmp_path / "nano"))


def write_report(path: Path, rows: list[dict[str, Any]], named: dict[str, str]) -> Path:
    path.write_text(json.dumps({"rows": rows, "facts": {"named": named}}), "utf-8")
    return path


def test_the_named_schedules_and_their_quality_go_into_the_bundle(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_bundle("nano").spec
    rows = [row("euler-50", 2.0, 99.0), row("ab2-8 guided 0-0.5", 2.0, 31.0), row("ab2-9", 2.0, 20.0)]
    named = {"paper": "euler-50", "fast": "ab2-8 guided 0-0.5"}
    assert main([str(folder), str(write_report(tmp_path / "frontier.json", rows, named))]) == 0
    assert capsys.readouterr().out == "paper: euler-50, fast: ab2-8 guided 0-0.5\n"
    spec = load_bundle(folder).spec
    # Nothing is named balanced any more.
    assert list(spec.schedules) == ["paper", "fast"]
    settings = ScheduleSettings("ab2", 8, guided_until=0.5, guidance_scale=2.0)
    assert spec.schedules["fast"] == build_schedule("fast", settings)
    paper, was = spec.schedules["paper"], before.schedules["paper"]
    assert paper.table.timesteps == pytest.approx(was.table.timesteps, abs=1e-15)
    assert paper.table.guidance == was.table.guidance
    measured: Any = spec.quality["schedules"]
    assert measured["fast"] == {
        "settings": "ab2-8 guided 0-0.5", "psnr_against": "paper", "evaluations": 12, "success_rate": 0.8,
        "success_rate_real": None, "psnr_db": 31.0, "cpu_s": 0.1,
    }  # fmt: skip
    assert spec.quality["success_rate"] == before.quality["success_rate"]
    assert (spec.files, spec.graphs) == (before.files, before.graphs)


@pytest.mark.parametrize(
    ("rows", "named", "said"),
    [
        ([row("euler-50", 2.0, 99.0)], {"fast": "ab2-8"}, "KeyError 'ab2-8'"),
        ([row("ab3-8", 2.0, 99.0)], {"fast": "ab3-8"}, "schedules.fast.graph"),
        ([{"schedule": "x", "settings": {"solver": "heun"}}], {"fast": "x"}, "solver is 'heun'"),
        ([], {}, "IndexError"),
    ],
)
def test_a_report_that_does_not_fit_is_one_line_and_changes_nothing(
    rows: list[Any],
    named: dict[str, str],
    said: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (folder / "bundle.json").read_bytes()
    assert main([str(folder), str(write_report(tmp_path / "frontier.json", rows, named))]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert (folder / "bundle.json").read_bytes() == before


def test_files_that_are_not_there(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err
    report = write_report(tmp_path / "frontier.json", [row("euler-50", 2.0, 99.0)], {"paper": "euler-50"})
    assert main([str(tmp_path / "absent"), str(report)]) == 2
    assert "no such folder" in capsys.readouterr().err
