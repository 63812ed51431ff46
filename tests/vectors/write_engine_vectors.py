"""Writes engines.json: plans on disk, and what the Python host makes of them. See write_request_vectors.py.

    python tests/vectors/write_engine_vectors.py     # rewrites engines.json beside this file

Both tests/editverse_rt/test_vectors.py and cpp/tests/engines_test.cpp read it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

if not __package__:  # run as a file: `python tests/vectors/write_engine_vectors.py`
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

from vector_files import format_tables, outcome, write_vectors

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import FileSpec, GraphSpec, TensorSpec
from editverse_rt.engines.choice import choose_plans, choose_profile
from editverse_rt.engines.manifest import PlanSpec, ShapeProfile, read_manifest, source_digest
from editverse_rt.engines.shapes import count_bytes, output_shapes
from editverse_rt.errors import EditVerseError

SEED = 9
GRAPHS = ("transformer", "vae_encoder_first")
GPU = "NVIDIA GeForce RTX 4090"
ROOT = "ROOT"
"""Stands for the bundle's folder in texts."""

ODD_AXES = ("16*h", "016*h", "16*", "*h", "0*h", "-2*h", "1.5*h", "x*h", "2*16*h", "9999999999*h")
"""Names of axes, of which only the first three say something."""

BOXES = ((25, 80), (33, 60), (45, 45), (61, 33), (80, 25))
"""Patches of 16 pixels that hold all sizes to 832x480 with sides to 1280."""

FILES = [
    ["transformer.onnx", "1" * 64],
    ["vae_encoder_first.onnx", "2" * 64],
    ["vae_encoder.weights", "3" * 64],
    ["vae_decoder.weights", "4" * 64],
    ["deep/vae_encoder.weights", "5" * 64],
    ["tokenizer.model", "6" * 64],
]


def bundle_of(root: Path, files: list[list[str]]) -> Bundle:
    """A bundle of just these files, which graphs are named after."""
    spec = SimpleNamespace(
        name="vectors",
        graphs={graph: GraphSpec(graph, f"{graph}.onnx", (), ()) for graph in GRAPHS},
        files=tuple(FileSpec(path, 1, digest) for path, digest in files),
    )
    return Bundle(root, cast(Any, spec))


def source_of(graph: str) -> str:
    return source_digest(bundle_of(Path(), FILES), graph)


def base_manifest() -> dict[str, Any]:
    return {
        "format_version": 1,
        "backend": "tensorrt-rtx",
        "backend_version": "1.7.1.116",
        "compute_capabilities": ["8.9", "12.0"],
        "gpu": "",
        "plans": [
            {
                "graph": graph,
                "precision": "bf16",
                "file": f"{graph}-bf16.plan",
                "num_bytes": 12,
                "sha256": "ab" * 32,
                "source_sha256": source_of(graph),
                "key": "k",
                "profiles": [{"name": "short", "shapes": {"noisy": [[0, 64], [8, 64], [16, 64]]}}],
                "facts": {"seconds": 1.5},
            }
            for graph in GRAPHS
        ],
        "notes": {},
    }


def apply_edits(edits: list[list[Any]]) -> Any:
    """The manifest after edits: ["set", path, value] and ["delete", path], as in write_bundle_vectors.py."""
    whole: Any = [base_manifest()]
    for kind, path, *value in edits:
        place: Any = whole
        *parents, last = [0, *path]
        for part in parents:
            place = place[part]
        if kind == "set":
            place[last] = value[0]
        else:
            del place[last]
    return whole[0]


# --- manifests ---


def manifest_result(edits: list[list[Any]]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "manifest.json")
        path.write_text(json.dumps(apply_edits(edits)), encoding="utf-8")
        try:
            found = read_manifest(path)
        except EditVerseError as error:
            raise type(error)(str(error).replace(folder, ROOT)) from None
    return [
        found.backend,
        found.backend_version,
        list(found.compute_capabilities),
        found.gpu,
        [[plan.graph, plan.file, plan.sha256, len(plan.profiles)] for plan in found.plans],
    ]


