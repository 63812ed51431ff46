"""Matrices in 8-bit integers with a scale for each block of 32 values: a quarter of the memory, at a small error.

The operator is ONNX Runtime's `MatMulNBits` (bits 8, block_size 32, accuracy_level 4: activations are rounded to
8 bits as well, by blocks of the same size). It is meant for a text encoder, whose weights are most of a Wan
bundle and which runs twice a request.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.integers import add_initializer, replace_product, stored_values

__all__ = ["BLOCK_SIZE", "OP_TYPE", "has_blocks", "round_blocks", "round_matrix"]

OP_TYPE, DOMAIN = "MatMulNBits", "com.microsoft"
BITS = 8
BLOCK_SIZE = 32
ACCURACY_LEVEL = 4
ZERO_POINT, LARGEST = 128, 127
"""What stands for 0 where no zero points are given, and the largest magnitude."""
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def has_blocks(model: ir.Model) -> bool:
    """Whether a graph has matrices in blocks."""
    return any(node.op_type == OP_TYPE for node in model.graph)


def round_blocks(model: ir.Model) -> int:
    """Round the matrix [K, N] of every product x W that has a constant one; say how many, in place.

    Raises ValueError, and changes nothing, if there is none or where one is of another type than float32: transformers
    keeps some matrices of a T5 in float32 when the others are in float16, and those alone would be rounded.
    """
    graph, count = model.graph, 0
    for node in graph:
        _refuse_narrow(node)
    rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None:
            continue
        values = _constant_matrix(weight)
        if values is None:
            continue
        if weight not in rounded:
            integers, scales = round_matrix(values)
            rounded[weight] = (
                add_initializer(graph, f"{weight.name}.int8", integers),
                add_initializer(graph, f"{weight.name}.scale", scales),
            )
        attributes = {
            "K": values.shape[0], "N": values.shape[1], "bits": BITS, "block_size": BLOCK_SIZE,
            "accuracy_level": ACCURACY_LEVEL,
        }  # fmt: skip
        product = ir.node(OP_TYPE, [node.inputs[0], *rounded[weight]], attributes, domain=DOMAIN)
        replace_product(graph, node, product, weight)
        count += 1
    if count == 0:
        raise ValueError("no product with a constant float32 matrix; export the text encoder in float32")
    model.opset_imports[DOMAIN] = 1
    return count


def round_matrix(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K, N] -> uint8 [N, blocks, 32] and scales float32 [N * blocks], W ~ (uint8 - 128) * scale."""
    columns = matrix.T
    missing = -columns.shape[1] % BLOCK_SIZE
    blocks = np.pad(columns, ((0, 0), (0, missing))).reshape(len(columns), -1, BLOCK_SIZE)
    scales = np.maximum(np.abs(blocks).max(axis=2), 1e-30) / LARGEST
    integers = np.round(blocks / scales[..., None]) + ZERO_POINT
    return integers.astype(np.uint8), scales.astype(np.float32).reshape(-1)


def _refuse_narrow(node: ir.Node) -> None:
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    tensor = None if weight is None else weight.const_value
    if weight is not None and tensor is not None and tensor.dtype in _NARROW:
        raise ValueError(
            f"the matrix {weight.name} is {tensor.dtype.name}; expected float32, whose products alone are rounded to "
            f"{BITS} bits: export the text encoder in float32"
        )


def _constant_matrix(weight: ir.Value) -> np.ndarray | None:
    """The values of a constant matrix that float32 products take; None for anything else."""
    producer = weight.producer()
    stored = weight
    if producer is not None:
        if producer.op_type != "Cast" or producer.attributes.get_int("to") != ir.DataType.FLOAT:
            return None
        stored = producer.inputs[0] or weight
    tensor = stored.const_value
    if tensor is None or len(tensor.shape) != 2:
        return None
    if producer is None and tensor.dtype != ir.DataType.FLOAT:
        return None
    return stored_values(weight)
