"""`RopeAttention`: one node for QK-norm, 4D RoPE and attention, and what stands for it in a graph.

The node (domain `editverse`, version 1) is an ONNX function, so a backend that does not know it reads its
body instead. Three lowerings:
  inline  the body is standard operators of opset 23;
  fused   as inline, but attention is ONNX Runtime's `com.microsoft::MultiHeadAttention`, which never holds
          the L x L scores at once;
  plugin  no body: the node stays for a backend that brings its own kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import opset23, values
from torch import Tensor

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import RequestError
from export.integers import INTEGERS
from export.precision import use_standard_attention
from reference.families import editverse
from reference.families.editverse import TransformerConfig

__all__ = [
    "DOMAIN",
    "INPUTS",
    "OP_TYPE",
    "TABLES_OF",
    "TABLES_OP_TYPE",
    "Lowering",
    "check_source",
    "keeps_plugin",
    "load_standard",
    "lower_attention",
    "lowerings",
    "rope_attention_as_node",
    "translation_table",
]

Lowering = Literal["inline", "fused", "plugin"]
lowerings: tuple[Lowering, ...] = get_args(Lowering)

DOMAIN = "editverse"
OP_TYPE = "RopeAttention"
OPSET = 23
TABLES_OP_TYPE = "RopeTables"
INPUTS = ("q", "k", "v", "q_norm", "k_norm", "positions")
TABLES = ("cos", "sin")
TABLES_OF = ("q_cos", "q_sin", "k_cos", "k_sin")
"""The tables as the lowered node takes them: the rows of the queries, which may be fewer, and of the keys."""
PLUGIN_VERSION = "1"

_eager_rope_attention = editverse.rope_attention


@torch.library.custom_op("editverse::rope_attention", mutates_args=())
def rope_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    positions: Tensor,
    num_heads: int,
    axis_dims: Sequence[int],
    axis_thetas: Sequence[float],
    epsilon: float,
) -> Tensor:
    """The reference's `rope_attention` as one operator that an export does not look into."""
    dims, thetas = tuple(axis_dims), tuple(axis_thetas)
    options: dict[str, Any] = {
        "num_heads": num_heads,
        "axis_dims": dims,
        "axis_thetas": thetas,
        "eps": epsilon,
    }
    return _eager_rope_attention(q, k, v, q_norm, k_norm, positions, **options).contiguous()


@rope_attention_op.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


def _rope_attention_through_op(*tensors: Tensor, key_mask: Tensor | None = None, **options: Any) -> Tensor:
    if key_mask is not None:
        raise ValueError("RopeAttention has no key_mask: a graph runs one request, which needs no padding")
    options["epsilon"] = options.pop("eps")
    return cast(Tensor, rope_attention_op(*tensors, **options))


@contextmanager
def rope_attention_as_node() -> Iterator[None]:
    """While open, the reference's transformer calls the operator, so that an export keeps it as one node."""
    schema = _node_schema()
    onnx.defs.register_schema(schema)
    editverse.rope_attention = _rope_attention_through_op
    try:
        yield
    finally:
        editverse.rope_attention = _eager_rope_attention
        onnx.defs.deregister_schema(OP_TYPE, 1, DOMAIN)


def _node_schema() -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    kinds = schema.AttrType
    return schema(
        OP_TYPE,
        DOMAIN,
        1,
        inputs=[
            schema.FormalParameter(name, "tensor(int64)" if name == "positions" else "T") for name in INPUTS
        ],
        outputs=[schema.FormalParameter("output", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            schema.Attribute("num_heads", kinds.INT),
            schema.Attribute("axis_dims", kinds.INTS),
            schema.Attribute("axis_thetas", kinds.FLOATS),
            schema.Attribute("epsilon", kinds.FLOAT),
        ],
    )


def translation_table() -> dict[Any, Any]:
    """What `torch.onnx.export(custom_translation_table=...)` needs to write the operator as a node."""
    opset = values.Opset(DOMAIN, 1)

    def rope_attention(
        q: Any, k: Any, v: Any, q_norm: Any, k_norm: Any, positions: Any,
        num_heads: int, axis_dims: Sequence[int], axis_thetas: Sequence[float], epsilon: float,
    ) -> Any:  # fmt: skip
        return opset.RopeAttention(
            q, k, v, q_norm, k_norm, positions,
            num_heads=num_heads, axis_dims=axis_dims, axis_thetas=axis_thetas, epsilon=epsilon,
        )  # fmt: skip

    return {
        torch.ops.editverse.rope_attention.default: rope_attention,
        torch.ops.aten._upsample_nearest_exact2d.vec: _resize,
    }


def _resize(x: Any, output_size: Any, scale_factors: Sequence[float]) -> Any:
    """The VAE's upsampling as `Resize`; decomposed, it would gather pixel by pixel.

    At a whole factor "nearest-exact" takes the pixel that asymmetric coordinates, rounded down, take.
    """
    if output_size is not None or any(not float(scale).is_integer() for scale in scale_factors):
        raise ValueError(f"upsampling to {output_size} by {scale_factors}; expected whole factors alone")
    scales: Any = opset23.Constant(value_floats=[1.0, 1.0, *scale_factors])
    return opset23.Resize(
        x,
        None,
        scales,
        None,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def lower_attention(model: ir.Model, config: TransformerConfig, lowering: Lowering) -> None:
    """Give the `RopeAttention` nodes of a traced model what the lowering needs, in place.

    For `inline` and `fused` the rotary tables are made once, by a node `RopeTables`, and go into every
    `RopeAttention` as four more inputs, cos and sin of the queries and of the keys, so that the last block
    can do with fewer queries (`rows.py`); both nodes get their function bodies. For `plugin` the nodes keep
    the inputs they were traced with: the kernel turns by the positions itself.
    Raises ValueError for nodes that do not share their positions.
    """
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]
    if not nodes:
        return
    if lowering == "plugin":
        # TensorRT's parser looks a plugin up by its node's type and by these two attributes.
        for node in nodes:
            node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))
            node.attributes.add(ir.AttrString("plugin_version", PLUGIN_VERSION))
        model.opset_imports[DOMAIN] = 1
        return
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
    for function in (_build_tables_function(config), _build_attention_function(config, lowering)):
        definition = ir.serde.deserialize_function(function)
        model.functions[definition.identifier()] = definition
    model.opset_imports.update(_body_opsets(lowering))
    model.opset_imports[DOMAIN] = 1