def manifest_cases() -> list[dict[str, Any]]:
    shapes: list[Any] = ["plans", 0, "profiles", 0, "shapes", "noisy"]
    edits: list[list[list[Any]]] = [[], [["set", [], []]], [["set", [], {}]]]
    for path, values in (
        (["format_version"], [2, 0, "1", True, ...]),
        (["backend"], ["", 3, ...]),
        (["backend_version"], ["", ...]),
        (["compute_capabilities"], [[], "8.9", ["8.9"], ...]),
        (["gpu"], [GPU, 3, ...]),
        (["notes"], [[], ...]),
        (["plans"], [[], {}, None, ...]),
        (["plans", 0, "graph"], ["", 1]),
        (["plans", 1, "precision"], ["", ...]),
        (["plans", 0, "file"], ["../x.plan", "a/x.plan", "", "/x", "x.plan", ...]),
        (["plans", 0, "num_bytes"], [-1, 0, 1.5, 2**63]),
        (["plans", 0, "sha256"], ["", ...]),
        (["plans", 0, "key"], ["", ...]),
        (["plans", 0, "facts"], [[], {"weight_streaming": True}, ...]),
        (["plans", 0, "surplus"], [1]),
        (["plans", 0, "profiles"], [[], {}]),
        (["plans", 0, "profiles", 0, "name"], ["", ...]),
        (["plans", 0, "profiles", 0, "shapes"], [[], {}]),
        (
            shapes,
            [
                [[1], [2]],
                [[1], [2, 3], [4]],
                [[1], [2], [-1]],
                [[1], [2], [True]],
                [[1], [2], [3.0]],
                [[1], [2], [2**63 - 1]],
                [[1], [2], [2**63]],
                [1, 2, 3],
                [[], [], []],
                "x",
                None,
            ],
        ),
    ):
        edits += [[["delete", path] if value is ... else ["set", path, value]] for value in values]
    return [{"edits": one, **outcome(lambda e=one: manifest_result(e))} for one in edits]


# --- profiles and shapes ---


def profile_result(profiles: list[dict[str, Any]], shapes: dict[str, list[int]]) -> int:
    made = tuple(
        ShapeProfile(str(i), {n: cast(Any, tuple(map(tuple, rows))) for n, rows in profile.items()})
        for i, profile in enumerate(profiles)
    )
    plan = PlanSpec("transformer", "fp32", "x.plan", 1, "", "", "", made)
    return choose_profile(plan, {name: tuple(shape) for name, shape in shapes.items()})


def sizes_of(rows: int, columns: int) -> dict[str, list[int]]:
    """The inputs of a VAE's graph at so many patches: a chunk, and a cache with eight pixels a patch."""
    return {"patches": [1, rows, columns, 64], "cache_0": [1, 8, 2, 8 * rows, 8 * columns]}


