"""The library with TensorRT's `RopeAttention` (`cpp/plugin/`): whether it can be loaded on this machine."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from editverse_rt.backends.base import Availability
from editverse_rt.backends.ort import first_line

__all__ = ["CUDNN", "PLUGIN", "probe_plugin"]

PLUGIN = "RopeAttention plugin"
CUDNN = "libcudnn.so.9"
"""What the plugin opens when it first meets a shape; its attention is cuDNN's."""


def probe_plugin(library: Path | None, cudnn: str = CUDNN) -> Availability:
    """Whether the plugin's library and cuDNN can be loaded; what it computes, only a GPU shows.

    library: None where the caller names none. cudnn: the file to be found. Loading runs the library's code.
    """
    if library is None:
        reason = (
            "none is named; only bundles exported with --attention plugin need it: build cpp/plugin, and "
            "give --plugin build/plugin/libeditverse_plugin.so"
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
