"""Inputs and requests as the command line gives them: paths in an order, and JSON files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from editverse_rt import media
from editverse_rt.errors import RequestError
from editverse_rt.fields import read_json
from editverse_rt.request.edit_request import EditRequest

__all__ = ["name_inputs", "read_request"]


def name_inputs(paths: Sequence[str]) -> dict[str, media.MediaFile]:
    """Return tag name -> open file: each file's kind, numbered from 1 in the order given."""
    names: dict[str, media.MediaFile] = {}
    counts: dict[str, int] = {}
    for path in paths:
        file = media.open_media(path)
        kind = file.info.kind
        counts[kind] = counts.get(kind, 0) + 1
        names[f"{kind}{counts[kind]}"] = file
    return names


def read_request(path: Path) -> EditRequest:
    """The request in a JSON file, its inputs' paths relative to that file.

    Raises RequestError that names the file, and the field that is missing, wrong or unknown.
    """
    value = read_json(path, error=RequestError, fix="correct the request")
    return EditRequest.from_json(value, os.fspath(path)).with_paths_from(path.parent)
