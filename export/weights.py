"""What happens to a traced graph before it is written: traces of the tracing go, large weights move out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir

__all__ = [
    "MAX_INLINE_BYTES",
    "count_session_bytes",
    "count_weight_bytes",
    "halve_exact_weights",
    "move_weights_out",
    "strip_traces",
]

# A graph with more bytes of weights than this stores them in a file beside it, which ONNX Runtime maps. Weights
# inside a graph are copied out of the parsed message, whose memory is not always freed: up to 0.4 GB of 0.6
# (docs/benchmarks.md). A protobuf message cannot exceed 2 GB either.
MAX_INLINE_BYTES = 64_000_000
# Constants below this stay in the graph, where a reader of the file and shape inference see them.
MIN_MOVED_BYTES = 1024
# Large tensors are aligned to pages, so that hosts can map them. Small ones are not, to save space.
PAGE_BYTES = 4096
ALIGNMENT_BYTES = 64


def strip_traces(model: ir.Model, keep_shapes_of: str) -> None:
    """Remove what the exporter notes beside the computation, so that the same weights give the same bytes.

    That is stack traces with this machine's paths, doc strings, and shapes in names that each run draws anew.
    The shapes of the graph's inputs and outputs stay, and those of the nodes of type keep_shapes_of, which
    shape inference may not know.
    """
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    graph.name = "graph"
    edges = {*graph.inputs, *graph.outputs}
    for value in (*edges, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
        if value not in edges:
            # Initializers carry their own shape and dtype.
            value.shape = None
            value.type = None
    for index, node in enumerate(graph):
        node.metadata_props.clear()
        node.doc_string = None
        node.name = f"{node.op_type}_{index}"
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if value not in edges and node.op_type != keep_shapes_of:
                value.shape = None
                value.type = None
            elif value not in edges and value.shape is not None:
                value.shape = ir.Shape([axis if isinstance(axis, int) else None for axis in value.shape])


def _weights(model: ir.Model) -> Iterator[ir.Value]:
    return (value for value in model.graph.initializers.values() if value.const_value is not None)


def count_weight_bytes(models: Sequence[ir.Model]) -> int:
    """Bytes of all weights of the models, each model counted by itself."""
    return sum(value.const_value.nbytes for model in models for value in _weights(model) if value.const_value)


def count_session_bytes(model: ir.Model) -> int:
    """Bytes of a graph's weights in a session of ONNX Runtime, which widens those that `halve_exact_weights` halved."""
    count = 0
    for value in _weights(model):
        tensor = value.const_value
        if tensor is not None:
            is_cast = any(user.op_type == "Cast" for user, _ in value.uses())
            count += int(tensor.nbytes) * (2 if is_cast and tensor.dtype == ir.DataType.FLOAT16 else 1)
    return count


def halve_exact_weights(model: ir.Model) -> int:
    """Store the float32 weights that float16 holds exactly as float16, each behind a Cast; say how many.

    Nothing is rounded: the graph computes what it did. A session folds the Casts away when it is made.
    """
    graph = model.graph
    halved = 0
    for value in list(_weights(model)):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < MIN_MOVED_BYTES:
            continue
        exact = tensor.numpy()
        with np.errstate(over="ignore"):
            half = exact.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), exact):
            continue
        name = value.name or ""
        stored = ir.Value(name=f"{name}.float16", const_value=ir.tensor(half, name=f"{name}.float16"))
        cast_node = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"Cast_{name}")
        value.replace_all_uses_with(cast_node.outputs[0])
        del graph.initializers[name]
        cast_node.outputs[0].name = name
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast_node)
        halved += 1
    return halved


def move_weights_out(models: Sequence[ir.Model], path: Path) -> None:
    """Write the models' weights to one external data file, equal ones once, and let the models refer to it.

    The models must be saved in the folder of path. Weights are written one by one: no copy of all is held.
    """
    places: dict[tuple[str, str], tuple[int, int]] = {}
    with path.open("wb") as file:
        for model in models:
            for value in _weights(model):
                tensor = value.const_value
                if tensor is None or tensor.nbytes < MIN_MOVED_BYTES:
                    continue
                data = tensor.tobytes()
                key = (hashlib.sha256(data).hexdigest(), str(tensor.dtype))
                if key not in places:
                    alignment = PAGE_BYTES if len(data) >= 16 * PAGE_BYTES else ALIGNMENT_BYTES
                    file.write(b"\0" * (-file.tell() % alignment))
                    places[key] = (file.tell(), len(data))
                    file.write(data)
                offset, length = places[key]
                shape = ir.Shape([cast(int, axis) for axis in tensor.shape])
                value.const_value = ir.ExternalTensor(
                    path.name,
                    offset,
                    length,
                    tensor.dtype,
                    shape=shape,
                    name=value.name or "",
                    base_dir=path.parent,
                )
