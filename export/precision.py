"""A float32 graph in 16 bits: strongly typed, with islands of float32 where the reference needs them.

TensorRT 11 and TensorRT for RTX compute in the types that a graph states, so the types are decided here:

  16 bits  products, convolutions, attention, and the elementwise work between them
  float32  norm statistics, softmax, exponentials; the angles of positions and of the timestep; whatever is
           computed from the graph's inputs alone; rounding to grey levels; the graph's inputs and outputs

With emulate=True the graph stays float32 for ONNX Runtime on a CPU, which has few 16-bit kernels, and rounds
every value that the typed graph would hold in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

__all__ = [
    "LOW_TYPES",
    "count_types",
    "precision_of_graph",
    "save_typed",
    "set_precision",
    "use_standard_attention",
]

FLOAT16_MAX = 65504.0
LOW_TYPES = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}

# RopeAttention stays a node where TensorRT's plugin computes it, in the type of its inputs.
_MATRIX_OPS = frozenset({"Attention", "Conv", "Gemm", "MatMul", "MultiHeadAttention", "RopeAttention"})
_MATRIX_OPS |= {"RotaryEmbedding"}
_STATISTICS = frozenset({"ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reciprocal", "Sqrt"})
_ISLANDS = _STATISTICS | {"Cos", "Exp", "LayerNormalization", "Log", "Pow", "RMSNormalization", "Round"}
_ISLANDS |= {"Sin", "Softmax"}
# Operators that only move values keep the type of their input.
_MOVERS = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Pad", "Reshape", "Resize", "Slice"}
    | {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"}
)
# Operators whose arguments need full precision: angles can be in the thousands, and grey levels are rounded.
_EXACT_ARGUMENTS = frozenset({"Cos", "Round", "Sin"})
# Inputs that are parameters and not data: scales and sizes.
_ARGUMENT_INPUTS = {"Resize": (1, 2), "Pad": ()}


def precision_of_graph(graph: str, parts: Mapping[str, str]) -> str:
    """The precision of one graph of a bundle, from those of the model's parts (`targets.PARTS`).

    solver_step and condition have no weights, and what they give is the edit itself or its source, so they stay in
    float32.
    """
    if graph in ("solver_step", "condition"):
        return "fp32"
    part = graph.removesuffix("_2")
    return parts["vae" if graph.startswith("vae_") else part]


def use_standard_attention(model: ir.Model) -> None:
    """Inline the model's functions, in place, with ONNX's own Attention for ONNX Runtime's contrib operator.

    So a bundle exported for a CPU (`--attention fused`) serves backends that read standard operators. A
    `RopeAttention` without a body stays.
    """
    common.InlinePass()(model)
    for node in list(model.graph):
        if (node.domain, node.op_type) == ("com.microsoft", "MultiHeadAttention"):
            heads = node.attributes["num_heads"].as_int()
            standard = ir.node(
                "Attention", node.inputs[:3], {"q_num_heads": heads, "kv_num_heads": heads}, name=node.name
            )
            _replace_node(model, node, standard)
    left = {node.domain for node in model.graph}
    for domain in {"com.microsoft", "editverse"} - left:
        model.opset_imports.pop(domain, None)


def set_precision(model: ir.Model, precision: str, *, emulate: bool = False) -> None:
    """Type a float32 model in place; its inputs and outputs stay float32.

    precision: "fp32" changes nothing, "bf16" and "fp16" as the module says. The model's functions must be
    inlined. Raises ValueError for another precision, and for a model that is not float32 throughout.
    """
    if precision == "fp32":
        return
    if precision not in LOW_TYPES:
        raise ValueError(f"precision is {precision!r}; choose one of fp32, {', '.join(LOW_TYPES)}")
    _widen_stored_halves(model)
    common.ShapeInferencePass()(model)
    _refuse_other_types(model)
    _drop_float_casts(model)
    _Typing(model, LOW_TYPES[precision], emulate).run()


def count_types(model: ir.Model) -> dict[str, int]:
    """How many of the model's operators compute in each floating-point type."""
    counts: dict[str, int] = {}
    for node in model.graph:
        types = [v.dtype for v in node.outputs if v.dtype is not None and v.dtype.is_floating_point()]
        if types and node.op_type != "Cast":
            counts[types[0].name] = counts.get(types[0].name, 0) + 1
    return counts


