"""Writes the vectors of requests: instructions, sizes, lengths, layouts, guidance, frames by time, rates.

    python tests/vectors/write_request_vectors.py     # rewrites its files beside this one

Both tests/editverse_rt/test_vectors.py and cpp/tests/vectors_test.cpp read them. The Python host is not its
own oracle: tests/editverse_rt/request/ holds it to independent ones. The vectors hold both hosts to one result.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python tests/vectors/write_request_vectors.py`
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import numpy as np
from vector_files import NANO_LIKE, outcome, write_vectors

from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import Geometry
from editverse_rt.media.frames import sample_by_time
from editverse_rt.request.layout import Grid, lay_out
from editverse_rt.request.prompt import TextSegment, parse_prompt
from editverse_rt.request.sizes import choose_num_frames, choose_sizes

SEED = 4

GEOMETRIES = [
    NANO_LIKE,
    replace(NANO_LIKE, min_area_px=65536, max_area_px=921600, max_side_px=1280),
    replace(
        NANO_LIKE,
        temporal_ratio=3,
        spatial_ratio=5,
        patch_size=1,
        max_frames=16,
        default_frames=7,
        default_height_px=60,
        default_width_px=65,
    ),
]


def prompt_result(prompt: str, inputs: Sequence[str]) -> list[list[str]]:
    """Segments as ["text", words] and ["vision", name]."""
    return [
        ["text", segment.text] if isinstance(segment, TextSegment) else ["vision", segment.name]
        for segment in parse_prompt(prompt, inputs)
    ]


def sizes_result(
    sources: dict[str, list[int]], main: str | None, geometry: Geometry, size: list[int] | None
) -> list[Any]:
    """[target, {name: size}], sizes as [height, width]."""
    given = {name: (source[0], source[1]) for name, source in sources.items()}
    target, sizes = choose_sizes(given, main, geometry, None if size is None else (size[0], size[1]))
    return [list(target), {name: list(value) for name, value in sizes.items()}]


def layout_result(items: list[Any], target: list[int], with_text: bool) -> dict[str, Any]:
    """An item is a number of tokens, or [frames, rows, columns]; so is the target."""
    segments = [item if isinstance(item, int) else Grid(*item) for item in items]
    made = lay_out(segments, Grid(*target), with_text=with_text)
    return {
        "layout": made.layout.tolist(),
        "positions": made.positions.reshape(-1).tolist(),
        "counts": [made.num_text, made.num_clean, made.num_noisy],
    }


def schedule_result(guidance: list[float], scale: float) -> list[float]:
    """The guidance of each step under a caller's scale."""
    n = len(guidance)
    matrix = ((1.0, 0.0, 0.0, 1 / n), (0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0))
    times = tuple(i / n for i in range(n))
    table = ScheduleTable(times, times, tuple(guidance), (matrix,) * n, (0,) * n)
    return list(Schedule("table", "schedule_euler", 5.0, table).with_guidance(scale).table.guidance)


def sampling_result(
    times: list[list[float]], start_s: float, fps: float | None, source_fps: float
) -> list[int]:
    """Which frame stands for each slot, up to 60."""
    frames = ((begin, end, i) for i, (begin, end) in enumerate(times))
    chosen = sample_by_time(frames, start_s=start_s, fps=fps, source_fps=source_fps)
    return [frame for _, (_, frame) in zip(range(60), chosen, strict=False)]


