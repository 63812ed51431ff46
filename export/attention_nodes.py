"""Attention as nodes of a traced graph: the operators that stand for it, their schemas, their translation.

`RopeAttention` is QK-norm, 4D RoPE and attention as one node (domain `editverse`, version 1). Without q_norm and k_norm
it only turns and attends: a family may norm over all heads before it. Attention to a text beside the sequence is
a node `CrossAttention`, without positions. `export/lower.py` says what becomes of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import onnx
import onnx.defs
import torch
from onnxscript import opset23, values
from torch import Tensor, nn

from reference.families import editverse, wan

__all__ = ["CROSS_OP_TYPE", "DOMAIN", "INPUTS", "OP_TYPE", "attention_as_nodes", "translation_table"]

DOMAIN = "editverse"
OP_TYPE = "RopeAttention"
CROSS_OP_TYPE = "CrossAttention"
INPUTS = ("q", "k", "v", "q_norm", "k_norm", "positions")


@torch.library.custom_op("editverse::rope_attention", mutates_args=())
def rope_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    positions: Tensor,
    num_heads: int,
    axis_dims: Sequence[int],
    axis_thetas: Sequence[float],
    epsilon: float,
) -> Tensor:
    """The reference's attention as one operator that an export does not look into."""
    dims, thetas = tuple(axis_dims), tuple(axis_thetas)
    if q_norm is None or k_norm is None:
        return wan.rope_attention(
            q, k, v, positions, num_heads=num_heads, axis_dims=dims, theta=thetas[0]
        ).contiguous()
    options: dict[str, Any] = {"num_heads": num_heads, "axis_dims": dims, "axis_thetas": thetas}
    return editverse.rope_attention(q, k, v, q_norm, k_norm, positions, **options, eps=epsilon).contiguous()


@torch.library.custom_op("editverse::cross_attention", mutates_args=())
def cross_attention_op(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Attention to rows beside the sequence, as one operator."""
    return wan.cross_attention(q, k, v, num_heads=num_heads).contiguous()


@rope_attention_op.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


@cross_attention_op.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


def _attend_through_op(*tensors: Tensor, key_mask: Tensor | None = None, **options: Any) -> Tensor:
    if key_mask is not None:
        raise ValueError("RopeAttention has no key_mask: a graph runs one request, which needs no padding")
    options["epsilon"] = options.pop("eps")
    return cast(Tensor, rope_attention_op(*tensors, **options))


def _turn_and_attend_through_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    *,
    num_heads: int,
    axis_dims: tuple[int, ...],
    theta: float,
) -> Tensor:
    thetas = [theta] * len(axis_dims)
    return cast(Tensor, rope_attention_op(q, k, v, None, None, positions, num_heads, axis_dims, thetas, 0.0))


def _cross_through_op(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return cast(Tensor, cross_attention_op(q, k, v, num_heads))


_OPERATORS: dict[Any, Any] = {
    editverse.rope_attention: _attend_through_op,
    wan.rope_attention: _turn_and_attend_through_op,
    wan.cross_attention: _cross_through_op,
}


@contextmanager
def attention_as_nodes(model: nn.Module) -> Iterator[None]:
    """While open, the attention modules of a model call the operators, so that an export keeps them as nodes."""
    changed = [module for module in model.modules() if getattr(module, "attend", None) in _OPERATORS]
    schemas = _node_schemas()
    for schema in schemas:
        onnx.defs.register_schema(schema)
    eager = [module.attend for module in changed]
    try:
        for module in changed:
            module.attend = _OPERATORS[module.attend]
        yield
    finally:
        for module, attend in zip(changed, eager, strict=True):
            module.attend = attend
        for schema in schemas:
            onnx.defs.deregister_schema(schema.name, 1, DOMAIN)


def _node_schemas() -> list[onnx.defs.OpSchema]:
    schema = onnx.defs.OpSchema
    kinds, optional = schema.AttrType, schema.FormalParameterOption.Optional
    types = [("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")]

    def parameter(name: str) -> Any:
        if name == "positions":
            return schema.FormalParameter(name, "tensor(int64)")
        return (
            schema.FormalParameter(name, "T", param_option=optional)
            if name.endswith("norm")
            else (schema.FormalParameter(name, "T"))
        )

    return [
        schema(
            OP_TYPE,
            DOMAIN,
            1,
            inputs=[parameter(name) for name in INPUTS],
            outputs=[schema.FormalParameter("output", "T")],
            type_constraints=types,
            attributes=[
                schema.Attribute("num_heads", kinds.INT),
                schema.Attribute("axis_dims", kinds.INTS),
                schema.Attribute("axis_thetas", kinds.FLOATS),
                schema.Attribute("epsilon", kinds.FLOAT),
            ],
        ),
        schema(
            CROSS_OP_TYPE,
            DOMAIN,
            1,
            inputs=[schema.FormalParameter(name, "T") for name in ("q", "k", "v")],
            outputs=[schema.FormalParameter("output", "T")],
            type_constraints=types,
            attributes=[schema.Attribute("num_heads", kinds.INT)],
        ),
    ]


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

    def cross_attention(q: Any, k: Any, v: Any, num_heads: int) -> Any:
        return opset.CrossAttention(q, k, v, num_heads=num_heads)

    return {
        torch.ops.editverse.rope_attention.default: rope_attention,
        torch.ops.editverse.cross_attention.default: cross_attention,
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
