"""TensorRT and TensorRT for RTX as backends: whether they work here, and which plans.

The only file that imports them.

Never run on a GPU: none was at hand. `trt_runner.py` runs the plans that are chosen here.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from editverse_rt.backends.base import NO_GPU_OPTIONS, Availability, GpuOptions
from editverse_rt.backends.cuda import Cuda, Gpu
from editverse_rt.backends.ort import first_line
from editverse_rt.backends.trt_runner import TrtRunner
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.engines.choice import choose_plans, is_host_graph, refuse_options
from editverse_rt.engines.manifest import EngineSet, PlanSpec
from editverse_rt.engines.stamps import is_verified
from editverse_rt.errors import BackendError

__all__ = ["TrtBackend"]


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

    def refuse(self, bundle: Bundle, gpu: GpuOptions) -> str | None:
        """Why none of the bundle's plans can run on this GPU, and which command builds one that can."""
        try:
            _, plans = self._choose(bundle, Cuda(gpu.index).gpu)
        except BackendError as error:
            return str(error)
        if gpu.kernel_cache is not None and self._name != "tensorrt-rtx":
            return f"{self._name} compiles its kernels when a plan is built; leave --kernel-cache out"
        has_budget = gpu.weight_budget_bytes is not None
        return refuse_options(plans, has_plugin=gpu.plugin is not None, has_budget=has_budget)

    def unverified(self, bundle: Bundle, gpu: GpuOptions) -> str | None:
        """What to run first if the plans that would be taken were never verified on this GPU."""
        here = Cuda(gpu.index).gpu
        engines, _ = self._choose(bundle, here)
        if not is_verified(engines, here.name):
            return (
                f"its plans were never verified on {here.name}; run "
                f"`editverse-rt verify {bundle.root} --backend {self._name}` once, or give --allow-unverified"
            )
        return None

    def open_runner(
        self, bundle: Bundle, num_threads: int | None, gpu: GpuOptions = NO_GPU_OPTIONS
    ) -> TrtRunner:
        """A runner of the plans that fit the GPU, verified or not. Raises BackendError if none does."""
        cuda = Cuda(gpu.index)
        engines, plans = self._choose(bundle, cuda.gpu)
        return TrtRunner(bundle, self._import(), cuda, engines, plans, num_threads, gpu)

    def _choose(self, bundle: Bundle, gpu: Gpu) -> tuple[EngineSet, dict[str, PlanSpec]]:
        graphs = tuple(name for name in bundle.spec.graphs if not is_host_graph(name))
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
