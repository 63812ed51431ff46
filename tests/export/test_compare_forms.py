"""Every form of a transformer against the PyTorch reference, and a comparison that can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.compare_forms import FORMS, Measured, compare_forms, format_forms
from reference.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forms")


@pytest.fixture(scope="module")
def measured(checkpoint: Checkpoint, folder: Path) -> list[Measured]:
    return list(compare_forms(checkpoint, folder))


def test_every_form_is_measured_and_within_its_tolerance(measured: list[Measured]) -> None:
    assert {m.form for m in measured} == set(FORMS)
    assert all(m.passed for m in measured), format_forms({"tiny": measured})


def test_the_files_of_the_forms_are_kept_for_other_tools(folder: Path, measured: list[Measured]) -> None:
    assert measured
    kept = sorted(path.name for path in folder.glob("*.onnx"))
    with np.load(folder / "inputs.npz") as inputs:
        assert {"text", "clean", "noisy", "layout", "positions", "timestep"} == set(inputs.files)
    typed = ["inline_bf16_emulated.onnx", "inline_fp16.onnx", "inline_fp16_emulated.onnx"]
    assert kept == ["fused.onnx", "inline.onnx", *typed]


def test_shorter_types_are_further_off(measured: list[Measured]) -> None:
    error = {m.form: m.relative for m in measured}
    assert error["inline"] < error["inline, fp16 emulated"] < error["inline, bf16 emulated"]
    assert error["fused"] < error["inline, fp16"]


def test_the_reference_is_left_in_float32(checkpoint: Checkpoint, measured: list[Measured]) -> None:
    assert measured
    assert checkpoint.transformer.patch_in.weight.dtype == torch.float32


def test_the_table_shows_what_failed(measured: list[Measured]) -> None:
    broken = [Measured(m.form, 0.5, 1.0) if m.form == "fused" else m for m in measured]
    table = format_forms({"whole": measured, "broken": broken})
    assert table.count("FAILED") == 1
    assert table.splitlines()[0] == "| form | whole | broken | tolerance |"
    assert len(table.splitlines()) == 2 + len(FORMS)
