"""Matrices in 8 bits by blocks: the error that eight bits have, and graphs that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.errors import RequestError
from export.blocks import round_blocks, round_matrix
from export.measurements import measure_against
from export.standard import load_standard

# Weights are off by up to 1/254 of their block's largest value, and activations as much; 0.9 % was measured.
TOLERANCE = 0.02


def model_of(matrix: np.ndarray, kind: int = TensorProto.FLOAT) -> ir.Model:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["x", "w"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        "g",
        [info("x", kind, ["L", matrix.shape[0]])],
        [info("y", kind, ["L", matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "w")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


@pytest.mark.parametrize("rows", [64, 80])
def test_a_product_by_blocks_is_near(rows: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(rows, 48)).astype(np.float32)
    matrix[:32] *= 100  # a block of another size takes a scale of its own
    x = rng.normal(size=(7, rows)).astype(np.float32)
    model = model_of(matrix)
    assert round_blocks(model) == 2
    assert sorted(model.graph.initializers) == ["w.int8", "w.scale"]  # one copy for both products
    ir.save(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    expected = 2 * x.astype(np.float64) @ matrix.astype(np.float64)
    error = np.linalg.norm(session.run(None, {"x": x})[0] - expected) / np.linalg.norm(expected)
    assert 0 < error < TOLERANCE


def test_blocks_run_along_the_sum_and_are_padded() -> None:
    matrix = np.zeros((40, 2), np.float32)
    matrix[3, 0], matrix[35, 1] = 127.0, -254.0
    integers, scales = round_matrix(matrix)
    assert integers.shape == (2, 2, 32)
    assert integers[0, 0, 3] == 255
    assert integers[1, 1, 3] == 1
    assert (integers == 128).sum() == integers.size - 2
    np.testing.assert_allclose(scales[[0, 3]], [1.0, 2.0])


def test_another_dtype_and_a_graph_without_products_are_refused() -> None:
    matrix = np.ones((32, 32), np.float16)
    with pytest.raises(ValueError, match="export the text encoder in float32"):
        round_blocks(model_of(matrix, TensorProto.FLOAT16))


def test_a_text_encoder_that_is_float32_in_part_is_refused_whole() -> None:
    """transformers keeps the matrices `wo` of a T5 in float32 when the others are in float16."""
    info, float16, float32 = helper.make_tensor_value_info, TensorProto.FLOAT16, TensorProto.FLOAT
    matrix = np.ones((32, 32), np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=float32),
        helper.make_node("MatMul", ["wide", "wo"], ["a"]),
        helper.make_node("Cast", ["a"], ["narrow"], to=float16),
        helper.make_node("MatMul", ["narrow", "wi"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(matrix, "wo"),
        numpy_helper.from_array(matrix.astype(np.float16), "wi"),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x", float16, ["L", 32])], [info("y", float16, ["L", 32])], weights
    )
    model = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    )
    with pytest.raises(
        ValueError, match=r"the matrix wi is FLOAT16; expected float32, .* text encoder in float32"
    ):
        round_blocks(model)
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "Cast", "MatMul"]


def test_plans_are_not_built_of_such_a_bundle(bundle_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    model = ir.load(bundle.graph_path("text_encoder"))
    round_blocks(model)
    ir.save(model, bundle.graph_path("text_encoder"))
    with pytest.raises(RequestError, match=r"only ONNX Runtime reads; export .* without --text-encoder-bits"):
        load_standard(bundle, "text_encoder")
    load_standard(bundle, "solver_step")
    # Nor is its error held to that of float32.
    measured = measure_against(bundle)("text_encoder", "clip", np.float32([1.03]), np.float32([1.0]))
    assert measured.passed
    assert not measure_against(load_bundle(bundle_folder))(
        "text_encoder", "clip", np.float32([1.03]), np.float32([1.0])
    ).passed
