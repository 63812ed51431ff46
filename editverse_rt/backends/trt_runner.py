"""A runner of TensorRT's plans on one GPU: engines, contexts, profiles, buffers, recorded calls.

Never run on a GPU: none was at hand. What needs no device (which plan, which profile, sizes) is in
`engine.py`, calls to CUDA are in `cuda.py`; the vendor's module is given by `trt.py`, which imports it.

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
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends.base import NO_GPU_OPTIONS, GpuOptions, Tensor
from editverse_rt.backends.cuda import Cuda, DeviceTensor, Pool
from editverse_rt.backends.ort import OrtRunner, first_line
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import GraphSpec, TensorSpec
from editverse_rt.engines.choice import choose_profile, choose_weight_budget, is_host_graph
from editverse_rt.engines.manifest import BUILD_AGAIN, EngineSet, PlanSpec, verify_plan_file
from editverse_rt.engines.shapes import Shape, count_bytes, output_shapes
from editverse_rt.errors import BackendError

__all__ = ["MOST_RECORDED", "TrtRunner"]

MOST_RECORDED = 4
"""Of one graph, the shapes that are kept as CUDA graphs: with and without the text, and another request's."""


@dataclass
class _Call:
    """A context set to one call's shapes and buffers, and the CUDA graph of it once it is recorded."""

    context: Any
    given: dict[str, DeviceTensor]
    made: dict[str, DeviceTensor]
    graph: Any = None


