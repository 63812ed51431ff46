"""ONNX Runtime on CUDA: its options, and results that stay on the GPU by IO binding."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import metadata
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends.base import (
    Array,
    Availability,
    DeviceArray,
    GraphFiles,
    RunnerTraits,
    Tensor,
    take_options,
)
from editverse_rt.backends.ort import CPU, OrtRunner, first_line, import_onnxruntime, probe_provider
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import GraphSpec
from editverse_rt.engines.choice import is_host_graph
from editverse_rt.errors import BackendError

__all__ = ["BoundOrtRunner", "BoundTensor", "OrtCudaBackend", "OrtCudaOptions"]

CUDA = "CUDAExecutionProvider"
# Where a provider keeps its tensors, by ONNX Runtime's names. The CPU is here for tests of the binding.
_DEVICES = {CPU: "cpu", CUDA: "cuda"}
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'"


@dataclass(frozen=True)
class OrtCudaOptions:
    """What a caller decides about ONNX Runtime on CUDA.

    device: the GPU's number, None for the first. gpu_memory_limit_bytes: the most that each graph's session
    may take from the GPU for weights and results; None for no limit.
    """

    device: int | None = None
    gpu_memory_limit_bytes: int | None = None

    def provider_options(self) -> dict[str, str]:
        """The provider's options, as ONNX Runtime takes them (its documentation of the CUDA provider).

        Convolutions are chosen by cuDNN's heuristics: the default measures all of them anew for each shape,
        and the choice would differ between runs. Memory is taken as it is needed: by default it grows by
        powers of two. Products are in float32: by default inputs are rounded to TF32, ten bits of mantissa.
        """
        options = {
            "device_id": str(self.device or 0),
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
        }
        if self.gpu_memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.gpu_memory_limit_bytes)
        return options


@dataclass(frozen=True)
class OrtCudaBackend:
    """ONNX Runtime on an NVIDIA GPU, without plans."""

    name: str = "ort-cuda"
    options: OrtCudaOptions = field(default_factory=OrtCudaOptions)

    def with_options(self, asked: Mapping[str, object]) -> OrtCudaBackend:
        """Raises BackendError for an option that is TensorRT's."""
        return OrtCudaBackend(self.name, take_options(self.name, self.options, asked))

    def probe(self) -> Availability:
        """Whether this onnxruntime has CUDA and can start it. Loads CUDA's libraries, where pip has them."""
        fix = _explain_packages() or f"it is another package: {_INSTALL}"
        try:
            _load_libraries(import_onnxruntime())
        except BackendError as error:
            return Availability(self.name, str(error))
        return probe_provider(self.name, CUDA, fix)

    def refuse(self, bundle: Bundle) -> str | None:
        return None

    def unverified(self, bundle: Bundle) -> str | None:
        return None

    def open_runner(self, bundle: GraphFiles, num_threads: int | None) -> BoundOrtRunner:
        """A runner of bundle's ONNX files; num_threads is of the graphs that stay on the CPU."""
        _load_libraries(import_onnxruntime())
        return BoundOrtRunner(bundle, num_threads, CUDA, self.options)


def _explain_packages() -> str | None:
    """What to do if both packages of onnxruntime are installed; None if not.

    They have the same files, so the one that was installed last overwrote the other. Where that is the one
    for the CPU, CUDA is not there; and removing either leaves neither whole.
    """
    try:
        found = " and ".join(f"{package} {metadata.version(package)}" for package in _PACKAGES)
    except metadata.PackageNotFoundError:
        return None
    return f"{found} are both installed and overwrite each other: {_INSTALL}"


def _load_libraries(ort: Any) -> None:
    """Load CUDA and cuDNN as pip installs them, before a session asks the system for them.

    Without that the provider finds them in the system's folders only, or where PyTorch loaded them before.
    ONNX Runtime does nothing here if it was built for the CPU.
    """
    if CUDA in ort.get_available_providers():
        # It prints which libraries it does not find; whether the provider starts is asked afterwards.
        with redirect_stdout(io.StringIO()):
            ort.preload_dlls()


class BoundTensor(DeviceArray):
    """A result in memory that ONNX Runtime allocated on a device, freed when nobody holds it.

    value: an OrtValue. device: ONNX Runtime's name of where it lies.
    """

    def __init__(self, value: Any, device: str, dtype: str) -> None:
        self.value, self.device = value, device
        self.shape, self.dtype = tuple(value.shape()), np.dtype(dtype)

    def _download(self) -> NDArray[Any]:
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return cast(NDArray[Any], self.value.numpy())


class BoundOrtRunner(OrtRunner):
    """Runs a bundle's ONNX files with results that stay on the provider's device, by IO binding.

    What one graph gave goes into the next without a copy; arrays of the host are copied in by ONNX Runtime.
    The provider leaves single nodes that it does not have to the CPU. One thread at a time: that is all that
    was tried.
    """

    def __init__(
        self,
        bundle: GraphFiles,
        num_threads: int | None,
        provider: str = CUDA,
        options: OrtCudaOptions | None = None,
    ) -> None:
        options = options or OrtCudaOptions()
        is_cpu = provider == CPU
        super().__init__(bundle, num_threads, provider, {} if is_cpu else options.provider_options())
        self._device, self._index = _DEVICES.get(provider, "cpu"), 0 if is_cpu else options.device or 0
        self._host = OrtRunner(bundle, num_threads)

    @property
    def traits(self) -> RunnerTraits:
        return RunnerTraits(keeps_on_device=True)

    def __enter__(self) -> BoundOrtRunner:
        self._host.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._host.__exit__(kind, error, traceback)

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Run one graph; results stay on the device, but for graphs that every backend runs on the CPU."""
        if is_host_graph(graph):
            return self._host.run(graph, {name: np.asarray(value) for name, value in inputs.items()})
        return super().run(graph, inputs)

    def hold(self, array: Array) -> Array:
        """The array on the device. Raises BackendError if it has no memory left."""
        if isinstance(array, BoundTensor) or 0 in array.shape:
            return array  # nothing to copy
        try:
            value = import_onnxruntime().OrtValue.ortvalue_from_numpy(
                np.array(array, order="C"), self._device, self._index
            )
        except Exception as error:
            raise BackendError(
                f"onnxruntime cannot copy {list(array.shape)} {array.dtype} to the GPU ({first_line(error)})",
                hint="ask for fewer frames or a smaller size",
                code="backend.memory",
            ) from error
        return BoundTensor(value, self._device, str(array.dtype))

    def _execute(self, session: Any, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        missing = [tensor.name for tensor in spec.inputs if tensor.name not in inputs]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing among the inputs")
        binding = session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, BoundTensor) and value.device == self._device:
                binding.bind_ortvalue_input(name, value.value)
            else:
                binding.bind_cpu_input(name, np.asarray(value, order="C"))
        for tensor in spec.outputs:
            binding.bind_output(tensor.name, self._device, self._index)
        # Each session has a stream of its own, so a result is complete before another session takes it.
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return {
            tensor.name: BoundTensor(value, self._device, tensor.dtype)
            for tensor, value in zip(spec.outputs, binding.get_outputs(), strict=True)
        }
