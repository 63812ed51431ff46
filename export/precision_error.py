"""How far a graph in 16 bits is from the same graph in float32, measured with ONNX Runtime on the CPU.

The 16-bit graph is emulated (export/precision.py): every value that it would hold in 16 bits is rounded,
products accumulate in float32, as tensor cores do.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends.ort import import_onnxruntime
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import GraphSpec
from editverse_rt.errors import RequestError
from export.graphs import axis_size
from export.precision import save_typed, set_precision
from export.sequences import SAMPLE_GRID, sample_rows
from export.standard import load_standard

__all__ = ["measure_error", "relative_error", "sample_inputs"]

Array = NDArray[Any]


def measure_error(bundle: Bundle, graph: str, precision: str) -> dict[str, float]:
    """The relative error of each output on one drawn request; {} for float32, which is what it is held to.

    Raises RequestError where the type cannot hold the graph's values.
    """
    if precision == "fp32":
        return {}
    inputs = sample_inputs(bundle, graph)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("fp32", precision):
            model = load_standard(bundle, graph)
            set_precision(model, name, emulate=True)
            path = Path(folder) / f"{name}.onnx"
            save_typed(model, path)
            results.append(_run(path, inputs))
    expected, found = results
    errors = {
        tensor.name: relative_error(found[tensor.name], expected[tensor.name])
        for tensor in bundle.spec.graphs[graph].outputs
        if not tensor.name.startswith("next_cache_")
    }
    for name, error in errors.items():
        if not math.isfinite(error):
            raise RequestError(
                f"{graph} in {precision}: {name} is no number on a drawn request, since values inside "
                f"go beyond what {precision} holds; give it another type under [precision] of a recipe"
            )
    return errors


def relative_error(found: Array, expected: Array) -> float:
    """|found - expected| / |expected| over the whole tensor; of frames, the mean in grey levels."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    if expected.dtype == np.uint8:
        return float(np.abs(difference).mean())
    size = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(difference)) / max(size, 1e-30)


def sample_inputs(bundle: Bundle, graph: str, seed: int = 0) -> dict[str, Array]:
    """Inputs of a small edit: normal values, random pixels, a real layout with its positions."""
    rng = np.random.default_rng(seed)
    rows = sample_rows(bundle.spec)
    sizes = {
        "Lt": rows.num_text,
        "Lc": rows.num_clean,
        "Lg": rows.num_noisy,
        "L": len(rows.layout),
        "h": SAMPLE_GRID.rows,
        "w": SAMPLE_GRID.columns,
    }
    exact: Mapping[str, Array] = {
        "layout": rows.layout,
        "positions": rows.positions,
        "timestep": np.array(0.4, np.float32),
    }
    return {
        t.name: exact.get(t.name, _draw(rng, bundle.spec.graphs[graph], t.name, sizes))
        for t in bundle.spec.graphs[graph].inputs
    }


def _draw(rng: np.random.Generator, graph: GraphSpec, name: str, sizes: Mapping[str, int]) -> Array:
    tensor = next(t for t in graph.inputs if t.name == name)
    shape = [axis_size(axis, sizes) for axis in tensor.shape]
    if name == "keep":
        return np.asarray(rng.integers(0, 2, shape), np.float32)
    if tensor.dtype == "float32":
        # Text rows leave a norm, latents are normalised, and caches hold activations: all near 1.
        return np.asarray(rng.normal(size=shape), np.float32)
    return np.asarray(rng.integers(2, 100, shape), tensor.dtype)


def _run(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
