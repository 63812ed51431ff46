"""ONNX Runtime on CUDA as far as it goes without a GPU: packages, libraries, what is held, what stays on the CPU."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from editverse_rt.backends import ort_cuda
from editverse_rt.backends.ort_cuda import CUDA, BoundOrtRunner, BoundTensor, OrtCudaBackend
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.errors import BackendError


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return load_bundle("nano")


def play_packages(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(package: str) -> str:
        if package.replace("-", "_") not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package.replace("-", "_")]

    monkeypatch.setattr(ort_cuda.metadata, "version", version)


def play_onnxruntime(monkeypatch: pytest.MonkeyPatch, *providers: str, **more: Any) -> SimpleNamespace:
    fake = SimpleNamespace(__version__="1.31.1", get_available_providers=lambda: list(providers), **more)
    monkeypatch.setattr(ort_cuda, "import_onnxruntime", lambda: fake)
    monkeypatch.setattr("editverse_rt.backends.ort.import_onnxruntime", lambda: fake)
    return fake


def test_two_packages_that_overwrite_each_other_are_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play_onnxruntime(monkeypatch, "CPUExecutionProvider")
    play_packages(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    reason = str(OrtCudaBackend().probe().reason)
    assert (
        "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed and overwrite each other" in reason
    )
    assert (
        "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
        in reason
    )


def test_the_package_for_the_cpu_alone_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    play_onnxruntime(monkeypatch, "CPUExecutionProvider")
    play_packages(monkeypatch, onnxruntime="1.32.0")
    reason = str(OrtCudaBackend().probe().reason)
    assert (
        "has no CUDAExecutionProvider, only CPUExecutionProvider; it is another package: pip uninstall"
        in reason
    )
    assert "both" not in reason


def test_libraries_of_pip_are_loaded_before_the_provider_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def preload() -> None:
        order.append("preload")
        sys.stdout.write("Failed to load a library\n")

    def start(ort: Any, provider: str) -> bool:
        order.append("start")
        return True

    play_onnxruntime(monkeypatch, CUDA, preload_dlls=preload)
    monkeypatch.setattr("editverse_rt.backends.ort.starts_provider", start)
    assert OrtCudaBackend().probe().available
    assert order == ["preload", "start"]
    assert capsys.readouterr().out == "", "standard output is the command line's"


def test_what_is_held_is_copied_once_and_not_seen_to_change(nano: Bundle) -> None:
    with BoundOrtRunner(nano, 1, "CPUExecutionProvider") as runner:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        held = runner.hold(array)
        assert isinstance(held, BoundTensor)
        assert runner.hold(held) is held
        array[:] = 0
        assert np.asarray(held).tolist() == [[0, 1, 2], [3, 4, 5]]
        empty = np.zeros((0, 3), np.float32)
        assert runner.hold(empty) is empty


def test_noise_is_drawn_on_the_cpu(nano: Bundle) -> None:
    """Its 64-bit shifts are not CUDA's: each would be a copy, and the bytes would be others."""
    runner = BoundOrtRunner(nano, 1, CUDA)
    inputs = {"seed": np.array(3, np.int64), "shape": np.array([4, 192], np.int64)}
    with runner:
        drawn = runner.run("noise", inputs)["noise"]
        assert isinstance(drawn, np.ndarray)
        with pytest.raises(BackendError, match="CUDA"):
            runner.run("text_encoder", {"ids": np.arange(4)})


def test_traits(nano: Bundle) -> None:
    traits = BoundOrtRunner(nano, 1, CUDA).traits
    assert (traits.runs_concurrently, traits.keeps_on_device, traits.engines) == (False, True, None)
