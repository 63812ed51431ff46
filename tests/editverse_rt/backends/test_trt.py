"""The runner of plans over a CUDA made of the host's memory, and what is said where there is no GPU.

The device is false, everything above it is not: buffers are really taken, filled, passed on and given back.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from editverse_rt.backends import list_backends, select_backend
from editverse_rt.backends.trt import DeviceTensor, Gpu, TrtBackend, TrtRunner
from editverse_rt.bundle import Bundle, load_bundle
from editverse_rt.cli import main
from editverse_rt.engine import EngineSet, PlanSpec, ShapeProfile, source_digest, write_manifest, write_stamp
from editverse_rt.errors import BackendError

GPU = Gpu(0, "a GPU of the test", "8.9")
VERSION = "1.7.1"
P = 64
ROWS = ("sample", "velocity_cond", "velocity_uncond", "velocity_prev1", "velocity_prev2")


class HostCuda:
    """CUDA's calls on the host's memory; every buffer is guarded against reads and writes after its end."""

    def __init__(self) -> None:
        self.gpu = GPU
        self.stream: int | None = None
        self.buffers: dict[int, Any] = {}
        self.uploads = self.downloads = 0

    def open_stream(self) -> int:
        self.stream = 77
        return self.stream

    def close_stream(self) -> None:
        self.stream = None

    def allocate(self, num_bytes: int) -> int:
        buffer = ctypes.create_string_buffer(num_bytes)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        del self.buffers[address]

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.nbytes <= len(self.buffers[address])
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self.uploads += 1

    def download(self, array: np.ndarray, address: int) -> None:
        assert array.nbytes <= len(self.buffers[address])
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        self.downloads += 1

    def synchronize(self) -> None:
        pass


class HostContext:
    """A context whose plan is a Python function over the bound addresses."""

    def __init__(self, cuda: HostCuda, function: Callable[[HostContext], None], scratch: int) -> None:
        self.cuda, self.function, self.scratch = cuda, function, scratch
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiles: list[int] = []
        self.memory: tuple[int, int] | None = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> None:
        assert stream == self.cuda.stream
        self.profiles.append(profile)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = tuple(shape)

    def set_tensor_address(self, name: str, address: int) -> None:
        assert address in self.cuda.buffers, "a buffer that was freed"
        self.addresses[name] = address

    def update_device_memory_size_for_shapes(self) -> int:
        return self.scratch

    def set_device_memory(self, address: int, size: int) -> None:
        assert len(self.cuda.buffers[address]) == size >= self.scratch
        self.memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.cuda.stream
        self.function(self)
        return True

    def view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name])).reshape(
            shape
        )


def solve(context: HostContext) -> None:
    shape = context.shapes["sample"]
    sample, cond, uncond, prev1, prev2 = (context.view(name, shape) for name in ROWS)
    guidance = context.view("guidance", (1,))[0]
    c = context.view("coefficients", (3,))
    velocity = uncond + guidance * (cond - uncond)
    context.view("sample_next", shape)[:] = sample + c[0] * velocity + c[1] * prev1 + c[2] * prev2
    context.view("velocity", shape)[:] = velocity


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
    class Engine:
        def __init__(self, graph: str) -> None:
            self.graph = graph

        def create_execution_context(self, strategy: str) -> HostContext:
            assert strategy == "user managed"
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

    strategy = SimpleNamespace(USER_MANAGED="user managed")
    fake = SimpleNamespace(
        Runtime=Runtime,
        Logger=Logger,
        ExecutionContextAllocationStrategy=strategy,
        __version__=VERSION,
        cuda=None,
    )
    return fake


@pytest.fixture
def cuda(fake_trt: Any) -> HostCuda:
    fake_trt.cuda = HostCuda()
    return fake_trt.cuda


@pytest.fixture
def runner(bundle: Bundle, fake_trt: Any, cuda: HostCuda, engines: EngineSet) -> Iterator[TrtRunner]:
    plans = {plan.graph: plan for plan in engines.plans}
    with TrtRunner(bundle, fake_trt, cuda, engines, plans) as opened:  # type: ignore[arg-type]
        yield opened
    gc.collect()
    assert cuda.buffers == {}, "every buffer is freed"
    assert cuda.stream is None


def solver_inputs(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    values: dict[str, Any] = {name: rng.normal(size=(rows, P)).astype(np.float32) for name in ROWS}
    values["guidance"] = np.array(5.0, np.float32)
    values["coefficients"] = np.array([0.05, -0.03, 0.01], np.float32)
    return values


def transformer_inputs(noisy: Any, text_dim: int) -> dict[str, Any]:
    rows = noisy.shape[0]
    return {
        "text": np.zeros((0, text_dim), np.float32),
        "clean": np.zeros((0, P), np.float32),
        "noisy": noisy,
        "layout": np.arange(rows + 2),
        "positions": np.zeros((rows + 2, 4), np.int64),
        "timestep": np.array(0.25, np.float32),
    }


def test_a_graph_computes_what_its_plan_says(runner: TrtRunner) -> None:
    x = solver_inputs(7)
    found = runner.run("solver_step", x)
    velocity = x["velocity_uncond"] + np.float32(5.0) * (x["velocity_cond"] - x["velocity_uncond"])
    expected = x["sample"] + 0.05 * velocity - 0.03 * x["velocity_prev1"] + 0.01 * x["velocity_prev2"]
    np.testing.assert_allclose(np.asarray(found["velocity"]), velocity, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found["sample_next"]), expected, atol=1e-5)


def test_a_denoising_loop_stays_on_the_device(bundle: Bundle, runner: TrtRunner, cuda: HostCuda) -> None:
    text_dim = bundle.spec.graphs["transformer"].inputs[0].shape[1]
    assert isinstance(text_dim, int)
    sample: Any = np.ones((5, P), np.float32)
    expected = sample.copy()
    zeros = np.zeros_like(sample)
    for step in range(3):
        velocity = runner.run("transformer", transformer_inputs(sample, text_dim))["velocity"]
        assert isinstance(velocity, DeviceTensor)
        before = cuda.uploads
        coefficients = np.array([0.5, 0, 0], np.float32)
        sample = runner.run(
            "solver_step",
            {
                "sample": sample, "velocity_cond": velocity, "velocity_uncond": velocity,
                "velocity_prev1": zeros, "velocity_prev2": zeros,
                "guidance": np.array(1.0, np.float32), "coefficients": coefficients,
            },
        )["sample_next"]  # fmt: skip
        # The two zeros, the guidance and the coefficients; in the first step the noise as well.
        assert cuda.uploads - before == (5 if step == 0 else 4)
        expected = expected + 0.5 * (2 * expected + 0.25)
    assert cuda.downloads == 0
    np.testing.assert_allclose(sample.reshape(5, 8, 8), expected.reshape(5, 8, 8), rtol=1e-6)
    assert cuda.downloads == 1
    assert np.asarray(sample[:2]).shape == (2, P)
    assert len(sample) == 5
    assert cuda.downloads == 1, "copied once"


def test_buffers_are_used_again(runner: TrtRunner, cuda: HostCuda) -> None:
    counts = []
    for _ in range(4):
        runner.run("solver_step", solver_inputs(9))
        gc.collect()
        counts.append(len(cuda.buffers))
    assert counts[1:] == counts[:-1]


def test_what_is_still_held_is_not_overwritten(runner: TrtRunner) -> None:
    first = runner.run("solver_step", solver_inputs(6))["velocity"]
    exact = np.array(first)
    kept = runner.run("solver_step", solver_inputs(6))["velocity"]
    other = {**solver_inputs(6), "velocity_uncond": np.zeros((6, P), np.float32)}
    runner.run("solver_step", other)
    np.testing.assert_array_equal(np.asarray(kept), exact)


def test_the_smallest_profile_is_set_once_and_changed_when_it_must(
    runner: TrtRunner, contexts: dict[str, HostContext]
) -> None:
    for rows in (5, 64, 65, 3):
        runner.run("solver_step", solver_inputs(rows))
    assert contexts["solver_step"].profiles == [1, 0, 1]
    with pytest.raises(BackendError, match=r"sample \[513, 64\].*--maxShapes"):
        runner.run("solver_step", solver_inputs(513))


def test_contexts_share_the_largest_scratch(
    bundle: Bundle, runner: TrtRunner, contexts: dict[str, HostContext], cuda: HostCuda
) -> None:
    runner.run("solver_step", solver_inputs(4))
    text_dim = bundle.spec.graphs["transformer"].inputs[0].shape[1]
    assert isinstance(text_dim, int)
    runner.run("transformer", transformer_inputs(np.ones((4, P), np.float32), text_dim))
    runner.run("solver_step", solver_inputs(4))
    assert contexts["solver_step"].memory == contexts["transformer"].memory
    assert contexts["solver_step"].memory is not None
    assert contexts["solver_step"].memory[1] == 4000


def test_a_plan_that_cannot_be_read_and_one_that_was_altered(runner: TrtRunner, engines: EngineSet) -> None:
    with pytest.raises(BackendError, match=r"text_encoder-fp32.plan cannot be read by tensorrt-rtx; build"):
        runner.run("text_encoder", {"ids": np.arange(4)})
    (engines.folder / "transformer-fp32.plan").write_bytes(b"altered")
    with pytest.raises(BackendError, match="was altered"):
        runner.run("transformer", transformer_inputs(np.ones((4, P), np.float32), 6))


def test_nothing_runs_outside_of_the_block(
    bundle: Bundle, fake_trt: Any, cuda: HostCuda, engines: EngineSet
) -> None:
    plans = {plan.graph: plan for plan in engines.plans}
    runner = TrtRunner(bundle, fake_trt, cuda, engines, plans)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="`with` block"):
        runner.run("solver_step", solver_inputs(3))


def test_the_backend_asks_for_plans_and_for_a_stamp(
    bundle: Bundle, fake_trt: Any, cuda: HostCuda, engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_trt)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: fake_trt)
    monkeypatch.setattr("editverse_rt.backends.trt.Cuda", lambda: cuda)
    backend = TrtBackend("tensorrt-rtx", "a-package")
    assert backend.probe().available
    assert backend.refuse(bundle) is None
    reason = backend.unverified(bundle)
    assert reason is not None
    assert "never verified on a GPU of the test; run `editverse-rt verify" in reason
    monkeypatch.setattr("editverse_rt.backends._BACKENDS", (backend,))
    with pytest.raises(BackendError, match="give --allow-unverified"):
        select_backend("tensorrt-rtx", bundle)
    assert select_backend("auto", bundle, allow_unverified=True).backend is backend
    write_stamp(engines, GPU.name, {})
    assert backend.unverified(bundle) is None
    assert select_backend("tensorrt-rtx", bundle).backend is backend
    with backend.open_runner(bundle, None) as runner:
        assert runner.run("solver_step", solver_inputs(3))["velocity"].shape == (3, P)
    (engines.folder / "manifest.json").unlink()
    assert "build it with: python -m export.build_engine" in str(backend.refuse(bundle))


# --- where there is no GPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_the_backend_says_what_to_install(bundle: Bundle, name: str) -> None:
    (state,) = [state for state in list_backends() if state.name == name]
    if state.available:
        pytest.fail(
            "these tests were written for machines without a GPU; test the backend itself on this one"
        )
    assert "install" in str(state.reason)
    with pytest.raises(BackendError, match=f'backend "{name}" cannot be used'):
        select_backend(name, bundle)


def test_doctor_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "  tensorrt-rtx " in out
    assert "  tensorrt  " in out
