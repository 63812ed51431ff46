"""A runner of TensorRT's plans on one GPU: engines, contexts, profiles, buffers, recorded calls.

What needs no device (which plan, which profile, sizes) is in `engines/`, calls to CUDA are in `cuda.py`; the
vendor's module is given by `trt.py`, which imports it.

Results stay on the device as `DeviceTensor`, and go back into the next graph without a copy: between the
transformer and solver_step nothing crosses the bus. All work goes to one stream, in order.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from editverse_rt.backends.base import Array, RunnerTraits, Tensor
from editverse_rt.backends.cuda import Cuda, DeviceTensor, Pool
from editverse_rt.backends.ort import OrtRunner
from editverse_rt.backends.plugin import register_plugin
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import GraphSpec, TensorSpec
from editverse_rt.engines.choice import choose_profile, choose_weight_budget, is_host_graph
from editverse_rt.engines.manifest import BUILD_AGAIN, EngineSet, PlanSpec, verify_plan_file
from editverse_rt.engines.shapes import Shape, count_bytes, output_shapes
from editverse_rt.errors import BackendError

__all__ = ["MOST_RECORDED", "TensorRtOptions", "TensorRtRtxOptions", "TrtOptions", "TrtRunner"]

MOST_RECORDED = 4
"""CUDA graphs that are cached for each graph of the bundle: conditional and unconditional, for two requests."""


@dataclass(frozen=True)
class TrtOptions:
    """What a caller decides about either TensorRT.

    device: the GPU's number, None for the first. cuda_graphs: launch a call that repeats as one CUDA graph.
    weight_budget_bytes: how much of each plan's weights may lie on the GPU at once, for plans built with
    weight streaming; None leaves it to TensorRT.
    """

    device: int | None = None
    cuda_graphs: bool = False
    weight_budget_bytes: int | None = None


@dataclass(frozen=True)
class TensorRtOptions(TrtOptions):
    """plugin: the library that has `RopeAttention`, for plans that were built with it."""

    plugin: Path | None = None


@dataclass(frozen=True)
class TensorRtRtxOptions(TrtOptions):
    """kernel_cache: a file for the kernels that are compiled on this machine, read at the start and written
    at the end."""

    kernel_cache: Path | None = None


@dataclass
class _Call:
    """A context set to one call's shapes and buffers, and the CUDA graph of it once it is recorded.

    scratch: the memory that the context was last run with, None before it ran; it is recorded with no other.
    """

    context: Any
    given: dict[str, DeviceTensor]
    made: dict[str, DeviceTensor]
    scratch: DeviceTensor | None = None
    graph: Any = None


@dataclass
class _Loaded:
    """An engine with the context that takes any shape, its profile, and the calls that are recorded.

    profile: None where it is not known, before the first call and after one that failed.
    """

    engine: Any
    context: Any
    profile: int | None = None
    recorded: OrderedDict[tuple[Shape, ...], _Call] = field(default_factory=OrderedDict)


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
        options: TrtOptions | None = None,
    ) -> None:
        self._bundle, self._trt, self._cuda = bundle, trt, cuda
        self._engines, self._plans = engines, plans
        self._options = TensorRtOptions() if options is None else options
        self._kernel_cache = options.kernel_cache if isinstance(options, TensorRtRtxOptions) else None
        self._host = OrtRunner(bundle, num_threads)
        self._pool = Pool(cuda)
        self._loaded: dict[str, _Loaded] = {}
        self._scratch: DeviceTensor | None = None
        self._runtime: Any = None
        self._kernels: Any = None

    @property
    def traits(self) -> RunnerTraits:
        return RunnerTraits(
            keeps_on_device=True,
            precisions=frozenset(plan.precision for plan in self._plans.values()),
            gpu=self._cuda.gpu.name,
            engines=self._engines,
        )

    def __enter__(self) -> TrtRunner:
        with self._cuda.current():
            if isinstance(self._options, TensorRtOptions) and self._options.plugin is not None:
                register_plugin(self._trt.get_plugin_registry(), self._options.plugin)
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
        with self._cuda.current():
            self._forget_recorded()
            # Read while the engines live, written when everything is given back.
            kernels = None if self._kernels is None else bytes(self._kernels.serialize())
            self._kernels = None
            self._loaded.clear()
            self._runtime = None
            self._scratch = None
            self._pool.close()
            self._cuda.close_stream()
        if kernels is not None and self._kernel_cache is not None:
            _write_kernels(kernels, self._kernel_cache)

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Run one graph; its results stay on the device. Raises BackendError for shapes beyond profiles."""
        if is_host_graph(graph):
            return self._host.run(graph, {name: np.asarray(value) for name, value in inputs.items()})
        self._want_entered(f'graph "{graph}"')
        spec, plan = self._bundle.spec.graphs[graph], self._plans[graph]
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        results = output_shapes(spec, shapes)
        with self._cuda.current():
            loaded = self._load(graph)
            # Held until the work is queued: the stream's order protects their buffers from there on.
            given = {tensor.name: self._place(tensor, inputs[tensor.name]) for tensor in spec.inputs}
            made = {tensor.name: self._new(tensor, results[tensor.name]) for tensor in spec.outputs}
            if self._records:
                self._run_recorded(loaded, spec, plan, shapes, given, made)
            else:
                self._run_once(loaded, spec, plan, shapes, {**given, **made})
        return dict(made)

    def hold(self, array: Array) -> Array:
        """The array on the GPU. Raises BackendError."""
        self._want_entered("an array")
        with self._cuda.current():
            return self._place(TensorSpec("held", str(array.dtype), array.shape), array)

    def _want_entered(self, what: str) -> None:
        if self._runtime is None:
            raise BackendError(
                f"{what} was asked for outside of the runner's `with` block",
                hint="enter it",
                code="backend.closed",
            )

    def _run_once(
        self,
        loaded: _Loaded,
        spec: GraphSpec,
        plan: PlanSpec,
        shapes: Mapping[str, Shape],
        tensors: Mapping[str, DeviceTensor],
    ) -> None:
        profile = choose_profile(plan, shapes)
        known, loaded.profile = loaded.profile, None
        self._set_shapes(loaded.context, plan, shapes, None if known == profile else profile)
        loaded.profile = profile
        _bind(loaded.context, tensors)
        self._lend_scratch(loaded.context)
        self._execute(loaded.context, spec, shapes)

    @property
    def _records(self) -> bool:
        """Whether CUDA graphs are recorded here; TensorRT for RTX records its own."""
        return self._options.cuda_graphs and not isinstance(self._options, TensorRtRtxOptions)

    def _run_recorded(
        self,
        loaded: _Loaded,
        spec: GraphSpec,
        plan: PlanSpec,
        shapes: Mapping[str, Shape],
        given: Mapping[str, DeviceTensor],
        made: Mapping[str, DeviceTensor],
    ) -> None:
        """Run the call of these shapes in buffers of its own, from its second time on as one CUDA graph.

        A recorded graph holds for one state of its context and for the addresses that it saw. So each call
        has a context, and inputs and results are copied, on the device. What TensorRT settles when shapes or
        scratch memory are new cannot be recorded: after that the call runs once by itself, and from then on
        nothing is set before it is recorded. A call that failed is not kept.
        """
        key = tuple(shapes[tensor.name] for tensor in spec.inputs)
        call = loaded.recorded.get(key) or self._new_call(loaded, spec, plan, shapes, made)
        context = call.context
        for name, tensor in given.items():
            self._cuda.copy(call.given[name].address, tensor.address, tensor.num_bytes)
        scratch, call.scratch = call.scratch, None  # unless this run succeeds
        if call.graph is None and scratch is not None and scratch is self._scratch:
            call.graph = self._cuda.record(lambda: self._execute(context, spec, shapes))
        if call.graph is not None:
            self._cuda.replay(call.graph)
        else:
            self._lend_scratch(context)
            self._execute(context, spec, shapes)
        call.scratch = self._scratch
        for name, tensor in made.items():
            self._cuda.copy(tensor.address, call.made[name].address, tensor.num_bytes)
        loaded.recorded[key] = call
        loaded.recorded.move_to_end(key)
        if len(loaded.recorded) > MOST_RECORDED:
            self._forget(loaded.recorded.popitem(last=False)[1])

    def _new_call(
        self,
        loaded: _Loaded,
        spec: GraphSpec,
        plan: PlanSpec,
        shapes: Mapping[str, Shape],
        made: Mapping[str, DeviceTensor],
    ) -> _Call:
        call = _Call(
            self._new_context(loaded.engine),
            {tensor.name: self._new(tensor, shapes[tensor.name]) for tensor in spec.inputs},
            {tensor.name: self._new(tensor, made[tensor.name].shape) for tensor in spec.outputs},
        )
        self._set_shapes(call.context, plan, shapes, choose_profile(plan, shapes))
        _bind(call.context, {**call.given, **call.made})
        return call

    def _load(self, graph: str) -> _Loaded:
        if graph not in self._loaded:
            plan = self._plans[graph]
            path = verify_plan_file(self._engines, plan)
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise BackendError(
                    f"{path} cannot be read by {self._engines.backend}", hint=BUILD_AGAIN, code="backend.load"
                )
            if plan.facts.get("weight_streaming"):
                engine.weight_streaming_budget_v2 = choose_weight_budget(
                    self._options.weight_budget_bytes,
                    int(engine.streamable_weights_size),
                    int(engine.get_weight_streaming_automatic_budget()),
                )
            self._loaded[graph] = _Loaded(engine, self._new_context(engine))
        return self._loaded[graph]

    def _new_context(self, engine: Any) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not isinstance(self._options, TensorRtRtxOptions):
            return engine.create_execution_context(strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self._options.cuda_graphs:
            # TensorRT for RTX records a shape's graph by itself, once it has compiled the kernels for the shape.
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._kernel_cache is not None:
            self._kernels = self._kernels or _read_kernels(config, self._kernel_cache)
            config.set_runtime_cache(self._kernels)
        return engine.create_execution_context(config)

    def _set_shapes(
        self, context: Any, plan: PlanSpec, shapes: Mapping[str, Shape], new_profile: int | None
    ) -> None:
        if new_profile is not None and not context.set_optimization_profile_async(
            new_profile, self._cuda.stream
        ):
            raise BackendError(
                f'the plan of graph "{plan.graph}" has no profile {new_profile}, as its manifest says',
                hint=BUILD_AGAIN,
                code="backend.run",
            )
        for name in plan.profiles[0].shapes:
            if not context.set_input_shape(name, shapes[name]):
                raise BackendError(
                    f'the plan of graph "{plan.graph}" does not take {name} {list(shapes[name])}, as its '
                    "manifest says",
                    hint=BUILD_AGAIN,
                    code="backend.run",
                )

    def _execute(self, context: Any, spec: GraphSpec, shapes: Mapping[str, Shape]) -> None:
        if not context.execute_async_v3(self._cuda.stream):
            raise BackendError(
                f'the plan of graph "{spec.name}" failed with {dict(shapes)}',
                hint=BUILD_AGAIN,
                code="backend.run",
            )

    def _place(self, tensor: TensorSpec, value: Tensor) -> DeviceTensor:
        if isinstance(value, DeviceTensor) and value.owner is self._pool:
            return value
        array = np.ascontiguousarray(value, tensor.dtype).reshape(np.shape(value))
        placed = self._new(tensor, array.shape)
        if array.nbytes:
            self._cuda.upload(placed.address, array)
        return placed

    def _new(self, tensor: TensorSpec, shape: Shape) -> DeviceTensor:
        return DeviceTensor(self._pool, shape, tensor.dtype, count_bytes(tensor, shape))

    def _lend_scratch(self, context: Any) -> None:
        needed = int(context.update_device_memory_size_for_shapes())
        if self._scratch is None or needed > self._scratch.num_bytes:
            # Recorded graphs use the buffer that is freed. It is freed first, so that both need not fit, and
            # nothing points to it any more if the new one does not fit.
            self._forget_recorded()
            self._scratch = None
            self._scratch = DeviceTensor(self._pool, (needed,), "uint8", max(1, needed))
        if needed:
            context.set_device_memory(self._scratch.address, self._scratch.num_bytes)

    def _forget_recorded(self) -> None:
        for loaded in self._loaded.values():
            for call in loaded.recorded.values():
                self._forget(call)
                call.scratch = None

    def _forget(self, call: _Call) -> None:
        # It may still be running; its context and its buffers go after this.
        self._cuda.synchronize()
        if call.graph is not None:
            self._cuda.forget(call.graph)
            call.graph = None


def _read_kernels(config: Any, file: Path) -> Any:
    """A cache of compiled kernels, with what the file holds if that is of this GPU and this version."""
    kernels = config.create_runtime_cache()
    if file.is_file():
        # Kernels that it does not accept are compiled again, and the file is replaced at the end.
        kernels.deserialize(file.read_bytes())
    return kernels


def _write_kernels(kernels: bytes, file: Path) -> None:
    """Keep what was compiled, in one step: a file that is there is whole."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_bytes(kernels)
        os.replace(partial, file)
    except OSError as error:
        raise BackendError(
            f"{file} cannot be written ({error.strerror})",
            hint="name another kernel_cache",
            code="backend.option",
            field="kernel_cache",
        ) from error


def _bind(context: Any, tensors: Mapping[str, DeviceTensor]) -> None:
    for name, tensor in tensors.items():
        if not context.set_tensor_address(name, tensor.address):
            raise BackendError(
                f'a plan has no input or output "{name}"', hint=BUILD_AGAIN, code="backend.run"
            )
