"""One plan from one strongly typed ONNX file, by TensorRT or TensorRT for RTX: the same code for both.

TensorRT for RTX compiles for GPUs that are not here; TensorRT needs the GPU that it builds for.
"""

from __future__ import annotations

import importlib
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editverse_rt.backends.plugin import register_plugin
from editverse_rt.engines.manifest import ShapeProfile
from editverse_rt.errors import BackendError, RequestCancelled

__all__ = ["Builder", "Built", "Kernel", "Options", "list_kernels"]

Progress = Callable[[str, int, int], bool]
"""Called with a phase, the steps done and their number; False cancels the build."""

_MODULES = {
    "tensorrt-rtx": ("tensorrt_rtx", "pip install tensorrt-rtx-cu13"),
    "tensorrt": ("tensorrt", "pip install 'tensorrt-cu13>=10.15', or NVIDIA's own package with its bindings"),
}
# The first whose parser knows all operators: Attention came with 10.14, RotaryEmbedding with 10.15.
_OLDEST_TENSORRT = (10, 15)
# How the verbose message begins that lists a plan's kernels.
_LISTING = "Layers:"


@dataclass(frozen=True)
class Options:
    """What one build is given.

    compute_capabilities: "8.9" ...; only TensorRT for RTX takes them. plugin: the library that has the
    graph's `RopeAttention`, None for a graph of standard operators; only TensorRT loads one.
    """

    compute_capabilities: tuple[str, ...]
    workspace_bytes: int
    weight_streaming: bool = False
    plugin: Path | None = None


@dataclass(frozen=True)
class Built:
    """A plan's bytes, as the builder holds them (gigabytes, not copied), and what it tells of them.

    peak_bytes: the most that this process held while it was built. layers: how many of each kind the parsed
    network has, and in which types they compute. kernels: what the builder made of them, in the order of the
    plan; empty where it does not say.
    """

    plan: memoryview
    seconds: float
    peak_bytes: int
    layers: dict[str, int]
    types: dict[str, int]
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """One step of a plan. name: the layers that were fused into it, as far as it spells them out. kind: gemm,
    kgen (generated) ... type: of its first output, "" where it has none."""

    name: str
    kind: str
    type: str


