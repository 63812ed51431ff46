"""Writes bundles.json: texts of `bundle.json`, and what the Python host says of them.

    python tests/vectors/write_bundle_vectors.py     # rewrites bundles.json beside this file

Both tests/editverse_rt/test_vectors.py and cpp/tests/vectors_test.cpp read it.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python tests/vectors/write_bundle_vectors.py`
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from vector_files import NANO_LIKE, outcome, write_vectors

from editverse_rt.bundle.description import spec_from_json
from editverse_rt.bundle.spec import Capabilities


def apply_edits(base: Any, edits: list[Any]) -> str:
    """The text of a bundle.json after edits: ["set", path, value], ["delete", path], ["text", old, new]."""
    value = copy.deepcopy(base)
    replacements = []
    for edit in edits:
        if edit[0] == "text":
            replacements.append(edit[1:])
            continue
        *parents, last = edit[1]
        place = value
        for part in parents:
            place = place[part]
        if edit[0] == "set":
            place[last] = edit[2]
        else:
            del place[last]
    text = json.dumps(value)
    for old, new in replacements:
        text = text.replace(old, new, 1)
    return text


def bundle_result(base: Any, edits: list[Any]) -> str:
    text = apply_edits(base, edits)
    return spec_from_json(json.loads(text), where="bundle.json").name


# --- cases ---


def base_bundle() -> dict[str, Any]:
    def tensor(line: str) -> dict[str, Any]:
        name, dtype, *axes = line.split()
        return {"name": name, "dtype": dtype, "shape": [int(a) if a.isdigit() else a for a in axes]}

    def graph(name: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
        return {
            "file": f"{name}.onnx",
            "inputs": [tensor(line) for line in inputs],
            "outputs": [tensor(line) for line in outputs],
        }

    frames, patches = "frames uint8 {} 16*h 16*w 3", "patches float32 1 h w 64"
    caches = ["cache_0 float32 1 4 2 8*h 8*w", "cache_1 float16 1 8 2 4*h 4*w"]
    given = [f"next_{line}" for line in caches]
    graphs = {
        "text_encoder": (["ids int64 Lt"], ["text float32 Lt 6"]),
        "vae_encoder_first": ([frames.format(1)], [patches, *given]),
        "vae_encoder_next": ([frames.format(4), *caches], [patches, *given]),
        "transformer": (
            [
                "text float32 Lt 6",
                "clean float32 Lc 64",
                "noisy float32 Lg 64",
                "layout int64 L",
                "positions int64 L 4",
                "timestep float32",
            ],
            ["velocity float32 Lg 64"],
        ),
        "solver_step": (
            [
                "sample float32 Lg 64",
                "history float32 2 Lg 64",
                "velocity_cond float32 Lg 64",
                "velocity_uncond float32 Lg 64",
                "guidance float32",
                "matrix float32 3 4",
            ],
            ["sample_next float32 Lg 64", "history_next float32 2 Lg 64"],
        ),
        "noise": (["seed int64", "shape int64 2"], ["noise float32 N 64"]),
        "vae_decoder_first": ([patches], [frames.format(1), *given]),
        "vae_decoder_next": ([patches, *caches], [frames.format(4), *given]),
        "schedule_euler": (
            [
                "num_steps int64",
                "first_step int64",
                "shift float64",
                "guidance_scale float64",
                "guidance_scale_2 float64",
                "guided_from float64",
                "guided_until float64",
            ],
            [
                "times float64 n",
                "timesteps float64 n",
                "guidance float64 n",
                "matrices float64 n 3 4",
                "experts int64 n",
            ],
        ),
    }
    matrix = [[1, 0, 0, 0.5], [0, 0, 0, 1], [0, 1, 0, 0]]
    names = [*(f"{name}.onnx" for name in graphs), "tokenizer.model"]
    return {
        "format_version": 2,
        "name": "vectors",
        "family": "editverse",
        "conditioning": "interleaved",
        "unconditional": "drop_text",
        "default_negative_prompt": "",
        "capabilities": asdict(Capabilities()),
        "model": {},
        "geometry": asdict(NANO_LIKE),
        "tokenizer": {"file": "tokenizer.model", "eos_id": 1, "max_tokens": 32},
        "graphs": {name: graph(name, *sides) for name, sides in graphs.items()},
        "schedules": {
            "paper": {
                "graph": "schedule_euler",
                "guidance_scale": 5,
                "options": {"shift": 1.0, "guided_from": 0, "guided_until": 1.0},
                "table": {
                    "times": [0, 0.5],
                    "timesteps": [0, 0.5],
                    "guidance": [5, 5.0],
                    "matrices": [matrix, matrix],
                    "experts": [0, 0],
                },
            }
        },
        "default_schedule": "paper",
        "files": [{"path": name, "num_bytes": 3, "sha256": "ab" * 32} for name in names],
        "costs": {},
        "made": {"by": "tests"},
        "quality": {},
    }


def bundle_cases(base: dict[str, Any]) -> list[dict[str, Any]]:
    edits: list[list[Any]] = [[]]
    matrix = base["schedules"]["paper"]["table"]["matrices"][0]
    for path, values in (
        (["format_version"], [1, 3, 0, -1, "1", 1.0, True, None, 2**63]),
        (["name"], ["", 3, "other"]),
        (["model"], [[], "x"]),
        (["geometry", "temporal_ratio"], [0, 2**40, 3, 4.0]),
        (["geometry", "spatial_ratio"], [0, 16385]),
        (["geometry", "patch_dim"], [32, 2**62]),
        (["geometry", "max_side_px"], [0, 16385, 10**12, 32]),
        (["geometry", "min_area_px"], [0, 6000]),
        (["geometry", "max_frames"], [0, 2**31, 16]),
        (["geometry", "default_frames"], [8, 21]),
        (["geometry", "default_height_px"], [63, 144, 16, 128]),
        (["geometry", "default_fps"], [0, -1, "8", 24, True]),
        (
            ["tokenizer", "file"],
            ["", "../x", "/x", "a//b", "a/./b", "a/", "a\\b", "c:x", "other.model", "\x01"],
        ),
        (["tokenizer", "eos_id"], [-1, 0]),
        (["tokenizer", "max_tokens"], [1]),
        (["graphs", "noise", "file"], ["missing.onnx", 3]),
        (["graphs", "noise", "inputs"], [[], {}, [3]]),
        (["graphs", "noise", "inputs", 0, "dtype"], ["int32"]),
        (["graphs", "noise", "inputs", 1, "shape"], [[3], [], [""], [True], [2.0], "2", ["n"]]),
        (["graphs", "transformer", "inputs", 0, "shape"], [["Lt", "Dt"], [], ["Lt", 7]]),
        (["graphs", "vae_encoder_next", "inputs", 1, "name"], ["cache_1", "cache_x", "frames"]),
        (["graphs", "vae_encoder_next", "inputs", 2, "dtype"], ["float32"]),
        (
            ["graphs", "vae_decoder_first", "outputs", 0, "shape"],
            [[1, 64, 64], [2, "H", "W", 3], ["T", "H", "W", 3]],
        ),
        (["graphs", "extra"], [{"file": "noise.onnx", "inputs": [], "outputs": []}]),
        (["schedules"], [{}, []]),
        (["family"], ["wan3", "", 3]),
        (["conditioning"], ["crossed", "channels"]),
        (["unconditional"], ["none", "prompt"]),
        (["default_negative_prompt"], ["blurred", 3]),
        (["capabilities", "attention"], ["flash", "inline"]),
        (["schedules", "paper", "table", "times"], [[0], "x"]),
        (["capabilities", "strength"], [True, 1]),
        (["capabilities", "generates"], [False, 1]),
        (["capabilities", "emulates"], [[], {"transformer": "bf16"}]),
        (["capabilities", "surplus"], [1]),
        (["geometry", "clean_dim"], [0, 32]),
        (["schedules", "paper", "graph"], ["schedule_heun", "", 3]),
        (["schedules", "paper", "guidance_scale"], [-1, "5", True]),
        (["schedules", "paper", "options"], [{"shift": "x"}, [], {}]),
        (
            ["schedules", "paper", "table", "timesteps"],
            [[], [0.5, 0], [0, 1], [-0.1, 0.5], [0, 0], "x", [0, "x"], [0, True]],
        ),
        (
            ["schedules", "paper", "table", "matrices"],
            [[], [matrix], [matrix, matrix[:2]], [matrix, [[1, 2]] * 3], [[1, 2], 3], "x"],
        ),
        (["schedules", "paper", "table", "guidance"], [[5], [5, -1], 5]),
        (["schedules", "paper", "table", "experts"], [[0], [0, 2], [0, 1], [0.5, 0]]),
        (["default_schedule"], ["fast", ""]),
        (["files", 0, "path"], ["bundle.json", "tokenizer.model", "../up"]),
        (["files", 0, "num_bytes"], [-1, 1.5]),
        (["files", 0, "sha256"], ["AB" * 32, "ab", 3]),
        (["files"], [[], {}]),
        (["surplus"], [1]),
        (["geometry", "surplus"], [1]),
        (["files", 0, "surplus"], [1]),
    ):
        edits += [[["set", path, value]] for value in values]
    for path in (
        ["format_version"],
        ["geometry"],
        ["geometry", "max_frames"],
        ["graphs", "noise"],
        ["graphs", "transformer", "inputs", 0],
        ["graphs", "vae_decoder_next", "outputs", 1],
        ["schedules", "paper", "graph"],
        ["schedules", "paper", "table", "experts"],
        ["family"],
        ["capabilities", "dtype"],
        ["files", 0],
        ["files", 0, "sha256"],
        ["quality"],
    ):
        edits.append([["delete", path]])
    # A schedule whose noise levels are fixed: no graph makes another table, so there are no options either.
    fixed = [["set", ["schedules", "paper", "graph"], ""], ["set", ["schedules", "paper", "options"], {}]]
    edits.append(fixed)
    return [{"edits": edit, **outcome(lambda e=edit: bundle_result(base, e))} for edit in edits]


def make_vectors() -> dict[str, Any]:
    """File name -> content."""
    base = base_bundle()
    return {"bundles.json": {"base": base, "cases": bundle_cases(base)}}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    write_vectors(make_vectors())
