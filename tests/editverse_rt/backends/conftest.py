"""A CUDA made of the host's memory, and a TensorRT whose plans are Python functions over its addresses.

The device is false, everything above it is not: buffers are really taken, filled, passed on and given back.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from editverse_rt.backends.cuda import Gpu
from editverse_rt.backends.trt_runner import TensorRtRtxOptions, TrtRunner
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.engines.manifest import EngineSet, PlanSpec, ShapeProfile, source_digest, write_manifest
from editverse_rt.errors import BackendError

GPU = Gpu(0, "a GPU of the test", "8.9")
VERSION = "1.7.1"
P = 64
ROWS = ("sample", "velocity_cond", "velocity_uncond")
# The next sample by the velocity and the two before it; the history moves on by one.
MATRIX = np.array([[1, -0.03, 0.01, 0.05], [0, 0, 0, 1], [0, 1, 0, 0]], np.float32)


class HostCuda:
    """CUDA's calls on the host's memory; every buffer is guarded against reads and writes after its end.

    Each call wants the GPU to be the calling thread's. failing: the names of methods that fail, once each.
    """

    def __init__(self) -> None:
        self.gpu = GPU
        self.failing: list[str] = []
        self.log: list[str] = []
        self.memory_bytes = 1 << 40
        self._threads: dict[int, int] = {}
        self.stream: int | None = None
        self.buffers: dict[int, Any] = {}
        self.uploads = self.downloads = 0
        self.launch: Callable[[], None] | None = None
        self.graphs: list[Callable[[], None]] = []
        self.replays = 0
        self.recording = False

    @contextmanager
    def current(self) -> Iterator[None]:
        thread = threading.get_ident()
        self._threads[thread] = self._threads.get(thread, 0) + 1
        yield
        self._threads[thread] -= 1

    def check(self, name: str) -> None:
        assert self._threads.get(threading.get_ident()), f"{name} on whichever GPU the thread had"
        if name in self.failing:
            self.failing.remove(name)
            raise BackendError(f"{name} failed")

    def open_stream(self) -> int:
        self.check("open_stream")
        self.stream = 77
        return self.stream

    def close_stream(self) -> None:
        self.stream = None

    def allocate(self, num_bytes: int) -> int:
        self.check("allocate")
        assert not self.recording, "CUDA forbids this while a graph is recorded"
        if num_bytes + sum(map(len, self.buffers.values())) > self.memory_bytes:
            raise BackendError("CUDA's cudaMalloc failed: cudaErrorMemoryAllocation")
        buffer = ctypes.create_string_buffer(num_bytes)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        self.check("free")
        del self.buffers[address]

    def upload(self, address: int, array: np.ndarray) -> None:
        self.check("upload")
        assert array.nbytes <= len(self.buffers[address])
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self.uploads += 1

    def download(self, array: np.ndarray, address: int) -> None:
        self.check("download")
        assert array.nbytes <= len(self.buffers[address])
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        self.downloads += 1

    def copy(self, to: int, address: int, num_bytes: int) -> None:
        self.check("copy")
        assert num_bytes <= min(len(self.buffers[to]), len(self.buffers[address]))
        ctypes.memmove(to, address, num_bytes)

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        """As CUDA does: what is put on the stream is noted, with the addresses of now, and does not run."""
        self.check("record")
        self.log.append("record")
        self.recording = True
        try:
            launch()
        finally:
            self.recording = False
        assert self.launch is not None
        self.graphs.append(self.launch)
        self.launch = None
        return self.graphs[-1]

    def replay(self, graph: Callable[[], None]) -> None:
        assert graph in self.graphs, "a graph that was forgotten"
        self.check("replay")
        self.replays += 1
        graph()

    def forget(self, graph: Callable[[], None]) -> None:
        self.graphs.remove(graph)

    def synchronize(self) -> None:
        self.check("synchronize")
        assert not self.recording, "CUDA forbids this while a graph is recorded"


class HostContext:
    """A context whose plan is a Python function over the bound addresses."""

    def __init__(self, cuda: HostCuda, function: Callable[[HostContext], None], scratch: int) -> None:
        self.cuda, self.function, self.scratch = cuda, function, scratch
        self.refused: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiles: list[int] = []
        self.memory: tuple[int, int] | None = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self.cuda.stream
        self.cuda.log.append("profile")
        self.profiles.append(profile)
        return "profile" not in self.refused

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.cuda.log.append("shape")
        self.shapes[name] = tuple(shape)
        return "shape" not in self.refused

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self.cuda.buffers, "a buffer that was freed"
        self.cuda.log.append("address")
        self.addresses[name] = address
        return "address" not in self.refused

    def update_device_memory_size_for_shapes(self) -> int:
        self.cuda.log.append("scratch")
        return self.scratch

    def set_device_memory(self, address: int, size: int) -> None:
        assert len(self.cuda.buffers[address]) == size >= self.scratch
        self.cuda.log.append("scratch")
        self.memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.cuda.stream
        self.cuda.check("execute")
        self.cuda.log.append("run")
        if "run" in self.refused:
            return False
        if not self.cuda.recording:
            self.function(self)
            return True
        frozen = copy.copy(self)
        frozen.shapes, frozen.addresses = dict(self.shapes), dict(self.addresses)
        memory, scratch = self.memory, self.scratch

        def launch() -> None:
            assert not scratch or (memory is not None and memory[0] in self.cuda.buffers), "scratch is gone"
            assert all(address in self.cuda.buffers for address in frozen.addresses.values())
            self.function(frozen)

        self.cuda.launch = launch
        return True

    def view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name])).reshape(
            shape
        )


def solve(context: HostContext) -> None:
    shape = context.shapes["sample"]
    sample, cond, uncond = (context.view(name, shape) for name in ROWS)
    history = context.view("history", (2, *shape))
    velocity = uncond + context.view("guidance", (1,))[0] * (cond - uncond)
    state = np.stack([sample, *history, velocity])
    following = np.tensordot(context.view("matrix", (3, 4)), state, 1)
    context.view("sample_next", shape)[:] = following[0]
    context.view("history_next", (2, *shape))[:] = following[1:]


def evaluate(context: HostContext) -> None:
    noisy = context.view("noisy", context.shapes["noisy"])
    context.view("velocity", context.shapes["noisy"])[:] = 2 * noisy + context.view("timestep", (1,))[0]


FUNCTIONS = {"solver_step": (solve, 1000), "transformer": (evaluate, 4000)}


@pytest.fixture
def bundle(fake_bundle: Bundle) -> Bundle:
    return load_bundle(fake_bundle.root)


@pytest.fixture
def engines(bundle: Bundle) -> EngineSet:
    folder = bundle.root / "engines" / "sm_89" / f"tensorrt-rtx-{VERSION}"
    folder.mkdir(parents=True)
    plans = []
    for graph, spec in bundle.spec.graphs.items():
        if graph == "noise":
            continue
        shapes = {}
        for tensor in spec.inputs:
            if any(isinstance(axis, str) for axis in tensor.shape):
                sides = [[a if isinstance(a, int) else n for a in tensor.shape] for n in (0, 8, 512)]
                shapes[tensor.name] = (tuple(sides[0]), tuple(sides[1]), tuple(sides[2]))
        small = {n: (a, b, tuple(min(x, 64) for x in c)) for n, (a, b, c) in shapes.items()}
        profiles = (ShapeProfile("large", shapes), ShapeProfile("small", small))
        content = graph.encode()
        (folder / f"{graph}-fp32.plan").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        source = source_digest(bundle, graph)
        file = f"{graph}-fp32.plan"
        plans.append(PlanSpec(graph, "fp32", file, len(content), digest, source, "k", profiles))
    made = EngineSet(folder, "tensorrt-rtx", VERSION, ("8.9",), "", tuple(plans))
    write_manifest(made)
    return made


@pytest.fixture
def contexts() -> dict[str, HostContext]:
    return {}


@pytest.fixture
def fake_trt(contexts: dict[str, HostContext]) -> Any:
    class RuntimeCache:
        """Kernels as words: a context compiles one for its graph, unless it is there."""

        def __init__(self) -> None:
            self.kernels: list[str] = []

        def deserialize(self, content: bytes) -> bool:
            is_known = content.startswith(b"kernels:")
            self.kernels = content.decode().split(":")[1].split() if is_known else []
            return is_known

        def serialize(self) -> bytes:
            return b"kernels:" + " ".join(self.kernels).encode()

    class RuntimeConfig:
        strategy, cuda_graph_strategy = "", "disabled"
        cache: RuntimeCache | None = None

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> None:
            self.cache = cache

        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            self.strategy = strategy

    class Engine:
        streamable_weights_size = 1000
        weight_streaming_budget_v2: int | None = None

        def __init__(self, graph: str) -> None:
            self.graph = graph
            fake.engines[graph] = self

        def get_weight_streaming_automatic_budget(self) -> int:
            return 700

        def create_runtime_config(self) -> RuntimeConfig:
            return RuntimeConfig()

        def create_execution_context(self, how: Any) -> HostContext:
            if isinstance(how, RuntimeConfig):
                fake.native_graphs.append(how.cuda_graph_strategy)
                if how.cache is not None and self.graph not in how.cache.kernels:
                    how.cache.kernels.append(self.graph)
                    fake.compiled.append(self.graph)
                how = how.strategy
            assert how == "user managed"
            function, scratch = FUNCTIONS[self.graph]
            context = HostContext(fake.cuda, function, scratch)
            contexts[self.graph] = context
            return context

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return Engine(plan.decode()) if plan.decode() in FUNCTIONS else None

    class Logger:
        ERROR = 1

        def __init__(self, severity: int) -> None:
            pass

    class Registry:
        """As TensorRT's: a library that is there already is not taken again."""

        all_creators: ClassVar[list[Any]] = []

        def load_library(self, path: str) -> object:
            if "broken" in path or path in fake.loaded_plugins:
                return None
            fake.loaded_plugins.append(path)
            self.all_creators.append(SimpleNamespace(name="RopeAttention", plugin_namespace="editverse"))
            return object()

    strategy = SimpleNamespace(USER_MANAGED="user managed")
    fake = SimpleNamespace(
        Runtime=Runtime,
        Logger=Logger,
        get_plugin_registry=Registry,
        ExecutionContextAllocationStrategy=strategy,
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        __version__=VERSION,
        cuda=None,
        engines={},
        native_graphs=[],
        compiled=[],
        loaded_plugins=[],
    )
    return fake


