"""The timestep's modulation as rows that are gathered, not chosen value by value.

Each token takes the vectors of the clean or of the noisy timestep: `Where` of a mask [L, 1] and two rows
[1, C], six times a block. ONNX Runtime computes that broadcast slowly, and the 1 of (1 + scale) is added L
times. Gathered from a table of the two rows it is a copy, and the 1 is added to the table. The table is taken
from the block's modulation [2, 6, C] as it is, where the trace cuts it into twelve rows, two nodes each. Each
value is the same to the last bit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

__all__ = ["gather_modulation"]


def gather_modulation(model: ir.Model) -> int:
    """Replace every `Where` of a mask [L, 1] and rows [1, C], in place; return how many. Shapes as traced.

    Raises ValueError for a `Where` that lacks an input.
    """
    graph = model.graph
    chosen = [node for node in graph if node.op_type == "Where" and _chooses_rows(node)]
    indices: dict[ir.Value, ir.Value] = {}
    for node in chosen:
        mask, noisy, clean = node.inputs
        if mask is None or noisy is None or clean is None:
            raise ValueError(f"{node.name}: a Where without three inputs; expected a valid graph")
        made: list[ir.Node] = []
        if mask not in indices:
            flat = ir.node("Squeeze", [mask, _constant(graph, "modulation.columns", [1])])
            index = ir.node("Cast", [flat.outputs[0]], {"to": ir.DataType.INT64})
            for value in (flat.outputs[0], index.outputs[0]):
                value.shape = None if mask.shape is None else ir.Shape([mask.shape[0]])
            made += [flat, index]
            indices[mask] = index.outputs[0]
        first, second = _origin(clean), _origin(noisy)
        if first is not None and second is not None and _are_a_pair(first, second):
            source, _, column = first
            which = _constant(graph, f"modulation.column_{column}", column)
            table = ir.node("Gather", [source, which], {"axis": 1})
        else:
            table = ir.node("Concat", [clean, noisy], {"axis": 0})
        made.append(table)
        rows = table.outputs[0]
        # The next operators give the same result for all rows of a kind, so they are applied to the table.
        replaced = node
        addition = _only_addition(node)
        if addition is not None:
            one = next(value for value in addition.inputs if value is not node.outputs[0])
            added = ir.node("Add", [rows, one])
            made.append(added)
            rows, replaced = added.outputs[0], addition
        gather = ir.node("Gather", [rows, indices[mask]], {"axis": 0})
        made.append(gather)
        graph.insert_before(node, made)
        old, new = replaced.outputs[0], gather.outputs[0]
        old.replace_all_uses_with(new)
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.name = None
        for gone in dict.fromkeys((replaced, node)):
            graph.remove(gone, safe=True)
    common.RemoveUnusedNodesPass()(model)
    return len(chosen)


_Origin = tuple[ir.Value, int, int]
"""A value [2, n, C], and the row and the column of it that a value [1, C] is."""


def _are_a_pair(clean: _Origin, noisy: _Origin) -> bool:
    """Whether two rows are the first and the second of one column."""
    return clean[0] is noisy[0] and (clean[1], noisy[1]) == (0, 1) and clean[2] == noisy[2]


def _origin(value: ir.Value) -> _Origin | None:
    """Where a row [1, C] was cut from, by a row and then a column of [2, n, 1, C]; None if it was not so."""
    column = _cut(value)
    row = None if column is None else _cut(column[0])
    spread = None if row is None else row[0].producer()
    if column is None or row is None or spread is None or spread.op_type != "Unsqueeze":
        return None
    source = spread.inputs[0]
    if source is None or source.shape is None or column[0].shape is None or value.shape is None:
        return None
    axes = list(source.shape)
    expected = [[axes[1], 1, axes[2]], [1, axes[2]]] if len(axes) == 3 and axes[0] == 2 else None
    found = [list(column[0].shape), list(value.shape)]
    return (source, row[1], column[1]) if found == expected else None


def _cut(value: ir.Value) -> tuple[ir.Value, int] | None:
    """The value that Slice and Squeeze took one index of, and the index."""
    squeeze = value.producer()
    cut = None if squeeze is None or squeeze.op_type != "Squeeze" else squeeze.inputs[0]
    node = None if cut is None else cut.producer()
    if node is None or node.op_type != "Slice":
        return None
    data, start = node.inputs[0], node.inputs[1]
    if data is None or start is None or start.const_value is None or start.const_value.size != 1:
        return None
    return data, int(start.const_value.numpy().item())


def _chooses_rows(node: ir.Node) -> bool:
    """Whether a Where takes one of two rows [1, C] for each row of a column [L, 1]."""
    shapes = [None if value is None else value.shape for value in node.inputs]
    if any(shape is None or len(shape) != 2 for shape in shapes):
        return False
    mask, first, second = ([axis for axis in shape] for shape in shapes if shape is not None)  # noqa: C416
    return mask[1] == 1 and first == second and first[0] == 1 and isinstance(first[1], int)


def _only_addition(node: ir.Node) -> ir.Node | None:
    """The Add of a constant scalar that alone uses the node's result, or None."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    addition = uses[0].node
    (other,) = (value for value in addition.inputs if value is not node.outputs[0])
    # An initializer, because a computed value might come after the table in the graph's order.
    is_scalar = other is not None and other.const_value is not None and other.const_value.size == 1
    is_scalar = is_scalar and other is not None and other.producer() is None
    return addition if is_scalar and not addition.outputs[0].is_graph_output() else None


def _constant(graph: ir.Graph, name: str, value: list[int] | int) -> ir.Value:
    """An initializer of that name, made when it is first asked for."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(value, np.int64), name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]
