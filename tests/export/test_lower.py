"""The lowerings of RopeAttention against the reference's function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export import lower
from export.attention_nodes import DOMAIN, INPUTS, OP_TYPE, attention_as_nodes
from reference.families import editverse
from reference.families.editverse import TransformerConfig

# float32 on both sides, another order of the sums.
TOLERANCE = 1e-5

CONFIG = TransformerConfig(
    width=64, num_blocks=1, num_heads=2, head_dim=32, mlp_width=64, time_width=32, patch_dim=64, text_dim=32,
    axis_dims=(4, 4, 12, 12), rope_theta=1000.0, norm_eps=1e-5,
)  # fmt: skip


def build_model(
    config: TransformerConfig, lowering: lower.Lowering, dtype: int = TensorProto.FLOAT, num_nodes: int = 1
) -> onnx.ModelProto:
    """RopeAttention nodes one after the other, each mixing the one before; the tensors are the inputs."""
    inner = config.num_heads * config.head_dim
    shapes: dict[str, list[int | str]] = {name: ["L", inner] for name in ("q", "k", "v")}
    shapes |= {"q_norm": [config.head_dim], "k_norm": [config.head_dim]}
    nodes, mixing = [], ["q", "k", "v"]
    for index in range(num_nodes):
        mixed = "mixed" if index == num_nodes - 1 else f"mixed_{index}"
        node = helper.make_node(
            OP_TYPE,
            [*mixing, "q_norm", "k_norm", "positions"],
            [mixed],
            domain=DOMAIN,
            num_heads=config.num_heads,
            axis_dims=list(config.axis_dims),
            axis_thetas=list(config.axis_thetas),
            epsilon=config.norm_eps,
        )
        nodes.append(node)
        mixing = [mixed] * 3
    graph = helper.make_graph(
        nodes,
        "nodes",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()]
        + [helper.make_tensor_value_info("positions", TensorProto.INT64, ["L", 4])],
        [helper.make_tensor_value_info("mixed", dtype, ["L", inner])],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    lower.lower_attention(model, lower.rope_config(config), lowering)
    return ir.to_proto(model)


def random_inputs(config: TransformerConfig, length: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inner = config.num_heads * config.head_dim
    inputs = {name: torch.randn((length, inner), generator=generator) for name in ("q", "k", "v")}
    inputs |= {
        name: 1 + 0.3 * torch.randn((config.head_dim,), generator=generator) for name in ("q_norm", "k_norm")
    }
    inputs["positions"] = torch.randint(0, 300, (length, 4), generator=generator)
    return inputs


def run_reference(config: TransformerConfig, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    mixed = editverse.rope_attention(
        *inputs.values(),
        num_heads=config.num_heads,
        axis_dims=config.axis_dims,
        axis_thetas=config.axis_thetas,
        eps=config.norm_eps,
    )
    return mixed.numpy()


def run_model(model: onnx.ModelProto, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


@pytest.fixture(scope="module", params=["inline", "fused"])
def session(request: pytest.FixtureRequest) -> ort.InferenceSession:
    model = build_model(CONFIG, request.param)
    onnx.checker.check_model(model)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 70), seed=st.integers(0, 1000))
def test_lowerings_equal_the_reference(session: ort.InferenceSession, length: int, seed: int) -> None:
    inputs = random_inputs(CONFIG, length, seed)
    (mixed,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(mixed, run_reference(CONFIG, inputs), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("lowering", ["inline", "fused"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 3},
        {"head_dim": 64, "axis_dims": (12, 8, 22, 22)},
        {"head_dim": 128, "axis_dims": (12, 4, 56, 56), "rope_theta": 10000.0},
        {"ntk_factors": (1.0, 1.0, 4.0, 2.0)},
        {"norm_eps": 0.5},
    ],
)
def test_lowerings_follow_the_config(lowering: lower.Lowering, changes: dict[str, object]) -> None:
    config = replace(CONFIG, **changes)
    inputs = random_inputs(config, 33, seed=5)
    expected = run_reference(config, inputs)
    np.testing.assert_allclose(
        run_model(build_model(config, lowering), inputs), expected, atol=TOLERANCE, rtol=TOLERANCE
    )
    if "num_heads" not in changes and "head_dim" not in changes:
        # The change is one that the numbers show.
        assert np.abs(run_model(build_model(CONFIG, lowering), inputs) - expected).max() > 100 * TOLERANCE


@pytest.mark.parametrize("lowering", ["inline", "fused"])
def test_positions_matter_on_every_axis(lowering: lower.Lowering) -> None:
    model, inputs = build_model(CONFIG, lowering), random_inputs(CONFIG, 9, seed=1)
    before = run_model(model, inputs)
    for axis in range(4):
        moved = {**inputs, "positions": inputs["positions"].clone()}
        moved["positions"][4, axis] += 7
        assert np.abs(run_model(model, moved) - before).max() > 100 * TOLERANCE


def test_a_plugin_node_keeps_its_inputs_and_says_which_plugin_it_is() -> None:
    model = build_model(CONFIG, "plugin")
    assert not model.functions
    (node,) = model.graph.node
    assert list(node.input) == list(INPUTS)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes.pop("axis_thetas") == pytest.approx(CONFIG.axis_thetas)
    assert attributes.pop("epsilon") == pytest.approx(CONFIG.norm_eps)
    assert attributes == {
        "num_heads": CONFIG.num_heads,
        "axis_dims": list(CONFIG.axis_dims),
        "plugin_namespace": b"editverse",
        "plugin_version": b"1",
    }
    assert {opset.domain: opset.version for opset in model.opset_import}["editverse"] == 1


@pytest.mark.parametrize("lowering", ["inline", "fused"])
def test_all_nodes_share_one_pair_of_tables(lowering: lower.Lowering, tmp_path: Path) -> None:
    model = build_model(CONFIG, lowering, num_nodes=3)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "inlined.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inlined = [node.op_type for node in onnx.load(tmp_path / "inlined.onnx").graph.node]
    assert inlined.count("RotaryEmbedding") == 6
    assert (inlined.count("Cos"), inlined.count("Sin"), inlined.count("Gather")) == (1, 1, 1)
    inputs = random_inputs(CONFIG, 10, seed=3)
    (mixed,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    for _ in range(3):
        expected = torch.from_numpy(run_reference(CONFIG, inputs))
        inputs |= {"q": expected, "k": expected, "v": expected}
    np.testing.assert_allclose(mixed, expected.numpy(), atol=TOLERANCE, rtol=TOLERANCE)


def test_nodes_that_turn_by_other_positions_are_refused() -> None:
    model = ir.from_proto(build_model(CONFIG, "plugin", num_nodes=2))
    other = ir.Value(name="other", shape=ir.Shape(["L", 4]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(other)
    model.graph.node(1).replace_input_with(5, other)
    with pytest.raises(ValueError, match="2 different positions"):
        lower.lower_attention(model, lower.rope_config(CONFIG), "inline")


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_the_inline_body_is_valid_in_shorter_formats(dtype: int) -> None:
    onnx.checker.check_model(build_model(CONFIG, "inline", dtype), full_check=True)


def test_the_operator_equals_the_function_it_stands_for() -> None:
    module = editverse.RopeAttention(CONFIG)
    x, positions = torch.randn(12, CONFIG.width), torch.zeros((12, 4), dtype=torch.int64)
    expected = module(x, positions)
    with attention_as_nodes(module):
        assert module.attend is not editverse.rope_attention
        torch.testing.assert_close(module(x, positions), expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match="no key_mask"):
            module(x, positions, torch.ones(1, 12))
    assert module.attend is editverse.rope_attention


def test_the_modules_are_restored_after_an_error() -> None:
    module = editverse.RopeAttention(CONFIG)
    with pytest.raises(RuntimeError, match="stop"), attention_as_nodes(module):
        raise RuntimeError("stop")
    assert module.attend is editverse.rope_attention
    assert not onnx.defs.has(OP_TYPE, DOMAIN)