def _widen_stored_halves(model: ir.Model) -> None:
    """Weights stored in float16 behind a Cast, to save space, become the float32 that they stand for."""
    for node in list(model.graph):
        stored = node.inputs[0] if node.op_type == "Cast" else None
        if stored is None or stored.const_value is None:
            continue
        if stored.const_value.dtype != ir.DataType.FLOAT16:
            continue
        result, tensor = node.outputs[0], stored.const_value
        if node.attributes["to"].as_int() != ir.DataType.FLOAT.value or result in model.graph.outputs:
            continue
        shape = ir.Shape([cast(int, axis) for axis in tensor.shape])
        wide = ir.DataType.FLOAT
        lazy = ir.LazyTensor(_converter(tensor, wide, wide), dtype=wide, shape=shape, name=result.name)
        weight = ir.Value(name=result.name, const_value=lazy, type=ir.TensorType(wide), shape=shape)
        _redirect(model, result, weight)
        model.graph.remove(node, safe=True)
        model.graph.register_initializer(weight)
        if not stored.uses() and stored.name is not None:
            del model.graph.initializers[stored.name]


def _refuse_other_types(model: ir.Model) -> None:
    for value in [*model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]:
        if value.dtype is not None and value.dtype.is_floating_point() and value.dtype != ir.DataType.FLOAT:
            raise ValueError(
                f"{value.name} is {value.dtype.name}; expected float32 throughout: export it in float32"
            )


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.const_value is not None or (producer is not None and producer.op_type == "Constant")


def _replace_node(model: ir.Model, node: ir.Node, new: ir.Node) -> None:
    model.graph.insert_before(node, new)
    for old, value in zip(node.outputs, new.outputs, strict=False):
        value.name, value.type, value.shape = old.name, old.type, old.shape
        _redirect(model, old, value)
    model.graph.remove(node, safe=True)


def _redirect(model: ir.Model, old: ir.Value, new: ir.Value, keep: ir.Node | None = None) -> None:
    """Let all users of old take new, except keep."""
    for user, index in list(old.uses()):
        if user is not keep:
            user.replace_input_with(index, new)
    for index, output in enumerate(model.graph.outputs):
        if output is old and keep is None:
            model.graph.outputs[index] = new


def _drop_float_casts(model: ir.Model) -> None:
    """Casts from float32 to float32 go: types are decided anew."""
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type in ("Cast", "CastLike") and source is not None and _is_float(source):
            result = node.outputs[0]
            if _is_float(result) and result not in model.graph.outputs:
                _redirect(model, result, source)
                model.graph.remove(node, safe=True)


