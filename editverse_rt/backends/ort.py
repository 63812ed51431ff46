"""ONNX Runtime: its library, its sessions, and the backend on the CPU. The only file that imports it.

`ort_cuda.py` has what is CUDA's own.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

from editverse_rt.backends.base import (
    Array,
    Availability,
    GraphFiles,
    NoOptions,
    RunnerTraits,
    Tensor,
    take_options,
)
from editverse_rt.backends.ort_probes import free_idle_memory, saturates_integers, starts_provider
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import BundleSpec, GraphSpec
from editverse_rt.errors import BackendError

__all__ = ["CPU", "OrtBackend", "OrtRunner", "first_line", "import_onnxruntime", "probe_provider"]

CPU = "CPUExecutionProvider"
# ONNX Runtime's errors reach the caller as exceptions, so its log on stderr is switched off.
_FATAL_SEVERITY = 4
# Graphs whose results do not depend on the number of threads: matrix products with packed weights, and
# attention that is split by heads and rows. Rounding of other kernels depends on how the work is split across
# threads: convolutions over volumes, and logarithm and cosine, which differ between vectorized and remaining
# elements. Graphs with those get one thread. They take a few per cent of a request.
_THREADED_GRAPHS = frozenset({"text_encoder", "transformer", "transformer_2"})
# Convolutions of pictures are computed row by row, in a blocked layout, and threads change nothing, on these
# processors from this version on (1.23.2 and 1.24.1 gave other bytes, 1.25.1 and 1.26 the same); elsewhere ONNX
# Runtime may not have that layout.
_FRAME_BY_FRAME_GRAPHS = frozenset(
    {"vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"}
)
_BLOCKED_LAYOUT_MACHINES = frozenset({"x86_64", "AMD64"})
_FIRST_REPRODUCIBLE_CONVOLUTIONS = (1, 25)
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_TELEMETRY_LOCK = threading.Lock()
# What ONNX Runtime says of an operator, an operator set or a function that it does not have.
_FIX_PROVIDER = "install the GPU's driver, CUDA and cuDNN as onnxruntime needs them, or use ort-cpu"
_UNKNOWN_OPERATOR = re.compile(
    r"NOT_IMPLEMENTED|not a registered function/op|No Op registered|Could not find an implementation|"
    r"No opset import for domain|Unrecognized|till opset|is under development",
    re.IGNORECASE,
)


def probe_provider(name: str, provider: str, fix: str) -> Availability:
    """Whether onnxruntime can be imported, was built with an execution provider, and can start it.

    name: of the backend. fix: how to install an onnxruntime that has it.
    """
    try:
        ort = import_onnxruntime()
    except BackendError as error:
        return Availability(name, str(error))
    providers = ort.get_available_providers()
    if provider not in providers:
        found = f"onnxruntime {ort.__version__} here has no {provider}, only {', '.join(providers)}"
        return Availability(name, f"{found}; {fix}", ort.__version__)
    # Being built with a provider says nothing about the driver and the libraries that it loads.
    if provider != CPU and not starts_provider(ort, provider):
        found = f"onnxruntime {ort.__version__} cannot start {provider} here"
        return Availability(name, f"{found}; {_FIX_PROVIDER}", ort.__version__)
    return Availability(name, None, ort.__version__)


@dataclass(frozen=True)
class OrtBackend:
    """ONNX Runtime on the CPU."""

    name: str = "ort-cpu"

    def with_options(self, asked: Mapping[str, object]) -> OrtBackend:
        """Raises BackendError: it has no options."""
        take_options(self.name, NoOptions(), asked)
        return self

    def probe(self) -> Availability:
        return probe_provider(self.name, CPU, "install it with: pip install onnxruntime")

    def refuse(self, bundle: Bundle) -> str | None:
        return None

    def unverified(self, bundle: Bundle) -> str | None:
        return None

    def open_runner(self, bundle: GraphFiles, num_threads: int | None) -> OrtRunner:
        """A runner of bundle's ONNX files; num_threads None is one thread for each physical core."""
        return OrtRunner(bundle, num_threads)


