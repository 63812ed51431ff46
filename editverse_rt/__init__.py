"""EditVerse without PyTorch: edit and generate images and videos with ONNX graphs from a bundle."""

from editverse_rt.bundle import load_bundle
from editverse_rt.errors import (
    BackendError,
    BundleError,
    EditVerseError,
    MediaError,
    RequestCancelled,
    RequestError,
)
from editverse_rt.pipeline import Pipeline, Plan, Result

__all__ = [
    "BackendError",
    "BundleError",
    "EditVerseError",
    "MediaError",
    "Pipeline",
    "Plan",
    "RequestCancelled",
    "RequestError",
    "Result",
    "load_bundle",
]
