"""Facts of the machine, and how fast it multiplies matrices: `python -m benchmarks.machine` prints them.

The peak is measured, not read off a data sheet, and by each library that multiplies here; the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/machine.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.clock import time_call
from editverse_rt.backends.ort import import_onnxruntime
from editverse_rt.commands.arguments import version_of

__all__ = ["VERSIONED", "describe_machine", "measure_matrix_peak", "measure_peak_apart"]

VERSIONED = ("editverse-rt", "numpy", "onnxruntime", "openvino", "torch", "diffusers", "transformers", "onnx")
SIDE = 1536


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system, versions of what computes, and how busy the machine is."""
    found = {package: version_of(package) for package in VERSIONED}
    versions = {package: version for package, version in found.items() if version is not None}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _total_memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "load_average": os.getloadavg()[0],
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    text = path.read_text()

    def field(name: str) -> str:
        match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
        return match[1].strip() if match else "?"

    return f"{field('model name')} (family {field('cpu family')}, model {field('model')})"


def _total_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_matrix_peak(num_threads: int, side: int = SIDE, repeats: int = 7) -> dict[str, dict[str, float]]:
    """float32 operations a second of square products, by library: by the wall clock, and a CPU second.

    numpy follows the environment's number of threads, so it is asked where that is one thread only.
    The best of the repeats counts: a peak is what nothing disturbed.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((side, side)).astype(np.float32) for _ in range(2))
    found = {}
    products: list[tuple[str, Callable[[int, Any, Any], Callable[[], Any]]]] = [
        ("onnxruntime", _product_of_onnxruntime),
        ("torch", _product_of_torch),
    ]
    if num_threads == 1 and os.environ.get("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")) == "1":
        products.append(("numpy", lambda _, x, y: lambda: x @ y))
    for name, prepare in products:
        try:
            product = prepare(num_threads, a, b)
        except ImportError:
            continue
        product()
        samples = [time_call(product)[0] for _ in range(repeats)]
        flops = 2.0 * side**3
        found[name] = {
            "flops_per_s": flops / min(sample.wall_s for sample in samples),
            "flops_per_cpu_s": flops / min(sample.cpu_s for sample in samples),
        }
    return found


def _product_of_torch(num_threads: int, a: Any, b: Any) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(num_threads)
    x, weight = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: torch.nn.functional.linear(x, weight)


def _product_of_onnxruntime(num_threads: int, a: Any, b: Any) -> Callable[[], Any]:
    from onnx import TensorProto, helper, numpy_helper

    onnxruntime = import_onnxruntime()

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, a.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(b, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": a})


def measure_peak_apart(num_threads: int) -> dict[str, dict[str, float]]:
    """`measure_matrix_peak` in a process of its own, so that its memory is not the caller's."""
    command = [sys.executable, __file__, "--threads", str(num_threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command[1:])}` failed: {done.stderr.strip()[-500:]}")
    peak: dict[str, dict[str, float]] = json.loads(done.stdout)["matrix_peak"]
    return peak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps({**describe_machine(), "matrix_peak": measure_matrix_peak(args.threads)}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