@pytest.fixture(scope="session")
def host_cuda() -> Callable[[], HostCuda]:
    """Makes a CUDA of its own, for tests with many examples."""
    return HostCuda


@pytest.fixture
def cuda(fake_trt: Any) -> HostCuda:
    fake_trt.cuda = HostCuda()
    return fake_trt.cuda


@pytest.fixture
def runner(bundle: Bundle, fake_trt: Any, cuda: HostCuda, engines: EngineSet) -> Iterator[TrtRunner]:
    plans = {plan.graph: plan for plan in engines.plans}
    options = TensorRtRtxOptions()
    with TrtRunner(bundle, fake_trt, cuda, engines, plans, None, options) as opened:  # type: ignore[arg-type]
        yield opened
    gc.collect()
    assert cuda.buffers == {}, "every buffer is freed"
    assert cuda.stream is None


@pytest.fixture
def solver_inputs() -> Callable[[int], dict[str, Any]]:
    """Inputs of solver_step with that many rows; the same number gives the same values."""
    return draw_solver_inputs


def draw_solver_inputs(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    values: dict[str, Any] = {name: rng.normal(size=(rows, P)).astype(np.float32) for name in ROWS}
    values["guidance"] = np.array(5.0, np.float32)
    values["history"] = rng.normal(size=(2, rows, P)).astype(np.float32)
    values["matrix"] = MATRIX.copy()
    return values


@pytest.fixture
def transformer_inputs(bundle: Bundle) -> Callable[[Any], dict[str, Any]]:
    """Inputs of the transformer for these noisy rows, without text and clips."""
    text_dim = bundle.spec.graphs["transformer"].inputs[0].shape[1]
    assert isinstance(text_dim, int)
    return lambda noisy: make_transformer_inputs(noisy, text_dim)


def make_transformer_inputs(noisy: Any, text_dim: int) -> dict[str, Any]:
    rows = noisy.shape[0]
    return {
        "text": np.zeros((0, text_dim), np.float32),
        "clean": np.zeros((0, P), np.float32),
        "noisy": noisy,
        "layout": np.arange(rows + 2),
        "positions": np.zeros((rows + 2, 4), np.int64),
        "timestep": np.array(0.25, np.float32),
    }
