"""What a backend is: it says whether it can work here, and opens a runner of a bundle's graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import GraphSpec

__all__ = [
    "NO_GPU_OPTIONS",
    "Availability",
    "Backend",
    "DeviceArray",
    "GpuOptions",
    "GraphFiles",
    "GraphTable",
    "Runner",
    "Tensor",
]

Tensor = NDArray[Any] | np.generic
"""One input or output of a graph, of the dtype that the bundle's graph table says."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used here.

    reason: None if it can, else why not and what to do. version: of the library that runs the graphs.
    """

    name: str
    reason: str | None
    version: str | None = None

    @property
    def available(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class GpuOptions:
    """What a caller decides about the GPU.

    device: its number, None for the first. cuda_graphs: launch a call that repeats as one CUDA graph.
    weight_budget_bytes: how much of each plan's weights may lie on the GPU at once, for plans built with
    weight streaming; None leaves it to TensorRT. plugin: the library that has `RopeAttention`, for plans that
    were built with it. kernel_cache: a file for the kernels that TensorRT for RTX compiles on this machine,
    read at the start and written at the end.
    """

    device: int | None = None
    cuda_graphs: bool = False
    weight_budget_bytes: int | None = None
    plugin: Path | None = None
    kernel_cache: Path | None = None

    @property
    def index(self) -> int:
        """The GPU's number."""
        return 0 if self.device is None else self.device

    @property
    def given(self) -> tuple[str, ...]:
        """The command line's names of what is not as it is by default."""
        return tuple(
            name
            for name, is_given in (
                ("--device", self.device is not None),
                ("--cuda-graphs", self.cuda_graphs),
                ("--weight-budget", self.weight_budget_bytes is not None),
                ("--plugin", self.plugin is not None),
                ("--kernel-cache", self.kernel_cache is not None),
            )
            if is_given
        )


NO_GPU_OPTIONS = GpuOptions()


class GraphTable(Protocol):
    """What a description of graphs says that a runner of ONNX files reads."""

    @property
    def graphs(self) -> Mapping[str, GraphSpec]: ...

    @property
    def made(self) -> Mapping[str, object]:
        """How the graphs were made; `"threads": "all"` says that every graph may take several threads."""
        ...


class GraphFiles(Protocol):
    """A verified folder of ONNX graphs: a bundle, or the models of metrics."""

    @property
    def spec(self) -> GraphTable: ...

    def graph_path(self, name: str) -> Path:
        """The ONNX file of one graph."""
        ...


class DeviceArray:
    """A result that stays on a device: numpy reads it as an array, by one copy; graphs take it as it is."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _host: NDArray[Any] | None = None

    def numpy(self) -> NDArray[Any]:
        """The values in the host's memory, copied when they are first asked for."""
        if self._host is None:
            self._host = self._download()
        return self._host

    def _download(self) -> NDArray[Any]:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.numpy() if dtype is None else self.numpy().astype(dtype)
        return array.copy() if copy else array

    def __getitem__(self, index: Any) -> Any:
        return self.numpy()[index]

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: Any) -> NDArray[Any]:
        return self.numpy().reshape(*shape)


class Runner(Protocol):
    """Runs the graphs of one bundle; a context manager that loads nothing before it is entered.

    A runner may have besides `runs_concurrently`, True if several threads may call `run` at once.
    """

    def __enter__(self) -> Runner: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Run one graph of the bundle; inputs and outputs by the names of the graph table.

        A graph is loaded when it is first run. Raises BackendError if this backend cannot load or run it.
        """
        ...


class Backend(Protocol):
    """One way to run graphs, known by its name."""

    @property
    def name(self) -> str: ...

    def probe(self) -> Availability:
        """Say whether this backend works on this machine, without loading a bundle."""
        ...

    def refuse(self, bundle: Bundle, gpu: GpuOptions) -> str | None:
        """None if the bundle holds what this backend needs and it takes these options, else why not and what
        to do."""
        ...

    def unverified(self, bundle: Bundle, gpu: GpuOptions) -> str | None:
        """None if what the bundle holds for this backend was verified here, else what to run first."""
        ...

    def open_runner(
        self, bundle: Bundle, num_threads: int | None, gpu: GpuOptions = NO_GPU_OPTIONS
    ) -> Runner:
        """A runner of bundle's graphs, not yet entered; num_threads None leaves the choice to the backend."""
        ...