def prompt_cases() -> list[dict[str, Any]]:
    hand = [
        ("<video1> Make it snow", ["video1"]),
        ("A red circle moves over a blue gradient", []),
        ("<video1> Insert the boat <image1> in the water", ["video1", "image1"]),
        ("<image12><video3>Blend", ["video3", "image12"]),
        ("  \u2003spread\u00a0 \x1c <video1>\u3000\x85", ["video1"]),
        ("Zm\u00e4h \u732b <video1> \U0001f600", ["video1"]),
        ("", []),
        (" \t\n", []),
        ("<video1>", ["video1"]),
        ("Make it snow", ["video1"]),
        ("<video2> Make it snow", ["video1"]),
        ("<video1> and <video1>", ["video1"]),
        ("<video1> x <video2>", ["video1", "video2"]),
        ("<Video1> x", ["video1"]),
        ("< video1> x", ["video1"]),
        ("<video_1> x", ["video1"]),
        ("<video 1 /> x", ["video1"]),
        ("</video1> x", ["video1"]),
        ("<videos> x", []),
        ("<video1 x", ["video1"]),
        ("<video01> x", ["video01"]),
        ("<video0> x", ["video0"]),
        ("<image> x", []),
        ("a < b and c > d", []),
        ("<audio1> x", []),
        ("<V\u0130DEO1> x", ["video1"]),
        ("<v\u0131deo\u017f1> x", ["video1"]),
        ("<video1\u2009> x", ["video1"]),
        ("<<video1>> x", ["video1"]),
        ("<video1>\u200b<image1>", ["video1", "image1"]),
        ("x", ["film"]),
        ("x", ["video1 "]),
        ("x", ["videoa"]),
        ("<video99999999999999999999> x", ["video99999999999999999999"]),
    ]
    rng = random.Random(SEED)
    pieces = [
        "<video1>",
        "<image1>",
        "<video2>",
        "<Image1>",
        "< video1",
        "x",
        "make it",
        " ",
        "\u00a0",
        ">",
        "<",
        "1",
    ]
    pools: list[list[str]] = [[], ["video1"], ["video1", "image1"], ["image1", "video2"]]
    hand += [("".join(rng.choices(pieces, k=rng.randint(1, 7))), rng.choice(pools)) for _ in range(80)]
    return [
        {"prompt": prompt, "inputs": inputs, **outcome(lambda p=prompt, i=inputs: prompt_result(p, i))}
        for prompt, inputs in hand
    ]


def size_cases() -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    cases: list[tuple[int, dict[str, list[int]], str | None, list[int] | None]] = [
        (0, {}, None, None),
        (0, {}, None, [48, 80]),
        (0, {}, None, [50, 80]),
        (0, {}, None, [0, 0]),
        (0, {}, None, [-16, 80]),
        (0, {}, None, [16, 16]),
        *(
            (0, {}, None, size)
            for size in ([512, 512], [720, 1280], [1280, 720], [65536, 65536], [65537, 16])
        ),
        (0, {"video1": [720, 1280]}, "video1", None),
        (0, {"video1": [67, 101]}, "video1", None),
        (0, {"video1": [1, 1]}, "video1", None),
        (0, {"video1": [0, 10]}, "video1", None),
        (0, {"video1": [10, 1000]}, "video1", None),
        (0, {"video1": [1000, 333]}, "video1", None),
        (0, {"video1": [480, 848], "video2": [240, 424], "image1": [500, 500]}, "video1", [48, 80]),
        (1, {"video1": [1080, 1920], "image1": [1081, 1920]}, "video1", None),
        (1, {"video1": [16384, 16384]}, "video1", None),
    ]
    for _ in range(150):
        g = rng.randrange(len(GEOMETRIES))
        names = rng.sample(["video1", "video2", "image1"], rng.randint(1, 3))
        largest = rng.choice([20, 200, 2000])
        sources = {name: [rng.randint(1, largest), rng.randint(1, largest)] for name in names}
        if rng.random() < 0.4:
            scale = rng.randint(1, 3)
            sources[names[-1]] = [side * scale + rng.randint(0, 1) for side in sources[names[0]]]
        cases.append((g, sources, names[0], None))
    return [
        {
            "geometry": g,
            "sources": sources,
            "main": main,
            "size": size,
            **outcome(lambda s=sources, m=main, g=g, z=size: sizes_result(s, m, GEOMETRIES[g], z)),
        }
        for g, sources, main, size in cases
    ]


