"""The comparison: it passes where it should, and sees what is wrong."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from editverse_rt.backends import Runner, select_backend
from editverse_rt.bundle.manifest import Bundle, load_bundle, write_bundle_json
from editverse_rt.commands.main import main
from editverse_rt.files import hash_file
from export import compare, measurements
from export.compare import CASES, compare_edit, compare_graphs, write_report
from export.graphs import EXAMPLE_AXES
from export.measurements import Measurement, format_table, make_clip
from reference.checkpoint import Checkpoint, load_checkpoint
from reference.lora import Lora


@pytest.fixture
def runner(bundle_folder: Path) -> Any:
    bundle = load_bundle(bundle_folder)
    with select_backend("ort-cpu", bundle).backend.open_runner(bundle, 1) as runner:
        yield runner


def test_a_bundle_equals_its_checkpoint(bundle_folder: Path, checkpoint: Checkpoint, runner: Runner) -> None:
    found = list(compare_graphs(load_bundle(bundle_folder), checkpoint, runner))
    assert [m for m in found if not m.passed] == []
    # tests/export/test_schedule_graphs.py compares those of schedules.
    graphs = {name for name in load_bundle(bundle_folder).spec.graphs if not name.startswith("schedule_")}
    assert {m.graph.split(",")[0] for m in found} == graphs
    assert {m.case for m in found} == {"image", "video", "two videos", "image + video", "text only"}
    velocities = [m for m in found if m.graph.startswith("transformer")]
    assert max(m.tolerance for m in velocities) <= 1e-4


def test_the_cases_are_none_that_an_export_was_traced_with() -> None:
    grids = {grid for case in CASES for grid in [*case.clips, case.target]}
    assert not {(h, w) for _, h, w in grids} & {(EXAMPLE_AXES["h"], EXAMPLE_AXES["w"])}


@pytest.mark.parametrize(
    ("part", "weight", "graph"),
    [
        ("transformer", "blocks.1.attention.k_norm", "transformer"),
        ("vae", "decoder.conv_out.weight", "vae_decoder_first"),
        ("vae", "encoder.conv_in.weight", "vae_encoder_first"),
        ("text_encoder", "encoder.final_layer_norm.weight", "text_encoder"),
    ],
)
def test_another_weight_is_seen_in_its_graph(
    bundle_folder: Path, checkpoint_folder: Path, runner: Runner, part: str, weight: str, graph: str
) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    with torch.no_grad():
        getattr(checkpoint, part).get_parameter(weight).mul_(1.05)
    found = list(compare_graphs(load_bundle(bundle_folder), checkpoint, runner, CASES[:1]))
    broken = {m.graph for m in found if not m.passed}
    assert graph in broken
    # Each graph gets the reference's inputs: an error stays where it is made.
    assert {name.split("_")[0].split(",")[0] for name in broken} == {graph.split("_")[0]}


def test_a_whole_edit_equals_the_reference(bundle_folder: Path, checkpoint: Checkpoint) -> None:
    whole = compare_edit(bundle_folder, checkpoint)
    assert whole.shape == (9, 64, 64, 3)
    assert whole.passed
    assert whole.tolerance <= 1e-3


def test_another_weight_is_seen_in_a_whole_edit(bundle_folder: Path, checkpoint_folder: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    with torch.no_grad():
        checkpoint.transformer.patch_out.weight.mul_(1.05)
    assert not compare_edit(bundle_folder, checkpoint).passed


def test_a_dtype_without_tolerances_is_refused(
    bundle_folder: Path, checkpoint: Checkpoint, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "TOLERANCES", {"bfloat16": measurements.TOLERANCES["float32"]})
    with pytest.raises(ValueError, match="computes in float32; tolerances are known for bfloat16"):
        list(compare_graphs(load_bundle(bundle_folder), checkpoint, runner))


def test_the_table_shows_the_worst_of_a_case_and_marks_a_failure() -> None:
    table = format_table(
        [
            Measurement("a", "one", (1,), 1e-7, 2e-7, 1e-4),
            Measurement("a", "one", (1,), 5e-3, 4e-3, 1e-4),
            Measurement("b", "two", (1,), 0.0, 0.0, 1e-6),
        ]
    )
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "5.0e-03 / 4.0e-03 FAILED" in lines[2]
    assert "2.0e-07" not in table
    assert lines[3].count("FAILED") == 0


def test_a_clip_is_seeded_and_moves() -> None:
    clip = make_clip(3, 32, 48, seed=1)
    assert clip.shape == (3, 32, 48, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, make_clip(3, 32, 48, seed=1))
    assert (clip[0] != clip[2]).mean() > 0.5


@pytest.mark.parametrize(("relative", "code"), [(0.0, 0), (1.0, 1)])
def test_the_exit_code_says_whether_a_tolerance_is_broken(
    bundle_folder: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], relative: float, code: int,
) -> None:  # fmt: skip
    measurement = Measurement("transformer", "video", (1,), 0.0, relative, 1e-4)
    monkeypatch.setattr(compare, "compare_graphs", lambda *_: [measurement])
    monkeypatch.setattr("sys.argv", ["compare", str(bundle_folder), str(checkpoint_folder), "--skip-edit"])
    if code == 0:
        compare.main()
    else:
        with pytest.raises(SystemExit) as stop:
            compare.main()
        assert stop.value.code == code
    said = capsys.readouterr()
    assert ("beyond the tolerance: transformer (video)" in said.err) == (code == 1)
    assert "schedule_euler, schedule_ab2; see tests/export/test_schedule_graphs.py" in said.out


def test_the_command_says_what_is_wrong(
    tmp_path: Path,
    checkpoint_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "nowhere"), str(checkpoint_folder)])
    with pytest.raises(SystemExit) as stop:
        compare.main()
    assert stop.value.code == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.fixture
def merged_folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle that says it was exported with an adapter at half its strength, in the expert for low noise."""
    adapter = tmp_path / "fast.safetensors"
    adapter.write_bytes(b"an adapter")
    shutil.copytree(bundle_folder, tmp_path / "merged")
    spec = load_bundle(bundle_folder).spec
    note = {"file": adapter.name, "sha256": hash_file(adapter), "scale": 0.5, "expert": 1}
    write_bundle_json(tmp_path / "merged", replace(spec, name="merged", made={**spec.made, "loras": [note]}))
    return tmp_path / "merged"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            [],
            r"given are none; .* bundle \"merged\" .* fast.safetensors:0.5@low \(sha256 [0-9a-f]{12}\)",
        ),
        (["fast.safetensors:0.75@low"], "given are fast.safetensors:0.75@low .* with --lora FILE"),
        (
            ["fast.safetensors:0.5@high"],
            "given are fast.safetensors:0.5@high .* expected .* fast.safetensors:0.5@low",
        ),
        (["other.safetensors:0.5@low"], "given are other.safetensors:0.5@low"),
        (["fast.safetensors:0.5@low"] * 2, "given are fast.safetensors:0.5@low .*, fast.safetensors:0.5@low"),
        (["absent.safetensors"], "absent.safetensors"),
    ],
)
def test_a_bundle_with_adapters_is_held_to_the_checkpoint_with_the_same(
    given: list[str],
    said: str,
    merged_folder: Path,
    checkpoint_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Refused before the checkpoint is read, and no report says that its parity failed."""
    (merged_folder.parent / "other.safetensors").write_bytes(b"another adapter")
    monkeypatch.setattr(compare, "load_any_checkpoint", lambda *_, **__: pytest.fail("it was read"))
    loras = [word for text in given for word in ("--lora", str(merged_folder.parent / text))]
    argv = ["compare", str(merged_folder), str(checkpoint_folder), "--write", *loras]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as stop:
        compare.main()
    assert stop.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert "parity" not in load_bundle(merged_folder).spec.quality


def test_the_adapters_of_the_export_are_merged_for_the_comparison(
    merged_folder: Path, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch, bundle_folder: Path
) -> None:
    merged: list[Lora] = []

    def load(folder: Path, *, dtype: torch.dtype, loras: list[Lora]) -> Checkpoint:
        assert dtype == torch.float32
        merged.extend(loras)
        return load_checkpoint(folder)

    monkeypatch.setattr(compare, "load_any_checkpoint", load)
    monkeypatch.setattr(compare, "compare_graphs", lambda *_: [])
    renamed = (merged_folder.parent / "fast.safetensors").rename(merged_folder.parent / "renamed.safetensors")
    argv = ["compare", str(merged_folder), str(checkpoint_folder), "--skip-edit"]
    monkeypatch.setattr("sys.argv", [*argv, "--lora", f"{renamed}:0.5@low"])
    compare.main()
    assert merged == [Lora(renamed, 0.5, 1)]
    # A bundle without adapters takes none.
    monkeypatch.setattr(
        "sys.argv", ["compare", str(bundle_folder), str(checkpoint_folder), "--lora", str(renamed)]
    )
    with pytest.raises(SystemExit) as stop:
        compare.main()
    assert stop.value.code == 2


@pytest.mark.parametrize(("dtype", "tolerance", "levels"), [("float32", 1e-4, 1), ("float16", 5e-3, 2)])
def test_a_request_is_held_to_the_widest_of_its_graphs(
    dtype: str, tolerance: float, levels: int, bundle_folder: Path
) -> None:
    bundle = load_bundle(bundle_folder)
    can = replace(bundle.spec.capabilities, dtype=dtype)
    measure = measurements.measure_against(Bundle(bundle.root, replace(bundle.spec, capabilities=can)))
    patches = np.ones(10_000, np.float32)
    for error, passed in ((0.9, True), (1.1, False)):
        found = patches * np.float32(1 + error * tolerance)
        assert measure("request, patches", "clip", found, patches).passed is passed
    frames = np.full((1, 100, 100, 3), 100, np.uint8)
    for difference, passed in ((levels, True), (levels + 1, False)):
        found = measure("whole request, 6 steps", "clip", frames + np.uint8(difference), frames)
        assert (found.passed, found.grey_levels) == (passed, levels)
    # Frames of a graph alone are float32 whatever the transformer is.
    assert not measure("vae_decoder_first", "clip", frames + np.uint8(2), frames).passed


def test_a_report_is_kept_in_the_bundle_and_shown(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    found = [
        Measurement("transformer", "video", (1,), 0.5, 2e-7, 1e-4),
        Measurement("transformer", "image", (1,), 0.25, 1e-7, 1e-4),
        Measurement("whole edit, 4 steps", "video", (1,), 1.0, 0.0, 1e-3),
    ]
    write_report(load_bundle(folder), found, "ort-cpu")
    quality = load_bundle(folder).spec.quality
    assert quality["success_rate"] == 0.5  # what was there stays
    parity = quality["parity"]
    assert isinstance(parity, dict)
    assert parity["passed"] is True
    assert parity["stages"]["transformer"] == {"relative": 2e-7, "largest": 0.5, "tolerance": 1e-4}
    assert main(["info", str(folder)]) == 0
    assert (
        "parity       2 stages within their tolerances of PyTorch, float32, on ort-cpu"
        in capsys.readouterr().out
    )
    write_report(load_bundle(folder), [Measurement("transformer", "video", (1,), 9.0, 1.0, 1e-4)], "ort-cpu")
    assert main(["info", str(folder)]) == 0
    assert "parity       beyond its tolerance on ort-cpu: transformer" in capsys.readouterr().out
