"""What each graph of a bundle costs, counted on the graph itself: operations, values moved, values held.

The counts are polynomials in the graph's dynamic axes, and go into `bundle.json` as data, so that the planner knows no
architecture. A graph with matrices in 8 bits gets the bytes of its weights as well; of all others the number of
parameters says them. Shapes of the transformer and the text encoder are found by symbolic inference, which reads no
weights; the VAE's, whose padding the inference does not follow, in runs of ONNX Runtime at a few small sizes.

A multiplication and an addition are two operations; matrix products, convolutions and attention count, as is usual.
Values held are those alive at the worst point of the graph, inputs and outputs among them and weights not.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import sympy
from onnx import inliner

from editverse_rt.backends.ort import import_onnxruntime
from editverse_rt.bundle.spec import GraphSpec
from export import attention_nodes, blocks
from export.graphs import axis_size
from export.weights import count_session_bytes

__all__ = ["Polynomial", "count_costs"]

Polynomial = dict[str, float]
"""Coefficients by product of axes: {"1": 3.0, "L": 2.0, "L*Lg": 4.0}."""
Shape = list[Any]

_TYPICAL = {"Lt": 512, "Lc": 4096, "Lg": 4032, "L": 8196}
"""Sizes that say which point of a transformer is the worst."""
_PICTURES = ((2, 3), (3, 5), (5, 4))
"""Rows and columns at which a VAE is run: as many as its polynomials have terms in h * w."""
_AXES = {
    name: sympy.Symbol(name, integer=True, positive=True) for name in (*_TYPICAL, "N", "S", "E", "I", "Q")
}
"""The names of axes as symbols; sympy takes some letters for functions otherwise."""
_MEASURED_HELD = 1.53
"""What a run of a VAE's graph held beyond the count: 1.52 to 1.55 in ONNX Runtime 1.32, whose convolutions reorder."""
_PRODUCTS = frozenset({"MatMul", "Gemm", blocks.OP_TYPE})
_ATTENTION = frozenset({"Attention", "MultiHeadAttention", attention_nodes.OP_TYPE})


def count_costs(folder: Path, graphs: Mapping[str, GraphSpec]) -> dict[str, dict[str, Polynomial]]:
    """Costs of the graphs that hold a model's weights, by name: `flops`, `moved` and `held`."""
    costs = {}
    for name, graph in graphs.items():
        if name.startswith("vae_"):
            costs[name] = _count_pictures(folder / graph.file, graph)
        elif name.startswith(("text_encoder", "transformer")):
            costs[name] = _count_rows(folder / graph.file)
    return costs


def _count_rows(path: Path) -> dict[str, Polynomial]:
    """Costs of a graph over rows, by symbolic shapes."""
    tools = import_module(f"{import_onnxruntime().__name__}.tools.symbolic_shape_infer")
    model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    attention = _hide_attention(model)
    outside = _hide_weights(model)
    # It says which sizes it cannot order; the counts need no order.
    logging.getLogger(tools.__name__).setLevel(logging.ERROR)
    with _elsewhere():
        inferred = tools.SymbolicShapeInference.infer_shapes(model, int_max=2**31 - 1, auto_merge=True)
    _show_weights(inferred, outside)
    _show_attention(inferred, attention)
    shapes = {v.name: _symbols(v) for v in _values(inferred)}
    sizes = {name: math.prod(shape, start=sympy.Integer(1)) for name, shape in shapes.items()}
    nodes = _nodes_of(inferred, shapes)
    flops = sum((node.flops(shapes) for node in nodes), sympy.Integer(0))
    moved = sum((node.moved(sizes) for node in nodes), sympy.Integer(0))
    worst = max(
        _live_sets(nodes, sizes, inferred),
        key=lambda held: float(sympy.sympify(held).subs({_AXES[a]: n for a, n in _TYPICAL.items()})),
    )
    counted = {"flops": _polynomial(flops), "moved": _polynomial(moved), "held": _polynomial(worst)}
    if any(node.op == blocks.OP_TYPE for node in nodes):
        counted["weight_bytes"] = {"1": float(count_session_bytes(ir.load(path)))}
    return counted


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Another working folder: the inference writes a model that it cannot finish, with its weights, where it stands."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)