def frame_cases() -> list[dict[str, Any]]:
    cases = [
        (g, num_frames, has_video, has_image)
        for g in range(len(GEOMETRIES))
        for num_frames in (None, -1, 0, 1, 2, 4, 5, 16, 17, 18, 10**6)
        for has_video, has_image in ((False, False), (False, True), (True, True))
    ]
    return [
        {
            "geometry": g,
            "num_frames": n,
            "has_video": video,
            "has_image": image,
            **outcome(lambda n=n, v=video, i=image, g=g: choose_num_frames(n, v, i, GEOMETRIES[g])),
        }
        for g, n, video, image in cases
    ]


def layout_cases() -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    cases: list[tuple[list[Any], list[int]]] = [
        ([1], [1, 1, 1]),
        ([3, 1], [2, 2, 3]),
        ([[1, 1, 1], 4, 1], [1, 1, 1]),
        ([[2, 2, 1], 4, [1, 3, 2], 2, 1], [2, 2, 1]),
    ]
    for _ in range(12):
        items: list[Any] = [
            rng.randint(1, 5) if rng.random() < 0.5 else [rng.randint(1, 3) for _ in range(3)]
            for _ in range(rng.randint(1, 4))
        ]
        cases.append(([*items, 1], [rng.randint(1, 3) for _ in range(3)]))
    return [
        {"items": items, "target": target, "with_text": text, "result": layout_result(items, target, text)}
        for items, target in cases
        for text in (True, False)
    ]


def schedule_cases() -> list[dict[str, Any]]:
    return [
        {
            "guidance": guidance,
            "scale": scale,
            **outcome(lambda g=guidance, s=scale: schedule_result(g, s)),
        }
        for guidance in ([5.0, 5.0, 1.0, 1.0], [1.0] * 4, [2.0], [0.0, 1.0])
        for scale in (-0.5, 0.0, 1.0, 2.5)
    ]


def sampling_cases() -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    cases = []
    for _ in range(60):
        source_fps = rng.choice([1.0, 8.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0])
        count = rng.randint(1, 40)
        jitter = rng.choice([0.0, 0.0, 0.001, 0.3 / source_fps])
        begins = np.cumsum(
            [0.0, *(1 / source_fps + rng.uniform(-jitter, jitter) for _ in range(count))]
        ).tolist()
        cases.append(
            {
                "times": [[begins[i], begins[i + 1]] for i in range(count)],
                "start_s": rng.choice([0.0, 0.0, 0.1, 0.5, 1.0, 100.0]),
                "fps": rng.choice([None, None, 8.0, 24.0, 30.0, 50.0]),
                "source_fps": source_fps,
            }
        )
    return [{**case, "result": sampling_result(**case)} for case in cases]


def rate_cases() -> list[dict[str, Any]]:
    """Rates that a video is written with, and the fractions that media/writing.py makes of them."""
    rng = random.Random(SEED)
    rates = [
        *(thousands * 1000 / 1001 for thousands in (24, 30, 48, 60, 120, 240, 480, 960)),
        *(0.001, 0.0625, 0.3, 1.0, 8.0, 12.5, 23.976, 29.97, 59.94, 1000.0),
        *(rng.uniform(0.001, 1000) for _ in range(100)),
        *(10 ** rng.uniform(-3, 3) for _ in range(100)),
        *(rng.randint(1, 1_000_000) / 1001 for _ in range(50)),
        *(rng.randint(1, 100_000) / rng.randint(100, 200_000) for _ in range(50)),
    ]
    rates = [min(max(fps, 0.001), 1000.0) for fps in rates]
    return [
        {"fps": fps, "result": list(Fraction(fps).limit_denominator(100_000).as_integer_ratio())}
        for fps in rates
    ]


def make_vectors() -> dict[str, Any]:
    """File name -> content."""
    return {
        "prompts.json": prompt_cases(),
        "sizes.json": {"geometries": [asdict(g) for g in GEOMETRIES], "cases": size_cases()},
        "frames.json": {"geometries": [asdict(g) for g in GEOMETRIES], "cases": frame_cases()},
        "layouts.json": layout_cases(),
        "schedules.json": schedule_cases(),
        "sampling.json": sampling_cases(),
        "rates.json": rate_cases(),
    }


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    write_vectors(make_vectors())
