"""CUDA's bindings as they are called: well-formed for the real ones, and each failure says what to do."""

from __future__ import annotations

import importlib
import platform
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    ("name", "code", "hint"),
    [
        ("cudaErrorInsufficientDriver", "backend.library", "install NVIDIA's driver, or a newer one"),
        ("cudaErrorNoDevice", "backend.device", "the driver finds no NVIDIA GPU; nvidia-smi lists them"),
        (
            "cudaErrorMemoryAllocation",
            "backend.memory",
            "ask for fewer frames or a smaller size, or stop what else is on the GPU",
        ),
        ("cudaErrorIllegalAddress", "backend.cuda", "check the driver and the GPU with nvidia-smi"),
    ],
)
def test_a_failure_says_what_to_do(name: str, code: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(cudaGetDeviceCount=lambda: (status_of(2, name), 0))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)  # type: ignore[arg-type]
    with pytest.raises(BackendError) as error:
        Cuda()
    assert (error.value.code, error.value.hint) == (code, hint)
    assert str(error.value) == f"CUDA's cudaGetDeviceCount failed: {name}; {hint}"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(cudaGetDeviceCount=lambda: (status_of(0, "cudaSuccess"), 1))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)  # type: ignore[arg-type]
    with pytest.raises(
        BackendError, match="GPU 3 was asked for, this machine has 1; choose another"
    ) as error:
        Cuda(3)
    assert (error.value.code, error.value.field) == ("backend.device", "device")


def fake_runtime(**calls: Any) -> SimpleNamespace:
    """A runtime of two GPUs, of which each thread uses the first until it sets another."""
    thread = threading.local()
    ok = status_of(0, "cudaSuccess")
    log: list[tuple[str, int]] = []

    def set_device(index: int) -> tuple[Status]:
        thread.device = index
        return (ok,)

    def malloc(num_bytes: int) -> tuple[Status, int]:
        log.append(("cudaMalloc", getattr(thread, "device", 0)))
        return ok, 4096

    facts = SimpleNamespace(name=b"a GPU", major=9, minor=0)
    mode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    made = {
        "cudaGetDeviceCount": lambda: (ok, 2),
        "cudaGetDeviceProperties": lambda index: (ok, facts),
        "cudaGetDevice": lambda: (ok, getattr(thread, "device", 0)),
        "cudaSetDevice": set_device,
        "cudaMalloc": malloc,
        "cudaStreamBeginCapture": lambda stream, mode: (ok,),
        "cudaStreamEndCapture": lambda stream: (ok, "graph"),
        "cudaGraphInstantiate": lambda graph, flags: (ok, "executable"),
        "cudaGraphDestroy": lambda graph: log.append(("cudaGraphDestroy", 0)) or (ok,),
        "cudaStreamCaptureMode": mode,
        "log": log,
    }
    return SimpleNamespace(**{**made, **calls})


def test_each_thread_uses_the_gpu_within_a_block_and_its_own_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = fake_runtime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)  # type: ignore[arg-type]
    cuda = Cuda(1)

    def allocate() -> int:
        with cuda.current():
            cuda.allocate(16)
        return int(runtime.cudaGetDevice()[1])

    with ThreadPoolExecutor(1) as other:
        assert [allocate(), other.submit(allocate).result()] == [0, 0]
    assert runtime.log == [("cudaMalloc", 1), ("cudaMalloc", 1)]


@pytest.mark.parametrize("end", [(0, "graph"), (901, None)], ids=["ended", "invalidated"])
def test_the_error_of_a_launch_is_not_hidden_by_the_end_of_its_recording(
    end: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the graph of what was recorded until then leaked."""
    code, graph = end
    ended = (status_of(code, "cudaErrorStreamCaptureInvalidated"), graph)
    runtime = fake_runtime(cudaStreamEndCapture=lambda stream: ended)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)  # type: ignore[arg-type]

    def launch() -> None:
        raise BackendError("the launch failed")

    with pytest.raises(BackendError, match="the launch failed"):
        Cuda().record(launch)
    assert runtime.log == [("cudaGraphDestroy", 0)] * (graph is not None)


def test_a_graph_that_cannot_be_made_is_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = status_of(2, "cudaErrorMemoryAllocation")
    runtime = fake_runtime(cudaGraphInstantiate=lambda graph, flags: (failed, None))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="cudaGraphInstantiate failed"):
        Cuda().record(lambda: None)
    assert runtime.log == [("cudaGraphDestroy", 0)]


CALLS: dict[str, Callable[[Any], Any]] = {
    "cudaStreamCreateWithFlags": lambda cuda: cuda.open_stream(),
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
    [("cudaSetDevice", (0,)), ("cudaGetDevice", ()), ("cudaGetDeviceProperties", (0,)),
     ("cudaStreamEndCapture", (NOWHERE,)), ("cudaGraphInstantiate", (NOWHERE, 0)),
     ("cudaGraphDestroy", (NOWHERE,))],
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
