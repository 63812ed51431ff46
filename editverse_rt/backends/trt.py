"""TensorRT and TensorRT for RTX as backends: whether they work here, and which plans.

The only file that imports them. `trt_runner.py` runs the plans that are chosen here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from editverse_rt.backends.base import Availability, take_options
from editverse_rt.backends.cuda import Cuda, Gpu
from editverse_rt.backends.ort import first_line
from editverse_rt.backends.trt_runner import TensorRtOptions, TrtOptions, TrtRunner
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.engines.choice import choose_plans, is_host_graph, refuse_options
from editverse_rt.engines.manifest import EngineSet, PlanSpec
from editverse_rt.engines.stamps import is_verified
from editverse_rt.errors import BackendError

__all__ = ["TrtBackend"]


@dataclass(frozen=True)
class TrtBackend:
    """One of the two modules as a backend.

    name: "tensorrt" or "tensorrt-rtx". package: what to install. options: of the class that belongs to it.
    """

    name: str
    package: str
    options: TrtOptions

    def with_options(self, asked: Mapping[str, object]) -> TrtBackend:
        """Raises BackendError for an option that this module does not have."""
        return TrtBackend(self.name, self.package, take_options(self.name, self.options, asked))

    def probe(self) -> Availability:
        """Whether the module can be imported, and CUDA finds a GPU."""
        version: str | None = None
        try:
            # In this order: no library of hundreds of megabytes is loaded where there is no GPU for it.
            if importlib.util.find_spec(self.name.replace("-", "_")) is None:
                raise BackendError(
                    f"{self.name} is not installed",
                    hint=f"pip install 'editverse-rt[{self.name}]'",
                    code="backend.library",
                )
            Cuda()
            version = str(self._import().__version__)
        except BackendError as error:
            return Availability(self.name, str(error), version)
        return Availability(self.name, None, version)

    def refuse(self, bundle: Bundle) -> str | None:
        """Why none of the bundle's plans can run on this GPU, and which command builds one that can."""
        try:
            _, plans = self._choose(bundle, Cuda(self._device).gpu)
        except BackendError as error:
            return str(error)
        has_plugin = isinstance(self.options, TensorRtOptions) and self.options.plugin is not None
        has_budget = self.options.weight_budget_bytes is not None
        return refuse_options(plans, has_plugin=has_plugin, has_budget=has_budget)

    def unverified(self, bundle: Bundle) -> str | None:
        """What to run first if the plans that would be taken were never verified on this GPU."""
        here = Cuda(self._device).gpu
        engines, _ = self._choose(bundle, here)
        if not is_verified(engines, here.name):
            return (
                f"its plans were never verified on {here.name}; run "
                f"`editverse-rt verify {bundle.root} --backend {self.name}` once, or set allow_unverified"
            )
        return None

    def open_runner(self, bundle: Bundle, num_threads: int | None) -> TrtRunner:
        """A runner of the plans that fit the GPU, verified or not. Raises BackendError if none does."""
        cuda = Cuda(self._device)
        engines, plans = self._choose(bundle, cuda.gpu)
        return TrtRunner(bundle, self._import(), cuda, engines, plans, num_threads, self.options)

    @property
    def _device(self) -> int:
        return self.options.device or 0

    def _choose(self, bundle: Bundle, gpu: Gpu) -> tuple[EngineSet, dict[str, PlanSpec]]:
        graphs = tuple(name for name in bundle.spec.graphs if not is_host_graph(name))
        version = str(self._import().__version__)
        return choose_plans(bundle, graphs, self.name, version, gpu.capability, gpu.name)

    def _import(self) -> Any:
        try:
            if self.name == "tensorrt":
                return importlib.import_module("tensorrt")
            return importlib.import_module("tensorrt_rtx")
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(
                f"{self.name} cannot be imported ({first_line(error)})",
                hint=f"install it with: pip install {self.package}",
                code="backend.library",
            ) from error
