"""CUDA's bindings as they are called: well-formed for the real ones, and each failure says what to do."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from editverse_rt.backends.cuda import Cuda
from editverse_rt.errors import BackendError

VALUES = np.zeros(4, np.float32)
# On no machine an address, a stream or a graph. A call with one is refused by the driver, or for want of one.
NOWHERE = 1 << 46


class Status(int):
    name = ""


def status_of(number: int, name: str) -> Status:
    status = Status(number)
    status.name = name
    return status


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cudaErrorInsufficientDriver", "cudaErrorInsufficientDriver; install NVIDIA's driver"),
        ("cudaErrorNoDevice", "cudaErrorNoDevice; the driver finds no NVIDIA GPU"),
        ("cudaErrorMemoryAllocation", "cudaErrorMemoryAllocation; ask for fewer frames"),
        ("cudaErrorIllegalAddress", "cudaErrorIllegalAddress; check the driver and the GPU with nvidia-smi"),
    ],
)
def test_a_failure_says_what_to_do(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(cudaGetDeviceCount=lambda: (status_of(2, name), 0))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=f"CUDA's cudaGetDeviceCount failed: {said}") as error:
        Cuda()
    assert "\n" not in str(error.value)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(cudaGetDeviceCount=lambda: (status_of(0, "cudaSuccess"), 1))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="GPU 3 was asked for, this machine has 1; choose another"):
        Cuda(3)


CALLS: dict[str, Callable[[Any], Any]] = {
    "cudaStreamCreate": lambda cuda: cuda.open_stream(),
    "cudaMalloc": lambda cuda: cuda.allocate(16),
    "cudaFree": lambda cuda: cuda.free(NOWHERE),
    "cudaMemcpyAsync": lambda cuda: cuda.upload(NOWHERE, VALUES),
    "cudaMemcpyAsync ": lambda cuda: cuda.download(VALUES.copy(), NOWHERE),
    "cudaMemcpyAsync  ": lambda cuda: cuda.copy(NOWHERE, NOWHERE, 16),
    "cudaStreamBeginCapture": lambda cuda: cuda.record(lambda: None),
    "cudaGraphLaunch": lambda cuda: cuda.replay(NOWHERE),
    "cudaGraphExecDestroy": lambda cuda: cuda.forget(NOWHERE),
    "cudaStreamSynchronize": lambda cuda: cuda.synchronize(),
    "cudaStreamDestroy": lambda cuda: cuda.close_stream(),
}


@pytest.fixture
def driverless() -> Any:
    """A Cuda over the real bindings, on a machine where every call of them has to fail."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the tests install cuda-bindings on Linux x86-64 only")
    runtime = importlib.import_module("cuda.bindings.runtime")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU here, and handles of nothing would harm its context")
    cuda = Cuda.__new__(Cuda)
    cuda._rt, cuda.stream = runtime, NOWHERE
    return cuda


@pytest.mark.parametrize("name", CALLS)
def test_each_call_is_one_that_the_bindings_take(name: str, driverless: Any) -> None:
    """They check types and number of arguments first, so an ill-formed call would be a TypeError."""
    with pytest.raises(BackendError, match=f"CUDA's {name.strip()} failed: cudaError"):
        CALLS[name](driverless)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("cudaSetDevice", (0,)), ("cudaGetDeviceProperties", (0,)), ("cudaStreamEndCapture", (NOWHERE,)),
     ("cudaGraphInstantiate", (NOWHERE, 0)), ("cudaGraphDestroy", (NOWHERE,))],
)  # fmt: skip
def test_what_follows_a_first_call_is_taken_too(
    name: str, arguments: tuple[int, ...], driverless: Any
) -> None:
    with pytest.raises(BackendError, match=f"CUDA's {name} failed: cudaError"):
        driverless._call(name, *arguments)


def test_the_bindings_have_the_fields_and_modes_that_are_named(driverless: Any) -> None:
    runtime = driverless._rt
    properties = runtime.cudaDeviceProp()
    assert {"name", "major", "minor"} <= set(dir(properties))
    with pytest.raises(TypeError):
        runtime.cudaMalloc()
