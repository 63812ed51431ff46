"""EditVerse without PyTorch: edit and generate images and videos with ONNX graphs from a bundle."""

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.errors import (
    BackendError,
    BundleError,
    EditVerseError,
    MediaError,
    QueueFull,
    RequestCancelled,
    RequestError,
)
from editverse_rt.pipeline import Pipeline, Result
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request_queue import RequestHandle, RequestQueue

__all__ = [
    "BackendError",
    "BundleError",
    "EditRequest",
    "EditVerseError",
    "MediaError",
    "Pipeline",
    "QueueFull",
    "RequestCancelled",
    "RequestError",
    "RequestHandle",
    "RequestQueue",
    "Result",
    "load_bundle",
]
