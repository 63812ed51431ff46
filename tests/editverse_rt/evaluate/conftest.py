"""A benchmark of a few clips in EditVerseBench's layout, written by tests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from editverse_rt import media

RULE = {"changed_levels": 16, "min_preserved_db": 22.0, "min_region_share": 0.02}


def draw_clip(seed: int, frames: int = 3, height: int = 32, width: int = 48) -> np.ndarray:
    """Flat areas, which a codec keeps well: uint8 [frames, height, width, 3]."""
    rng = np.random.default_rng(seed)
    clip = np.empty((frames, height, width, 3), np.uint8)
    clip[:] = rng.integers(40, 200, 3)
    clip[:, 8:24, 8:24] = rng.integers(40, 200, 3)
    return clip


def write_benchmark(folder: Path, num_items: int = 4, **shape: int) -> dict[str, Any]:
    """Items alternate between two categories and two directions; the right answer is the inverted source."""
    entries: dict[str, Any] = {}
    for index in range(num_items):
        source = draw_clip(index, **shape)
        for name, clip in (("videos", source), ("answers", 255 - source)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            media.write_clip(folder / name / f"{index}.mp4", clip, 8.0)
        entries[str(index)] = {
            "<text>": "<video1> Invert the colors",
            "<video1>": f"videos/{index}.mp4",
            "<video1> link": "none",
            "direction": ("horizontal", "vertical")[index % 2],
            "type": ("stylization", "add object")[index // 2 % 2],
            "source_prompt": "a square",
            "target_prompt": "an inverted square",
            "answer": f"answers/{index}.mp4",
        }
    (folder / "test.json").write_text(json.dumps(entries), encoding="utf-8")
    (folder / "rule.json").write_text(json.dumps(RULE), encoding="utf-8")
    return entries


def write_result(results: Path, key: str, clip: np.ndarray) -> None:
    (results / key).mkdir(parents=True, exist_ok=True)
    media.write_clip(results / key / "generate.mp4", clip, 8.0)


@pytest.fixture(scope="session")
def miniature() -> SimpleNamespace:
    """The functions of this file, for tests that cannot import it."""
    return SimpleNamespace(draw_clip=draw_clip, write_benchmark=write_benchmark, write_result=write_result)