def keeps_plugin(bundle: Bundle, graph: str) -> bool:
    """Whether a graph was exported with `RopeAttention` left to TensorRT's plugin."""
    return graph == "transformer" and bundle.spec.capabilities.attention == "plugin"


def check_source(bundle: Bundle) -> None:
    """Refuse a bundle whose graphs are not in standard operators, or not the model's own any more.

    Raises RequestError that says what to take instead.
    """
    if bundle.spec.capabilities.weights == INTEGERS:
        raise RequestError(
            f'bundle "{bundle.spec.name}" multiplies in 8-bit integers, which only ONNX Runtime reads; give '
            "the bundle that export.integers made it from"
        )
    if bundle.spec.capabilities.emulates:
        raise RequestError(
            f'bundle "{bundle.spec.name}" emulates the rounding of plans; give the bundle that '
            "export.emulate made it from"
        )


def load_standard(bundle: Bundle, graph: str, *, keep_plugin: bool = False) -> ir.Model:
    """A bundle's graph with its functions inlined, in standard operators whatever it was exported for.

    keep_plugin: leave `RopeAttention` as it is where the bundle was exported for the plugin; else it gets the
    body that the export left out. Raises RequestError as `check_source` does.
    """
    check_source(bundle)
    model = ir.load(bundle.graph_path(graph))
    if keeps_plugin(bundle, graph) and not keep_plugin:
        for node in model.graph:
            if node.op_type == OP_TYPE:
                node.attributes.pop("plugin_namespace")
                node.attributes.pop("plugin_version")
        facts = cast(dict[str, Any], bundle.spec.model["transformer"])
        lower_attention(model, TransformerConfig.from_dict(facts), "inline")
    use_standard_attention(model)
    return model


def _body_opsets(lowering: Lowering) -> dict[str, int]:
    return {"": OPSET, "com.microsoft": 1} if lowering == "fused" else {"": OPSET}


def _opset_ids(lowering: Lowering) -> list[onnx.OperatorSetIdProto]:
    return [helper.make_opsetid(domain, version) for domain, version in _body_opsets(lowering).items()]


def _build_tables_function(config: TransformerConfig) -> onnx.FunctionProto:
    """positions int64 [L, 4] -> cos, sin float32 [L, head_dim / 2] (paper section 3.2)."""
    axes, frequencies = _pair_frequencies(config)
    nodes = [
        _constant("axes", np.array(axes, np.int64)),
        _constant("frequencies", frequencies),
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


def _build_attention_function(config: TransformerConfig, lowering: Lowering) -> onnx.FunctionProto:
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
        nodes += [
            helper.make_node("Reshape", [x, "by_head"], [f"{x}_heads"]),
            _refer(norm, "epsilon"),
            helper.make_node("Reshape", [f"{x}_normed", "by_token"], [f"{x}_tokens"]),
            _refer(turn, "num_heads"),
        ]
    nodes.append(helper.make_node("Unsqueeze", ["v", "batch"], ["v_tokens"]))
    attended = ["q_turned", "k_turned", "v_tokens"]
    if lowering == "fused":
        attention = helper.make_node("MultiHeadAttention", attended, ["mixed"], domain="com.microsoft")
        nodes.append(_refer(attention, "num_heads"))
    else:
        attention = helper.make_node("Attention", attended, ["mixed"])
        nodes.append(_refer(_refer(attention, "num_heads", "q_num_heads"), "num_heads", "kv_num_heads"))
    nodes.append(helper.make_node("Squeeze", ["mixed", "batch"], ["output"]))
    attributes = ["num_heads", "axis_dims", "axis_thetas", "epsilon"]
    inputs, opsets = [*INPUTS, *TABLES_OF], _opset_ids(lowering)
    return helper.make_function(DOMAIN, OP_TYPE, inputs, ["output"], nodes, opsets, attributes)


def _pair_frequencies(config: TransformerConfig) -> tuple[list[int], np.ndarray]:
    """For each of the head_dim / 2 pairs its axis and its frequency, float32 as the reference computes it."""
    axes: list[int] = []
    unit = torch.ones((4,), dtype=torch.int64)
    for axis, dim in enumerate(config.axis_dims):
        axes += [axis] * (dim // 2)
    # At position 1 the angle is the frequency itself.
    frequencies = editverse.rope_angles(unit, config.axis_dims, config.axis_thetas)
    return axes, frequencies.numpy()


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
