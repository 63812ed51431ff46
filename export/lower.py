"""`RopeAttention`: one node for QK-norm, 4D RoPE and attention, and what stands for it in a graph.

The node (domain `editverse`, version 1) is an ONNX function, so a backend that does not know it reads its body
instead. Without q_norm and k_norm it only turns and attends: a family may norm over all heads before it. Attention to
a text beside the sequence is a node `CrossAttention`, without positions. Three lowerings:
  inline  the bodies are standard operators of opset 23;
  fused   as inline, but attention is ONNX Runtime's `com.microsoft::MultiHeadAttention`, which never holds
          the L x L scores at once;
  plugin  `RopeAttention` has no body: it stays for a backend that brings its own kernel. Norms that are not given
          are no inputs at all: TensorRT knows no absent input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from export.attention_nodes import CROSS_OP_TYPE, DOMAIN, INPUTS, OP_TYPE
from reference.families import editverse, wan
from reference.families.editverse import TransformerConfig
from reference.families.wan import WanConfig

__all__ = [
    "TABLES_OF",
    "TABLES_OP_TYPE",
    "Lowering",
    "RopeConfig",
    "lower_attention",
    "lowerings",
    "rope_config",
    "rope_config_of",
]

Lowering = Literal["inline", "fused", "plugin"]
lowerings: tuple[Lowering, ...] = get_args(Lowering)

OPSET = 23
TABLES_OP_TYPE = "RopeTables"
TABLES = ("cos", "sin")
TABLES_OF = ("q_cos", "q_sin", "k_cos", "k_sin")
"""The tables as the lowered node takes them: the rows of the queries, which may be fewer, and of the keys."""
PLUGIN_VERSION = "1"


@dataclass(frozen=True)
class RopeConfig:
    """What the nodes of a transformer have in common.

    axes, frequencies: of each of the head_dim / 2 pairs the axis that turns it, and how far, float32, as the
    reference computes it. has_norm: the nodes norm q and k, head by head.
    """

    num_heads: int
    head_dim: int
    axes: tuple[int, ...]
    frequencies: tuple[float, ...]
    has_norm: bool = True


def lower_attention(model: ir.Model, config: RopeConfig, lowering: Lowering) -> None:
    """Give the attention nodes of a traced model what the lowering needs, in place.

    For `inline` and `fused` the rotary tables are made once, by a node `RopeTables`, and go into every
    `RopeAttention` as four more inputs, cos and sin of the queries and of the keys, so that the last block
    can do with fewer queries (`rows.py`); the nodes get their function bodies. For `plugin` the nodes keep
    the inputs they were traced with, absent norms left out: the kernel turns by the positions itself.
    Raises ValueError for nodes that do not share their positions.
    """
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]
    if not nodes:
        return
    bodies: Lowering = "inline" if lowering == "plugin" else lowering
    functions = []
    if any(node.op_type == CROSS_OP_TYPE for node in model.graph):
        functions.append(_build_cross_function(bodies))
    if lowering == "plugin":
        # TensorRT's parser looks a plugin up by its node's type and by these two attributes.
        for node in nodes:
            node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))
            node.attributes.add(ir.AttrString("plugin_version", PLUGIN_VERSION))
            if not config.has_norm:
                _leave_out_norms(node)
    else:
        for node in nodes:
            if len(node.inputs) < len(INPUTS):
                _restore_norms(node)
        _add_tables(model, nodes)
        functions += [_build_tables_function(config), _build_attention_function(config, lowering)]
    for function in functions:
        definition = ir.serde.deserialize_function(function)
        model.functions[definition.identifier()] = definition
    if functions:
        model.opset_imports.update(_body_opsets(bodies))
    model.opset_imports[DOMAIN] = 1


def _leave_out_norms(node: ir.Node) -> None:
    """q, k, v and the positions alone: the plugin tells by their number that q and k come normalised."""
    kept = [value for name, value in zip(INPUTS, node.inputs, strict=True) if not name.endswith("norm")]
    node.resize_inputs(len(kept))
    for index, value in enumerate(kept):
        node.replace_input_with(index, value)


def _restore_norms(node: ir.Node) -> None:
    """The inputs of the node that was traced, from those that the plugin takes."""
    q, k, v, positions = node.inputs
    node.resize_inputs(len(INPUTS))
    for index, value in enumerate((q, k, v, None, None, positions)):
        node.replace_input_with(index, value)


def _add_tables(model: ir.Model, nodes: list[ir.Node]) -> None:
    """One node that makes the rotary tables, and its results as inputs of every attention."""
    positions = {node.inputs[INPUTS.index("positions")] for node in nodes}
    if len(positions) != 1:
        raise ValueError(f"{OP_TYPE} nodes turn by {len(positions)} different positions; expected the same")
    tables = ir.Node(DOMAIN, TABLES_OP_TYPE, list(positions), num_outputs=len(TABLES))
    for value, name in zip(tables.outputs, TABLES, strict=True):
        value.name = f"rope_{name}"
    model.graph.insert_before(nodes[0], tables)
    for node in nodes:
        node.resize_inputs(len(INPUTS) + len(TABLES_OF))
        for index, value in enumerate((*tables.outputs, *tables.outputs), len(INPUTS)):
            node.replace_input_with(index, value)


def rope_config(config: TransformerConfig | WanConfig) -> RopeConfig:
    """What the attention nodes of a reference transformer have in common."""
    axes: list[int] = []
    for axis, dim in enumerate(config.axis_dims):
        axes += [axis] * (dim // 2)
    # At position 1 the angle is the frequency itself.
    unit = torch.ones((1, len(config.axis_dims)), dtype=torch.int64)
    if isinstance(config, WanConfig):
        angles = wan.rope_angles(unit, config.axis_dims, config.rope_theta)
    else:
        angles = editverse.rope_angles(unit, config.axis_dims, config.axis_thetas)
    frequencies = tuple(angles[0].tolist())
    has_norm = not isinstance(config, WanConfig)
    return RopeConfig(config.num_heads, config.head_dim, tuple(axes), frequencies, has_norm)


def rope_config_of(model: dict[str, object]) -> RopeConfig:
    """The same from a bundle's `model`."""
    facts: Any = model["transformer"]
    if "latent_channels" in facts:
        return rope_config(WanConfig.from_dict(facts))
    return rope_config(TransformerConfig.from_dict(facts))


