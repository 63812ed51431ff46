"""`python -m export.integers BUNDLE OUT`: a bundle whose transformer multiplies in 8-bit integers.

Faster, and not what the model computes: opt-in. The blocks' weights are rounded once, each column to its own
scale; activations as they come, each tensor to its own range (ONNX Runtime's `DynamicQuantizeMatMul`). Sums
are of integers, so threads change no byte. What it costs in quality has to be measured:
`python -m benchmarks.frontier OUT --standard BUNDLE`.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

if not __package__:  # run as a file: `python export/integers.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnx
import onnx_ir as ir

from editverse_rt.bundle.manifest import file_specs, load_bundle, write_bundle_json
from editverse_rt.engines.manifest import ENGINES_FOLDER
from editverse_rt.errors import EditVerseError
from export.weights import MAX_INLINE_BYTES, count_session_bytes, count_weight_bytes, move_weights_out

__all__ = [
    "INTEGERS",
    "add_initializer",
    "drop_unused",
    "quantize_bundle",
    "quantize_products",
    "round_columns",
    "stored_values",
]

OP_TYPE, DOMAIN = "DynamicQuantizeMatMul", "com.microsoft"
INTEGERS = "int8"
"""What such a bundle says of its weights, in `capabilities.weights`."""
LARGEST = 127
"""Largest value of an 8-bit weight. -128 is not used, so that the range is symmetric around zero."""
PART = ".blocks."
"""Only products inside the blocks are converted. Those outside are small, and the modulation affects every token."""


def quantize_bundle(source: str | Path, target: Path) -> Path:
    """Write a copy of a bundle with its transformers' products in integers; its quality report is left out.

    Raises FileExistsError when target is there, ValueError for a bundle that is not in ONNX Runtime's form or not in
    float32.
    """
    bundle = load_bundle(source)
    can = bundle.spec.capabilities
    if can.attention != "fused":
        raise ValueError(
            f'{source} was exported with "{can.attention}"; expected "fused": export it with that'
        )
    if can.dtype != "float32":
        raise ValueError(
            f"{source} computes in {can.dtype}, and {OP_TYPE} takes float32; expected float32: export the checkpoint "
            "with --dtype float32"
        )
    if target.exists():
        raise FileExistsError(f"{target} is there; give another path, or remove it")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # Plans multiply as the original does.
    shutil.copytree(bundle.root, partial, ignore=shutil.ignore_patterns(ENGINES_FOLDER))
    costs = dict(bundle.spec.costs)
    try:
        for name, graph in bundle.spec.graphs.items():
            if not name.startswith("transformer"):
                continue
            model = ir.load(bundle.root / graph.file)
            quantize_products(model)
            weights = partial / f"{name}.weights"
            weights.unlink(missing_ok=True)
            if count_weight_bytes([model]) > MAX_INLINE_BYTES:
                move_weights_out([model], weights)
            ir.save(model, partial / graph.file)
            onnx.checker.check_model(partial / graph.file)
            if name in costs:
                costs[name] = {**costs[name], "weight_bytes": {"1": float(count_session_bytes(model))}}
        spec = dataclasses.replace(
            bundle.spec,
            name=target.name,
            files=file_specs(partial),
            capabilities=dataclasses.replace(can, weights=INTEGERS),
            costs=costs,
            quality={},
        )
        write_bundle_json(partial, spec)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def quantize_products(model: ir.Model, part: str = PART) -> int:
    """Round the weights [N, K] of the products x W^T and x W^T + b with `part` in their names, in place.

    Returns how many there are.
    Raises ValueError if there is none: then the graph is not a transformer's.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "Gemm" else None
        if weight is None or part not in (weight.name or "") or not _is_plain(node):
            continue
        quantized, scales = round_columns(stored_values(weight))
        inputs: list[ir.Value | None] = [
            node.inputs[0],
            add_initializer(graph, f"{weight.name}.int8", quantized),
            add_initializer(graph, f"{weight.name}.scale", scales),
        ]
        if len(node.inputs) == 3:  # its zero points are left out: all zero
            inputs += [None, node.inputs[2]]
        product = ir.node(OP_TYPE, inputs, domain=DOMAIN)
        replace_product(graph, node, product, weight)
        count += 1
    if count == 0:
        raise ValueError(f"no product whose weight's name has {part!r}; expected those of a transformer")
    model.opset_imports[DOMAIN] = 1
    return count


def round_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, K] -> int8 [K, N] and scales float32 [N], with W ~ (int8 * scale)^T."""
    scales = np.maximum(np.abs(weight).max(axis=1), 1e-30) / LARGEST
    rounded = np.round(weight / scales[:, None]).clip(-LARGEST, LARGEST)
    return np.ascontiguousarray(rounded.T.astype(np.int8)), scales.astype(np.float32)


def _is_plain(node: ir.Node) -> bool:
    """Whether a Gemm computes x W^T without scaling and without a transposed x."""
    numbers = node.attributes
    is_scaled = numbers.get_float("alpha", 1.0) != 1.0 or numbers.get_float("beta", 1.0) != 1.0
    return not is_scaled and numbers.get_int("transB", 0) == 1 and numbers.get_int("transA", 0) == 0


def stored_values(weight: ir.Value) -> np.ndarray:
    """The values of a weight, float32, which may be stored as float16 with a Cast after it.

    Raises ValueError for a weight that other nodes compute.
    """
    producer = weight.producer()
    value = weight if producer is None or producer.op_type != "Cast" else producer.inputs[0]
    if value is None or value.const_value is None:
        raise ValueError(f"the weight {weight.name} is computed; expected an initializer")
    return value.const_value.numpy().astype(np.float32)


def replace_product(graph: ir.Graph, node: ir.Node, product: ir.Node, weight: ir.Value) -> None:
    """Put `product` in the place of `node`, with its output's name, and drop its weight if no other node uses it."""
    graph.insert_before(node, [product])
    old, new = node.outputs[0], product.outputs[0]
    old.replace_all_uses_with(new)
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.name = None
    graph.remove(node, safe=True)
    drop_unused(graph, weight)


def drop_unused(graph: ir.Graph, weight: ir.Value) -> None:
    """Remove a weight that no node uses any more, and the Cast before it."""
    if weight.uses():
        return
    producer = weight.producer()
    stored = weight if producer is None else producer.inputs[0]
    if producer is not None:
        graph.remove(producer, safe=True)
    if stored is not None and stored.name is not None and not stored.uses():
        del graph.initializers[stored.name]


def add_initializer(graph: ir.Graph, name: str, value: np.ndarray) -> ir.Value:
    """Add an array to a graph as an initializer of that name; return the graph's value."""
    graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(value, name=name)))
    return graph.initializers[name]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.integers",
        description="Copy a bundle, its transformer's matrix products in 8-bit integers.",
        epilog="example: python -m export.integers nano bundles/nano-int8",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="name or folder")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args()
    try:
        print(quantize_bundle(args.bundle, args.out))
    except (EditVerseError, FileExistsError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
