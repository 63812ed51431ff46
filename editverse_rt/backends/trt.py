"""TensorRT and TensorRT for RTX: plans on an NVIDIA GPU. The only file that imports them and cuda.

Never run on a GPU: none was at hand. All calls to CUDA go through `Cuda`, so that the tests run everything
above it with memory of the host. What needs no device (which plan, which profile, sizes) is in `engine.py`.

Results stay on the device as `DeviceTensor`, and go back into the next graph without a copy: between the
transformer and solver_step nothing crosses the bus. All work goes to one stream, in order.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends.base import Availability, DeviceArray, Tensor
from editverse_rt.backends.ort import OrtRunner, first_line
from editverse_rt.bundle import Bundle
from editverse_rt.engine import (
    EngineSet,
    PlanSpec,
    choose_plans,
    choose_profile,
    count_bytes,
    is_verified,
    output_shapes,
    verify_plan_file,
)
from editverse_rt.errors import BackendError
from editverse_rt.spec import GraphSpec

__all__ = ["Cuda", "DeviceTensor", "Gpu", "TrtBackend", "TrtRunner"]

# noise needs 64-bit shifts, which TensorRT does not have; it is drawn once a request.
HOST_GRAPHS = frozenset({"noise"})


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

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def _call(self, name: str, *args: Any) -> Any:
        try:
            status, *values = getattr(self._rt, name)(*args)
        except RuntimeError as error:  # the bindings find no driver when they are first called
            raise BackendError(f"CUDA's {name}: {first_line(error)}; install NVIDIA's driver") from error
        if int(status) != 0:
            raise BackendError(
                f"CUDA's {name} failed: {getattr(status, 'name', status)}; check the driver with nvidia-smi, "
                "or ask for less if memory ran out"
            )
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
        self._cuda, self._num_bytes = cuda, num_bytes

    def __del__(self) -> None:
        self.owner.give_back(self.address, self._num_bytes)

    def _download(self) -> NDArray[Any]:
        host = np.empty(self.shape, self.dtype)
        if host.nbytes:
            self._cuda.download(host, self.address)
        return host


class TrtBackend:
    """One of the two modules as a backend. name: "tensorrt" or "tensorrt-rtx". package: what to install."""

    def __init__(self, name: str, package: str) -> None:
        self._name, self._package = name, package

    @property
    def name(self) -> str:
        return self._name

    def probe(self) -> Availability:
        """Whether the module can be imported, and CUDA finds a GPU."""
        version: str | None = None
        try:
            # In this order: no library of hundreds of megabytes is loaded where there is no GPU for it.
            if importlib.util.find_spec(self._name.replace("-", "_")) is None:
                raise BackendError(f"{self._name} is not installed; pip install 'editverse-rt[{self._name}]'")
            Cuda()
            version = str(self._import().__version__)
        except BackendError as error:
            return Availability(self._name, str(error), version)
        return Availability(self._name, None, version)

    def refuse(self, bundle: Bundle) -> str | None:
        """Why none of the bundle's plans can run on this GPU, and which command builds one that can."""
        try:
            self._choose(bundle, Cuda().gpu)
        except BackendError as error:
            return str(error)
        return None

    def unverified(self, bundle: Bundle) -> str | None:
        """What to run first if the plans that would be taken were never verified on this GPU."""
        gpu = Cuda().gpu
        engines, _ = self._choose(bundle, gpu)
        if not is_verified(engines, gpu.name):
            return (
                f"its plans were never verified on {gpu.name}; run "
                f"`editverse-rt verify {bundle.root} --backend {self._name}` once, or give --allow-unverified"
            )
        return None

    def open_runner(self, bundle: Bundle, num_threads: int | None) -> TrtRunner:
        """A runner of the plans that fit the GPU, verified or not. Raises BackendError if none does."""
        cuda = Cuda()
        engines, plans = self._choose(bundle, cuda.gpu)
        return TrtRunner(bundle, self._import(), cuda, engines, plans, num_threads)

    def _choose(self, bundle: Bundle, gpu: Gpu) -> tuple[EngineSet, dict[str, PlanSpec]]:
        graphs = tuple(name for name in bundle.spec.graphs if name not in HOST_GRAPHS)
        version = str(self._import().__version__)
        return choose_plans(bundle, graphs, self._name, version, gpu.capability, gpu.name)

    def _import(self) -> Any:
        try:
            if self._name == "tensorrt":
                return importlib.import_module("tensorrt")
            return importlib.import_module("tensorrt_rtx")
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(
                f"{self._name} cannot be imported ({first_line(error)}); install it with: pip install "
                f"{self._package}"
            ) from error


