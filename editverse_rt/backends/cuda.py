"""One GPU through CUDA's runtime: its stream, its memory, its graphs. The only file that imports cuda.

All calls go through `Cuda`, so that the tests run everything above it with memory of the host.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends.base import DeviceArray
from editverse_rt.backends.ort import first_line
from editverse_rt.errors import BackendError

__all__ = ["Cuda", "DeviceTensor", "Gpu", "Pool"]


_IDLE_SHARE = 2
_CHECK = "check the driver and the GPU with nvidia-smi"
_FAULTS = {
    "cudaErrorInsufficientDriver": ("backend.library", "install NVIDIA's driver, or a newer one"),
    "cudaErrorNoDevice": ("backend.device", "the driver finds no NVIDIA GPU; nvidia-smi lists them"),
    "cudaErrorMemoryAllocation": (
        "backend.memory",
        "ask for fewer frames or a smaller size, or stop what else is on the GPU",
    ),
}
"""By CUDA's name of an error: the code of ours, and what to do."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that is used: its number, name and compute capability ("8.9")."""

    index: int
    name: str
    capability: str


class Cuda:
    """The few calls of CUDA's runtime that a runner makes, each checked; one GPU, one stream.

    CUDA keeps the GPU in use for each thread: calls belong into `with cuda.current()`. Raises BackendError
    where CUDA's bindings, the driver or the GPU are missing, and where a call fails.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self._rt = importlib.import_module("cuda.bindings.runtime")
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(
                f"cuda.bindings cannot be imported ({first_line(error)})",
                hint="install it with: pip install cuda-python",
                code="backend.library",
            ) from error
        count = self._call("cudaGetDeviceCount")
        if not 0 <= device < count:
            raise BackendError(
                f"GPU {device} was asked for, this machine has {count}",
                hint="choose another",
                code="backend.device",
                field="device",
            )
        facts = self._call("cudaGetDeviceProperties", device)
        name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
        self.gpu = Gpu(device, name, f"{facts.major}.{facts.minor}")
        self.stream: int | None = None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU the one of the calling thread, and give the thread back what it had before."""
        before = int(self._call("cudaGetDevice"))
        if before == self.gpu.index:
            yield
            return
        self._call("cudaSetDevice", self.gpu.index)
        try:
            yield
        finally:
            # An error here would hide the one of the block.
            self._try("cudaSetDevice", before)

    def open_stream(self) -> int:
        """A stream that does not wait for the default stream, on which other libraries may work."""
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))
        return self.stream

    def close_stream(self) -> None:
        if self.stream is not None:
            stream, self.stream = self.stream, None
            self._call("cudaStreamDestroy", stream)

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
        except BaseException:
            # The stream has to leave the capture. The error of `launch` is the one to tell: it made the
            # capture invalid, and CUDA reports that at its end as well.
            graph = self._try("cudaStreamEndCapture", self.stream)
            if graph:
                self._try("cudaGraphDestroy", graph)
            raise
        graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._try("cudaGraphDestroy", graph)

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
            raise BackendError(
                f"CUDA's {name}: {first_line(error)}", hint="install NVIDIA's driver", code="backend.library"
            ) from error
        if int(status) != 0:
            found = str(getattr(status, "name", status))
            code, hint = _FAULTS.get(found, ("backend.cuda", _CHECK))
            raise BackendError(f"CUDA's {name} failed: {found}", hint=hint, code=code)
        return values[0] if values else None

    def _try(self, name: str, *args: Any) -> Any:
        """The same for cleaning up after an error: None if it fails."""
        try:
            return self._call(name, *args)
        except BackendError:
            return None


class Pool:
    """Device buffers. One that was given back serves the next of its size, in the stream's order.

    Idle buffers hold at most twice the bytes that were ever in use at once, since the stages of a request have
    buffers of different sizes, which the next request finds again; those that are idle longest are freed first.
    Where memory has run out all of them are freed, and the allocation is tried again.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._used: dict[int, int] = {}
        self._idle: list[tuple[int, int]] = []
        self._most_used_bytes = 0
        # Filled by destructors, which run in any thread at any moment; `take` empties it.
        self._returned: deque[int] = deque()
        self.is_open = True

    def take(self, num_bytes: int) -> int:
        """The address of a buffer of just this size. Raises BackendError if the device has no memory left."""
        self._collect()
        for index in reversed(range(len(self._idle))):
            if self._idle[index][1] == num_bytes:
                address, _ = self._idle.pop(index)
                break
        else:
            address = self._allocate(num_bytes)
        self._used[address] = num_bytes
        self._most_used_bytes = max(self._most_used_bytes, sum(self._used.values()))
        self._free_idle(_IDLE_SHARE * self._most_used_bytes)
        return address

    def give_back(self, address: int) -> None:
        """Any thread may call this, at any moment; nothing is freed in it."""
        self._returned.append(address)

    def download(self, array: NDArray[Any], address: int) -> None:
        """Raises BackendError once the pool is closed: its memory is another's by then."""
        if not self.is_open:
            raise BackendError(
                "a result was left on the GPU when its runner was closed",
                hint="read results before that",
                code="backend.closed",
            )
        with self._cuda.current():
            self._cuda.download(array, address)

    def close(self) -> None:
        """Free every buffer, those that are still held among them."""
        self.is_open = False
        self._collect()
        self._idle += self._used.items()
        self._used.clear()
        self._free_idle(0)

    def _collect(self) -> None:
        while self._returned:
            address = self._returned.popleft()
            if address in self._used:  # after `close` it is not
                self._idle.append((address, self._used.pop(address)))

    def _allocate(self, num_bytes: int) -> int:
        try:
            return self._cuda.allocate(num_bytes)
        except BackendError:
            if not self._idle:
                raise
            self._free_idle(0)
            return self._cuda.allocate(num_bytes)

    def _free_idle(self, most_bytes: int) -> None:
        """Free the buffers that are idle longest, until the rest has at most so many bytes."""
        excess = sum(num_bytes for _, num_bytes in self._idle) - most_bytes
        if excess > 0:
            self._cuda.synchronize()  # the work that read them may still be running
        while excess > 0:
            address, num_bytes = self._idle.pop(0)
            excess -= num_bytes
            self._cuda.free(address)


class DeviceTensor(DeviceArray):
    """A result in a buffer of the pool, given back when nobody holds it.

    Raises BackendError if the device has no memory left.
    """

    address = 0

    def __init__(self, pool: Pool, shape: tuple[int, ...], dtype: str, num_bytes: int) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.owner, self.num_bytes = pool, num_bytes
        self.address = pool.take(num_bytes)

    def __del__(self) -> None:
        if self.address:  # not if the pool had none
            self.owner.give_back(self.address)

    def _download(self) -> NDArray[Any]:
        host = np.empty(self.shape, self.dtype)
        if host.nbytes:
            self.owner.download(host, self.address)
        return host