def _hide_attention(model: Any) -> dict[str, Any]:
    """Put Identity in the place of the attention that the inference does not know: the standard's, which it takes for
    ONNX Runtime's own operator of that name, and the plugin's node. Both give the shape of their first input.

    Returns copies of the nodes by their outputs."""
    hidden = {}
    for node in model.graph.node:
        is_standard = node.op_type == "Attention" and node.domain in ("", "ai.onnx")
        if is_standard or node.op_type == attention_nodes.OP_TYPE:
            hidden[node.output[0]] = onnx.NodeProto.FromString(node.SerializeToString())
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
    return hidden


def _show_attention(model: Any, hidden: Mapping[str, Any]) -> None:
    """The reverse of `_hide_attention`."""
    for node in model.graph.node:
        if node.output[0] in hidden:
            node.CopyFrom(hidden[node.output[0]])


def _hide_weights(model: Any) -> list[Any]:
    """Make inputs of the weights that lie in a file beside the graph: the inference reads every constant that a Cast
    or a sum takes, and would look for that file in the working folder. Returns those weights."""
    graph = model.graph
    outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    kept = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in outside)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return outside


def _show_weights(model: Any, outside: list[Any]) -> None:
    """The reverse of `_hide_weights`."""
    names = {t.name for t in outside}
    inputs = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(outside)


def _count_pictures(path: Path, graph: GraphSpec) -> dict[str, Polynomial]:
    """Costs of a VAE's graph, by runs at a few sizes: terms 1, h*w and h*w*h*w."""
    rows: dict[str, list[float]] = {"flops": [], "moved": [], "held": []}
    for h, w in _PICTURES:
        model, shapes = _run_for_shapes(path, graph, {"h": h, "w": w})
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        nodes = _nodes_of(model, shapes)
        rows["flops"].append(float(sum(node.flops(shapes) for node in nodes)))
        rows["moved"].append(float(sum(node.moved(sizes) for node in nodes)))
        rows["held"].append(_MEASURED_HELD * float(max(_live_sets(nodes, sizes, model))))
    areas = np.array([h * w for h, w in _PICTURES], np.float64)
    terms = np.stack([np.ones_like(areas), areas, areas**2], 1)
    found = {name: np.linalg.solve(terms, np.array(values)).round(3) for name, values in rows.items()}
    names = ("1", "h*w", "h*w*h*w")
    return {
        name: {term: float(c) for term, c in zip(names, row, strict=True) if abs(c) > 1e-6}
        for name, row in found.items()
    }


