"""Gathered modulation: the same bytes as the choice value by value, and other Wheres left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from export.modulation import gather_modulation


def model_of(mask_shape: list, row_shape: list) -> ir.Model:
    """x * (1 + where(mask, a, b)) + where(mask, b, a)."""
    nodes = [
        helper.make_node("Where", ["mask", "a", "b"], ["scale"], name="first"),
        helper.make_node("Where", ["mask", "b", "a"], ["shift"], name="second"),
        helper.make_node("Add", ["scale", "one"], ["scale_1"]),
        helper.make_node("Mul", ["x", "scale_1"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [
            info("x", TensorProto.FLOAT, ["L", 8]),
            info("mask", TensorProto.BOOL, mask_shape),
            info("a", TensorProto.FLOAT, row_shape),
            info("b", TensorProto.FLOAT, row_shape),
        ],
        [info("y", TensorProto.FLOAT, ["L", 8])],
        [numpy_helper.from_array(np.array(1.0, np.float32), "one")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def run(model: ir.Model, path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    ir.save(model, path)
    onnx.checker.check_model(path)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def test_gathered_rows_are_the_chosen_ones_to_the_last_bit(tmp_path: Path):
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.normal(size=(11, 8)).astype(np.float32),
        "mask": (rng.random((11, 1)) < 0.5),
        "a": rng.normal(size=(1, 8)).astype(np.float32),
        "b": rng.normal(size=(1, 8)).astype(np.float32),
    }
    model = model_of(["L", 1], [1, 8])
    expected = run(model, tmp_path / "before.onnx", inputs)
    assert gather_modulation(model) == 2
    found = run(model, tmp_path / "after.onnx", inputs)
    assert found.tobytes() == expected.tobytes()
    counts = [node.op_type for node in model.graph]
    assert "Where" not in counts
    # The 1 is added to two rows; the mask becomes an index once.
    assert (counts.count("Gather"), counts.count("Cast"), counts.count("Concat")) == (2, 1, 2)


def test_other_choices_are_left_alone():
    assert gather_modulation(model_of(["L", 8], [1, 8])) == 0
    assert gather_modulation(model_of(["L", 1], ["L", 8])) == 0


def test_the_exported_transformer_gathers_from_its_modulation(bundle_folder: Path):
    """Six gathers a block, each from a column of the block's modulation; no row is cut out by itself."""
    nodes = onnx.load(bundle_folder / "transformer.onnx").graph.node
    counts = Counter(node.op_type for node in nodes)
    blocks = sum(node.op_type == "RopeAttention" for node in nodes)
    assert blocks == 2
    assert counts["Where"] == 0
    assert counts["Gather"] == 2 * 6 * blocks
    # A handful as it is, of the whole sequence's rows.
    assert counts["Slice"] + counts["Squeeze"] < 6 * blocks
