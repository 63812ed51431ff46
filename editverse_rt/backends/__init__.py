"""The table of backends, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass

from editverse_rt.backends.base import (
    NO_GPU_OPTIONS,
    Availability,
    Backend,
    GpuOptions,
    GraphFiles,
    Runner,
)
from editverse_rt.backends.ort import OrtBackend
from editverse_rt.backends.trt import TrtBackend
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import BackendError

__all__ = [
    "NO_GPU_OPTIONS",
    "Availability",
    "Backend",
    "GpuOptions",
    "Runner",
    "Selection",
    "find_obstacle",
    "list_backends",
    "open_onnx_runner",
    "select_backend",
]

# In the order of preference of "auto".
_BACKENDS: tuple[Backend, ...] = (
    TrtBackend("tensorrt", "tensorrt-cu13"),
    TrtBackend("tensorrt-rtx", "tensorrt-rtx-cu13"),
    OrtBackend("ort-cuda", "CUDAExecutionProvider", "onnxruntime-gpu"),
    OrtBackend("ort-cpu", "CPUExecutionProvider", "onnxruntime"),
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
    return backend.refuse(bundle, NO_GPU_OPTIONS) or backend.unverified(bundle, NO_GPU_OPTIONS)


def select_backend(
    name: str, bundle: Bundle, *, allow_unverified: bool = False, gpu: GpuOptions = NO_GPU_OPTIONS
) -> Selection:
    """Choose the backend that was named, or for "auto" the first that is here and can run the bundle.

    allow_unverified: take plans that were never verified on this GPU. gpu: a backend that cannot follow these
    options is not taken.
    Raises BackendError with reasons: an unknown name, a named backend that is not available (there is no
    falling back from a named one), or none at all.
    """
    states = {state.name: state for state in list_backends()}
    if name != "auto" and name not in states:
        raise BackendError(f'there is no backend "{name}"; choose auto or one of {", ".join(states)}')
    backends = {backend.name: backend for backend in _BACKENDS}
    passed_over: list[Availability] = []
    for candidate, state in states.items():
        if name not in ("auto", candidate):
            continue
        backend = backends[candidate]
        reason = state.reason or backend.refuse(bundle, gpu)
        if reason is None and not allow_unverified:
            reason = backend.unverified(bundle, gpu)
        if reason is None:
            return Selection(backend, state, tuple(passed_over))
        if name == candidate:
            raise BackendError(f'backend "{name}" cannot be used: {reason}')
        passed_over.append(Availability(candidate, reason, state.version))
    reasons = "; ".join(f"{state.name}: {state.reason}" for state in passed_over)
    raise BackendError(f"no backend can be used ({reasons})")


def open_onnx_runner(
    name: str, files: GraphFiles, num_threads: int | None = None, gpu: GpuOptions = NO_GPU_OPTIONS
) -> tuple[str, Runner]:
    """Choose a backend that runs plain ONNX files: the name of the one chosen, and a runner, not yet entered.

    name: a backend of ONNX Runtime, or "auto" for the first that works here. Raises BackendError with reasons
    for another name, and where none works.
    """
    known = {backend.name: backend for backend in _BACKENDS if isinstance(backend, OrtBackend)}
    if name != "auto" and name not in known:
        raise BackendError(
            f'backend "{name}" does not run plain ONNX files', expected=f"auto or one of {', '.join(known)}"
        )
    reasons = []
    for backend in known.values() if name == "auto" else (known[name],):
        state = backend.probe()
        if state.reason is None:
            return backend.name, backend.open_runner(files, num_threads, gpu)
        reasons.append(f"{state.name}: {state.reason}")
    raise BackendError(f"no backend can run these ONNX files ({'; '.join(reasons)})")