class Builder:
    """One vendor module, and the timing cache that goes from graph to graph.

    Raises BackendError if the module cannot be imported, or is too old to read the graphs.
    """

    def __init__(self, backend: str, timing_cache: bytes = b"") -> None:
        name, fix = _MODULES[backend]
        try:
            self._trt: Any = importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise BackendError(f"{name} cannot be imported ({str(error).splitlines()[0]}); {fix}") from error
        version = tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])
        if backend == "tensorrt" and version < _OLDEST_TENSORRT:
            raise BackendError(f"tensorrt is {self.version}, its parser does not know RotaryEmbedding; {fix}")
        self._backend = backend
        self._timing_cache = timing_cache
        self._messages: list[str] = []
        self._listing: list[str] = []

    @property
    def version(self) -> str:
        """The version of the library that builds, such as "10.15.1"."""
        return str(self._trt.__version__)

    @property
    def timing_cache(self) -> bytes:
        """The timing cache of the builds so far, as bytes for the next build."""
        return self._timing_cache

    def build(
        self, onnx_file: Path, profiles: tuple[ShapeProfile, ...], options: Options, progress: Progress
    ) -> Built:
        """Build a plan. Raises BackendError with the builder's own first words, RequestCancelled when
        progress says so."""
        trt = self._trt
        self._messages.clear()
        self._listing.clear()
        reset_peak()
        begin = time.perf_counter()
        logger = _make_logger(trt, self._messages, self._listing)
        builder = trt.Builder(logger)
        # From TensorRT 11 on every network is strongly typed, and no flag says so.
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        if options.plugin is not None:
            register_plugin(trt.get_plugin_registry(), options.plugin)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(onnx_file)):
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise self._error("cannot read", onnx_file, errors)
        self._let_attention_decompose(network)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        # Detailed, the builder lists the plan's kernels when it is done; the plan has the same size.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.weight_streaming:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        if self._backend == "tensorrt-rtx":
            config.num_compute_capabilities = len(options.compute_capabilities)
            for index, capability in enumerate(options.compute_capabilities):
                member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
                config.set_compute_capability(member, index)
        for profile in profiles if any(p.shapes for p in profiles) else ():
            made = builder.create_optimization_profile()
            for name, (low, opt, high) in profile.shapes.items():
                made.set_shape(name, low, opt, high)
            if config.add_optimization_profile(made) < 0:
                raise self._error("refuses a profile of", onnx_file, [f"{profile.name}: {profile.shapes}"])
        monitor = _make_monitor(trt, progress)
        config.progress_monitor = monitor
        # TensorRT for RTX times nothing: it chooses kernels on the user's machine.
        if self._backend == "tensorrt":
            config.set_timing_cache(config.create_timing_cache(self._timing_cache), True)
        plan = builder.build_serialized_network(network, config)
        if monitor.cancelled:
            raise RequestCancelled("the build was cancelled; nothing half-written is left")
        if plan is None:
            raise self._error("cannot build", onnx_file, [])
        if self._backend == "tensorrt":
            self._timing_cache = bytes(config.get_timing_cache().serialize())
        layers, types = _count_layers(trt, network)
        seconds = time.perf_counter() - begin
        kernels = list_kernels("\n".join(self._listing))
        return Built(memoryview(plan), seconds, peak_bytes(), layers, types, kernels)

    def _let_attention_decompose(self, network: Any) -> None:
        """Where no fused kernel fits (float32, heads of one channel count) attention may be taken apart."""
        trt = self._trt
        kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
        for index in range(network.num_layers if kind is not None else 0):
            layer = network.get_layer(index)
            if layer.type != kind:
                continue
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True

    def _error(self, what: str, onnx_file: Path, errors: list[str]) -> BackendError:
        said = " ".join(" ".join([*errors, *self._messages][:1]).split())[:300] or "it gave no reason"
        return BackendError(
            f"{self._backend} {self.version} {what} {onnx_file.stem}: {said}; try another precision, fewer "
            "tokens, or a recipe with more workspace_gb"
        )


def list_kernels(listing: str) -> tuple[Kernel, ...]:
    """The kernels of a plan, from the lines that the builder ends its verbose log with.

    An engine can be inspected on a GPU only; TensorRT for RTX writes the same facts while it builds.
    """
    kernels = []
    for line in listing.splitlines():
        match = re.match(r"Name: (.*?), LayerType: (\w+), ", line)
        if match is not None:
            output = re.search(r"Outputs: \[ \{ .*?Datatype: (\w+)", line)
            kernels.append(Kernel(match[1], match[2], "" if output is None else output[1]))
    return tuple(kernels)


def _make_logger(trt: Any, messages: list[str], listing: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.append(message)
            elif message.startswith(_LISTING):
                listing.append(message)

    return Logger()


def _make_monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes the builder's phases on. An exception must not cross into C++: it cancels instead."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                self.cancelled |= not progress(phase_name, step + 1, self._steps.get(phase_name, 0))
            except BaseException:
                self.cancelled = True
            return not self.cancelled

    return Monitor()


def _count_layers(trt: Any, network: Any) -> tuple[dict[str, int], dict[str, int]]:
    layers: Counter[str] = Counter()
    types: Counter[str] = Counter()
    floats = {str(getattr(trt.DataType, n, "")): n for n in ("FLOAT", "HALF", "BF16")}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        layers[layer.type.name] += 1
        if layer.num_outputs:
            name = floats.get(str(layer.get_output(0).dtype))
            if name:
                types[name] += 1
    return dict(sorted(layers.items())), dict(sorted(types.items()))


def reset_peak() -> None:
    """Reset the peak memory of this process, on systems that can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_bytes() -> int:
    """The most memory that this process held since `reset_peak`, or ever where that is not known."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
