"""EditVerse without PyTorch: edit and generate images and videos with ONNX graphs from a bundle.

The public names are imported when they are first used, so that a command is ready for Ctrl-C at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editverse_rt.bundle.manifest import load_bundle
    from editverse_rt.client import Client
    from editverse_rt.errors import (
        BackendError,
        BundleError,
        EditVerseError,
        MediaError,
        QueueFull,
        RequestCancelled,
        RequestError,
    )
    from editverse_rt.file_run import FileRun, run_to_file
    from editverse_rt.pipeline import Pipeline, Result
    from editverse_rt.request.edit_request import EditRequest
    from editverse_rt.request_queue import FileHandle, RequestHandle, RequestQueue
    from editverse_rt.result import EditedWindow, WindowRun

__all__ = [
    "BackendError",
    "BundleError",
    "Client",
    "EditRequest",
    "EditVerseError",
    "EditedWindow",
    "FileHandle",
    "FileRun",
    "MediaError",
    "Pipeline",
    "QueueFull",
    "RequestCancelled",
    "RequestError",
    "RequestHandle",
    "RequestQueue",
    "Result",
    "WindowRun",
    "load_bundle",
    "run_to_file",
]

_HOMES = {
    "Client": "editverse_rt.client",
    "EditRequest": "editverse_rt.request.edit_request",
    "Pipeline": "editverse_rt.pipeline",
    "FileHandle": "editverse_rt.request_queue",
    "RequestHandle": "editverse_rt.request_queue",
    "RequestQueue": "editverse_rt.request_queue",
    "Result": "editverse_rt.result",
    "WindowRun": "editverse_rt.result",
    "EditedWindow": "editverse_rt.result",
    "FileRun": "editverse_rt.file_run",
    "load_bundle": "editverse_rt.bundle.manifest",
    "run_to_file": "editverse_rt.file_run",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "editverse_rt.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
