"""Accept the plugin on a machine with an NVIDIA GPU: `python -m cpp.plugin.accept`.

Builds it, then holds it to what is known without it, each line of the report passed, failed or not run:
  emulation  kernel one's source on the host, and attention in double, against ONNX Runtime
  bits       kernel one on the GPU gives the bits of its emulation
  numerics   the plugin in TensorRT against the function body in ONNX Runtime (CPU, float32); its error may be
             as large as that of PyTorch's attention in the same format, and half as much again
  shapes     one execution context over several lengths, and from a CUDA graph
  packed     sequences that share a call give what each gives alone
  speed      the plugin, TensorRT's own attention and PyTorch's, in a table
`--dry-run` does all that needs no GPU. acceptance.md in the build folder is the report; exits with
1 if a line failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file: `python cpp/plugin/accept.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch

from cpp.plugin.acceptance_cases import (
    NUMERICS,
    SPEED,
    Case,
    cases_and_dtypes,
    make_inputs,
    node_model,
    relative_error,
    run_onnx_runtime,
)
from cpp.plugin.kernel_libraries import DeviceKernel, EmulatedKernel, emulation_command

ROOT = Path(__file__).parents[2]
# float32 against double, and one rounding to the short format (relative root mean square).
EMULATION_TOLERANCE = {"float16": 5e-4, "bfloat16": 4e-3}


@dataclass
class Report:
    """The lines of the acceptance, and the table of times."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    speed: list[str] = field(default_factory=list)

    def add(self, check: str, status: str, detail: str) -> None:
        self.lines.append((check, status, detail))
        print(f"{status:8} {check:10} {detail}", flush=True)

    def run(self, check: str, detail: str, action: Callable[[], tuple[bool, str]]) -> None:
        """Record what `action` finds; an error of it fails the line and not those after it."""
        try:
            passed, found = action()
        except Exception as error:
            passed, found = False, f"{type(error).__name__}: {error}"
        self.add(check, "passed" if passed else "FAILED", f"{detail}: {found}")

    def written(self, machine: str) -> str:
        rows = [f"| {check} | {status} | {detail} |" for check, status, detail in self.lines]
        text = ["# Acceptance of the plugin", "", machine, "", "| check | | |", "| --- | --- | --- |", *rows]
        return "\n".join([*text, "", *self.speed, ""])

    @property
    def failed(self) -> bool:
        return any(status == "FAILED" for _, status, _ in self.lines)


def build(folder: Path) -> tuple[Path, Path, Path]:
    """Build the plugin and what its tests load: the libraries of the plugin, the kernel, the emulation.

    Raises CalledProcessError where the build fails.
    """
    source = ROOT / "cpp" / "plugin"
    options = ["-DEDITVERSE_PLUGIN_TESTS=ON", f"-DPython3_EXECUTABLE={sys.executable}"]
    subprocess.run(["cmake", "-S", str(source), "-B", str(folder), *options], check=True)
    subprocess.run(["cmake", "--build", str(folder)], check=True)
    emulation = folder / "libemulated_kernel.so"
    compiler = shutil.which("c++") or "g++"
    subprocess.run(emulation_command(compiler, emulation), check=True)
    return folder / "libeditverse_plugin.so", folder / "libdevice_kernel.so", emulation


def bits_of(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {
        name: value.numpy() if name == "positions" else value.view(torch.int16).numpy().view(np.uint16)
        for name, value in inputs.items()
    }


def floats_of(bits: np.ndarray, dtype: str) -> np.ndarray:
    widened: np.ndarray = torch.from_numpy(bits.view(np.int16)).view(getattr(torch, dtype)).float().numpy()
    return widened


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, num_heads: int) -> np.ndarray:
    """Attention in double, head by head, from q and k as kernel one leaves them."""
    q, k, v = (x.astype(np.float64).reshape(len(x), num_heads, -1) for x in (q, k, v))
    mixed = np.empty_like(v)
    for head in range(num_heads):
        scores = q[:, head] @ k[:, head].T / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
    return mixed.reshape(len(q), -1)


def check_emulation(kernel: EmulatedKernel, case: Case, dtype: str) -> tuple[bool, str]:
    inputs = make_inputs(case, dtype)
    run = kernel.normalize_and_rotate(case.rope, dtype, bits_of(inputs))
    turned = floats_of(run.q, dtype), floats_of(run.k, dtype)
    mixed = attend(*turned, inputs["v"].float().numpy(), case.rope.num_heads)
    error = relative_error(mixed, run_onnx_runtime(case, inputs))
    tolerance = EMULATION_TOLERANCE[dtype]
    found = run.error or f"relative error {error:.1e}, tolerance {tolerance:.0e}"
    return not run.error and error <= tolerance, found


def check_bits(device: DeviceKernel, kernel: EmulatedKernel, case: Case, dtype: str) -> tuple[bool, str]:
    inputs = bits_of(make_inputs(case, dtype))
    expected = kernel.normalize_and_rotate(case.rope, dtype, inputs)
    q, k = device.normalize_and_rotate(case.rope, dtype, inputs)
    different = int((q != expected.q).sum() + (k != expected.k).sum())
    return different == 0, f"{different} of {q.size + k.size} values differ"


def main() -> None:
    parser = argparse.ArgumentParser(description="Accept the plugin on a machine with an NVIDIA GPU.")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "plugin", help="the build folder")
    parser.add_argument("--dry-run", action="store_true", help="do all that needs no GPU, and no more")
    options = parser.parse_args()
    report = Report()
    plugin, device_library, emulation = build(options.build)
    report.add("build", "passed", f"{plugin.name}, {plugin.stat().st_size / 1e6:.1f} MB")
    kernel, device = EmulatedKernel(emulation), DeviceKernel(device_library)

    for case, dtype in cases_and_dtypes(NUMERICS, 700):
        label = f"{case.name}, {case.tokens} tokens, {dtype}"
        report.run("emulation", label, lambda c=case, d=dtype: check_emulation(kernel, c, d))
    machine = "No GPU: `--dry-run`."
    if options.dry_run:
        for case, dtype in [*cases_and_dtypes(NUMERICS, 10**6), *cases_and_dtypes(SPEED, 10**6)]:
            node_model(case, dtype, "plugin")
        for check in ("bits", "numerics", "shapes", "packed", "speed"):
            report.add(check, "not run", "needs a GPU")
    else:
        # Only here: it imports TensorRT, and PyTorch has to be a build with CUDA.
        from cpp.plugin import acceptance_gpu

        for case, dtype in cases_and_dtypes(NUMERICS, 700):
            label = f"{case.name}, {case.tokens} tokens, {dtype}"
            report.run("bits", label, lambda c=case, d=dtype: check_bits(device, kernel, c, d))
        machine = acceptance_gpu.run_on_gpu(report, plugin)
    path = options.build / "acceptance.md"
    path.write_text(report.written(machine), "utf-8")
    print(f"{path} has the report; " + ("a check failed" if report.failed else "no check failed"))
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
