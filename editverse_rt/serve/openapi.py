"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import Any

from editverse_rt.serve.settings import ServerSettings

__all__ = ["describe_api"]


def describe_api(settings: ServerSettings) -> dict[str, Any]:
    """The document; what it says is held to the running server by a test."""
    return {"openapi": "3.1.0", "info": {"title": "editverse-rt", "version": "1"}, "paths": {}}
