"""Writes wan.json: requests of the Wan family, and what the Python host makes of them. See write_request_vectors.py.

    python tests/vectors/write_wan_vectors.py     # rewrites wan.json beside this file

Both tests/editverse_rt/test_vectors.py and cpp/tests/vectors_test.cpp read it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python tests/vectors/write_wan_vectors.py`
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import numpy as np
from vector_files import NANO_LIKE, format_tables, write_vectors

from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import BundleSpec, Capabilities, TokenizerSpec
from editverse_rt.errors import EditVerseError
from editverse_rt.families import family_of
from editverse_rt.request.checked import CheckedRequest, choose_schedule
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.inputs import ExaminedInputs, Footage
from editverse_rt.request.prompt import with_tags
from editverse_rt.request.sizes import fit_inside

SEED = 6

GEOMETRY = replace(NANO_LIKE, min_area_px=256, max_frames=81)
TABLE = ScheduleTable((0.0,), (0.0,), (5.0,), (((1.0, 1.0),),), (0,))
SCHEDULE = Schedule("table", "schedule_euler", 5.0, TABLE)


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call gives, or the code, the field and the text of the error that it raises."""
    try:
        return {"result": call()}
    except EditVerseError as error:
        return {"error": type(error).__name__, "code": error.code, "field": error.field, "text": str(error)}


def spec_of(conditioning: str) -> BundleSpec:
    """A bundle without graphs: laying out needs its geometry and what it says of its inputs."""
    return BundleSpec(
        format_version=2,
        name="vectors",
        family="wan",
        conditioning=conditioning,
        unconditional="prompt",
        default_negative_prompt="",
        capabilities=replace(Capabilities(), negative_prompt=True, strength=conditioning == "none"),
        model={},
        geometry=GEOMETRY,
        tokenizer=TokenizerSpec("tokenizer.model", 1, 32),
        graphs={},
        schedules={"table": SCHEDULE},
        default_schedule="table",
        files=(),
        made={},
        quality={},
    )


def layout_result(
    conditioning: str, clips: dict[str, list[int]], num_frames: int, size: list[int]
) -> dict[str, Any]:
    """clips: [frames, height, width] in pixels of each input, main first."""
    spec = spec_of(conditioning)
    height, width = size
    inputs = ExaminedInputs(
        geometry=GEOMETRY,
        request=EditRequest("x"),
        names=tuple(clips),
        media={},
        files={},
        size=(height, width),
        sizes={},
        num_frames=num_frames,
        fps=8.0,
    )
    checked = CheckedRequest(
        request=inputs.request, schedule=SCHEDULE, segments=(), ids=(), negative_ids=(), inputs=inputs
    )
    frames = {name: np.zeros((*shape, 3), np.uint8) for name, shape in clips.items()}
    footage = Footage(frames, num_frames, 8.0, (), None, None)
    made = family_of("wan").lay_out(spec, checked, footage)
    layout = made.cond.layout
    return {
        "layout": layout.layout.tolist(),
        "positions": layout.positions.reshape(-1).tolist(),
        "counts": [layout.num_text, layout.num_clean, layout.num_noisy],
        "target": [made.target.frames, made.target.rows, made.target.columns],
        "texts": [made.cond.text, made.uncond.text],
        "num_kept": made.num_kept,
        "num_dropped": made.num_dropped,
        "start": made.start,
    }


def first_step_result(steps: int, strength: float) -> int:
    """The first step that is run of a noised source."""
    asked: list[int] = []

    def make_table(_: Schedule, num_steps: int, first_step: int) -> ScheduleTable:
        asked.append(first_step if num_steps == steps else -1)
        return TABLE

    choose_schedule(spec_of("none"), None, steps, None, make_table, strength=strength)
    return asked[0] if asked else 0


# --- cases ---


def layout_cases() -> list[dict[str, Any]]:
    clip, still, small = [9, 32, 48], [1, 32, 48], [1, 32, 20]
    cases: list[tuple[str, dict[str, list[int]]]] = [
        (kind, clips)
        for kind in ("none", "rows", "channels", "control")
        for clips in (
            {},
            {"video1": clip},
            {"image1": still},
            {"video1": clip, "image1": small},
            {"video1": clip, "video2": clip},
            {"video1": clip, "video2": [5, 32, 48]},
            {"video2": clip, "video10": clip, "image3": small, "image12": still},
            {"image1": small, "image2": still},
            {"video1": clip, "video2": clip, "video3": clip},
        )
    ]
    return [
        {
            "conditioning": kind,
            "clips": clips,
            "num_frames": num_frames,
            "size": [32, 48],
            **outcome(lambda k=kind, c=clips, n=num_frames: layout_result(k, c, n, [32, 48])),
        }
        for kind, clips in cases
        for num_frames in (1, 9)
    ]


def fit_cases() -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    pairs = [((1, 1000), (64, 64)), ((1000, 1), (64, 64)), ((48, 64), (48, 64)), ((3, 4), (480, 832))]
    pairs += [
        ((rng.randint(1, 2000), rng.randint(1, 2000)), (16 * rng.randint(1, 60), 16 * rng.randint(1, 60)))
        for _ in range(60)
    ]
    return [
        {"source": source, "target": target, "result": fit_inside(source, target)} for source, target in pairs
    ]


def strength_cases() -> list[dict[str, Any]]:
    """Products that are no whole numbers in binary, such as 10 * 0.3, are cut as int() cuts them."""
    strengths = [i / 20 for i in range(1, 21)] + [0.29, 0.57, 1 / 3, 0.999999999999]
    return [
        {"steps": steps, "strength": strength, **outcome(lambda n=steps, s=strength: first_step_result(n, s))}
        for steps in (2, 3, 4, 10, 30, 50, 100)
        for strength in strengths
    ]


def tag_cases() -> list[dict[str, Any]]:
    prompts = ["Make it night", "<video1> Make it night", "< image1 night", "", "\u732b <b>", "<VIDEO>"]
    return [
        {"prompt": prompt, "inputs": inputs, "result": with_tags(prompt, inputs)}
        for prompt in prompts
        for inputs in ([], ["video1"], ["image2", "video1"])
    ]


def make_vectors() -> dict[str, Any]:
    """File name -> content."""
    content: dict[str, Any] = {
        "geometry": [asdict(GEOMETRY)],
        "layouts": layout_cases(),
        "fits": fit_cases(),
        "strengths": strength_cases(),
        "tags": tag_cases(),
    }
    return {"wan.json": content}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    write_vectors(make_vectors(), format_tables)
