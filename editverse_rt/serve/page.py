"""The files of the page: types that no table of the machine decides, and an ETag that each load asks about."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["PageFiles"]

FOLDER = Path(__file__).parent / "static"
# With `nosniff`, browsers refuse a script of another type; Windows may have text/plain for .js in its registry.
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


class PageFiles(StaticFiles):
    """An ASGI application that serves the folder `static`. `get_response(name, scope)` gives one file."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """The file, or 304 where the browser's copy is still the same."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        kind = TYPES.get(Path(full_path).suffix)
        if kind is not None and response.status_code != 304:
            response.headers["Content-Type"] = f"{kind}; charset=utf-8"
        return response
