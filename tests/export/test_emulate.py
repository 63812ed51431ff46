"""A bundle that rounds as plans would: what it holds, that it runs, and what is said of held-out edits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.errors import RequestError
from editverse_rt.pipeline import Pipeline
from export import emulate
from export.emulate import emulate_bundle, main, score_rounding
from export.precision_error import sample_inputs
from reference.nano.heldout import heldout_samples

ROUNDED = {"transformer": "bf16", "text_encoder": "bf16"}


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return load_bundle(bundle_folder)


@pytest.fixture(scope="module")
def emulated(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return emulate_bundle(bundle, ROUNDED, tmp_path_factory.mktemp("emulated") / "tiny")


def run(bundle: Bundle, graph: str, inputs: dict[str, Any]) -> np.ndarray:
    with Pipeline.open(bundle.root, "ort-cpu") as pipeline:
        outputs = pipeline.run_graph(graph, **inputs)
    return next(iter(outputs.values()))


def test_named_graphs_round_and_the_others_do_not(bundle: Bundle, emulated: Bundle) -> None:
    assert emulated.spec.capabilities.emulates == ROUNDED
    assert emulated.spec.quality == {}
    for graph in ("transformer", "text_encoder", "solver_step", "vae_decoder_first"):
        inputs = sample_inputs(bundle, graph)
        exact, found = (run(b, graph, inputs).astype(np.float64) for b in (bundle, emulated))
        error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
        if graph in ROUNDED:
            # bfloat16 keeps 8 bits: a rounding is up to 0.4 %, and there are many.
            assert 1e-3 < error < 0.06
        else:
            assert error < 1e-6


def test_the_rounded_graph_holds_only_bfloat16_values(emulated: Bundle) -> None:
    model = ir.load(emulated.graph_path("transformer"))
    names = [str(node.attributes["to"].as_int()) for node in model.graph if node.op_type == "Cast"]
    assert str(ir.DataType.BFLOAT16.value) in names
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    matrices = [w.numpy() for w in weights if w.dtype == ir.DataType.FLOAT and len(w.shape) == 2]
    low = ir.DataType.BFLOAT16.numpy()
    assert sum(np.array_equal(m.astype(low).astype(np.float32), m) for m in matrices) > len(matrices) / 2


def test_a_bundle_for_the_plugin_is_emulated_too(
    plugin_bundle: Bundle, emulated: Bundle, tmp_path: Path
) -> None:
    found = emulate_bundle(plugin_bundle, ROUNDED, tmp_path / "tiny")
    inputs = sample_inputs(plugin_bundle, "transformer")
    # The same operators in the same order, whichever lowering they came from.
    np.testing.assert_allclose(
        run(found, "transformer", inputs), run(emulated, "transformer", inputs), atol=0.05
    )


def test_what_cannot_be_emulated_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    can = replace(bundle.spec.capabilities, dtype="bfloat16")
    narrow = Bundle(bundle.root, replace(bundle.spec, capabilities=can))
    with pytest.raises(RequestError, match="is bfloat16; export it in float32"):
        emulate_bundle(narrow, ROUNDED, tmp_path / "new")
    (tmp_path / "file").write_text("here")
    with pytest.raises(RequestError, match="is a folder that is not empty"):
        emulate_bundle(bundle, ROUNDED, tmp_path)


def test_held_out_edits_are_scored_in_both(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    few = list(heldout_samples(1))[:3]
    monkeypatch.setattr(emulate, "heldout_samples", lambda per_kind: iter(few[:per_kind]))
    found: Any = score_rounding(bundle, ROUNDED, 2, num_inference_steps=1)
    assert found["precisions"] == ROUNDED
    assert found["num_inference_steps"] == 1
    assert found["float32"]["edits"] == found["rounded"]["edits"] == 2
    assert 15 < found["psnr_db"]["least"] <= found["psnr_db"]["tenth"] <= found["psnr_db"]["median"] <= 99
    exact: Any = score_rounding(bundle, {}, 1, num_inference_steps=1)
    assert exact["psnr_db"]["least"] == 99.0


def test_the_command_line(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(bundle.root), str(out), "--target", "l4"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    emulates = load_bundle(out).spec.capabilities.emulates
    assert (emulates["transformer"], emulates["vae_decoder_next"], emulates["solver_step"]) == (
        "bf16",
        "fp32",
        "fp32",
    )
    for argv, said in (
        ([str(bundle.root), str(out), "--target", "l4"], "not empty"),
        (["absent", str(tmp_path / "a"), "--target", "l4"], "no such folder"),
        ([str(bundle.root), str(tmp_path / "b"), "--target", "rtx490"], "did you mean rtx4090"),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
