"""Products in integers: near the model's, as far as eight bits are, and a bundle that says so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from editverse_rt.bundle.manifest import load_bundle, write_bundle_json
from editverse_rt.engines.manifest import ENGINES_FOLDER
from editverse_rt.errors import RequestError
from editverse_rt.pipeline import Pipeline
from editverse_rt.planning.costs import weight_bytes
from editverse_rt.planning.planner import CPU_PRECISION
from export.integers import quantize_bundle, quantize_products, round_columns
from export.standard import load_standard

# Weights are off by up to 1/254 of their column's largest, 3 times the typical one; activations by 1/510 of
# their tensor's range, which is 6 times.
PRODUCT_TOLERANCE = 0.02


def model_of(weight: np.ndarray, *, is_half: bool = False, **attributes: object) -> ir.Model:
    stored = weight.astype(np.float16) if is_half else weight
    name = "model.blocks.0.up.weight"
    # Its result stays inside, as a block's does.
    nodes = [
        helper.make_node("Gemm", ["x", name], ["inside"], **({"transB": 1} | attributes)),
        helper.make_node("Identity", ["inside"], ["y"]),
    ]
    if is_half:
        nodes.insert(0, helper.make_node("Cast", [f"{name}.float16"], [name], to=TensorProto.FLOAT))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["L", 64])],
        [info("y", TensorProto.FLOAT, ["L", weight.shape[0]])],
        [numpy_helper.from_array(stored, f"{name}.float16" if is_half else name)],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


@pytest.mark.parametrize("is_half", [False, True])
def test_a_product_in_integers_is_near(is_half: bool, tmp_path: Path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(96, 64)).astype(np.float16).astype(np.float32)
    weight[3] *= 100  # A column of another size takes a scale of its own.
    x = rng.normal(size=(7, 64)).astype(np.float32)
    model = model_of(weight, is_half=is_half)
    assert quantize_products(model) == 1
    ir.save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the runtime, where it is needed
    found = ort.InferenceSession(str(tmp_path / "m.onnx"), options).run(None, {"x": x})[0]
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    # Against the size that a column's results have, not against those that happen to cancel.
    size = np.sqrt(len(x)) * np.linalg.norm(weight, axis=1)
    errors = np.linalg.norm(found - expected, axis=0) / size
    assert 0 < errors.max() < PRODUCT_TOLERANCE
    assert sorted(model.graph.initializers) == [
        f"model.blocks.0.up.weight.{kind}" for kind in ("int8", "scale")
    ]


def test_columns_are_rounded_to_their_own_scale():
    weight = np.array([[1.0, -127.0], [0.5, 0.25], [0.0, 0.0]], np.float32)
    quantized, scales = round_columns(weight)
    assert quantized.dtype == np.int8
    assert quantized.tolist() == [[1, 127, 0], [-127, 64, 0]]
    assert scales.tolist()[:2] == [1.0, np.float32(0.5 / 127)]


@pytest.mark.parametrize("attributes", [{"transB": 0}, {"alpha": 2.0}, {"transA": 1}])
def test_other_products_are_left_and_none_at_all_is_refused(attributes: dict):
    with pytest.raises(ValueError, match="no product whose weight's name has"):
        quantize_products(model_of(np.ones((64, 64), np.float32), **attributes))


def test_a_bundle_in_integers_edits_and_says_what_it_is(tmp_path: Path):
    folder = quantize_bundle("nano", tmp_path / "nano-int8")
    spec, exact = load_bundle(folder).spec, load_bundle("nano").spec
    assert spec.capabilities.weights == "int8"
    assert (spec.name, spec.quality) == ("nano-int8", {})
    assert spec.schedules == exact.schedules
    # The weights are counted as they are held, and only they.
    stored = spec.costs["transformer"].pop("weight_bytes")["1"]
    assert spec.costs == exact.costs
    parameters = exact.model["parameters"]["transformer"]  # type: ignore[index]
    assert 1.0 * parameters < stored < 2.0 * parameters
    held, wide = (weight_bytes(s, CPU_PRECISION)["transformer"] for s in (load_bundle(folder).spec, exact))
    assert (held, wide) == (stored, 4 * parameters)
    transformers = [next(f for f in s.files if f.path == "transformer.onnx").num_bytes for s in (spec, exact)]
    assert transformers[0] < transformers[1]
    frames = []
    for bundle, threads in ((folder, 1), (folder, 2), ("nano", 1)):
        with Pipeline.open(bundle, "ort-cpu", num_threads=threads) as pipeline:
            frames.append(pipeline("A red circle", num_inference_steps=1, num_frames=1).frames.astype(int))
    assert np.array_equal(frames[0], frames[1]), "threads change no byte"
    assert 0 < np.abs(frames[0] - frames[2]).mean() < 16
    with pytest.raises(RequestError, match="multiplies in 8-bit integers"):
        load_standard(load_bundle(folder), "transformer")


def test_plans_of_the_exact_bundle_do_not_come_along(tmp_path: Path):
    source = tmp_path / "costed"
    shutil.copytree(load_bundle("nano").root, source)
    (source / ENGINES_FOLDER / "sm_80" / "tensorrt").mkdir(parents=True)
    folder = quantize_bundle(source, tmp_path / "int8")
    assert (folder / "heldout.npz").is_file()
    assert not (folder / ENGINES_FOLDER).exists()


def test_what_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="is there; give another path"):
        quantize_bundle("nano", tmp_path / "there")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_bundle_in_16_bits_is_refused_before_anything_is_written(dtype: str, tmp_path: Path):
    """The checker takes an integer product of 16-bit values, and ONNX Runtime does not open it."""
    nano = load_bundle("nano")
    shutil.copytree(nano.root, tmp_path / "narrow")
    can = replace(nano.spec.capabilities, dtype=dtype)
    write_bundle_json(tmp_path / "narrow", replace(nano.spec, capabilities=can))
    with pytest.raises(
        ValueError, match=f"narrow computes in {dtype}, .*; expected float32: .* --dtype float32"
    ):
        quantize_bundle(tmp_path / "narrow", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["narrow"]


def test_a_bias_is_added_after_the_product(tmp_path: Path):
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(96, 64)).astype(np.float32), np.full(96, 50.0, np.float32)
    model = model_of(weight)
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    added = ir.Value(name="bias", const_value=ir.tensor(bias, name="bias"))
    model.graph.register_initializer(added)
    gemm.resize_inputs(3)
    gemm.replace_input_with(2, added)
    assert quantize_products(model) == 1
    ir.save(model, tmp_path / "m.onnx")
    x = rng.normal(size=(7, 64)).astype(np.float32)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    found = ort.InferenceSession(str(tmp_path / "m.onnx"), options).run(None, {"x": x})[0]
    assert np.abs(found - bias - x @ weight.T).max() < PRODUCT_TOLERANCE * np.linalg.norm(x @ weight.T)
    assert found.mean() == pytest.approx(50, abs=1)
