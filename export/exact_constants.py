"""The optimiser of torch.onnx with constants kept to the last bit.

Its rules take `x + 0` and `x * 1` away, and take a constant for 0 or 1 that is nearly so: by 1e-8 and by 1e-5. So the
epsilon of a norm whose stream is scaled down would be lost without a word. While the rules run, such constants are
inputs of the graph, of which nothing is known.
"""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

__all__ = ["optimize_exactly"]

_NEAR = 1e-4
"""Wider than any tolerance of a rule."""


def optimize_exactly(program: torch.onnx.ONNXProgram) -> None:
    """Do what `torch.onnx.export(optimize=True)` does to a program that was exported without, constants exact."""
    constants = _take_out(program.model) if _has_nearly_no_op(program.model) else {}
    program.optimize()
    graph = program.model.graph
    for value in [value for value in graph.inputs if value.name in constants]:
        graph.inputs.remove(value)
        if value.uses() or value.is_graph_output():
            value.const_value = constants[value.name or ""]
            graph.register_initializer(value)


def _has_nearly_no_op(model: ir.Model) -> bool:
    """By all constants there are; a graph without such a one keeps the names that the exporter gives."""
    if any(_is_nearly_no_op(value.const_value) for value in model.graph.initializers.values()):
        return True
    nodes = (node for part in (model.graph, *model.functions.values()) for node in part)
    return any(
        _is_nearly_no_op(ir.convenience.get_const_tensor(node.outputs[0]))
        for node in nodes
        if node.op_type == "Constant"
    )


def _take_out(model: ir.Model) -> dict[str, ir.TensorProtocol | None]:
    """Make inputs of the constants that are nearly 0 or 1; their values by name."""
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    initializers = model.graph.initializers
    taken = {name: value for name, value in initializers.items() if _is_nearly_no_op(value.const_value)}
    constants = {name: value.const_value for name, value in taken.items()}
    for name, value in taken.items():
        del initializers[name]
        model.graph.inputs.append(value)
        value.const_value = None
    return constants


def _is_nearly_no_op(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a constant is a number close to 0 or 1, and neither."""
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
        return False
    number = float(tensor.numpy().item())
    return number not in (0.0, 1.0) and any(
        math.isclose(number, plain, rel_tol=_NEAR, abs_tol=_NEAR) for plain in (0.0, 1.0)
    )
