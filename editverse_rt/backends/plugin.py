"""The library with TensorRT's `RopeAttention` (`cpp/plugin/`): loading it, and whether that works here."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from editverse_rt.backends.base import Availability
from editverse_rt.backends.ort import first_line
from editverse_rt.errors import BackendError

__all__ = ["CUDNN", "NAMESPACE", "NODE", "PLUGIN", "probe_plugin", "register_plugin"]

PLUGIN = "RopeAttention plugin"
NODE, NAMESPACE = "RopeAttention", "editverse"
"""What the library's creator is called; TensorRT's parser finds it by these."""
CUDNN = "libcudnn.so.9"
"""What the plugin opens when it first meets a shape; its attention is cuDNN's."""


def register_plugin(registry: Any, library: Path) -> None:
    """Load the library into a registry of TensorRT's, unless the registry has the node already.

    A process has one registry, and it does not take a library twice: the first that was loaded stays.
    registry: what the vendor's `get_plugin_registry()` gives. Raises BackendError.
    """
    if any((c.name, c.plugin_namespace) == (NODE, NAMESPACE) for c in registry.all_creators):
        return
    try:
        handle = registry.load_library(os.fspath(library))
    except (OSError, RuntimeError) as error:
        raise BackendError(
            f"{library} cannot be loaded ({first_line(error)})",
            hint="build the plugin again",
            code="backend.plugin",
            field="plugin",
        ) from error
    if handle is None:
        raise BackendError(
            f"{library} is not a plugin that TensorRT takes",
            hint="build the plugin again",
            code="backend.plugin",
            field="plugin",
        )


def probe_plugin(library: Path | None, cudnn: str = CUDNN) -> Availability:
    """Whether the plugin's library and cuDNN can be loaded; what it computes, only a GPU shows.

    library: None where the caller names none. cudnn: the file to be found. Loading runs the library's code.
    """
    if library is None:
        reason = (
            "none is named; only bundles whose attention was exported as a plugin need it: build cpp/plugin, and "
            "name build/plugin/libeditverse_plugin.so"
        )
        return Availability(PLUGIN, reason)
    if not library.is_file():
        return Availability(PLUGIN, f"{library} is not there; build it: cmake -S cpp/plugin -B build/plugin")
    try:
        # By its path: a bare name would be looked for in the system's folders.
        loaded = ctypes.CDLL(os.fspath(library.absolute()))
    except OSError as error:
        return Availability(PLUGIN, f"{library} cannot be loaded ({first_line(error)}); build it here again")
    if not hasattr(loaded, "getCreators"):
        return Availability(
            PLUGIN, f"{library} is no plugin of TensorRT: it has no getCreators; name another"
        )
    try:
        ctypes.CDLL(cudnn)
    except OSError as error:
        return Availability(
            PLUGIN,
            f"{library} can be loaded, cuDNN cannot ({first_line(error)}); pip install nvidia-cudnn-cu13 and "
            "put its folder on LD_LIBRARY_PATH",
        )
    return Availability(PLUGIN, None)
