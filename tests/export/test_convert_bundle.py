"""A bundle of format 1, written by hand from nano, becomes one of format 2 that makes the same edits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt import Pipeline
from editverse_rt.bundle.manifest import file_specs, load_bundle
from editverse_rt.bundle.schedule import Schedule
from editverse_rt.errors import BundleError
from export.convert_bundle import convert_bundle, main

MOVED = ("attention", "convolutions", "dtype", "weights", "emulates")
"""Facts that format 1 kept in `made`; those that were as usual were left out."""
PROMPT = "<video1> Make it grayscale"


def tensor(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def walk(schedule: Schedule) -> list[float]:
    """The sample after each step of a schedule, for velocities that are the same at each call.

    Format 1 kept three velocities in every schedule; what no later step reads may be 0 in the matrices.
    """
    state = np.random.default_rng(0).standard_normal(len(schedule.table.matrices[0]))
    samples = []
    for velocity, matrix in zip(
        np.random.default_rng(1).standard_normal(10_000), schedule.table.matrices, strict=False
    ):
        state = np.asarray(matrix) @ np.append(state, velocity)
        samples.append(float(state[0]))
    return samples


def write_format_1(folder: Path) -> dict[str, Any]:
    """nano as format 1 described it: rows of three coefficients, and a solver that takes three velocities."""
    shutil.copytree(load_bundle("nano").root, folder)
    for graph in folder.glob("schedule_*.onnx"):
        graph.unlink()
    (folder / "solver_step.onnx").write_bytes(b"the solver of format 1")
    value: dict[str, Any] = json.loads((folder / "bundle.json").read_text("utf-8"))
    patch_dim = value["geometry"]["patch_dim"]
    for field in ("family", "conditioning", "unconditional", "default_negative_prompt"):
        del value[field]
    can = value.pop("capabilities")
    value["made"] |= {fact: can[fact] for fact in MOVED if can[fact] not in ("float", {})}
    del value["geometry"]["clean_dim"]
    for name in [name for name in value["graphs"] if name.startswith("schedule_")]:
        del value["graphs"][name]
    rows = ("sample", "velocity_cond", "velocity_uncond", "velocity_prev1", "velocity_prev2")
    value["graphs"]["solver_step"] = {
        "file": "solver_step.onnx",
        "inputs": [
            *(tensor(name, "float32", "Lg", patch_dim) for name in rows),
            tensor("guidance", "float32"),
            tensor("coefficients", "float32", 3),
        ],
        "outputs": [tensor(name, "float32", "Lg", patch_dim) for name in ("sample_next", "velocity")],
    }
    for name, schedule in value["schedules"].items():
        table = schedule["table"]
        # The sample's row of a matrix over [x, v', v''] and v: newest velocity first.
        coefficients = [[m[0][3], m[0][1], m[0][2]] for m in table["matrices"]]
        value["schedules"][name] = {
            "kind": "euler" if name == "paper" else "multistep",
            "timesteps": table["timesteps"],
            "coefficients": coefficients,
            "guidance_scale": table["guidance"],
        }
    for row in value["quality"]["schedules"].values():
        row["recipe"] = row.pop("settings")
    value["format_version"] = 1
    value["files"] = [vars(file) for file in file_specs(folder)]
    (folder / "bundle.json").write_text(json.dumps(value), "utf-8")
    return value


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("format-1") / "nano"
    before = write_format_1(folder)
    with pytest.raises(BundleError, match=r"format_version is 1, .* convert it with"):
        load_bundle(folder)
    assert main([str(folder)]) == 0
    return folder, before


def test_what_is_not_new_keeps_its_bytes(converted: tuple[Path, dict[str, Any]]) -> None:
    folder, before = converted
    after = {file.path: file for file in load_bundle(folder).spec.files}
    for file in before["files"]:
        if file["path"] != "solver_step.onnx":
            assert vars(after[file["path"]]) == file
    assert {path for path in after if path not in {file["path"] for file in before["files"]}} == {
        "schedule_ab2.onnx",
        "schedule_euler.onnx",
    }


def test_the_description_is_that_of_the_bundle_that_ships(converted: tuple[Path, dict[str, Any]]) -> None:
    spec, nano = load_bundle(converted[0]).spec, load_bundle("nano").spec
    assert spec.capabilities == nano.capabilities
    assert (spec.family, spec.conditioning, spec.unconditional) == ("editverse", "interleaved", "drop_text")
    assert spec.geometry == nano.geometry
    assert spec.graphs == nano.graphs
    assert set(spec.schedules) == set(nano.schedules)
    for name, schedule in nano.schedules.items():
        found = spec.schedules[name]
        assert replace(found, table=schedule.table) == schedule
        assert replace(found.table, matrices=schedule.table.matrices) == schedule.table
        np.testing.assert_allclose(walk(found), walk(schedule), rtol=0, atol=1e-12)
    assert spec.quality == nano.quality
    assert not set(MOVED) & set(spec.made)


def test_edits_keep_their_bytes(converted: tuple[Path, dict[str, Any]]) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    frames = []
    for bundle in (converted[0], "nano"):
        with Pipeline.open(bundle, "ort-cpu", num_threads=1) as pipeline:
            frames += [
                pipeline(PROMPT, video1=clip, schedule="fast").frames.tobytes(),
                pipeline(PROMPT, video1=clip, num_inference_steps=3).frames.tobytes(),
            ]
    assert frames[:2] == frames[2:]


def test_a_bundle_of_format_2_is_left_as_it_is(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(load_bundle("nano").root, tmp_path / "nano"))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert convert_bundle(folder) == load_bundle("nano").spec
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("label", ["unip2-10", "unipc2-10 shift 2"])
def test_a_schedule_that_format_2_cannot_hold_leaves_the_bundle_as_it_was(
    label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nano"
    value = write_format_1(folder)
    value["quality"]["schedules"]["fast"]["recipe"] = label
    (folder / "bundle.json").write_text(json.dumps(value), "utf-8")
    before = contents(folder)
    assert main([str(folder)]) == 2
    err = capsys.readouterr().err
    assert f"schedule 'fast' was built as '{label}', which format 2 cannot hold" in err
    assert "take it out" in err
    assert err.count("\n") == 1
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["nano"]


def test_a_failure_while_graphs_are_written_leaves_the_bundle_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nano"
    write_format_1(folder)
    before = contents(folder)

    def save_half(model: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr("export.convert_bundle.ir.save", save_half)
    with pytest.raises(OSError, match="disk is full"):
        convert_bundle(folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["nano"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "bundle.json"),
        ("{", "bundle.json"),
        ('{"format_version": 3}', "format_version is 3; expected 1"),
        ('{"format_version": 1}', "made"),
        ("[]", "bundle.json"),
    ],
)
def test_what_is_no_bundle_of_format_1_is_one_line(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "bundle.json").write_text(text)
    assert main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.onnx"))