@dataclass
class _Typing:
    """Decides each node's type in the order of the graph, then casts where types meet."""

    model: ir.Model
    low: ir.DataType
    emulate: bool
    low_values: set[ir.Value] = field(default_factory=set)
    raw: set[ir.Value] = field(default_factory=set)
    statistics: set[ir.Value] = field(default_factory=set)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def run(self) -> None:
        graph = self.model.graph
        self.raw = {value for value in graph.inputs if _is_float(value)}
        exact = set(self._exact_ancestors())
        outputs = list(graph.outputs)
        for node in list(graph):
            if node.op_type == "Constant" or not any(map(_is_float, (*self._floats(node), *node.outputs))):
                continue
            low = node not in exact and self._is_low(node)
            self._note(node)
            for index, value in self._floats_at(node):
                node.replace_input_with(index, self._as_type(value, low, node))
            if low:
                for value in node.outputs:
                    if _is_float(value):
                        self._make_low(value, node)
        # Outputs keep their names and their float32.
        for index, value in enumerate(outputs):
            if value in self.low_values:
                name = value.name
                value.name = f"{name}_low"
                wide = self._wide_copy(value)
                wide.name = name
                graph.outputs[index] = wide

    def _floats_at(self, node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
        arguments = _ARGUMENT_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float_of(value) and index not in arguments:
                yield index, value

    def _floats(self, node: ir.Node) -> list[ir.Value]:
        return [value for _, value in self._floats_at(node)]

    def _exact_ancestors(self) -> Iterator[ir.Node]:
        """Elementwise nodes on the way to an argument that has to be exact."""
        pending = [n for n in self.model.graph if n.op_type in _EXACT_ARGUMENTS]
        seen: set[ir.Node] = set()
        while pending:
            node = pending.pop()
            for value in node.inputs:
                producer = None if value is None else value.producer()
                if producer is None or producer in seen:
                    continue
                seen.add(producer)
                if producer.op_type not in _MATRIX_OPS | _MOVERS | {"Constant"}:
                    yield producer
                    pending.append(producer)

    def _is_low(self, node: ir.Node) -> bool:
        if node.op_type in _MATRIX_OPS:
            return True
        if node.op_type in _ISLANDS:
            return False
        given = [value for value in self._floats(node) if not _is_constant(value)]
        if node.op_type in _MOVERS:
            return not given or any(value in self.low_values for value in given)
        if any(value in self.raw or value in self.statistics for value in given):
            return False
        # A cast from integers has no floats to follow; it is exact as it is.
        return any(value in self.low_values for value in given)

    def _note(self, node: ir.Node) -> None:
        """Which results come from the graph's inputs alone, and which are statistics of a norm."""
        given = [value for value in self._floats(node) if not _is_constant(value)]
        passes = node.op_type not in _MATRIX_OPS
        if passes and given and all(value in self.raw for value in given):
            self.raw.update(node.outputs)
        elif node.op_type in _STATISTICS or (
            passes and given and all(value in self.statistics for value in given)
        ):
            self.statistics.update(node.outputs)

    def _as_type(self, value: ir.Value, low: bool, user: ir.Node) -> ir.Value:
        if low == (value in self.low_values):
            return value
        if low:
            return self._low_constant(value) if _is_constant(value) else self._low_copy(value)
        return value if self.emulate else self._wide_copy(value)

    def _make_low(self, value: ir.Value, node: ir.Node) -> None:
        """The node's result in 16 bits; emulated, it is rounded, unless it only moves what was rounded."""
        if not self.emulate:
            value.dtype = self.low
            self.low_values.add(value)
        elif node.op_type in _MOVERS:
            self.low_values.add(value)
        else:
            rounded = self._low_copy(value)
            first = rounded.producer()
            assert first is not None  # noqa: S101 - a cast made it
            cast = first.inputs[0].producer() if first.inputs[0] is not None else None
            _redirect(self.model, value, rounded, keep=cast)
            for index, output in enumerate(self.model.graph.outputs):
                if output is value:
                    value.name, rounded.name = f"{value.name}_exact", value.name
                    self.model.graph.outputs[index] = rounded

    def _low_copy(self, value: ir.Value) -> ir.Value:
        copy = self._cast(value, self.low)
        if self.emulate:
            copy = self._cast(copy, ir.DataType.FLOAT)
        self.low_values.add(copy)
        return copy

    def _wide_copy(self, value: ir.Value) -> ir.Value:
        return self._cast(value, ir.DataType.FLOAT)

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        key = (value, to)
        if key not in self.casts:
            node = ir.node("Cast", [value], {"to": to.value}, name=f"{value.name}_to_{to.name.lower()}")
            node.outputs[0].name = node.name
            node.outputs[0].dtype = to
            node.outputs[0].shape = value.shape
            producer = value.producer()
            graph = self.model.graph
            if producer is None:
                graph.insert_before(graph[0], node)
            else:
                graph.insert_after(producer, node)
            self.casts[key] = node.outputs[0]
        return self.casts[key]

    def _low_constant(self, value: ir.Value) -> ir.Value:
        """A weight in 16 bits, converted when it is written: no copy of all weights is held."""
        key = (value, self.low)
        if key not in self.casts:
            tensor = value.const_value
            if tensor is None:
                producer = value.producer()
                tensor = None if producer is None else ir.convenience.get_const_tensor(value)
            if tensor is None:
                return self._low_copy(value)
            dtype = ir.DataType.FLOAT if self.emulate else self.low
            name = f"{value.name}_{self.low.name.lower()}"
            shape = ir.Shape([cast(int, axis) for axis in tensor.shape])
            lazy = ir.LazyTensor(_converter(tensor, self.low, dtype), dtype=dtype, shape=shape, name=name)
            weight = ir.Value(name=name, const_value=lazy, type=ir.TensorType(dtype), shape=shape)
            self.model.graph.register_initializer(weight)
            self.casts[key] = weight
            self.low_values.add(weight)
        return self.casts[key]


def _is_float_of(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _converter(
    tensor: ir.TensorProtocol, low: ir.DataType, dtype: ir.DataType
) -> Callable[[], ir.TensorProtocol]:
    def convert() -> ir.TensorProtocol:
        values = tensor.numpy()
        if low == ir.DataType.FLOAT16:
            # Scores are masked by the least float32, which float16 cannot represent.
            values = np.clip(values, -FLOAT16_MAX, FLOAT16_MAX)
        return ir.tensor(values.astype(low.numpy()).astype(dtype.numpy()))

    return convert


def save_typed(model: ir.Model, path: Path) -> None:
    """Write a model with its weights in one file beside it, so that no size is too large for protobuf."""
    common.RemoveUnusedNodesPass()(model)
    ir.save(model, path, external_data=f"{path.stem}.weights", size_threshold_bytes=1024)
