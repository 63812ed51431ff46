"""Accept the GPU parts on a machine with an NVIDIA GPU: `python -m cpp.plugin.accept`.

Builds the plugin, then runs each section that this machine has what it needs for:
  emulation  kernel one's source on the host, and attention in double, against ONNX Runtime
  bits       kernel one on the GPU gives the bits of its emulation
  attention  PyTorch's fused attentions, in a table of milliseconds: what the plugin has to be compared with
  reference  the 2 B model of the reference in bfloat16 with random weights, seconds an evaluation
  ort-cuda   every graph of nano on ONNX Runtime's CUDA against its CPU
  numerics   the plugin in TensorRT against the function body in ONNX Runtime (CPU, float32); its error may be
             as large as that of PyTorch's attention in the same format, and half as much again
  shapes     one execution context over several lengths, and from a CUDA graph
  packed     sequences that share a call give what each gives alone
  speed      the plugin, TensorRT's own attention and PyTorch's, in a table
What lacks a package or a tool is a line that says which. acceptance.md in the build folder is the report, written
after each line; exits with 1 if a line failed. `--dry-run` does all that needs no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: `python cpp/plugin/accept.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from cpp.plugin.acceptance_report import Report
from cpp.plugin.kernel_libraries import emulation_command

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Libraries:
    """What was built here; None for what could not be."""

    plugin: Path | None = None
    device_kernel: Path | None = None
    emulation: Path | None = None


@dataclass(frozen=True)
class Section:
    """Some checks. packages: that they import. needs: what else is missing here, None if nothing is.

    module: has `run(report, libraries)`.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    needs: Callable[[Libraries], str | None] = lambda libraries: None
    needs_gpu: bool = True


SECTIONS = (
    Section(
        "emulation", "acceptance_host", ("torch", "onnx", "onnx_ir", "onnxruntime"),
        lambda built: None if built.emulation else "needs a C++ compiler", needs_gpu=False,
    ),
    Section(
        "bits", "acceptance_kernels", ("torch",),
        lambda built: None if built.emulation and built.device_kernel else "needs nvcc, CMake and a C++ compiler",
    ),
    Section("attention", "acceptance_torch", ("torch",)),
    Section("reference", "acceptance_reference", ("torch",)),
    Section("ort-cuda", "acceptance_ort", ("onnxruntime",)),
    Section(
        "tensorrt", "acceptance_tensorrt", ("torch", "tensorrt", "onnx", "onnx_ir", "onnxruntime"),
        lambda built: None if built.plugin else "needs nvcc and CMake",
    ),
)  # fmt: skip


def build(folder: Path, report: Report) -> Libraries:
    """Build what the tools here can; a build that fails is a line of the report."""
    emulation = folder / "libemulated_kernel.so"
    compiler = shutil.which("c++") or shutil.which("g++")
    folder.mkdir(parents=True, exist_ok=True)
    if compiler is None or not _run(report, emulation_command(compiler, emulation)):
        emulation = None  # type: ignore[assignment]
    missing = [tool for tool in ("nvcc", "cmake") if shutil.which(tool) is None]
    if missing:
        report.add("build", "not run", f"no {' and no '.join(missing)} here")
        return Libraries(emulation=emulation)
    options = ["-DEDITVERSE_PLUGIN_TESTS=ON", f"-DPython3_EXECUTABLE={sys.executable}"]
    source = ROOT / "cpp" / "plugin"
    if not all(
        _run(report, command)
        for command in (
            ["cmake", "-S", str(source), "-B", str(folder), *options],
            ["cmake", "--build", str(folder)],
        )
    ):
        return Libraries(emulation=emulation)
    plugin = folder / "libeditverse_plugin.so"
    report.add("build", "passed", f"{plugin.name}, {plugin.stat().st_size / 1e6:.1f} MB")
    return Libraries(plugin, folder / "libdevice_kernel.so", emulation)


def _run(report: Report, command: list[str]) -> bool:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        report.add("build", "FAILED", f"{' '.join(command[:3])}: {(done.stderr or done.stdout)[-300:]}")
    return done.returncode == 0


def find_obstacle(section: Section, libraries: Libraries, has_gpu: bool) -> str | None:
    """Why a section cannot run here; None if it can."""
    missing = [name for name in section.packages if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if section.needs_gpu and not has_gpu:
        return "needs a GPU"
    return section.needs(libraries)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accept the GPU parts on a machine with an NVIDIA GPU.")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "plugin", help="the build folder")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--section", action="append", choices=names, help="this one alone (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="do all that needs no GPU, and no more")
    args = parser.parse_args()
    report = Report(args.build / "acceptance.md", [platform.platform()])
    libraries = build(args.build, report)
    has_gpu = not args.dry_run and Path("/dev/nvidiactl").exists()
    for section in SECTIONS:
        if args.section and section.name not in args.section:
            continue
        obstacle = find_obstacle(section, libraries, has_gpu)
        if obstacle is not None:
            report.add(section.name, "not run", obstacle)
            continue
        try:
            importlib.import_module(f"cpp.plugin.{section.module}").run(report, libraries)
        except Exception as error:  # a section that fails leaves the others
            report.add(section.name, "FAILED", f"{type(error).__name__}: {error}")
    print(f"{report.file} has the report; " + ("a check failed" if report.failed else "no check failed"))
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