@dataclass
class _Loaded:
    """An engine with its only context, and the profile that the context is set to."""

    engine: Any
    context: Any
    profile: int = -1


class TrtRunner:
    """Runs plans on one GPU; an engine is deserialised when its graph is first run.

    All contexts share one buffer for what they hold while they run: the graphs run one after another.
    """

    def __init__(
        self,
        bundle: Bundle,
        trt: Any,
        cuda: Cuda,
        engines: EngineSet,
        plans: Mapping[str, PlanSpec],
        num_threads: int | None = None,
    ) -> None:
        self._bundle, self._trt, self._cuda = bundle, trt, cuda
        self._engines, self._plans = engines, plans
        self._host = OrtRunner(bundle, "CPUExecutionProvider", num_threads)
        self._pool = Pool(cuda)
        self._loaded: dict[str, _Loaded] = {}
        self._scratch: tuple[int, int] = (0, 0)
        self._runtime: Any = None

    @property
    def engines(self) -> EngineSet:
        """The folder of plans that is run."""
        return self._engines

    @property
    def gpu_name(self) -> str:
        return self._cuda.gpu.name

    def __enter__(self) -> TrtRunner:
        self._host.__enter__()
        self._cuda.open_stream()
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._host.__exit__(kind, error, traceback)
        self._loaded.clear()
        self._runtime = None
        self._pool.close()
        if self._scratch[0]:
            self._cuda.free(self._scratch[0])
            self._scratch = (0, 0)
        self._cuda.close_stream()

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Run one graph; its results stay on the device. Raises BackendError for shapes beyond profiles."""
        if graph in HOST_GRAPHS:
            return self._host.run(graph, inputs)
        if self._runtime is None:
            raise BackendError(
                f'graph "{graph}" was asked for outside of the runner\'s `with` block; enter it'
            )
        spec, plan = self._bundle.spec.graphs[graph], self._plans[graph]
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        results = output_shapes(spec, shapes)
        loaded = self._load(graph)
        self._set_shapes(loaded, plan, shapes)
        # Held until the work is queued: the stream's order protects their buffers from there on.
        given = {tensor.name: self._place(tensor.name, spec, inputs[tensor.name]) for tensor in spec.inputs}
        made = {
            tensor.name: DeviceTensor(
                self._cuda,
                self._pool,
                results[tensor.name],
                tensor.dtype,
                count_bytes(tensor, results[tensor.name]),
            )
            for tensor in spec.outputs
        }
        for name, tensor in {**given, **made}.items():
            loaded.context.set_tensor_address(name, tensor.address)
        self._lend_scratch(loaded)
        if not loaded.context.execute_async_v3(self._cuda.stream):
            raise BackendError(f'the plan of graph "{graph}" failed with {shapes}; build the engines again')
        return cast(dict[str, NDArray[Any]], made)

    def _load(self, graph: str) -> _Loaded:
        if graph not in self._loaded:
            plan = self._plans[graph]
            path = verify_plan_file(self._engines, plan)
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise BackendError(
                    f"{path} cannot be read by {self._engines.backend}; build the engines again"
                )
            if plan.facts.get("weight_streaming"):
                engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._loaded[graph] = _Loaded(engine, engine.create_execution_context(strategy))
        return self._loaded[graph]

    def _set_shapes(self, loaded: _Loaded, plan: PlanSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
        profile = choose_profile(plan, shapes)
        if loaded.profile != profile:
            loaded.context.set_optimization_profile_async(profile, self._cuda.stream)
            loaded.profile = profile
        for name in plan.profiles[profile].shapes:
            loaded.context.set_input_shape(name, shapes[name])

    def _place(self, name: str, spec: GraphSpec, value: Any) -> DeviceTensor:
        if isinstance(value, DeviceTensor) and value.owner is self._pool:
            return value
        tensor = next(t for t in spec.inputs if t.name == name)
        array = np.ascontiguousarray(value, tensor.dtype).reshape(np.shape(value))
        placed = DeviceTensor(
            self._cuda, self._pool, array.shape, tensor.dtype, count_bytes(tensor, array.shape)
        )
        if array.nbytes:
            self._cuda.upload(placed.address, array)
        return placed

    def _lend_scratch(self, loaded: _Loaded) -> None:
        needed = int(loaded.context.update_device_memory_size_for_shapes())
        if needed > self._scratch[1]:
            if self._scratch[0]:
                self._cuda.synchronize()
                self._cuda.free(self._scratch[0])
            self._scratch = (self._cuda.allocate(needed), needed)
        if needed:
            loaded.context.set_device_memory(*self._scratch)