def boxes_of(corners: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    """A profile a box: lying, square and standing ones of nearly the same area."""
    least = sizes_of(1, 1)
    return [{n: [least[n], least[n], shape] for n, shape in sizes_of(*corner).items()} for corner in corners]


def profile_cases() -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    two = [
        {"noisy": [[1, 64], [8, 64], [16, 64]], "layout": [[3], [9], [40]]},
        {"noisy": [[1, 64], [99, 64], [160, 64]], "layout": [[3], [90], [400]]},
    ]
    cases: list[tuple[list[dict[str, Any]], dict[str, list[int]]]] = [
        (two, {"noisy": [16, 64], "layout": [40], "timestep": []}),
        (two, {"noisy": [17, 64], "layout": [40]}),
        (two[::-1], {"noisy": [2, 64], "layout": [5]}),
        (two, {"noisy": [161, 64], "layout": [401]}),
        (two, {"noisy": [16, 65], "layout": [40]}),
        ([{}], {"guidance": []}),
        ([{"noisy": [[0, 64], [1, 64], [2**40, 64]]}, two[0]], {"noisy": [9, 64], "layout": [9]}),
        # What no builder writes: no profile, an input that is not given, in the first or in the last profile,
        # shapes of another rank, none that is between its bounds, a gap between two profiles.
        ([], {"noisy": [9, 64]}),
        (two, {"noisy": [16, 64]}),
        (two, {}),
        ([two[0], {**two[1], "text": [[0], [1], [2]]}], {"noisy": [16, 64], "layout": [40]}),
        (two, {"noisy": [16], "layout": [40]}),
        (two, {"noisy": [16, 64, 1], "layout": []}),
        ([{"noisy": [[], [], []]}], {"noisy": [1]}),
        ([{"noisy": [[8], [8], [4]]}], {"noisy": [6]}),
        ([{"noisy": [[1], [2], [3]]}, {"noisy": [[6], [7], [8]]}], {"noisy": [5]}),
        ([{"noisy": [[0], [1], [2**63 - 1]]}], {"noisy": [2**63 - 1]}),
    ]
    for _ in range(60):
        profiles = []
        for _ in range(rng.randint(1, 4)):
            sides = [sorted(rng.randint(0, 12) for _ in range(3)) for _ in range(3)]
            rows = [[sides[axis][i] for axis in range(2)] for i in range(3)]
            profiles.append({"a": rows, "b": [[sides[2][i]] for i in range(3)]})
        cases.append((profiles, {"a": [rng.randint(0, 12), rng.randint(0, 12)], "b": [rng.randint(0, 12)]}))
    cases += [(boxes_of(BOXES), sizes_of(*size)) for size in [*BOXES, (30, 52), (52, 30), (25, 25), (26, 61)]]
    # Two boxes of one size: the first that is listed.
    cases += [(boxes_of(pair), sizes_of(20, 20)) for pair in (((25, 80), (80, 25)), ((80, 25), (25, 80)))]
    cases += [(boxes_of(BOXES), sizes_of(rng.randint(1, 84), rng.randint(1, 84))) for _ in range(40)]
    return [{"profiles": p, "shapes": s, **outcome(lambda p=p, s=s: profile_result(p, s))} for p, s in cases]


def shapes_result(
    inputs: list[list[Any]], outputs: list[list[Any]], shapes: dict[str, list[int]]
) -> dict[str, Any]:
    """Of each output its shape and bytes; tensors are [name, dtype, axes]."""
    graph = GraphSpec(
        "graph",
        "g.onnx",
        *(tuple(TensorSpec(n, d, tuple(a)) for n, d, a in side) for side in (inputs, outputs)),
    )
    made = output_shapes(graph, {name: tuple(shape) for name, shape in shapes.items()})
    return {t.name: [list(made[t.name]), count_bytes(t, made[t.name])] for t in graph.outputs}


def shape_cases() -> list[dict[str, Any]]:
    frames, patches = ["frames", "uint8", [4, "16*h", "16*w", 3]], ["patches", "float32", [1, "h", "w", 64]]
    caches = [["cache", "float32", [1, 4, "8*h", "8*w"]]]
    rows = [["a", "float32", ["Lg", 4]], ["b", "float32", ["Lg", 4]], ["ids", "int64", ["Lt"]]]
    given = {"a": [3, 4], "b": [3, 4], "ids": [0]}
    cases: list[tuple[list[Any], list[Any], dict[str, list[int]]]] = [
        ([frames], [patches, *caches], {"frames": [4, 48, 80, 3]}),
        ([frames], [patches], {"frames": [4, 49, 80, 3]}),
        ([frames], [patches], {"frames": [1, 48, 80, 3]}),
        ([frames], [patches], {"frames": [48, 80, 3]}),
        ([patches, *caches], [frames], {"patches": [1, 3, 5, 64], "cache": [1, 4, 24, 40]}),
        ([patches, *caches], [frames], {"patches": [1, 3, 5, 64], "cache": [1, 4, 16, 40]}),
        (rows, rows, given),
        (rows, [], given),
        (rows, rows, {**given, "b": [2, 4]}),
        (rows, rows, {**given, "a": [3, 5]}),
        (rows, rows, {**given, "ids": []}),
        ([["s", "float32", []]], [["s2", "float32", []]], {"s": []}),
        (rows, rows, {"a": [0, 4], "b": [0, 4], "ids": [7]}),
        (rows, rows, {"a": [3, 4], "ids": [7]}),
        (rows, [], {}),
        (rows[:1], rows, {"a": [3, 4]}),
        *(([["a", "uint8", [axis]]], [["b", "uint8", [axis]]], {"a": [32]}) for axis in ODD_AXES),
    ]
    return [
        {"inputs": i, "outputs": o, "shapes": s, **outcome(lambda i=i, o=o, s=s: shapes_result(i, o, s))}
        for i, o, s in cases
    ]


# --- which plans may run ---


def choice_result(
    folders: dict[str, Any], stamps: dict[str, str], files: list[list[str]], gpu: list[str], version: str
) -> str:
    """The chosen folder, relative to the bundle's."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(os.path.realpath(temporary))
        for folder, edits in folders.items():
            (root / folder).mkdir(parents=True)
            (root / folder / "manifest.json").write_text(json.dumps(apply_edits(edits)), encoding="utf-8")
        for folder, stamp in stamps.items():
            (root / folder / "verified.json").write_text(stamp, encoding="utf-8")
        bundle = bundle_of(root, files)
        try:
            engines, plans = choose_plans(bundle, GRAPHS, "tensorrt-rtx", version, gpu[1], gpu[0])
        except EditVerseError as error:
            raise type(error)(str(error).replace(str(root), ROOT)) from None
        assert set(plans) == set(GRAPHS)
        return engines.folder.relative_to(root).as_posix()


def choice_cases() -> list[dict[str, Any]]:
    first, second = "engines/sm_89/tensorrt-rtx-1.7.1", "engines/sm_89+sm_120/tensorrt-rtx-1.7.1"
    both: dict[str, Any] = {first: [], second: []}
    stamp = json.dumps({"gpu": GPU, "plans": {f"{graph}-bf16.plan": "ab" * 32 for graph in GRAPHS}})
    wrong = json.dumps({"gpu": GPU, "plans": {f"{graph}-bf16.plan": "cd" * 32 for graph in GRAPHS}})
    altered = [["transformer.onnx", "0" * 64], *FILES[1:]]
    weights = [[path, "0" * 64 if path == "vae_encoder.weights" else digest] for path, digest in FILES]
    ada, blackwell, turing = [GPU, "8.9"], ["a GPU", "12.0"], ["Tesla T4", "7.5"]
    here = "1.7.1.116"
    one: dict[str, Any] = {first: []}

    old = base_manifest()["plans"][0] | {
        "precision": "fp32",
        "file": "transformer-fp32.plan",
        "source_sha256": "0" * 64,
    }

    def with_one(field: str, value: Any) -> dict[str, Any]:
        return {first: [["set", [field], value]]}

    cases: list[tuple[dict[str, Any], dict[str, str], list[list[str]], list[str], str]] = [
        ({}, {}, FILES, ada, here),
        (one, {}, FILES, ada, here),
        (one, {}, FILES, blackwell, here),
        (one, {}, FILES, turing, here),
        (one, {}, FILES, ada, "1.8.0.1"),
        (one, {}, altered, ada, here),
        (one, {}, weights, ada, here),
        (with_one("backend", "tensorrt"), {}, FILES, ada, here),
        ({first: [["delete", ["plans", 1]]]}, {}, FILES, ada, here),
        (with_one("plans", []), {}, FILES, ada, here),
        (with_one("gpu", "NVIDIA L4"), {}, FILES, ada, here),
        (with_one("gpu", GPU), {}, FILES, ada, here),
        (both, {}, FILES, ada, here),
        (both, {second: stamp}, FILES, ada, here),
        (both, {first: stamp}, FILES, ada, here),
        (both, {second: stamp}, FILES, blackwell, here),
        (both, {second: wrong}, FILES, ada, here),
        (both, {second: "{"}, FILES, ada, here),
        (both, {second: "[]"}, FILES, ada, here),
        (both, {second: '{"gpu": 3}'}, FILES, ada, here),
        (both, {first: wrong, second: stamp}, FILES, ada, here),
        ({**with_one("backend_version", "1.6"), second: []}, {}, FILES, turing, here),
        # One graph in two precisions: the last was built last, whatever state the other is of.
        (with_one("plans", [old, *base_manifest()["plans"]]), {}, FILES, ada, here),
        (with_one("plans", [*base_manifest()["plans"], old]), {}, FILES, ada, here),
    ]
    return [
        {
            "folders": folders,
            "stamps": stamps,
            "files": files,
            "gpu": gpu,
            "version": version,
            **outcome(lambda c=(folders, stamps, files, gpu, version): choice_result(*c)),
        }
        for folders, stamps, files, gpu, version in cases
    ]


def make_vectors() -> dict[str, Any]:
    """File name -> content."""
    return {
        "engines.json": {
            "graphs": list(GRAPHS),
            "base": [base_manifest()],
            "digests": [
                {"files": files, "result": [source_digest(bundle_of(Path(), files), g) for g in GRAPHS]}
                for files in (FILES, FILES[::-1], FILES[:2])
            ],
            "manifests": manifest_cases(),
            "profiles": profile_cases(),
            "shapes": shape_cases(),
            "choices": choice_cases(),
        }
    }


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    write_vectors(make_vectors(), format_tables)
