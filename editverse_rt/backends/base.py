"""What a backend is: it says whether it can work here, and opens a runner of a bundle's graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import GraphSpec
from editverse_rt.engines.manifest import EngineSet
from editverse_rt.errors import BackendError

__all__ = [
    "Array",
    "Availability",
    "Backend",
    "DeviceArray",
    "GraphFiles",
    "GraphTable",
    "NoOptions",
    "ReleasesGraphs",
    "Runner",
    "RunnerTraits",
    "Tensor",
    "take_options",
]

Options = TypeVar("Options")


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
class NoOptions:
    """The options of a backend that takes none."""


def take_options(backend: str, default: Options, asked: Mapping[str, object]) -> Options:
    """A backend's options (a frozen dataclass) with what the caller asked for, by the names of its fields.

    Raises BackendError that names an option which this backend does not have.
    """
    known = {field.name for field in fields(default)}  # type: ignore[arg-type]
    for name in asked:
        if name not in known:
            raise BackendError(
                f"not taken by {backend}",
                hint="leave it out, or choose another backend",
                code="backend.option",
                field=name,
                is_value=True,
            )
    return replace(default, **asked)  # type: ignore[type-var]


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


class DeviceArray(ABC):
    """A result in a device's memory. numpy reads it as an array, by one copy; graphs take it as it is."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _host: NDArray[Any] | None = None

    def numpy(self) -> NDArray[Any]:
        """The values in the host's memory, copied when they are first asked for."""
        if self._host is None:
            self._host = self._download()
        return self._host

    @abstractmethod
    def _download(self) -> NDArray[Any]: ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.numpy() if dtype is None else self.numpy().astype(dtype)
        return array.copy() if copy else array

    def __getitem__(self, index: Any) -> Any:
        return self.numpy()[index]

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: Any) -> NDArray[Any]:
        return self.numpy().reshape(*shape)


Array = NDArray[Any] | DeviceArray
"""An output of a graph, of the dtype that the bundle's graph table says."""

Tensor = NDArray[Any] | np.generic | DeviceArray
"""An input of a graph, of the dtype that the bundle's graph table says."""


@dataclass(frozen=True)
class RunnerTraits:
    """What a runner can do.

    runs_concurrently: several threads may call `run` at once. keeps_on_device: results are `DeviceArray`s,
    and `hold` copies to the device. takes_adapters: graphs may be given the weights of low-rank adapters.
    precisions: the types that its graphs compute in, of "fp32", "fp16" and "bf16". gpu: the name of the GPU,
    "" where there is none. engines: the TensorRT plans that it runs, None where it runs ONNX files.
    """

    runs_concurrently: bool = False
    keeps_on_device: bool = False
    takes_adapters: bool = False
    precisions: frozenset[str] = frozenset({"fp32"})
    gpu: str = ""
    engines: EngineSet | None = None


class Runner(Protocol):
    """Runs the graphs of one bundle; a context manager that loads nothing before it is entered."""

    @property
    def traits(self) -> RunnerTraits: ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Array]:
        """Run one graph of the bundle; inputs and outputs by the names of the graph table.

        A graph is loaded when it is first run. Raises BackendError if this backend cannot load or run it.
        """
        ...

    def hold(self, array: Array) -> Array:
        """The array where the runner keeps its results, for an input that many runs take; itself if it is
        there. A later change of the host's array may or may not be seen."""
        ...


@runtime_checkable
class ReleasesGraphs(Protocol):
    """A runner that can give a graph's memory back before it is closed."""

    def release(self, graph: str) -> None:
        """Give the graph's weights and buffers back; the next run loads it again. Safe while others run it."""
        ...


class Backend(Protocol):
    """One way to run graphs, known by its name, with the options that the caller chose."""

    @property
    def name(self) -> str: ...

    def with_options(self, asked: Mapping[str, object]) -> Backend:
        """The same backend with these options, by the names that `Pipeline.open` gives them.

        Raises BackendError for one that this backend does not have.
        """
        ...

    def probe(self) -> Availability:
        """Say whether this backend works on this machine, without loading a bundle."""
        ...

    def refuse(self, bundle: Bundle) -> str | None:
        """None if the bundle holds what this backend needs and fits the options, else why not and what to
        do."""
        ...

    def unverified(self, bundle: Bundle) -> str | None:
        """None if what the bundle holds for this backend was verified here, else what to run first."""
        ...

    def open_runner(self, bundle: Bundle, num_threads: int | None) -> Runner:
        """A runner of bundle's graphs, not yet entered; num_threads None leaves the choice to the backend."""
        ...