def _run_for_shapes(path: Path, graph: GraphSpec, axes: Mapping[str, int]) -> tuple[Any, dict[str, Shape]]:
    """The graph with its functions inlined, and the shape of every value in a run with zeros."""
    ort = import_onnxruntime()
    model = onnx.load(path)
    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(scratch) / "profile")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {t.name: np.zeros([axis_size(a, axes) for a in t.shape], t.dtype) for t in graph.inputs}
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    by_node = {
        event["name"].removesuffix("_kernel_time"): [
            next(iter(entry.values())) for entry in event["args"]["output_type_shape"]
        ]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
    shapes: dict[str, Shape] = {name: list(array.shape) for name, array in feeds.items()}
    for node in model.graph.node:
        made = by_node.get(node.name, [])
        shapes |= dict(zip([name for name in node.output if name], made, strict=False))
    return model, shapes


def _nodes_of(model: Any, shapes: Mapping[str, Shape]) -> list[_Node]:
    """The nodes that compute on activations; what is made of weights alone is done once, when a session is made."""
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        given = [name for name in node.input if name]
        if all(name in weights for name in given):
            weights |= {name: list(shapes.get(name, [])) for name in node.output if name}
        else:
            nodes.append(_Node(node, {name: weights[name] for name in given if name in weights}))
    return nodes


class _Node:
    """A node with the shapes of its weights."""

    def __init__(self, node: Any, weights: Mapping[str, list[int]]) -> None:
        self.op, self.weights = node.op_type, weights
        self.inputs = [name for name in node.input if name and name not in weights]
        self.outputs = [name for name in node.output if name]
        self.given = list(node.input)
        self.numbers = {a.name: a.i for a in node.attribute if a.name in ("transA", "transB", "K", "N")}

    def flops(self, shapes: Mapping[str, Shape]) -> Any:
        """Two for each multiplication and addition."""
        if not self.outputs or self.outputs[0] not in shapes:
            return 0
        made = math.prod(shapes[self.outputs[0]])
        if self.op in _PRODUCTS:
            first = self.weights.get(self.given[0]) or shapes.get(self.given[0])
            if not first:
                return 0
            if self.op == blocks.OP_TYPE:
                return 2 * math.prod(first[:-1]) * self.numbers["K"] * self.numbers["N"]
            return 2 * made * (first[0] if self.numbers.get("transA") else first[-1])
        if self.op == "Conv" and len(self.given) > 1 and self.given[1] in self.weights:
            return 2 * made * math.prod(self.weights[self.given[1]][1:])
        if self.op in _ATTENTION:
            queries, keys = shapes[self.given[0]], shapes[self.given[1]]
            return 4 * math.prod(queries) * keys[-2]
        return 0

    def scratch(self, sizes: Mapping[str, Any]) -> Any:
        """What ONNX Runtime's kernel holds beside inputs and outputs: a convolution's in a blocked layout."""
        if self.op == "Conv":
            return sum((sizes.get(name, 0) for name in (*self.inputs, *self.outputs)), 0)
        return sizes.get(self.outputs[0], 0) if self.op == "Softmax" and self.outputs else 0

    def moved(self, sizes: Mapping[str, Any]) -> Any:
        return sum((sizes.get(name, 0) for name in (*self.inputs, *self.outputs)), 0)


def _live_sets(nodes: list[_Node], sizes: Mapping[str, Any], model: Any) -> Iterator[Any]:
    """For each node, what is alive while it runs: values are given back after their last use."""
    last = {name: i for i, node in enumerate(nodes) for name in node.inputs}
    last |= {output.name: len(nodes) for output in model.graph.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    alive = {v.name for v in model.graph.input if v.name not in weights}
    held: Any = sum((sizes.get(name, 0) for name in alive), 0)
    for i, node in enumerate(nodes):
        for name in node.outputs:
            held = held + sizes.get(name, 0)
            alive.add(name)
        yield held + node.scratch(sizes)
        for name in {*node.inputs, *node.outputs}:
            if name in alive and last.get(name, -1) <= i:
                held = held - sizes.get(name, 0)
                alive.discard(name)


def _values(model: Any) -> Iterator[Any]:
    yield from model.graph.value_info
    yield from model.graph.output
    yield from model.graph.input


def _symbols(value: Any) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return [
        sympy.Integer(dim.dim_value) if dim.HasField("dim_value") else sympy.sympify(dim.dim_param, _AXES)
        for dim in dims
    ]


def _polynomial(expression: Any) -> Polynomial:
    """An expression of axes as coefficients; `L*L` stands for a square."""
    terms: Polynomial = {}
    for monomial, coefficient in sympy.expand(expression).as_coefficients_dict().items():
        powers = [factor.as_base_exp() for factor in sympy.Mul.make_args(monomial)]
        factors = [str(base) for base, power in powers if base != 1 for _ in range(int(power))]
        name = "*".join(sorted(factors)) or "1"
        terms[name] = terms.get(name, 0.0) + float(coefficient)
    return terms
