"""One GPU through CUDA's runtime: its stream, its memory, its graphs. The only file that imports cuda.

Never run on a GPU: none was at hand. All calls go through `Cuda`, so that the tests run everything above it
with memory of the host.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends.base import DeviceArray
from editverse_rt.backends.ort import first_line
from editverse_rt.errors import BackendError

__all__ = ["Cuda", "DeviceTensor", "Gpu", "Pool"]


_CHECK = "check the driver and the GPU with nvidia-smi"
_FIXES = {
    "cudaErrorInsufficientDriver": "install NVIDIA's driver, or a newer one",
    "cudaErrorNoDevice": "the driver finds no NVIDIA GPU; nvidia-smi lists them",
    "cudaErrorMemoryAllocation": "ask for fewer frames or a smaller size, or stop what else is on the GPU",
}


@dataclass(frozen=True)
class Gpu:
    """The GPU that is used: its number, name and compute capability ("8.9")."""

    index: int
    name: str
    capability: str


class Cuda:
    """The few calls of CUDA's runtime that a runner makes, each checked; one GPU, one stream.

    Raises BackendError where CUDA's bindings, the driver or the GPU are missing, and where a call fails.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self._rt = importlib.import_module("cuda.bindings.runtime")
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(
                f"cuda.bindings cannot be imported ({first_line(error)}); install it with: "
                "pip install cuda-python"
            ) from error
        count = self._call("cudaGetDeviceCount")
        if not 0 <= device < count:
            raise BackendError(f"GPU {device} was asked for, this machine has {count}; choose another")
        self._call("cudaSetDevice", device)
        facts = self._call("cudaGetDeviceProperties", device)
        name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
        self.gpu = Gpu(device, name, f"{facts.major}.{facts.minor}")
        self.stream: int | None = None

    def open_stream(self) -> int:
        self.stream = int(self._call("cudaStreamCreate"))
        return self.stream

    def close_stream(self) -> None:
        if self.stream is not None:
            self._call("cudaStreamDestroy", self.stream)
            self.stream = None

    def allocate(self, num_bytes: int) -> int:
        return int(self._call("cudaMalloc", num_bytes))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """From the host's memory, which is free to change when this returns."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)
        self.synchronize()

    def download(self, array: NDArray[Any], address: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)
        self.synchronize()

    def copy(self, to: int, address: int, num_bytes: int) -> None:
        """From one buffer of the device to another, in the stream's order."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", to, address, num_bytes, kind, self.stream)

    def record(self, launch: Callable[[], None]) -> Any:
        """A CUDA graph of what `launch` puts on the stream; it is not run. For `replay` and `forget`."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            launch()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def replay(self, graph: Any) -> None:
        self._call("cudaGraphLaunch", graph, self.stream)

    def forget(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def _call(self, name: str, *args: Any) -> Any:
        try:
            status, *values = getattr(self._rt, name)(*args)
        except RuntimeError as error:  # the bindings find no driver when they are first called
            raise BackendError(f"CUDA's {name}: {first_line(error)}; install NVIDIA's driver") from error
        if int(status) != 0:
            found = str(getattr(status, "name", status))
            raise BackendError(f"CUDA's {name} failed: {found}; {_FIXES.get(found, _CHECK)}")
        return values[0] if values else None


class Pool:
    """Device buffers by size: one that was given back serves the next of its size, in the stream's order."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._idle: dict[int, list[int]] = {}
        self._all: list[int] = []
        self._open = True

    def take(self, num_bytes: int) -> int:
        idle = self._idle.get(num_bytes)
        if idle:
            return idle.pop()
        address = self._cuda.allocate(num_bytes)
        self._all.append(address)
        return address

    def give_back(self, address: int, num_bytes: int) -> None:
        if self._open:
            self._idle.setdefault(num_bytes, []).append(address)

    def close(self) -> None:
        self._open = False
        for address in self._all:
            self._cuda.free(address)
        self._all.clear()
        self._idle.clear()


class DeviceTensor(DeviceArray):
    """A result in a buffer of the pool, given back when nobody holds it."""

    def __init__(self, cuda: Cuda, pool: Pool, shape: tuple[int, ...], dtype: str, num_bytes: int) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.owner = pool
        self.address = pool.take(num_bytes)
        self._cuda, self.num_bytes = cuda, num_bytes

    def __del__(self) -> None:
        self.owner.give_back(self.address, self.num_bytes)

    def _download(self) -> NDArray[Any]:
        host = np.empty(self.shape, self.dtype)
        if host.nbytes:
            self._cuda.download(host, self.address)
        return host
