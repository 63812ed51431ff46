"""Plans on disk: what may run, what is refused and with which command, profiles and buffers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.bundle.spec import GraphSpec, TensorSpec
from editverse_rt.engines.choice import choose_plans, choose_profile
from editverse_rt.engines.manifest import (
    EngineSet,
    PlanSpec,
    ShapeProfile,
    engines_folder,
    read_manifest,
    source_digest,
    verify_plan_file,
    write_manifest,
)
from editverse_rt.engines.shapes import count_bytes, output_shapes
from editverse_rt.engines.stamps import is_verified, write_stamp
from editverse_rt.errors import BackendError, BundleError

GPU = "NVIDIA GeForce RTX 4090"
GRAPHS = ("transformer", "solver_step")


@pytest.fixture
def bundle(fake_bundle: Bundle) -> Bundle:
    return load_bundle(fake_bundle.root)


def make_engines(bundle: Bundle, name: str = "sm_89", **changes: object) -> EngineSet:
    folder = bundle.root / "engines" / name / "tensorrt-rtx-1.7.1"
    folder.mkdir(parents=True)
    plans = []
    for graph in GRAPHS:
        content = f"plan of {graph}".encode()
        (folder / f"{graph}-bf16.plan").write_bytes(content)
        profiles = (
            ShapeProfile("short", {"noisy": ((1, 64), (8, 64), (16, 64)), "layout": ((3,), (9,), (40,))}),
            ShapeProfile("long", {"noisy": ((1, 64), (99, 64), (160, 64)), "layout": ((3,), (90,), (400,))}),
        )
        plans.append(
            PlanSpec(
                graph=graph,
                precision="bf16",
                file=f"{graph}-bf16.plan",
                num_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                source_sha256=source_digest(bundle, graph),
                key="k",
                profiles=profiles,
                facts={"seconds": 1.5},
            )
        )
    engines = EngineSet(folder, "tensorrt-rtx", "1.7.1", ("8.9", "12.0"), "", tuple(plans))
    engines = replace(engines, **changes)  # type: ignore[arg-type]
    write_manifest(engines)
    return engines


def choose(bundle: Bundle, capability: str = "8.9", version: str = "1.7.1") -> EngineSet:
    return choose_plans(bundle, GRAPHS, "tensorrt-rtx", version, capability, GPU)[0]


def test_a_manifest_reads_back(bundle: Bundle) -> None:
    engines = make_engines(bundle)
    assert read_manifest(engines.folder / "manifest.json") == engines
    found, plans = choose_plans(bundle, GRAPHS, "tensorrt-rtx", "1.7.1", "12.0", GPU)
    assert found == engines
    assert set(plans) == set(GRAPHS)
    assert verify_plan_file(found, plans["transformer"]).read_bytes() == b"plan of transformer"
    # The bundle itself is none the worse for plans in its folder.
    load_bundle(bundle.root)


@pytest.mark.parametrize(
    ("changes", "capability", "version", "said"),
    [
        ({}, "8.6", "1.7.1", "is for 8.9, 12.0, this GPU is .*8.6"),
        ({}, "8.9", "1.8.0", "is of tensorrt-rtx 1.7.1, here is 1.8.0"),
        ({"gpu": "NVIDIA L4"}, "8.9", "1.7.1", "is for NVIDIA L4, this GPU is NVIDIA GeForce RTX 4090"),
        ({"plans": ()}, "8.9", "1.7.1", "lacks transformer, solver_step"),
        ({"backend": "tensorrt"}, "8.9", "1.7.1", "has no plan of tensorrt-rtx"),
    ],
)
def test_a_plan_that_does_not_belong_here_is_refused_with_the_command_that_builds_one(
    bundle: Bundle, changes: dict[str, object], capability: str, version: str, said: str
) -> None:
    make_engines(bundle, **changes)
    with pytest.raises(BackendError, match=said) as error:
        choose(bundle, capability, version)
    sm = f"sm_{capability.replace('.', '')}"
    assert f"python -m export.build_engine {bundle.root} --backend tensorrt-rtx --target {sm}" in str(
        error.value
    )
    assert "\n" not in str(error.value)


def test_a_plan_of_another_state_of_the_bundle_is_stale(bundle: Bundle) -> None:
    make_engines(bundle)
    files = tuple(
        replace(file, sha256="0" * 64) if file.path.endswith("transformer.onnx") else file
        for file in bundle.spec.files
    )
    changed = Bundle(bundle.root, replace(bundle.spec, files=files))
    with pytest.raises(BackendError, match="was built from another state of transformer;"):
        choose(changed)
    assert source_digest(changed, "solver_step") == source_digest(bundle, "solver_step")


def test_shared_weights_are_part_of_the_source(bundle: Bundle) -> None:
    weights = replace(bundle.spec.files[0], path="graphs/vae_encoder.weights")
    with_weights = Bundle(bundle.root, replace(bundle.spec, files=(*bundle.spec.files, weights)))
    for graph in bundle.spec.graphs:
        same = source_digest(with_weights, graph) == source_digest(bundle, graph)
        assert same != graph.startswith("vae_encoder")


def test_a_plan_that_was_altered_or_is_gone_is_refused(bundle: Bundle) -> None:
    engines = make_engines(bundle)
    plan = engines.plans[0]
    (engines.folder / plan.file).write_bytes(b"another plan")
    with pytest.raises(BackendError, match="was altered"):
        verify_plan_file(engines, plan)
    (engines.folder / plan.file).unlink()
    with pytest.raises(BackendError, match="is missing"):
        verify_plan_file(engines, plan)


def test_verified_plans_are_preferred_and_a_stamp_holds_for_one_gpu_and_these_bytes(bundle: Bundle) -> None:
    first, second = make_engines(bundle, "sm_89"), make_engines(bundle, "sm_89+sm_120")
    assert choose(bundle) == first
    write_stamp(second, GPU, {"success_rate": 0.5})
    assert choose(bundle) == second
    assert is_verified(second, GPU)
    assert not is_verified(second, "NVIDIA L4")
    rebuilt = replace(second, plans=tuple(replace(plan, sha256="0" * 64) for plan in second.plans))
    assert not is_verified(rebuilt, GPU)
    for content in ("", "[]", "{}", '{"gpu": 3}'):
        (second.folder / "verified.json").write_text(content)
        assert not is_verified(second, GPU)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("format_version",), 2, "format_version"),
        (("backend",), "", "backend"),
        (("plans", 0, "file"), "../x.plan", "file"),
        (("plans", 0, "file"), "a/x.plan", "file"),
        (("plans", 0, "num_bytes"), -1, "num_bytes"),
        (("plans", 0, "profiles", 0, "shapes", "noisy"), [[1], [2]], "shapes"),
        (("plans", 0, "profiles", 0, "shapes", "noisy"), [[1], [2, 3], [4]], "shapes"),
        (("plans",), None, "plans"),
    ],
)
def test_a_damaged_manifest_is_refused_by_the_name_of_its_field(
    bundle: Bundle, path: tuple[str | int, ...], value: object, named: str
) -> None:
    manifest = make_engines(bundle).folder / "manifest.json"
    whole = json.loads(manifest.read_text())
    place = whole
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    manifest.write_text(json.dumps(whole))
    with pytest.raises(BackendError, match=rf"{named}.*build the engines again"):
        choose(bundle)


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff\xfe{}", b'{"gpu": NaN}', b'{"gpu": "", "gpu": ""}', b"[" * 100_000],
    ids=["cut", "empty", "not UTF-8", "NaN", "twice", "deep"],
)
def test_a_manifest_that_is_not_json(bundle: Bundle, content: bytes) -> None:
    engines = make_engines(bundle)
    (engines.folder / "manifest.json").write_bytes(content)
    with pytest.raises(
        BackendError, match=r"manifest.json cannot be read .*build the engines again"
    ) as error:
        choose(bundle)
    assert "\n" not in str(error.value)
    (engines.folder / "verified.json").write_bytes(content)
    assert not is_verified(engines, GPU)


def test_the_smallest_profile_that_holds_the_shapes_is_taken(bundle: Bundle) -> None:
    plan = make_engines(bundle).plans[0]
    assert choose_profile(plan, {"noisy": (16, 64), "layout": (40,)}) == 0
    assert choose_profile(plan, {"noisy": (17, 64), "layout": (40,)}) == 1
    backwards = replace(plan, profiles=plan.profiles[::-1])
    assert choose_profile(backwards, {"noisy": (2, 64), "layout": (5,)}) == 1
    with pytest.raises(
        BackendError, match=r"noisy \[161, 64\], its plan reaches noisy \[1, 64\] to \[160, 64\]"
    ):
        choose_profile(plan, {"noisy": (161, 64), "layout": (40,)})


def test_a_plan_without_a_profile_that_could_hold_the_shapes_says_what_to_do(bundle: Bundle) -> None:
    plan = make_engines(bundle).plans[0]
    inputs = {"noisy": (16, 64), "layout": (40,)}
    with pytest.raises(BackendError, match="has no profile; build the engines again"):
        choose_profile(replace(plan, profiles=()), inputs)
    # Said of every profile, not only of those that were tried: the runner sets shapes by their names.
    surplus = ShapeProfile("last", {**plan.profiles[1].shapes, "text": ((0,), (1,), (999,))})
    with pytest.raises(
        BackendError, match='of "text", which the graph does not take; build the engines again'
    ):
        choose_profile(replace(plan, profiles=(plan.profiles[0], surplus)), inputs)
    for noisy in ((16,), (16, 64, 1), ()):
        with pytest.raises(BackendError, match=r"asked for noisy \[.*, its plan reaches noisy \[1, 64\]"):
            choose_profile(plan, {**inputs, "noisy": noisy})


@settings(deadline=None, max_examples=60)
@given(h=st.integers(1, 60), w=st.integers(1, 60), factor=st.sampled_from([1, 2, 16]))
def test_outputs_follow_the_names_of_axes(h: int, w: int, factor: int) -> None:
    frames = TensorSpec("frames", "uint8", (1, f"{factor}*h" if factor > 1 else "h", f"{factor}*w", 3))
    outputs = (
        TensorSpec("patches", "float32", (1, "h", "w", 64)),
        TensorSpec("cache", "float32", (1, "8*h", "w")),
    )
    graph = GraphSpec("encode", "encode.onnx", (frames,), outputs)
    shapes = output_shapes(graph, {"frames": (1, factor * h, factor * w, 3)})
    assert shapes == {"patches": (1, h, w, 64), "cache": (1, 8 * h, w)}
    assert count_bytes(outputs[0], shapes["patches"]) == 4 * 64 * h * w
    if factor > 1:
        with pytest.raises(BackendError, match="graph table"):
            output_shapes(graph, {"frames": (1, factor * h + 1, factor * w, 3)})


def test_shapes_that_contradict_each_other_are_refused() -> None:
    graph = GraphSpec(
        "solve", "s.onnx", (TensorSpec("a", "float32", ("L", 4)), TensorSpec("b", "float32", ("L", 4))), ()
    )
    assert output_shapes(graph, {"a": (3, 4), "b": (3, 4)}) == {}
    for shapes in ({"a": (3, 4), "b": (2, 4)}, {"a": (3, 5), "b": (3, 4)}, {"a": (3,), "b": (3, 4)}):
        with pytest.raises(BackendError, match="graph table"):
            output_shapes(graph, shapes)


def test_shapes_that_are_missing_or_named_by_no_input_are_refused() -> None:
    rows = TensorSpec("a", "float32", ("L", 4))
    with pytest.raises(BackendError, match=r"a is missing, expected \['L', 4\]; give inputs"):
        output_shapes(GraphSpec("solve", "s.onnx", (rows,), ()), {"b": (3, 4)})
    graph = GraphSpec("solve", "s.onnx", (rows,), (TensorSpec("b", "float32", ("M",)),))
    with pytest.raises(BackendError, match="no input has the axis M of b; export the bundle again"):
        output_shapes(graph, {"a": (3, 4)})
    graph = GraphSpec("solve", "s.onnx", (TensorSpec("a", "float32", ("x*L",)),), ())
    with pytest.raises(BundleError, match=r'the axis "x\*L"; expected a name, or 16\*name; export'):
        output_shapes(graph, {"a": (3,)})


def test_an_empty_tensor_still_has_an_address() -> None:
    assert count_bytes(TensorSpec("text", "float32", ("Lt", 6)), (0, 6)) == 1
    assert count_bytes(TensorSpec("ids", "int64", ("Lt",)), (5,)) == 40


def test_plans_of_a_bundle_that_ships_lie_below_the_checkouts_recipes(
    tmp_path: Path, fake_bundle: Any
) -> None:
    shipped = tmp_path / "checkout" / "editverse_rt" / "bundles" / "fake"
    shipped.parent.mkdir(parents=True)
    fake_bundle.root.rename(shipped)
    bundle = load_bundle(shipped)
    assert engines_folder(bundle) == shipped / "engines", "an installed package has no folder beside it"
    (tmp_path / "checkout" / "engines").mkdir()
    assert engines_folder(bundle) == tmp_path / "checkout" / "engines" / "fake"
