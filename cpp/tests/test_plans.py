"""TensorRT plans in the C library without a GPU: stubs play the driver and TensorRT (cpp/tests/plans).

A plan of the stub runs the graph's own ONNX file in the buffers that the library gave, so that a request has
to come out as on the CPU, byte for byte. What has run on no GPU: TensorRT, CUDA and their speed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpp.tests import library as native
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.engines.choice import is_host_graph
from editverse_rt.engines.manifest import EngineSet, PlanSpec, ShapeProfile, source_digest, write_manifest
from editverse_rt.engines.stamps import write_stamp

# Of a sanitized build its programs only: a plain Python cannot load its library.
PLANS = Path(os.environ.get("EDITVERSE_PLANS_BUILD", native.BUILD)) / "tests" / "plans"
NANO = native.ROOT / "editverse_rt" / "bundles" / "nano"
VERSION = "10.14.1.48"
GPU = "A GPU of the test"
REFUSING = {"allow_unverified": False}

pytestmark = pytest.mark.skipif(
    not (PLANS / "run_plans").exists(), reason="this build is without EDITVERSE_TENSORRT"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    shutil.copytree(NANO, tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


def build_plans(
    bundle: Bundle, line: Callable[[str, str], str] = lambda graph, line: line, **changes: Any
) -> EngineSet:
    """Plans of every graph but noise, with a small and a large profile. line: what stands in a plan."""
    folder = bundle.root / "engines" / "sm_89" / f"tensorrt-{VERSION}"
    folder.mkdir(parents=True)
    plans = []
    for number, (graph, spec) in enumerate(bundle.spec.graphs.items()):
        if is_host_graph(graph):
            continue
        content = line(graph, f"stub {bundle.graph_path(graph)} {1000 * number} 2").encode()
        file = folder / f"{graph}-fp32.plan"
        file.write_bytes(content)
        ranges: dict[str, Any] = {}
        for tensor in spec.inputs:
            if any(isinstance(axis, str) for axis in tensor.shape):
                ranges[tensor.name] = tuple(
                    tuple(axis if isinstance(axis, int) else size for axis in tensor.shape)
                    for size in (0, 8, 4096)
                )
        small = {
            name: (low, tuned, tuple(min(a, 80) for a in high)) for name, (low, tuned, high) in ranges.items()
        }
        profiles = (ShapeProfile("large", ranges), ShapeProfile("small", small))
        plans.append(
            PlanSpec(
                graph,
                "fp32",
                file.name,
                len(content),
                hashlib.sha256(content).hexdigest(),
                source_digest(bundle, graph),
                "k",
                profiles,
                {"weight_streaming": graph == "transformer"},
            )
        )
    engines = EngineSet(folder, "tensorrt", VERSION, ("8.9",), "", tuple(plans))
    engines = replace(engines, **changes)
    write_manifest(engines)
    return engines


def streaming(graph: str, line: str) -> str:
    return f"{line} stream" if graph == "transformer" else line


def clip(bundle: Bundle) -> NDArray[np.uint8]:
    geometry = bundle.spec.geometry
    rng = np.random.default_rng(5)
    shape = (1 + 2 * geometry.temporal_ratio, geometry.default_height_px, geometry.default_width_px, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def run(
    bundle: Bundle,
    tmp_path: Path,
    *,
    backend: str = "tensorrt",
    repeats: int = 1,
    cancel_step: int = -1,
    options: Mapping[str, Any] | None = None,
    **settings: str,
) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
    """What run_plans says, and the frames.

    options: of editverse::Options. settings: of the stub of CUDA, as environment variables.
    """
    frames = clip(bundle)
    given, made = tmp_path / "in.rgb", tmp_path / "out.rgb"
    given.write_bytes(frames.tobytes())
    made.unlink(missing_ok=True)
    paths = [str(PLANS), os.environ.get("LD_LIBRARY_PATH", "")]
    done = subprocess.run(
        [
            PLANS / "run_plans", bundle.root, backend, json.dumps(dict(options or {})), given,
            *map(str, (frames.shape[0], frames.shape[2], frames.shape[1])), made,
            str(repeats), str(cancel_step),
        ],
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths)), **settings},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pixels = np.frombuffer(made.read_bytes(), np.uint8).reshape(frames.shape) if made.exists() else None
    return json.loads(done.stdout), pixels


def check_all_is_given_back(said: dict[str, Any]) -> None:
    closed = said["closed"]
    assert closed["buffers"] == closed["retained"] == closed["streams"] == closed["current"] == 0
    assert closed["graphs"] == 0
    assert said["closed_plans"]["plans"] == said["closed_plans"]["contexts"] == 0


def count_plans(bundle: Bundle) -> int:
    """Graphs that have a plan: all but those that run on the CPU."""
    return sum(not is_host_graph(graph) for graph in bundle.spec.graphs)


def test_a_request_on_plans_is_the_request_on_the_cpu(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, streaming)
    said, frames = run(bundle, tmp_path, repeats=3)
    assert "error" not in said, said
    assert said["info"]["backend"] == "tensorrt"
    assert said["info"]["backend_version"] == VERSION
    with native.NativePipeline(bundle.root) as pipeline:
        expected, _, _ = pipeline.run("<video1> Make it night", video1=clip(bundle), num_inference_steps=3)
    assert frames is not None
    assert np.array_equal(frames, expected)
    check_all_is_given_back(said)

    # Within a step nothing is read back but the last sample, and nothing goes in but what changes with it:
    # the time of each branch, the guidance and the coefficients.
    first, second, third = said["steps"][:3]
    for before, after, num_downloads in ((first, second, 0), (second, third, 1)):
        assert after["downloads"] - before["downloads"] == num_downloads
        assert after["uploads"] - before["uploads"] == 4
    # The second request finds the buffers and plans of the first.
    assert [report["allocations"] for report in said["runs"]][1:] == [said["runs"][1]["allocations"]] * 2
    assert said["runs"][1]["allocations"] - said["runs"][0]["allocations"] <= 2
    assert said["plans"]["budgets"] == 1
    assert said["plans"]["plans"] == count_plans(bundle)
    assert said["plans"]["profiles"] <= 2 * said["plans"]["plans"]


def test_a_cancelled_request_leaves_the_pipeline_whole(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, streaming)
    said, frames = run(bundle, tmp_path, cancel_step=1)
    assert said["error"] == "RequestCancelled"
    assert len(said["steps"]) == 2
    assert frames is None
    check_all_is_given_back(said)


def test_memory_that_runs_out_is_an_error_that_gives_everything_back(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, streaming)
    said, _ = run(bundle, tmp_path, STUB_MEMORY="400000")
    assert said["error"] == "BackendError"
    assert "CUDA_ERROR_OUT_OF_MEMORY" in said["text"]
    assert "ask for fewer frames" in said["text"]
    assert said["facts"]["code"] == "backend.memory"
    assert said["facts"]["hint"].startswith("ask for fewer frames or a smaller size")
    check_all_is_given_back(said)


def test_idle_buffers_make_room(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, streaming)
    roomy, frames = run(bundle, tmp_path)
    limit = int(0.97 * roomy["runs"][0]["most_bytes"])
    tight, same = run(bundle, tmp_path, STUB_MEMORY=str(limit))
    assert "error" not in tight, tight
    assert tight["runs"][0]["most_bytes"] <= limit
    assert frames is not None
    assert np.array_equal(frames, same)


def test_plans_that_were_not_verified_are_refused_unless_allowed(bundle: Bundle, tmp_path: Path) -> None:
    engines = build_plans(bundle, streaming)
    said, _ = run(bundle, tmp_path, options=REFUSING)
    assert said["error"] == "BackendError"
    assert (
        f"never verified on {GPU}; run `editverse-rt verify {bundle.root} --backend tensorrt`" in said["text"]
    )
    assert "ev_options.allow_unverified" in said["text"]
    said, _ = run(bundle, tmp_path, backend="auto", options=REFUSING)
    assert said["info"]["backend"] == "ort-cpu"
    assert "never verified" in said["info"]["passed_over"]["tensorrt"]
    write_stamp(engines, GPU, {})
    said, _ = run(bundle, tmp_path, options=REFUSING)
    assert "error" not in said, said
    said, _ = run(bundle, tmp_path, backend="auto", options=REFUSING)
    assert said["info"]["backend"] == "tensorrt"


@pytest.mark.parametrize(
    ("changes", "settings", "text"),
    [
        ({"plans": ()}, {}, "lacks text_encoder"),
        ({"backend_version": "10.13"}, {}, f"is of tensorrt 10.13, here is {VERSION}; build it with"),
        ({"compute_capabilities": ("9.0",)}, {}, f"is for 9.0, this GPU is {GPU} (8.9); build it with"),
        ({"gpu": "NVIDIA L4"}, {}, f"is for NVIDIA L4, this GPU is {GPU} (8.9)"),
        ({"backend": "tensorrt-rtx"}, {}, 'bundle "nano" has no plan of tensorrt; build it with: python -m'),
        ({}, {"STUB_GPUS": "0"}, "CUDA finds no GPU here"),
        ({}, {"STUB_INIT": "3"}, "CUDA failed to start: CUDA_ERROR_OF_THE_STUB"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    changes: dict[str, Any], settings: dict[str, str], text: str, bundle: Bundle, tmp_path: Path
) -> None:
    build_plans(bundle, **changes)
    said, _ = run(bundle, tmp_path, **settings)
    assert said["error"] == "BackendError"
    assert 'backend "tensorrt" cannot be used: ' in said["text"]
    assert said["facts"]["code"] == "backend.unavailable"
    assert text in said["text"]
    assert "\n" not in said["text"]


def test_a_plan_that_needs_the_plugin_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    engines = build_plans(bundle)
    plans = tuple(
        replace(plan, facts={"plugin": {"file": "x.so"} if plan.graph == "transformer" else None})
        for plan in engines.plans
    )
    write_manifest(replace(engines, plans=plans))
    said, _ = run(bundle, tmp_path)
    assert said["error"] == "BackendError"
    assert "its plan of transformer was built with the RopeAttention plugin" in said["text"]
    assert "give its library as plugin" in said["text"]
    said, _ = run(bundle, tmp_path, options={"plugin": "/no/such/library.so"})
    assert "/no/such/library.so is not a plugin that TensorRT takes: no plugin creator in it" in said["text"]
    check_all_is_given_back(said)
    said, frames = run(bundle, tmp_path, options={"plugin": "libeditverse_plugin.so"})
    assert "error" not in said, said
    assert said["plans"]["plugins"] == 1
    assert frames is not None
    # A second pipeline of the process finds it there; TensorRT does not load a library twice.
    said, again = run(bundle, tmp_path, options={"plugin": "libeditverse_plugin.so", "num_opened": 2})
    assert "error" not in said, said
    assert said["plans"]["plugins"] == 1
    assert np.array_equal(frames, again)


def test_calls_that_repeat_are_launched_as_one_cuda_graph(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, streaming)
    plain, expected = run(bundle, tmp_path, repeats=4)
    said, frames = run(bundle, tmp_path, repeats=4, options={"cuda_graphs": True})
    assert "error" not in said, said
    assert expected is not None
    assert frames is not None
    assert np.array_equal(frames, expected)
    graphs_run = plain["plans"]["runs"]
    launches = [report["launches"] for report in said["runs"]]
    assert plain["runs"][-1]["launches"] == 0
    assert said["plans"]["runs"] == graphs_run
    # In the first request each shape's first call runs as it is, and again whenever the scratch memory grew; the
    # stub ends the program if anything is set between such a run and a recording. From then on all are launched.
    assert 0 < launches[0] < launches[1] - launches[0] <= graphs_run // 4
    assert launches[3] - launches[2] == graphs_run // 4
    check_all_is_given_back(said)


def test_released_plans_are_loaded_again(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, streaming)
    _, expected = run(bundle, tmp_path)
    said, frames = run(bundle, tmp_path, repeats=2, options={"release_graphs": True})
    assert "error" not in said, said
    assert expected is not None
    assert frames is not None
    assert np.array_equal(frames, expected)
    assert said["plans"]["plans"] == 0
    assert said["plans"]["loads"] == 2 * count_plans(bundle)
    check_all_is_given_back(said)


@pytest.mark.parametrize(("asked", "taken"), [(1000, 1000), (0, 0), (9999, 5000), (None, 4321)])
def test_the_budget_of_streamed_weights(
    asked: int | None, taken: int, bundle: Bundle, tmp_path: Path
) -> None:
    build_plans(bundle, streaming)
    said, _ = run(bundle, tmp_path, options={} if asked is None else {"weight_budget_bytes": asked})
    assert "error" not in said, said
    assert said["plans"]["budget_bytes"] == taken


def test_another_gpu_is_taken_by_its_number(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, streaming)
    said, _ = run(bundle, tmp_path, options={"device": 1}, STUB_GPUS="2")
    assert "error" not in said, said
    assert said["runs"][0]["device"] == 1
    said, _ = run(bundle, tmp_path, options={"device": 2}, STUB_GPUS="2")
    assert "GPU 2 was asked for, this machine has 2; choose another" in said["text"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"plugin": "plugin.so"}, "none of its plans was built with a plugin; leave plugin out"),
        ({"device": -2}, "device is -2; give a GPU's number, 0 or more"),
        ({"weight_budget_bytes": -2}, "weight_budget_bytes is -2; give 0 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], text: str, bundle: Bundle, tmp_path: Path
) -> None:
    build_plans(bundle, streaming)
    said, _ = run(bundle, tmp_path, options=options)
    assert text in said["text"]


def test_a_budget_needs_plans_that_stream(bundle: Bundle, tmp_path: Path) -> None:
    engines = build_plans(bundle)
    write_manifest(replace(engines, plans=tuple(replace(plan, facts={}) for plan in engines.plans)))
    said, _ = run(bundle, tmp_path, options={"weight_budget_bytes": 1})
    assert (
        "its plans hold all weights on the GPU; build the engines again with weight streaming" in said["text"]
    )


def test_a_gpu_option_passes_the_cpu_over(bundle: Bundle, tmp_path: Path) -> None:
    said, _ = run(bundle, tmp_path, backend="ort-cpu", options={"device": 0, "cuda_graphs": True})
    assert said["error"] == "BackendError"
    assert said["text"] == (
        "ev_options.device is not taken by ort-cpu; leave it out, or choose another backend"
    )
    assert said["facts"]["code"] == "backend.option"
    assert said["facts"]["field"] == "ev_options.device"
    said, _ = run(bundle, tmp_path, backend="tensorrt-rtx", options={"cuda_graphs": True})
    assert said["facts"]["field"] == "ev_options.cuda_graphs"


def test_a_version_that_is_packed_again_is_the_same(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, backend_version=f"{VERSION}.post1")
    said, _ = run(bundle, tmp_path, repeats=0)
    assert "error" not in said, said


@pytest.mark.parametrize(
    ("line", "text", "code"),
    [
        (
            "garbage",
            "cannot be read by tensorrt 10.14.1.48: the magic tag does not match; build the engines again",
            "backend.load",
        ),
        ("stub {file} 100 2 refuse-to-run", "TensorRT failed to run: the stub refuses", "backend.run"),
    ],
)
def test_a_plan_that_fails_says_why(line: str, text: str, code: str, bundle: Bundle, tmp_path: Path) -> None:
    file = bundle.graph_path("text_encoder")
    build_plans(bundle, lambda graph, good: line.format(file=file) if graph == "text_encoder" else good)
    said, _ = run(bundle, tmp_path)
    assert said["error"] == "BackendError"
    assert text in said["text"]
    assert said["facts"]["code"] == code
    assert "\n" not in said["text"]
    check_all_is_given_back(said)


def test_weights_that_cannot_be_streamed_are_an_error(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle)
    said, _ = run(bundle, tmp_path)
    assert "transformer-fp32.plan cannot be read" in said["text"]
    assert "weights cannot be streamed" in said["text"]


def test_a_plan_that_was_altered_or_is_gone(bundle: Bundle, tmp_path: Path) -> None:
    engines = build_plans(bundle, streaming)
    plan = engines.folder / "text_encoder-fp32.plan"
    plan.write_bytes(plan.read_bytes() + b" ")
    said, _ = run(bundle, tmp_path)
    assert "was altered" in said["text"]
    assert said["facts"]["code"] == "backend.engine_damaged"
    assert said["facts"]["hint"] == "build the engines again"
    plan.unlink()
    said, _ = run(bundle, tmp_path)
    assert "is missing; build the engines again" in said["text"]


def test_a_request_beyond_the_profiles(bundle: Bundle, tmp_path: Path) -> None:
    engines = build_plans(bundle, streaming)
    one = (ShapeProfile("one", {"ids": ((1,), (1,), (1,))}),)
    plans = tuple(
        replace(plan, profiles=one if plan.graph == "text_encoder" else plan.profiles)
        for plan in engines.plans
    )
    write_manifest(replace(engines, plans=plans))
    said, _ = run(bundle, tmp_path)
    assert said["error"] == "BackendError"
    assert (
        "its plan reaches ids [1] to [1]; ask for less, or build the engines again for larger shapes"
        in said["text"]
    )


def test_a_library_that_is_not_there_or_another_one(bundle: Bundle, tmp_path: Path) -> None:
    build_plans(bundle, streaming)
    said, _ = run(bundle, tmp_path, options={"tensorrt": "/no/such/libnvinfer.so"})
    assert "TensorRT cannot be loaded (/no/such/libnvinfer.so" in said["text"]
    said, _ = run(bundle, tmp_path, backend="tensorrt-rtx")
    assert "built without the headers of tensorrt-rtx" in said["text"]
    assert "-DTENSORRT_RTX_INCLUDE_DIR" in said["text"]


def test_the_real_library_of_another_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT for RTX has TensorRT's functions, and classes of another layout."""
    libs = pytest.importorskip("tensorrt_rtx_libs")
    (real,) = Path(libs.__path__[0]).glob("libtensorrt_rtx.so.*")
    build_plans(bundle, streaming)
    said, _ = run(bundle, tmp_path, options={"tensorrt": str(real)})
    assert f"{real} is version 1." in said["text"]
    assert "was built with the headers of TensorRT 10.14" in said["text"]


def test_without_a_driver_it_is_said_what_to_install(bundle: Bundle) -> None:
    build_plans(bundle, streaming)
    with pytest.raises(native.LibraryError) as error, native.NativePipeline(bundle.root, backend="tensorrt"):
        pass
    assert "libcuda.so.1" in error.value.text
    assert "install NVIDIA's driver" in error.value.text
