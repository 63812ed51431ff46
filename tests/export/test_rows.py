"""Cutting rows early: the same bytes from fewer rows, and graphs that need them all left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import lower
from export.attention_nodes import OP_TYPE
from export.export_onnx import export_graph
from export.families import build_graphs, family_export
from export.rows import cut_rows_early
from reference.checkpoint import Checkpoint

WIDTH = 4


def weight(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def number(name: str, value: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([value], np.int64), name)


def model_of(nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    """A graph of x, other float32 [L, 4], which int64 [L] and begin, end int64 [1], shapes inferred."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [
            info("x", TensorProto.FLOAT, ["L", WIDTH]),
            info("other", TensorProto.FLOAT, ["L", WIDTH]),
            info("which", TensorProto.INT64, ["L"]),
            info("begin", TensorProto.INT64, [1]),
            info("end", TensorProto.INT64, [1]),
        ],
        [info(name, TensorProto.FLOAT, [None, WIDTH]) for name in outputs],
        [
            weight("w", WIDTH, WIDTH),
            weight("scale", WIDTH),
            weight("table", 2, WIDTH),
            number("rows", 0),
            number("columns", 1),
            number("one", 1),
            number("two", 2),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def node(op_type: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], **attributes)


def cut(source: str, output: str, axis: str = "rows", step: str = "one") -> list[onnx.NodeProto]:
    """The rows from begin to end, behind an operator that only they have."""
    return [
        node("Slice", [source, "begin", "end", axis, step], f"{output}.cut"),
        node("Neg", [f"{output}.cut"], output),
    ]


def inputs_of(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "x": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "other": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "which": rng.integers(0, 2, rows),
        "begin": np.array([rows // 3]),
        "end": np.array([rows - 1]),
    }


def run(model: ir.Model, path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    names = {value.name for value in model.graph.inputs}
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value for name, value in inputs.items() if name in names})


ROW_BY_ROW = [
    node("Gather", ["table", "which"], "gate", axis=0),
    node("RMSNormalization", ["x", "scale"], "normed", axis=-1),
    node("Mul", ["normed", "gate"], "gated"),
    node("Gemm", ["gated", "w"], "product", transB=1),
    node("Sigmoid", ["product"], "open"),
    node("Add", ["open", "other"], "sum"),
    node("Sub", ["sum", "scale"], "end_of_it"),
]


def test_what_works_row_by_row_sees_the_rows_that_are_read(tmp_path: Path):
    nodes = [*ROW_BY_ROW, *cut("end_of_it", "y")]
    before, after = model_of(nodes), model_of(nodes)
    assert cut_rows_early(after) == len(ROW_BY_ROW)
    for rows in (5, 12, 31):
        inputs = inputs_of(rows)
        (expected,) = run(before, tmp_path / "before.onnx", inputs)
        (found,) = run(after, tmp_path / "after.onnx", inputs)
        assert len(found) == rows - 1 - rows // 3
        assert found.tobytes() == expected.tobytes()
    # What flows in is cut: two matrices and the indices; each once.
    cut_early = {n.inputs[0].name for n in after.graph if n.op_type == "Slice"}
    assert cut_early == {"x", "other", "which"}


def test_a_value_that_others_read_keeps_its_rows(tmp_path: Path):
    nodes = [*ROW_BY_ROW, *cut("end_of_it", "y"), node("Neg", ["product"], "z")]
    before, after = model_of(nodes, ("y", "z")), model_of(nodes, ("y", "z"))
    assert cut_rows_early(after) == 3  # Sigmoid, Add and Sub; the product is asked for whole
    inputs = inputs_of(11)
    found, expected = (run(m, tmp_path / "m.onnx", inputs) for m in (after, before))
    assert [x.tobytes() for x in found] == [x.tobytes() for x in expected]


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([node("Softmax", ["x"], "end_of_it", axis=0), *cut("end_of_it", "y")], id="all rows"),
        pytest.param([node("Neg", ["x"], "n"), *cut("n", "y", step="two")], id="every second row"),
        pytest.param([node("Add", ["x", "other"], "s"), *cut("s", "y", axis="columns")], id="columns"),
        pytest.param([node("Gemm", ["x", "x"], "s", transA=1), *cut("s", "y")], id="columns as rows"),
        pytest.param([node("Gemm", ["w", "w", "x"], "s"), *cut("s", "y")], id="a bias of all rows"),
    ],
)
def test_what_needs_other_rows_is_left_alone(nodes: list[onnx.NodeProto]):
    model = model_of(nodes)
    names = [n.op_type for n in model.graph]
    assert cut_rows_early(model) == 0
    assert [n.op_type for n in model.graph] == names


@pytest.mark.parametrize("lowering", lower.lowerings)
def test_the_last_block_of_a_transformer_has_the_noisy_rows_alone(
    checkpoint: Checkpoint, lowering: lower.Lowering
):
    """Of seven products of the last block, k and v see all rows; with the plugin q, too."""
    model = export_graph(build_graphs(checkpoint)["transformer"], family_export(checkpoint).rope, lowering)
    last = f".blocks.{checkpoint.transformer.config.num_blocks - 1}."
    products = {
        n.inputs[1].name.rsplit(".", 2)[-2]: n.inputs[0].name
        for n in model.graph
        if n.op_type == "Gemm" and last in str(n.inputs[1].name)
    }
    attention = [n for n in model.graph if n.op_type == OP_TYPE][-1]
    assert len(products) == 7
    assert products["to_k"] == products["to_v"]
    assert (products["to_q"] == products["to_k"]) == (lowering == "plugin")
    if lowering == "plugin":
        assert [v.name for v in attention.inputs][-1] == "positions"
    else:
        q_cos, q_sin, k_cos, k_sin = (v.name for v in attention.inputs[-4:])
        assert (k_cos, k_sin) == ("rope_cos", "rope_sin")
        assert (q_cos, q_sin) == ("rope_cos.rows", "rope_sin.rows")