def _body_opsets(lowering: Lowering) -> dict[str, int]:
    return {"": OPSET, "com.microsoft": 1} if lowering == "fused" else {"": OPSET}


def _opset_ids(lowering: Lowering) -> list[onnx.OperatorSetIdProto]:
    return [helper.make_opsetid(domain, version) for domain, version in _body_opsets(lowering).items()]


def _build_tables_function(config: RopeConfig) -> onnx.FunctionProto:
    """positions int64 [L, 4] -> cos, sin float32 [L, head_dim / 2] (paper section 3.2)."""
    nodes = [
        _constant("axes", np.array(config.axes, np.int64)),
        _constant("frequencies", np.array(config.frequencies, np.float32)),
        # Each of the head_dim / 2 pairs takes the column of its axis. A product of small matrices would do
        # the same, but not exactly where a device multiplies matrices in a shorter format.
        helper.make_node("Gather", ["positions", "axes"], ["columns"], axis=1),
        helper.make_node("Cast", ["columns"], ["columns_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["columns_float", "frequencies"], ["angles"]),
        helper.make_node("Cos", ["angles"], ["cos"]),
        helper.make_node("Sin", ["angles"], ["sin"]),
    ]
    opsets = _opset_ids("inline")
    return helper.make_function(DOMAIN, TABLES_OP_TYPE, ["positions"], list(TABLES), nodes, opsets)


def _build_attention_function(config: RopeConfig, lowering: Lowering) -> onnx.FunctionProto:
    """The body of `RopeAttention`, after `editverse.rope_attention` (paper section 3.2).

    q [Lq, C]; k, v [L, C]; the tables float32 [Lq or L, head_dim / 2]. `positions` [L, 4], `axis_dims` and
    `axis_thetas` say the same to a kernel that reads no body.
    """
    inner = config.num_heads * config.head_dim
    nodes = [
        _constant("by_head", np.array([1, -1, config.num_heads, config.head_dim], np.int64)),
        _constant("by_token", np.array([1, -1, inner], np.int64)),
        _constant("batch", np.array([0], np.int64)),
    ]
    for table in TABLES_OF:
        nodes += [
            helper.make_node("CastLike", [table, "q"], [f"{table}_like"]),
            helper.make_node("Unsqueeze", [f"{table}_like", "batch"], [f"{table}_batch"]),
        ]
    for x in ("q", "k"):
        norm = helper.make_node("RMSNormalization", [f"{x}_heads", f"{x}_norm"], [f"{x}_normed"], axis=-1)
        tables = [f"{x}_cos_batch", f"{x}_sin_batch"]
        turn = helper.make_node("RotaryEmbedding", [f"{x}_tokens", *tables], [f"{x}_turned"])
        if config.has_norm:
            nodes += [
                helper.make_node("Reshape", [x, "by_head"], [f"{x}_heads"]),
                _refer(norm, "epsilon"),
                helper.make_node("Reshape", [f"{x}_normed", "by_token"], [f"{x}_tokens"]),
            ]
        else:
            nodes.append(helper.make_node("Unsqueeze", [x, "batch"], [f"{x}_tokens"]))
        nodes.append(_refer(turn, "num_heads"))
    nodes.append(helper.make_node("Unsqueeze", ["v", "batch"], ["v_tokens"]))
    nodes += _attend(["q_turned", "k_turned", "v_tokens"], lowering)
    attributes = ["num_heads", "axis_dims", "axis_thetas", "epsilon"]
    inputs, opsets = [*INPUTS, *TABLES_OF], _opset_ids(lowering)
    return helper.make_function(DOMAIN, OP_TYPE, inputs, ["output"], nodes, opsets, attributes)


def _build_cross_function(lowering: Lowering) -> onnx.FunctionProto:
    """The body of `CrossAttention`, after `wan.cross_attention`: q [L, C]; k, v [Lk, C]."""
    nodes = [_constant("batch", np.array([0], np.int64))]
    nodes += [helper.make_node("Unsqueeze", [x, "batch"], [f"{x}_tokens"]) for x in ("q", "k", "v")]
    nodes += _attend(["q_tokens", "k_tokens", "v_tokens"], lowering)
    return helper.make_function(
        DOMAIN, CROSS_OP_TYPE, ["q", "k", "v"], ["output"], nodes, _opset_ids(lowering), ["num_heads"]
    )


def _attend(tokens: list[str], lowering: Lowering) -> list[onnx.NodeProto]:
    """Attention of q, k and v [1, L, C], and the batch's axis taken away."""
    if lowering == "fused":
        attention = helper.make_node("MultiHeadAttention", tokens, ["mixed"], domain="com.microsoft")
        _refer(attention, "num_heads")
    else:
        attention = helper.make_node("Attention", tokens, ["mixed"])
        _refer(_refer(attention, "num_heads", "q_num_heads"), "num_heads", "kv_num_heads")
    return [attention, helper.make_node("Squeeze", ["mixed", "batch"], ["output"])]


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


_REFERRED_TYPES = {"epsilon": onnx.AttributeProto.FLOAT, "num_heads": onnx.AttributeProto.INT}


def _refer(node: onnx.NodeProto, function_attribute: str, name: str = "") -> onnx.NodeProto:
    """Let an attribute of a node in the body take the value of one of the function's."""
    attribute = node.attribute.add()
    attribute.name = name or function_attribute
    attribute.ref_attr_name = function_attribute
    attribute.type = _REFERRED_TYPES[function_attribute]
    return node
