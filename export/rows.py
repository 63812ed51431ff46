"""Rows that nothing reads are not computed.

The transformer's result is the noisy segment's rows alone, yet the trace computes the last block's queries,
its feed-forward and all that follows for every row, and cuts at the very end. Whatever works on each row by
itself gives the same rows when the cut comes first. So the cut moves up to the last block's queries; its keys
and values are everybody's.
"""

from __future__ import annotations

import onnx_ir as ir

from export import attention_nodes, lower

__all__ = ["cut_rows_early"]

_ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Mul", "Sigmoid", "Sub", "Where"})


def cut_rows_early(model: ir.Model) -> int:
    """Move each `Slice` of rows before the nodes that work row by row; say how many nodes see fewer rows.

    In place; a node is passed only if nothing else uses its result. Shapes as traced.
    """
    passed = 0
    for cut in [node for node in model.graph if _cuts_rows(node)]:
        passed += _move_up(model.graph, cut)
    if passed:
        # The slice's bounds are computed after the nodes that use them now, so they are moved as well.
        model.graph.sort()
    return passed


def _move_up(graph: ir.Graph, cut: ir.Node) -> int:
    """Cut what flows into the nodes above, instead of what flows out of them."""
    data, *bounds = cut.inputs
    if data is None:
        return 0
    wanted: set[ir.Value | None] = {data}
    passed: dict[ir.Node, list[int]] = {}
    for node in reversed(list(graph)):
        rows = _row_inputs(node)
        result = node.outputs[0]
        users = {use.node for use in result.uses()}
        if rows and result in wanted and not result.is_graph_output() and users <= {cut, *passed}:
            passed[node] = rows
            wanted.update(node.inputs[index] for index in rows)
    if not passed:
        return 0
    made: dict[ir.Value, ir.Value] = {}
    for node, rows in passed.items():
        # The traced shape still counts the rows that are no longer computed.
        node.outputs[0].shape = _with_rows_of(node.outputs[0], cut.outputs[0])
        for index in rows:
            value = node.inputs[index]
            if value is None or value.producer() in passed:
                continue
            if value not in made:
                early = ir.node("Slice", [value, *bounds])
                early.outputs[0].name = f"{value.name}.rows"
                early.outputs[0].type = value.type
                early.outputs[0].shape = _with_rows_of(value, cut.outputs[0])
                graph.insert_before(cut, early)
                made[value] = early.outputs[0]
            node.replace_input_with(index, made[value])
    cut.outputs[0].replace_all_uses_with(data)
    graph.remove(cut, safe=True)
    return len(passed)


def _cuts_rows(node: ir.Node) -> bool:
    """Whether a node takes consecutive rows of a matrix, and no graph output is lost with it."""
    if node.op_type != "Slice" or len(node.inputs) < 4 or node.outputs[0].is_graph_output():
        return False
    data, axes = node.inputs[0], node.inputs[3]
    step = node.inputs[4] if len(node.inputs) > 4 else None
    shape = None if data is None else data.shape
    if shape is None or len(shape) != 2 or not isinstance(shape[0], ir.SymbolicDim):
        return False
    return _holds(axes, 0) and (step is None or _holds(step, 1))


def _holds(value: ir.Value | None, number: int) -> bool:
    """Whether a value is a constant of this one number."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1 and int(tensor.numpy().item()) == number


def _row_inputs(node: ir.Node) -> list[int]:
    """The inputs of which row i of the result needs row i alone; none for a node that is not of that kind."""
    result = node.outputs[0]
    if (node.domain, node.op_type) == (attention_nodes.DOMAIN, attention_nodes.OP_TYPE):
        # The plugin's kernel turns queries and keys by the same positions, so it takes all rows of both.
        names = (*attention_nodes.INPUTS, *lower.TABLES_OF)
        takes_tables = len(node.inputs) == len(names)
        return [names.index(name) for name in ("q", "q_cos", "q_sin")] if takes_tables else []
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or result.shape is None:
        return []
    if node.op_type == "Gemm":
        # A bias [N] is the same for all rows; a bias with rows would have to be sliced, too.
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        is_row = bias is None or (bias.shape is not None and len(bias.shape) < 2)
        return [0] if is_row and node.attributes.get_int("transA", 0) == 0 else []
    if node.op_type == "RMSNormalization":
        return [0] if node.attributes.get_int("axis", -1) in (-1, len(result.shape) - 1) else []
    if node.op_type == "Gather":
        # Rows of a table, one for each index.
        which = None if node.inputs[1] is None else node.inputs[1].shape
        takes_rows = node.attributes.get_int("axis", 0) == 0 and which is not None and len(which) == 1
        return [1] if takes_rows else []
    if node.op_type not in _ELEMENTWISE:
        return []
    shapes = [None if value is None else value.shape for value in node.inputs]
    if any(shape is None for shape in shapes) or len(result.shape) != 2:
        return []
    count = result.shape[0]
    return [
        i for i, shape in enumerate(shapes) if shape is not None and len(shape) == 2 and shape[0] == count
    ]


def _with_rows_of(value: ir.Value, cut: ir.Value) -> ir.Shape | None:
    if value.shape is None or cut.shape is None:
        return None
    return ir.Shape([cut.shape[0], *list(value.shape)[1:]])