@dataclass
class _Loaded:
    """An engine with the context that takes any shape, its profile, and the calls that are recorded."""

    engine: Any
    context: Any
    profile: int = -1
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
        gpu: GpuOptions = NO_GPU_OPTIONS,
    ) -> None:
        self._bundle, self._trt, self._cuda = bundle, trt, cuda
        self._engines, self._plans, self._options = engines, plans, gpu
        self._host = OrtRunner(bundle, "CPUExecutionProvider", num_threads)
        self._pool = Pool(cuda)
        self._loaded: dict[str, _Loaded] = {}
        self._scratch: tuple[int, int] = (0, 0)
        self._runtime: Any = None
        self._kernels: Any = None

    @property
    def engines(self) -> EngineSet:
        """The folder of plans that is run."""
        return self._engines

    @property
    def gpu_name(self) -> str:
        return self._cuda.gpu.name

    def __enter__(self) -> TrtRunner:
        if self._options.plugin is not None:
            self._load_plugin(os.fspath(self._options.plugin))
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
        self._forget_recorded()
        # Read while the engines live, written when everything is given back.
        kernels = None if self._kernels is None else bytes(self._kernels.serialize())
        self._kernels = None
        self._loaded.clear()
        self._runtime = None
        self._pool.close()
        if self._scratch[0]:
            self._cuda.free(self._scratch[0])
            self._scratch = (0, 0)
        self._cuda.close_stream()
        if kernels is not None and self._options.kernel_cache is not None:
            _write_kernels(kernels, self._options.kernel_cache)

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Run one graph; its results stay on the device. Raises BackendError for shapes beyond profiles."""
        if is_host_graph(graph):
            return self._host.run(graph, inputs)
        if self._runtime is None:
            raise BackendError(
                f'graph "{graph}" was asked for outside of the runner\'s `with` block; enter it'
            )
        spec, plan = self._bundle.spec.graphs[graph], self._plans[graph]
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        results = output_shapes(spec, shapes)
        loaded = self._load(graph)
        # Held until the work is queued: the stream's order protects their buffers from there on.
        given = {tensor.name: self._place(tensor.name, spec, inputs[tensor.name]) for tensor in spec.inputs}
        made = {tensor.name: self._new(tensor, results[tensor.name]) for tensor in spec.outputs}
        if self._records:
            self._run_recorded(loaded, spec, plan, shapes, given, made)
            return cast(dict[str, NDArray[Any]], made)
        profile = choose_profile(plan, shapes)
        self._set_shapes(loaded.context, plan, shapes, None if loaded.profile == profile else profile)
        loaded.profile = profile
        _bind(loaded.context, {**given, **made})
        self._lend_scratch(loaded.context)
        self._execute(loaded.context, spec, shapes)
        return cast(dict[str, NDArray[Any]], made)

    @property
    def _records(self) -> bool:
        """Whether CUDA graphs are recorded here; TensorRT for RTX records its own."""
        return self._options.cuda_graphs and self._engines.backend == "tensorrt"

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
        has a context, and inputs and results are copied, on the device.
        """
        key = tuple(shapes[tensor.name] for tensor in spec.inputs)
        call = loaded.recorded.get(key)
        is_new = call is None
        if call is None:
            call = self._new_call(loaded, spec, plan, shapes, made)
            loaded.recorded[key] = call
            if len(loaded.recorded) > MOST_RECORDED:
                self._forget(loaded.recorded.popitem(last=False)[1])
        loaded.recorded.move_to_end(key)
        for name, tensor in given.items():
            self._cuda.copy(call.given[name].address, tensor.address, tensor.num_bytes)
        if call.graph is not None:
            self._cuda.replay(call.graph)
        else:
            self._lend_scratch(call.context)
            if is_new:
                # The first time TensorRT still settles what the shapes decide, which cannot be recorded.
                self._execute(call.context, spec, shapes)
            else:
                context = call.context
                call.graph = self._cuda.record(lambda: self._execute(context, spec, shapes))
                self._cuda.replay(call.graph)
        for name, tensor in made.items():
            self._cuda.copy(tensor.address, call.made[name].address, tensor.num_bytes)

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
                raise BackendError(f"{path} cannot be read by {self._engines.backend}; {BUILD_AGAIN}")
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
        if self._engines.backend != "tensorrt-rtx":
            return engine.create_execution_context(strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self._options.cuda_graphs:
            # It records a shape's graph when it has compiled kernels for it, which only itself knows.
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._options.kernel_cache is not None:
            self._kernels = self._kernels or _read_kernels(config, self._options.kernel_cache)
            config.set_runtime_cache(self._kernels)
        return engine.create_execution_context(config)

    def _load_plugin(self, library: str) -> None:
        try:
            handle = self._trt.get_plugin_registry().load_library(library)
        except (OSError, RuntimeError) as error:
            raise BackendError(
                f"{library} cannot be loaded ({first_line(error)}); build the plugin again"
            ) from error
        if handle is None:
            raise BackendError(f"{library} is not a plugin that TensorRT takes; build the plugin again")

    def _set_shapes(
        self, context: Any, plan: PlanSpec, shapes: Mapping[str, Shape], new_profile: int | None
    ) -> None:
        if new_profile is not None and not context.set_optimization_profile_async(
            new_profile, self._cuda.stream
        ):
            raise BackendError(
                f'the plan of graph "{plan.graph}" has no profile {new_profile}, as its manifest says; '
                f"{BUILD_AGAIN}"
            )
        for name in plan.profiles[0].shapes:
            if not context.set_input_shape(name, shapes[name]):
                raise BackendError(
                    f'the plan of graph "{plan.graph}" does not take {name} {list(shapes[name])}, as its '
                    f"manifest says; {BUILD_AGAIN}"
                )

    def _execute(self, context: Any, spec: GraphSpec, shapes: Mapping[str, Shape]) -> None:
        if not context.execute_async_v3(self._cuda.stream):
            raise BackendError(
                f'the plan of graph "{spec.name}" failed with {dict(shapes)}; build the engines again'
            )

    def _place(self, name: str, spec: GraphSpec, value: Any) -> DeviceTensor:
        if isinstance(value, DeviceTensor) and value.owner is self._pool:
            return value
        tensor = next(t for t in spec.inputs if t.name == name)
        array = np.ascontiguousarray(value, tensor.dtype).reshape(np.shape(value))
        placed = self._new(tensor, array.shape)
        if array.nbytes:
            self._cuda.upload(placed.address, array)
        return placed

    def _new(self, tensor: TensorSpec, shape: Shape) -> DeviceTensor:
        return DeviceTensor(self._cuda, self._pool, shape, tensor.dtype, count_bytes(tensor, shape))

    def _lend_scratch(self, context: Any) -> None:
        needed = int(context.update_device_memory_size_for_shapes())
        if needed > self._scratch[1]:
            # What was recorded works in the buffer that goes.
            self._forget_recorded()
            if self._scratch[0]:
                self._cuda.synchronize()
                self._cuda.free(self._scratch[0])
            self._scratch = (self._cuda.allocate(needed), needed)
        if needed:
            context.set_device_memory(*self._scratch)

    def _forget_recorded(self) -> None:
        for loaded in self._loaded.values():
            for call in loaded.recorded.values():
                self._forget(call)

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
        # What it does not take, it compiles anew; the file is replaced at the end.
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
            f"{file} cannot be written ({error.strerror}); name another with --kernel-cache"
        ) from error


def _bind(context: Any, tensors: Mapping[str, DeviceTensor]) -> None:
    for name, tensor in tensors.items():
        if not context.set_tensor_address(name, tensor.address):
            raise BackendError(f'a plan has no input or output "{name}"; {BUILD_AGAIN}')
