"""Inputs as the command line gives them: paths in an order, which become named files."""

from __future__ import annotations

from collections.abc import Sequence

from editverse_rt import media

__all__ = ["name_inputs"]


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
