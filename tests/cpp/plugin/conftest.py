"""Builds what the plugin's tests load: kernel one's source for the host, the plugin and its stub host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpp.plugin import fetch_headers
from cpp.plugin.kernel_libraries import EmulatedKernel, emulation_command

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def emulated_kernel(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernel:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine: kernel one's source cannot be compiled for the host")
    library = tmp_path_factory.mktemp("plugin") / "libemulated_kernel.so"
    subprocess.run(emulation_command(compiler, library), check=True)
    return EmulatedKernel(library)


@pytest.fixture(scope="session")
def plugin_build() -> Path:
    """The folder of the built plugin; kept from one run to the next, like build/ as a whole."""
    missing = [tool for tool in ("nvcc", "cmake") if shutil.which(tool) is None]
    if missing:
        message = f"no {' and no '.join(missing)} on this machine: the plugin cannot be built"
        if os.environ.get("CI"):
            pytest.fail(f"{message}, and CI has to build it")
        pytest.skip(message)
    headers, build = ROOT / "build" / "plugin-headers", ROOT / "build" / "plugin"
    fetch_headers.fetch_headers(headers)
    options = [f"-DEDITVERSE_HEADERS={headers}", f"-DPython3_EXECUTABLE={sys.executable}"]
    # Headers of an installed TensorRT would do as well; the pinned ones give the same build everywhere.
    options += [
        f"-D{name}_INCLUDE_DIR={headers / 'include'}" for name in ("TENSORRT", "CUDNN", "CUDNN_FRONTEND")
    ]
    source = ROOT / "cpp" / "plugin"
    configure = ["cmake", "-S", str(source), "-B", str(build), "-DEDITVERSE_PLUGIN_TESTS=ON", *options]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return build


@pytest.fixture(scope="session")
def plugin_library(plugin_build: Path) -> Path:
    (library,) = plugin_build.rglob("libeditverse_plugin.so")
    return library
