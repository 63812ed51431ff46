"""The section `ort-cuda` of `accept.py`: every graph of nano on ONNX Runtime's CUDA against its CPU.

Needs neither PyTorch nor PyAV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cpp.plugin.acceptance_report import Report
from editverse_rt.backends import Runner, list_backends, select_backend
from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.bundle.spec import GraphSpec
from editverse_rt.engines.choice import is_host_graph

if TYPE_CHECKING:
    from cpp.plugin.accept import Libraries

# Relative root mean square, of two float32 computations that add up in another order, through twelve blocks.
TOLERANCE = 1e-3
AXES = {
    "small": {"Lt": 5, "Lc": 0, "Lg": 64, "L": 71, "h": 3, "w": 5},
    "without text": {"Lt": 0, "Lc": 64, "Lg": 64, "L": 132, "h": 4, "w": 4},
    "large": {"Lt": 40, "Lc": 1000, "Lg": 976, "L": 2020, "h": 8, "w": 8},
}


def draw_inputs(graph: GraphSpec, axes: dict[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a graph by the names of its axes ("8*h"), the same on every call."""
    rng = np.random.default_rng(0)
    rows = axes["Lt"] + axes["Lc"] + axes["Lg"] + 2
    drawn: dict[str, Any] = {}
    for tensor in graph.inputs:
        sizes = [axis.rpartition("*") if isinstance(axis, str) else ("", "", axis) for axis in tensor.shape]
        shape = [
            int(factor or 1) * (axes[name] if isinstance(name, str) else name) for factor, _, name in sizes
        ]
        if tensor.name == "layout":
            drawn[tensor.name] = np.arange(axes["L"]) % rows
        elif tensor.dtype == "float32":
            drawn[tensor.name] = rng.standard_normal(shape) if shape else 0.4
        else:
            drawn[tensor.name] = rng.integers(0, 40, shape)
        drawn[tensor.name] = np.asarray(drawn[tensor.name], tensor.dtype)
    return drawn


def compare(cpu: Runner, other: Runner, graph: GraphSpec, axes: dict[str, int]) -> tuple[bool, str]:
    inputs = draw_inputs(graph, axes)
    expected, found = cpu.run(graph.name, inputs), other.run(graph.name, inputs)
    errors = {}
    for name, value in expected.items():
        exact = np.asarray(value).astype(np.float64)
        difference = np.linalg.norm(np.asarray(found[name]).astype(np.float64) - exact)
        errors[name] = float(difference / max(np.linalg.norm(exact), 1e-30))
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst] <= TOLERANCE, f"{worst} off by {errors[worst]:.1e}, tolerance {TOLERANCE:.0e}"


def run(report: Report, libraries: Libraries, backend: str = "ort-cuda") -> None:
    (state,) = (state for state in list_backends() if state.name == backend)
    if state.reason is not None:
        report.add("ort-cuda", "not run", state.reason)
        return
    report.machine.append(f"ONNX Runtime {state.version}")
    bundle = load_bundle("nano")
    with (
        select_backend("ort-cpu", bundle).backend.open_runner(bundle, None) as cpu,
        select_backend(backend, bundle).backend.open_runner(bundle, None) as other,
    ):
        for name, graph in bundle.spec.graphs.items():
            if is_host_graph(name):
                continue
            for label, axes in AXES.items():
                if name != "text_encoder" or axes["Lt"]:
                    report.run(
                        "ort-cuda", f"{name}, {label}", lambda g=graph, a=axes: compare(cpu, other, g, a)
                    )
