"""Writes windows.json: long requests, and the windows that the Python host makes of them. See write_request_vectors.py.

    python tests/vectors/write_window_vectors.py     # rewrites windows.json beside this file

A video is a list of grey levels: each frame has one pixel. tests/editverse_rt/test_vectors.py and
cpp/tests/vectors_test.cpp read the file.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python tests/vectors/write_window_vectors.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import EditVerseError
from editverse_rt.media.frames import MediaInfo
from editverse_rt.request.edit_request import EditRequest, Source
from editverse_rt.request.inputs import ExaminedInputs
from editverse_rt.request.windows import read_windows

FOLDER = Path(__file__).parent
SEED = 8


def window_result(
    ratio: int, max_frames: int, shared: int, videos: Mapping[str, list[int]], total: int, start_s: float
) -> dict[str, Any]:
    """Each window and the levels of its clips, and what is known after the last one."""
    geometry = Geometry(ratio, 1, 1, 1, 1, 1, 1, 1, max_frames, 1, 1, 1, 8.0, shared)
    inputs: dict[str, Source] = {
        name: np.repeat(np.array(levels, np.uint8).reshape(-1, 1, 1, 1), 3, axis=3)
        for name, levels in videos.items()
    }
    examined = ExaminedInputs(
        geometry=geometry,
        request=EditRequest("x", inputs, start_s=start_s),
        names=tuple(videos),
        media={
            name: MediaInfo("video", 1, 1, 8.0, None, len(levels), False) for name, levels in videos.items()
        },
        files={},
        size=(1, 1),
        sizes=dict.fromkeys(videos, (1, 1)),
        num_frames=max_frames,
        fps=8.0,
        total_frames=total,
    )
    windows = read_windows(examined)
    found = [
        {
            "window": [window.index, window.begin, window.num_shared, window.num_frames],
            "padded": window.footage.num_frames,
            "levels": {name: clip[:, 0, 0, 0].tolist() for name, clip in window.footage.clips.items()},
        }
        for window in windows
    ]
    whole = [windows.num_frames, windows.fps, windows.times_s, list(windows.notices)]
    return {"windows": found, "whole": whole}


def levels_of(rng: random.Random, num_frames: int) -> list[int]:
    """Scenes with little motion, some with much, and flashes."""
    levels: list[int] = []
    while len(levels) < num_frames:
        base, motion = rng.randint(0, 255), rng.choice([0, 2, 5, 30])
        levels += [base + rng.randint(-motion, motion) for _ in range(rng.choice([1, 2, 3, 7, 12, 20, 60]))]
    for _ in range(rng.choice([0, 0, 1, 3])):
        levels[rng.randrange(num_frames)] = rng.choice([0, 255])
    return [min(255, max(0, level)) for level in levels[:num_frames]]


def cases() -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    bundles = [(4, 17, 1), (4, 17, 5), (4, 9, 5), (1, 3, 1), (3, 10, 4)]
    made: list[dict[str, Any]] = []
    for num_frames in range(1, 61):
        for shared in (1, 5):
            levels = levels_of(rng, num_frames)
            made.append({"bundle": (4, 17, shared), "videos": {"video1": levels}})
    for _ in range(60):
        videos = {f"video{i + 1}": levels_of(rng, rng.randint(1, 60)) for i in range(rng.randint(1, 3))}
        made.append(
            {
                "bundle": rng.choice(bundles),
                "videos": videos,
                "total": rng.choice([1 << 24, rng.randint(1, 70)]),
                "start_s": rng.choice([0.0, 0.0, 0.3, 1.0, 100.0]),
            }
        )
    made += [
        {"bundle": bundle, "videos": {}, "total": total} for bundle in bundles for total in range(2, 60, 3)
    ]
    return [{"total": 1 << 24, "start_s": 0.0, **case} for case in made]


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    ratio, max_frames, shared = case["bundle"]
    try:
        return {
            "result": window_result(ratio, max_frames, shared, case["videos"], case["total"], case["start_s"])
        }
    except EditVerseError as error:
        return {"error": type(error).__name__, "text": str(error)}


def make_vectors() -> dict[str, Any]:
    """File name -> content."""
    return {"windows.json": [{**case, **outcome(case)} for case in cases()]}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    for name, content in make_vectors().items():
        lines = ",\n".join(json.dumps(case) for case in content)
        (FOLDER / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
