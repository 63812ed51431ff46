"""What the writers of vectors share: a geometry, errors as cases, the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import EditVerseError

FOLDER = Path(__file__).parent

NANO_LIKE = Geometry(
    temporal_ratio=4,
    spatial_ratio=8,
    patch_size=2,
    patch_dim=64,
    clean_dim=64,
    min_area_px=3072,
    max_area_px=5120,
    max_side_px=128,
    max_frames=17,
    default_height_px=64,
    default_width_px=64,
    default_frames=9,
    default_fps=8.0,
)


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call gives, or the name and text of the error that it raises."""
    try:
        return {"result": call()}
    except EditVerseError as error:
        return {"error": type(error).__name__, "text": str(error)}


def format_cases(content: Any) -> str:
    """JSON with one case a line, so that a change of one shows as one line."""
    if isinstance(content, list):
        return "[\n" + ",\n".join(json.dumps(case) for case in content) + "\n]\n"
    head = {key: value for key, value in content.items() if key != "cases"}
    return json.dumps(head)[:-1] + ', "cases": ' + format_cases(content["cases"]).rstrip() + "}\n"


def format_tables(content: dict[str, Any]) -> str:
    """JSON of several lists, with one case a line."""
    parts = []
    for key, cases in content.items():
        lines = ",\n".join(json.dumps(case) for case in cases)
        parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write_vectors(vectors: dict[str, Any], format_content: Callable[[Any], str] = format_cases) -> None:
    """Write each content under its name beside this file. format_content: content -> the file's text."""
    for name, content in vectors.items():
        (FOLDER / name).write_text(format_content(content), encoding="utf-8")