class OrtRunner:
    """Runs a bundle's ONNX files; a session is created when its graph is first run.

    Several threads may run graphs at once, the same one too. The same inputs give the same bytes on every run
    and, on the CPU, on every number of threads: sequential execution, deterministic kernels, and threads only
    where they change nothing.
    """

    def __init__(
        self,
        bundle: GraphFiles,
        num_threads: int | None,
        provider: str = CPU,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        self._bundle = bundle
        self._provider = provider
        self._provider_options = dict(provider_options or {})
        self._num_threads = num_threads
        self._sessions: dict[str, Any] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._entered = False

    @property
    def traits(self) -> RunnerTraits:
        return RunnerTraits(runs_concurrently=True)

    def __enter__(self) -> OrtRunner:
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False
        if self._sessions:
            self._sessions.clear()
            if self._provider == CPU:
                ort = import_onnxruntime()
                free_idle_memory(ort, _shared_memory_options(ort))

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Run one graph. Raises BackendError if ONNX Runtime cannot load it, or fails in it."""
        if not self._entered:
            raise BackendError(
                f'graph "{graph}" was asked for outside of the runner\'s `with` block',
                hint="enter it",
                code="backend.closed",
            )
        session = self._session(graph)
        try:
            return self._execute(session, self._bundle.spec.graphs[graph], inputs)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise BackendError(
                f'onnxruntime failed in graph "{graph}" with {shapes}: {first_line(error)}',
                hint="try a smaller size or fewer frames if memory ran out, else export the bundle again",
                code="backend.run",
            ) from error

    def hold(self, array: Array) -> Array:
        """The array itself: results are in the host's memory as well."""
        return array

    def release(self, graph: str) -> None:
        """Close the graph's session, if there is one; a thread that is in it keeps it until it is done."""
        with self._locks.setdefault(graph, threading.Lock()):
            session = self._sessions.pop(graph, None)
        if session is not None and self._provider == CPU:
            del session
            ort = import_onnxruntime()
            free_idle_memory(ort, _shared_memory_options(ort))

    def _session(self, graph: str) -> Any:
        """The graph's session, made by whoever comes first."""
        with self._locks.setdefault(graph, threading.Lock()):
            if graph not in self._sessions:
                self._sessions[graph] = self._create_session(graph)
            return self._sessions[graph]

    def _execute(self, session: Any, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        names = [tensor.name for tensor in spec.outputs]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def _takes_threads(self, graph: str) -> bool:
        """Whether the graph may use several threads: its bytes do not depend on them, or need not be reproducible."""
        spec = self._bundle.spec
        if spec.made.get("threads") == "all":
            return True
        if graph in _FRAME_BY_FRAME_GRAPHS and platform.machine() in _BLOCKED_LAYOUT_MACHINES:
            version = tuple(int(part) for part in import_onnxruntime().__version__.split(".")[:2])
            is_by_frame = isinstance(spec, BundleSpec) and spec.capabilities.convolutions == "frames"
            return is_by_frame and version >= _FIRST_REPRODUCIBLE_CONVOLUTIONS
        return graph in _THREADED_GRAPHS

    def _create_session(self, graph: str) -> Any:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = (self._num_threads or 0) if self._takes_threads(graph) else 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.use_deterministic_compute = True
        # Memory patterns keep a layout of all buffers for each shape and take more memory than the arena alone, for
        # no gain in time (docs/export.md).
        options.enable_mem_pattern = False
        # Each graph has threads of its own, which would spin on for a while after its run, on the cores that
        # the next graph's threads need (docs/benchmarks.md).
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if _saturates_integers(ort):
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = _FATAL_SEVERITY
        if self._provider == CPU:
            _take_shared_memory(ort, options)
        path = self._bundle.graph_path(graph)
        try:
            session = ort.InferenceSession(
                str(path), options, providers=[self._provider], provider_options=[self._provider_options]
            )
        except Exception as error:
            if _UNKNOWN_OPERATOR.search(str(error)):
                raise BackendError(
                    f'graph "{graph}" needs an operator that onnxruntime {ort.__version__} does not have: '
                    f"{first_line(error)}",
                    hint="pip install -U onnxruntime, or export with the attention inline",
                    code="backend.load",
                ) from error
            raise BackendError(
                f'onnxruntime {ort.__version__} cannot load graph "{graph}" ({path}): {first_line(error)}',
                hint="export the bundle again",
                code="backend.load",
            ) from error
        if self._provider not in session.get_providers():
            # ONNX Runtime itself goes on with the CPU when a provider's libraries cannot be loaded.
            raise BackendError(
                f'{self._provider} could not be used for graph "{graph}", onnxruntime offered '
                f"{', '.join(session.get_providers())}",
                hint=_FIX_PROVIDER,
                code="backend.unavailable",
            )
        return session


def _take_shared_memory(ort: Any, options: Any) -> None:
    """Let a session take its memory from one arena for all such sessions of the process, not its own.

    Graphs run one after another, and what each needs it needs while it runs: the arena is as large as the
    largest of them, where arenas of their own add up (docs/benchmarks.md). Weights stay out of it: they would
    hold its blocks for as long as the session is open.
    """
    _create_shared_arena(ort)
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")


def _shared_memory_options(ort: Any) -> Any:
    """Options of a session that takes its memory from the shared arena and does nothing else."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_SEVERITY
    _take_shared_memory(ort, options)
    return options


@cache
def _saturates_integers(ort: Any) -> bool:
    """Whether this processor's fast 8-bit products are wrong, measured once a process."""
    return saturates_integers(ort)


@cache
def _create_shared_arena(ort: Any) -> None:
    """Once a process. Twice, by two threads, would do no harm: ONNX Runtime replaces one by the other."""
    arena = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = ort.OrtMemoryInfo("Cpu", arena, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def import_onnxruntime() -> Any:
    """The onnxruntime module, imported when it is first needed, with its telemetry off.

    Raises BackendError if it cannot be imported.
    """
    try:
        with _without_telemetry():
            import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({first_line(error)})",
            hint="install it with: pip install onnxruntime",
            code="backend.library",
        ) from error
    return onnxruntime


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Set ORT_DISABLE_TELEMETRY=1 while ONNX Runtime is imported, and put back what was there.

    ONNX Runtime 1.29 and newer otherwise write a device id below the user's cache folder during the import,
    and look for a host to send events to. Its `disable_telemetry_events` comes too late for the former. This
    is the one variable of the environment that the runtime touches below the command line.
    """
    if "onnxruntime" in sys.modules:
        yield
        return
    with _TELEMETRY_LOCK:
        before = os.environ.get(_NO_TELEMETRY)
        os.environ[_NO_TELEMETRY] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_NO_TELEMETRY]
            else:
                os.environ[_NO_TELEMETRY] = before


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
