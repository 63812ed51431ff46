"""Weights in a file of their own, equal ones once; nothing of the tracing left in a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.weights import (
    MIN_MOVED_BYTES,
    count_weight_bytes,
    halve_exact_weights,
    move_weights_out,
    strip_traces,
)


def make_model(weights: dict[str, np.ndarray]) -> ir.Model:
    """y = x + the sum of the weights, each [64, 64]."""
    nodes, last = [], "x"
    for index, name in enumerate(weights):
        nodes.append(
            helper.make_node("Add", [last, name], [f"sum_{index}"], doc_string="from /some/where.py")
        )
        last = f"sum_{index}"
    nodes[-1].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /some/where.py")
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["rows", 64])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        value_info=[helper.make_tensor_value_info("sum_0", TensorProto.FLOAT, ["s77", 64])],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def make_weight(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)


def test_two_models_share_one_file_and_still_compute_the_same(tmp_path: Path) -> None:
    shared, own = make_weight(0), make_weight(1)
    small = np.full((1, 64), 0.5, np.float32)
    assert small.nbytes < MIN_MOVED_BYTES
    models = {"a": make_model({"w": shared, "s": small}), "b": make_model({"v": own, "u": shared})}
    assert count_weight_bytes(list(models.values())) == 3 * shared.nbytes + small.nbytes
    x = make_weight(2)
    path = tmp_path / "both.weights"
    move_weights_out(list(models.values()), path)
    # Both pages hold 16 KiB; the shared weight is there once.
    assert path.stat().st_size == 2 * shared.nbytes
    for name, expected in (("a", x + shared + small), ("b", x + own + shared)):
        ir.save(models[name], tmp_path / f"{name}.onnx")
        onnx.checker.check_model(tmp_path / f"{name}.onnx", full_check=True)
        session = ort.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6)
        assert (tmp_path / f"{name}.onnx").stat().st_size < 2000


def test_equal_bytes_of_another_dtype_are_read_as_what_they_are(tmp_path: Path) -> None:
    floats = np.ones((64, 64), np.float32)
    model = make_model({"w": floats})
    integers = ir.tensor(floats.view(np.int32), name="i")
    model.graph.register_initializer(ir.Value(name="i", const_value=integers, shape=integers.shape))
    move_weights_out([model], tmp_path / "x.weights")
    assert model.graph.initializers["i"].const_value.numpy().dtype == np.int32
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), floats)


@pytest.mark.parametrize("kept", ["", "Add"])
def test_traces_are_gone_and_edges_stay(kept: str) -> None:
    model = make_model({"w": make_weight(0), "v": make_weight(1)})
    model.metadata_props["made_in"] = "/some/where"
    strip_traces(model, keep_shapes_of=kept)
    proto = ir.to_proto(model)
    data = proto.SerializeToString()
    assert b"/some/where" not in data
    assert b"s77" not in data
    assert [axis.dim_param for axis in proto.graph.input[0].type.tensor_type.shape.dim] == ["rows", ""]
    assert [value.name for value in proto.graph.value_info] == (["sum_0"] if kept else [])
    assert [node.name for node in proto.graph.node] == ["Add_0", "Add_1"]


def test_what_float16_holds_exactly_is_stored_in_half_the_bytes(tmp_path: Path) -> None:
    exact = make_weight(0).astype(np.float16).astype(np.float32)
    inexact, huge = make_weight(1), make_weight(2) * np.float32(1e6)
    x = make_weight(3)
    before = make_model({"e": exact, "i": inexact, "h": huge})
    ir.save(before, tmp_path / "before.onnx")
    model = make_model({"e": exact, "i": inexact, "h": huge})
    assert halve_exact_weights(model) == 1
    assert count_weight_bytes([model]) == exact.nbytes // 2 + inexact.nbytes + huge.nbytes
    move_weights_out([model], tmp_path / "w.weights")
    ir.save(model, tmp_path / "after.onnx")
    onnx.checker.check_model(tmp_path / "after.onnx", full_check=True)
    results = [
        ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("before.onnx", "after.onnx")
    ]
    np.testing.assert_array_equal(*results)
