"""The table of backends, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from editverse_rt.backends.base import (
    Array,
    Availability,
    Backend,
    DeviceArray,
    GraphFiles,
    ReleasesGraphs,
    Runner,
    RunnerTraits,
    Tensor,
)
from editverse_rt.backends.ort import OrtBackend
from editverse_rt.backends.ort_cuda import OrtCudaBackend
from editverse_rt.backends.trt import TrtBackend
from editverse_rt.backends.trt_runner import TensorRtOptions, TensorRtRtxOptions
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import BackendError

__all__ = [
    "Array",
    "Availability",
    "Backend",
    "DeviceArray",
    "ReleasesGraphs",
    "Runner",
    "RunnerTraits",
    "Selection",
    "Tensor",
    "find_obstacle",
    "list_backends",
    "open_onnx_runner",
    "select_backend",
]

# In the order of preference of "auto".
_ONNX_BACKENDS: tuple[OrtCudaBackend | OrtBackend, ...] = (OrtCudaBackend(), OrtBackend())
_BACKENDS: tuple[Backend, ...] = (
    TrtBackend("tensorrt", "tensorrt-cu13", TensorRtOptions()),
    TrtBackend("tensorrt-rtx", "tensorrt-rtx-cu13", TensorRtRtxOptions()),
    *_ONNX_BACKENDS,
)


@dataclass(frozen=True)
class Selection:
    """The chosen backend, and why each one that is preferred over it was passed over."""

    backend: Backend
    availability: Availability
    passed_over: tuple[Availability, ...]


def list_backends() -> tuple[Availability, ...]:
    """All backends in the order of preference, each with the reason why it cannot be used here, or None."""
    return tuple(backend.probe() for backend in _BACKENDS)


def find_obstacle(name: str, bundle: Bundle) -> str | None:
    """Why a backend that is available here would not take a bundle, and what to do; None if it would."""
    backend = next(backend for backend in _BACKENDS if backend.name == name)
    return backend.refuse(bundle) or backend.unverified(bundle)


def select_backend(
    name: str,
    bundle: Bundle,
    *,
    allow_unverified: bool = False,
    options: Mapping[str, object] | None = None,
) -> Selection:
    """Choose the backend that was named, or for "auto" the first that is here and can run the bundle.

    allow_unverified: take plans that were never verified on this GPU. options: those of `Pipeline.open` that
    the caller gave, by name; a backend that does not have them is not taken.
    Raises BackendError with reasons: an unknown name, a named backend that is not available (there is no
    falling back from a named one), or none at all.
    """
    known = [backend.name for backend in _BACKENDS]
    if name != "auto" and name not in known:
        raise BackendError(
            f'there is no backend "{name}"; choose auto or one of {", ".join(known)}',
            code="backend.unknown",
            field="backend",
        )
    passed_over: list[Availability] = []
    for candidate in _BACKENDS:
        if name not in ("auto", candidate.name):
            continue
        state, reason = Availability(candidate.name, None), None
        try:
            candidate = candidate.with_options(options or {})
            state = candidate.probe()
            reason = state.reason or candidate.refuse(bundle)
            if reason is None and not allow_unverified:
                reason = candidate.unverified(bundle)
        except BackendError as error:
            if name == candidate.name:
                raise
            reason = str(error)
        if reason is None:
            return Selection(candidate, state, tuple(passed_over))
        if name == candidate.name:
            raise BackendError(f'backend "{name}" cannot be used: {reason}', code="backend.unavailable")
        passed_over.append(Availability(candidate.name, reason, state.version))
    reasons = "; ".join(f"{state.name}: {state.reason}" for state in passed_over)
    raise BackendError(f"no backend can be used ({reasons})", code="backend.unavailable")


def open_onnx_runner(
    name: str,
    files: GraphFiles,
    num_threads: int | None = None,
    options: Mapping[str, object] | None = None,
) -> tuple[str, Runner]:
    """Choose a backend that runs plain ONNX files: the name of the one chosen, and a runner, not yet entered.

    name: a backend of ONNX Runtime, or "auto" for the first that works here and takes the options. Raises
    BackendError with reasons for another name, and where none works.
    """
    known = {backend.name: backend for backend in _ONNX_BACKENDS}
    if name != "auto" and name not in known:
        raise BackendError(
            f'backend "{name}" does not run plain ONNX files', expected=f"auto or one of {', '.join(known)}"
        )
    reasons = []
    for backend in known.values() if name == "auto" else (known[name],):
        try:
            chosen = backend.with_options(options or {})
            reason = chosen.probe().reason
        except BackendError as error:
            reason = str(error)
        if reason is None:
            return chosen.name, chosen.open_runner(files, num_threads)
        reasons.append(f"{backend.name}: {reason}")
    raise BackendError(
        f"no backend can run these ONNX files ({'; '.join(reasons)})", code="backend.unavailable"
    )
