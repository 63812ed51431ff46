"""The commands that only tell: `doctor`, of this machine, and `info`, of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editverse_rt.backends import Availability
from editverse_rt.bundle.description import json_from_spec
from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.commands import doctor, info
from editverse_rt.commands.main import main


def test_doctor_says_why_a_backend_is_not_here(
    fake_bundle: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = (
        Availability("tensorrt", "no driver was found; install it"),
        Availability("tensorrt-rtx", None, "1.7.1"),
        Availability("ort-cpu", None, "1.31"),
    )
    monkeypatch.setattr(doctor, "list_backends", lambda: states)
    assert main(["doctor", "--bundle", str(fake_bundle.root)]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["tensorrt", "not here: no driver was found; install it"] in lines
    # One that works here, and that the bundle has nothing for, or nothing that was verified.
    (rtx,) = (line[1] for line in lines if line[0] == "tensorrt-rtx")
    assert rtx.startswith("here (1.7.1), but: ")
    assert ["ort-cpu", "available (1.31)"] in lines


def test_doctor_without_any_backend_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "list_backends", lambda: (Availability("ort-cpu", "onnxruntime is missing"),))
    assert main(["doctor", "--json"]) == 2
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout)["backends"] == [
        {
            "name": "ort-cpu",
            "available": False,
            "version": None,
            "reason": "onnxruntime is missing",
            "missing": None,
        }
    ]
    assert len(stderr.splitlines()) == 1


def test_doctor_names_a_bundle_that_is_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--bundle", str(tmp_path)]) == 2
    assert "bundle.json" in capsys.readouterr().err


def test_info_tells_a_person_the_success_of_each_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nano"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("held-out edits right" in line for line in lines)
    assert any(line.strip().startswith("stylize") and line.rstrip()[-1].isdigit() for line in lines)
    assert not any("{" in line for line in lines)


@pytest.mark.parametrize(
    "quality", [{"success_rate": 0.5}, {"note": "by eye"}, {"success_rate": "good", "edits": 3}]
)
def test_a_quality_report_of_another_form_is_shown_as_it_is(quality: dict[str, object]) -> None:
    assert info.describe_quality(quality) == [f"  quality      {json.dumps(quality)}"]


def test_info_holds_the_bundle_and_its_quality(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nano", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    written = json.loads((Path(facts["path"]) / "bundle.json").read_text("utf-8"))
    assert {name: facts[name] for name in written} == written
    assert facts["num_bytes"] == sum(file["num_bytes"] for file in written["files"])
    assert set(facts["quality"]) >= {"success_rate", "edits", "by_task"}


def test_info_for_a_person_names_schedules_and_graphs(
    fake_bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(fake_bundle.root)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("fake (format version 2)")
    for word in ("paper (default): euler, 4 steps", "graphs/transformer.onnx", "noise", "px a frame"):
        assert word in text
    assert "inputs       videos and images, in any order" in text


def test_info_says_what_a_request_may_bring_to_every_kind_of_bundle(fake_bundle: Any) -> None:
    facts = json_from_spec(load_bundle(fake_bundle.root).spec) | {"path": "", "num_bytes": 0}
    kinds = ("none", "interleaved", "rows", "channels", "control")
    said = {kind: info.describe_bundle(facts | {"conditioning": kind}) for kind in kinds}
    lines = {kind: next(line for line in found if "  inputs  " in line) for kind, found in said.items()}
    assert len(set(lines.values())) == len(kinds)
    assert "masks it" in lines["control"]
