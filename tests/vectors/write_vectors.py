"""Writes the test vectors that every host is held to: requests and what the Python host makes of them.

    python tests/vectors/write_vectors.py            # rewrites the files beside this one

Both tests/editverse_rt/test_vectors.py and cpp/tests/vectors_test.cpp read them. The Python host is not its
own oracle: test_sequence.py and test_spec.py hold it to independent ones. Here stands that the hosts agree.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python tests/vectors/write_vectors.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from editverse_rt.bundle.description import spec_from_json
from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import Capabilities, Geometry
from editverse_rt.errors import EditVerseError
from editverse_rt.media.frames import sample_by_time
from editverse_rt.request.layout import Grid, lay_out
from editverse_rt.request.prompt import TextSegment, parse_prompt
from editverse_rt.request.sizes import choose_num_frames, choose_sizes

FOLDER = Path(__file__).parent
SEED = 4

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
GEOMETRIES = [
    NANO_LIKE,
    Geometry(**{**asdict(NANO_LIKE), "min_area_px": 65536, "max_area_px": 921600, "max_side_px": 1280}),
    Geometry(
        **{
            **asdict(NANO_LIKE),
            "temporal_ratio": 3,
            "spatial_ratio": 5,
            "patch_size": 1,
            "max_frames": 16,
            "default_frames": 7,
            "default_height_px": 60,
            "default_width_px": 65,
        }
    ),
]


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call gives, or the name and text of the error that it raises."""
    try:
        return {"result": call()}
    except EditVerseError as error:
        return {"error": type(error).__name__, "text": str(error)}


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
        (["geometry", "default_height_px"], [63, 144]),
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
    return {
        "prompts.json": prompt_cases(),
        "sizes.json": {"geometries": [asdict(g) for g in GEOMETRIES], "cases": size_cases()},
        "frames.json": {"geometries": [asdict(g) for g in GEOMETRIES], "cases": frame_cases()},
        "layouts.json": layout_cases(),
        "schedules.json": schedule_cases(),
        "sampling.json": sampling_cases(),
        "bundles.json": {"base": base, "cases": bundle_cases(base)},
    }


def format_vectors(content: Any) -> str:
    """JSON with one case a line, so that a change of one shows as one line."""
    if isinstance(content, list):
        return "[\n" + ",\n".join(json.dumps(case) for case in content) + "\n]\n"
    head = {key: value for key, value in content.items() if key != "cases"}
    return json.dumps(head)[:-1] + ', "cases": ' + format_vectors(content["cases"]).rstrip() + "}\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    for name, content in make_vectors().items():
        (FOLDER / name).write_text(format_vectors(content), encoding="utf-8")
