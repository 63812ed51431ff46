"""Which nodes ONNX Runtime's CUDA provider takes, and whether results stay on the device, without a GPU.

`make test-ort-cuda-shim` runs it in an environment with onnxruntime-gpu (255 MB), so it is no part of `make test`.
The provider starts over a CUDA that computes nothing (fake_cuda.cpp): what a graph gives is garbage, but where its
nodes run and what is copied is ONNX Runtime's own choice. Needs g++, nm and CUDA's headers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

HERE = Path(__file__).parent
# The provider asks the loader for these; one file is all of them.
SONAMES = (
    "libcudart.so.13",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcurand.so.10",
    "libcuda.so.1",
    "libcudnn.so.9",
)
# Of a graph's nodes, how many may stay on the CPU (they compute shapes), and how many copies they may cost.
MOST_ON_CPU, MOST_COPIES = {"transformer": 24}, {"transformer": 4}


def build_fake(folder: Path, provider: Path, include: str) -> None:
    """Compile the fake with a function for each that the provider wants: one that gives a handle, or 0."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True
    )
    wanted = set(re.findall(r"U ((?:__cu|cu)[A-Za-z0-9_]+)", listed.stdout))
    # cuDNN is opened when it is first needed, and its functions are looked up by these names.
    wanted |= {
        name.decode() for name in re.findall(rb"\0(cudnn[A-Z][A-Za-z0-9_]*)(?=\0)", provider.read_bytes())
    }
    written = set(re.findall(r"\b(\w+)\(", (HERE / "fake_cuda.cpp").read_text("utf-8")))
    rest = ["#include <cstdlib>", 'extern "C" {']
    for name in sorted(wanted - written):
        gives_handle = "Create" in name and "BackendCreate" not in name
        rest.append(
            f"int {name}(void** handle) {{ *handle = std::malloc(64); return 0; }}"
            if gives_handle
            else f"int {name}() {{ return 0; }}"
        )
    source = folder / "rest.cpp"
    source.write_text("\n".join([*rest, "}", ""]), "utf-8")
    library = folder / "fake.so"
    options = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", f"-I{include}"]
    subprocess.run(["g++", *options, HERE / "fake_cuda.cpp", source, "-o", library], check=True)
    for name in SONAMES:
        (folder / name).symlink_to(library)


def count_nodes(profile: Path) -> tuple[Counter[str], int]:
    """Nodes that ran, by provider, and the copies between CPU and GPU among them, from ONNX Runtime's profile."""
    nodes: dict[str, tuple[str, str]] = {}
    for event in json.loads(profile.read_text("utf-8")):
        facts = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["name"]] = facts["provider"], facts["op_name"]
    copies = sum(op.startswith("Memcpy") for _, op in nodes.values())
    return Counter(provider for provider, op in nodes.values() if not op.startswith("Memcpy")), copies


def check(folder: Path) -> list[str]:
    """Run every graph of nano on the provider; returns what is not as it should be."""
    from cpp.plugin.acceptance_ort import AXES, draw_inputs
    from editverse_rt.backends.base import DeviceArray
    from editverse_rt.backends.ort import import_onnxruntime
    from editverse_rt.backends.ort_cuda import OrtCudaBackend
    from editverse_rt.bundle.manifest import load_bundle
    from editverse_rt.engines.choice import is_host_graph

    ort = import_onnxruntime()
    plain = ort.SessionOptions

    def profiled() -> Any:
        options = plain()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        return options

    state = OrtCudaBackend().probe()
    if state.reason is not None:
        return [f"ort-cuda does not start: {state.reason}"]
    bundle = load_bundle("nano")
    wrong: list[str] = []
    ort.SessionOptions = profiled
    runner = OrtCudaBackend().open_runner(bundle, 1)
    runner.__enter__()
    for name, graph in bundle.spec.graphs.items():
        # The VAE's convolutions are compiled by cuDNN, which a fake cannot play.
        if name.startswith(("schedule_", "vae_")):
            continue
        inputs = draw_inputs(graph, AXES["small"])
        if name == "noise":
            inputs = {"seed": np.array(3, np.int64), "shape": np.array([64, 192], np.int64)}
        held = {key: runner.hold(value) if name == "solver_step" else value for key, value in inputs.items()}
        made = runner.run(name, held)
        if is_host_graph(name):
            if any(isinstance(value, DeviceArray) for value in made.values()):
                wrong.append(f"{name} was not run on the CPU")
            continue
        if not all(isinstance(value, DeviceArray) and value.device == "cuda" for value in made.values()):  # type: ignore[attr-defined]
            wrong.append(f"results of {name} left the device")
        providers, copies = count_nodes(Path(runner._sessions[name].end_profiling()))
        on_cpu = providers["CPUExecutionProvider"]
        print(
            f"{name}: {providers['CUDAExecutionProvider']} nodes on CUDA, {on_cpu} on the CPU, {copies} copies",
            flush=True,
        )
        if on_cpu > MOST_ON_CPU.get(name, 4) or copies > MOST_COPIES.get(name, 0):
            wrong.append(f"{name}: {on_cpu} nodes on the CPU and {copies} copies")
        if name == "solver_step" and (on_cpu or copies):
            wrong.append("solver_step leaves the GPU")
    launches = ctypes.CDLL("libcudart.so.13").fake_cuda_launches
    launches.restype = ctypes.c_long
    print(f"{launches()} kernels were launched", flush=True)
    if not launches():
        wrong.append("no kernel was launched")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--include", default="/usr/local/cuda/include", help="CUDA's headers")
    parser.add_argument("--fake", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fake is not None:
        wrong = check(args.fake)
        print("\n".join(wrong) or "as it should be", flush=True)
        os._exit(1 if wrong else 0)  # the provider's own end expects a CUDA that works
    from importlib.util import find_spec

    spec = find_spec("onnxruntime")
    provider = Path(str(spec and spec.origin)).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not provider.is_file():
        sys.exit(
            f"{provider} is not there; pip install onnxruntime-gpu into an environment without onnxruntime"
        )
    with tempfile.TemporaryDirectory() as folder:
        build_fake(Path(folder), provider, args.include)
        paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        command = [sys.executable, __file__, "--fake", folder]
        sys.exit(
            subprocess.run(
                command, env={**os.environ, "LD_LIBRARY_PATH": ":".join(paths)}, check=False
            ).returncode
        )


if __name__ == "__main__":
    main()
