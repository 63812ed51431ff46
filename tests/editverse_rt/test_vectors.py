"""The vectors that every host is held to; vectors_test.cpp and engines_test.cpp of cpp/ read them as well."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "vectors"
NAMES = [
    "prompts",
    "sizes",
    "frames",
    "layouts",
    "schedules",
    "sampling",
    "rates",
    "bundles",
    "engines",
    "wan",
    "windows",
]


def load_writer(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    writers = [
        load_writer(f"write_{kind}_vectors") for kind in ("request", "bundle", "engine", "wan", "window")
    ]
    return {file: content for writer in writers for file, content in writer.make_vectors().items()}


@pytest.mark.parametrize("name", NAMES)
def test_this_host_gives_what_the_vectors_say(name: str, vectors: dict[str, Any]) -> None:
    """After an intended change: run the writers in tests/vectors/, and change every host."""
    written = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    assert json.loads(json.dumps(vectors[f"{name}.json"])) == written


def test_every_vector_file_is_checked() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("prompts", None),
        ("schedules", None),
        ("sizes", "cases"),
        ("frames", "cases"),
        ("bundles", "cases"),
        ("engines", "manifests"),
        ("engines", "profiles"),
        ("engines", "shapes"),
        ("engines", "choices"),
        ("wan", "layouts"),
        ("wan", "strengths"),
        ("windows", None),
    ],
)
def test_vectors_hold_successes_and_errors(name: str, part: str | None) -> None:
    content = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    cases = content if part is None else content[part]
    assert any("result" in case for case in cases)
    assert any("error" in case for case in cases)


def scenes_of(levels: list[int]) -> list[tuple[int, int]]:
    """(begin, end) of each scene of a video of one pixel, found over all of its frames at once."""
    gaps = [3 * abs(b - a) for a, b in pairwise(levels)]

    def is_cut(i: int) -> bool:
        return gaps[i] > 16 * 3 and all(gaps[i] > 3 * gaps[j] for j in (i - 1, i + 1) if 0 <= j < len(gaps))

    cuts = [0, *(i + 1 for i in range(len(gaps)) if is_cut(i)), len(levels)]
    return list(pairwise(cuts))


def expected_windows(levels: list[int] | None, total: int, most: int, shared: int) -> list[list[int]]:
    """[begin, shared frames, frames] of each window: none goes on over a cut."""
    windows = []
    for begin, end in [(0, total)] if levels is None else scenes_of(levels):
        at, taken = begin, 0
        while at + taken < end:
            num_frames = min(most, end - at)
            windows.append([at, taken, num_frames])
            at, taken = at + num_frames - shared, shared
    return windows


def test_windows_hold_every_frame_once_and_in_order() -> None:
    """Against a second count, over the whole of each video."""
    cases = [case for case in json.loads((FOLDER / "windows.json").read_text("utf-8")) if "result" in case]
    assert len(cases) > 200
    for case in cases:
        _, most, shared = case["bundle"]
        skipped = int(
            case["start_s"] * 8 + 0.3
        )  # of 8 frames a second; a frame counts from a touch after it begins
        taken = {name: levels[skipped:][: case["total"]] for name, levels in case["videos"].items()}
        main = taken.get("video1")
        windows = case["result"]["windows"]
        total = case["total"] if main is None else len(main)
        assert [window["window"][0] for window in windows] == list(range(len(windows)))
        assert [window["window"][1:] for window in windows] == expected_windows(main, total, most, shared)
        assert case["result"]["whole"][0] == total
        for name, levels in taken.items():
            held = [*levels, *[levels[-1]] * total][:total]
            for window in windows:
                _, begin, _, num_frames = window["window"]
                clip = window["levels"][name]
                assert len(clip) == window["padded"] <= most
                assert clip == held[begin : begin + num_frames] + [clip[-1]] * (len(clip) - num_frames)
