"""Plans really built, on a machine without a GPU: what is written, what is reused, what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from editverse_rt.backends.cuda import Gpu
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.engines.choice import choose_plans
from editverse_rt.engines.manifest import read_manifest
from editverse_rt.errors import BackendError, RequestCancelled, RequestError
from editverse_rt.planning.targets import load_target
from export import build_engine
from export.build_engine import build_engines, main
from export.builder import Builder, Built
from export.orders import Order
from export.precision import save_typed, set_precision, use_standard_attention

GRAPHS = ("solver_step", "transformer")


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return load_bundle("nano")


@pytest.fixture(scope="module")
def order() -> Order:
    targets = (load_target("rtx4090"), load_target("rtx5090"))
    return Order("tensorrt-rtx", targets, dict(targets[0].precision), graphs=GRAPHS)


@pytest.fixture(scope="module")
def built(nano: Bundle, order: Order, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plans for two architectures each; tests must not change them."""
    output = tmp_path_factory.mktemp("engines")
    return build_engines(nano, order, output, Builder("tensorrt-rtx")).folder


@pytest.fixture
def no_building(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    asked: list[str] = []

    def build(self: Builder, onnx_file: Path, *rest: object) -> None:
        asked.append(onnx_file.stem)
        raise BackendError("it was asked to build")

    monkeypatch.setattr(Builder, "build", build)
    return asked  # type: ignore[return-value]


def test_the_manifest_says_what_was_built(nano: Bundle, built: Path) -> None:
    assert built.parts[-2] == "sm_89+sm_120"
    engines = read_manifest(built / "manifest.json")
    assert engines.compute_capabilities == ("8.9", "12.0")
    assert built.name == f"tensorrt-rtx-{engines.backend_version}"
    by_graph = {plan.graph: plan for plan in engines.plans}
    transformer = by_graph["transformer"]
    assert (transformer.precision, by_graph["solver_step"].precision) == ("bf16", "fp32")
    assert transformer.num_bytes == (built / transformer.file).stat().st_size
    # More than half of the weights' bytes: they are in it, in 16 bits.
    assert transformer.num_bytes > nano.spec.model["parameters"]["transformer"]  # type: ignore[index]
    layers, types = transformer.facts["layers"], transformer.facts["layer_types"]
    blocks = nano.spec.model["transformer"]["num_blocks"]  # type: ignore[index]
    assert layers["ATTENTION_INPUT"] == blocks  # type: ignore[index]
    assert types["BF16"] > types["FLOAT"] > 0  # type: ignore[index]
    # What the builder made of it: an attention kernel a block, and q, k, v multiplied in one product, but for
    # the last block, whose q has fewer rows.
    kernels = transformer.facts["kernels"]
    names = [name for name, kind, dtype in kernels]  # type: ignore[attr-defined]
    assert sum("mha" in name for name in names) == blocks
    assert sum(name.count("Gemm_") == 3 for name in names) == blocks - 1  # type: ignore[operator]
    assert {"gemm", "kgen"} <= {kind for _, kind, _ in kernels}  # type: ignore[attr-defined]
    assert {"BFloat16", "Float"} <= {dtype for *_, dtype in kernels}  # type: ignore[attr-defined]
    assert 0 < transformer.facts["relative_error"]["velocity"] < 0.06  # type: ignore[index]
    assert sorted(path.name for path in built.iterdir()) == [
        "manifest.json", "solver_step-fp32.plan", "transformer-bf16.plan",
    ]  # fmt: skip


def test_the_manifest_has_the_sha256_of_each_typed_graph(nano: Bundle, built: Path, tmp_path: Path) -> None:
    """Typing a graph again gives the files whose hashes were noted: they say what a plan was made from."""
    for plan in read_manifest(built / "manifest.json").plans:
        folder = tmp_path / plan.graph
        folder.mkdir()
        model = ir.load(nano.graph_path(plan.graph))
        use_standard_attention(model)
        set_precision(model, plan.precision)
        save_typed(model, folder / f"{plan.graph}.onnx")
        expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        assert f"{plan.graph}.onnx" in expected
        assert plan.facts["onnx_sha256"] == expected


def test_the_runtime_chooses_what_was_built(nano: Bundle, built: Path, tmp_path: Path) -> None:
    place = tmp_path / "engines" / built.parent.name
    place.parent.mkdir()
    place.symlink_to(built.parent)
    version = read_manifest(built / "manifest.json").backend_version
    here = Bundle(tmp_path, nano.spec)
    _, plans = choose_plans(here, GRAPHS, "tensorrt-rtx", version, "12.0", "a GPU")
    assert set(plans) == set(GRAPHS)


def test_a_second_build_of_the_same_is_left_out(
    nano: Bundle, order: Order, built: Path, no_building: list[str]
) -> None:
    output = built.parents[1]
    said: list[str] = []
    engines = build_engines(nano, order, output, Builder("tensorrt-rtx"), report=said.append)
    assert no_building == []
    assert all("is there, built from the same" in line for line in said)
    assert len(said) == len(engines.plans) == len(GRAPHS)
    # Anything that decides a plan's bytes builds it anew.
    for changed in (
        replace(order, max_tokens=200),
        replace(order, weight_streaming=True),
        replace(order, overrides={"max": {"layout": (300,)}}),
    ):
        with pytest.raises(BackendError):
            build_engines(nano, replace(changed, graphs=("transformer",)), output, Builder("tensorrt-rtx"))
    assert no_building == ["transformer"] * 3


def test_what_a_plan_is_built_from_decides_and_not_this_projects_text(
    nano: Bundle, order: Order, built: Path, no_building: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment in a file of the export builds nothing anew; another type of one value does."""
    output, only = built.parents[1], replace(order, graphs=("solver_step",))
    read, read_bytes = [], Path.read_bytes

    def note(path: Path) -> bytes:
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", note)
    build_engines(nano, only, output, Builder("tensorrt-rtx"))
    assert no_building == []
    assert [path for path in read if path.suffix == ".py"] == []
    typed = build_engine.set_precision

    def type_otherwise(model: ir.Model, precision: str) -> Any:
        found = typed(model, precision)
        model.graph.name = "another"
        return found

    monkeypatch.setattr(build_engine, "set_precision", type_otherwise)
    with pytest.raises(BackendError, match="it was asked to build"):
        build_engines(nano, only, output, Builder("tensorrt-rtx"))


def test_a_plan_is_of_the_bundle_that_it_was_last_found_to_be_built_from(
    nano: Bundle, order: Order, built: Path, no_building: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle's files changed, what the builder is given did not."""
    monkeypatch.setattr(build_engine, "source_digest", lambda bundle, graph: "another state")
    manifest = (built / "manifest.json").read_text()
    engines = build_engines(nano, order, built.parents[1], Builder("tensorrt-rtx"))
    (built / "manifest.json").write_text(manifest)
    assert no_building == []
    assert {plan.source_sha256 for plan in engines.plans} == {"another state"}


def test_a_cancelled_build_leaves_nothing(nano: Bundle, order: Order, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []

    def stop(phase: str, step: int, total: int) -> bool:
        steps.append((phase, step, total))
        return False

    only = replace(order, graphs=("solver_step",))
    with pytest.raises(RequestCancelled, match="cancelled"):
        build_engines(nano, only, tmp_path, Builder("tensorrt-rtx"), progress=stop)
    assert steps
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_attention_in_float32_is_taken_apart(nano: Bundle, order: Order, tmp_path: Path) -> None:
    """No fused kernel takes it; without the builder's mark the build would fail."""
    only = replace(order, graphs=("vae_encoder_first",), targets=order.targets[:1])
    (plan,) = build_engines(nano, only, tmp_path, Builder("tensorrt-rtx")).plans
    assert plan.precision == "fp32"
    assert plan.facts["layers"]["ATTENTION_INPUT"] == 1  # type: ignore[index]


def test_what_the_builder_refuses_is_one_line(
    nano: Bundle, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_engine, "save_typed", lambda model, path: path.write_bytes(b"no graph"))
    with pytest.raises(BackendError, match="cannot read solver_step") as error:
        build_engines(nano, replace(order, graphs=("solver_step",)), tmp_path, Builder("tensorrt-rtx"))
    assert "\n" not in str(error.value)


class OtherBuilder:
    """In the place of a builder for this machine's GPU: it keeps what it is asked to build."""

    version = "11.0"

    def __init__(self) -> None:
        self.models: dict[str, ir.Model] = {}
        self.options: Any = None

    def build(self, onnx_file: Path, profiles: object, options: object, progress: object) -> Built:
        self.models[onnx_file.stem] = ir.load(onnx_file)
        self.options = options
        return Built(memoryview(b"a plan"), 0.1, 1, {}, {})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(gpu=Gpu(0, "NVIDIA A100-SXM4-80GB", "8.0"))
    monkeypatch.setattr(build_engine, "Cuda", lambda: here)


@pytest.mark.usefixtures("gpu")
def test_tensorrt_plans_are_for_the_gpu_that_is_here(
    nano: Bundle, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target("a100")
    here = replace(order, backend="tensorrt", targets=(target,), graphs=("solver_step",))
    engines = build_engines(nano, here, tmp_path, OtherBuilder())  # type: ignore[arg-type]
    # The name is CUDA's, which is what the runtime compares with; the recipe's is the data sheet's.
    assert engines.gpu == "NVIDIA A100-SXM4-80GB" != target.gpu
    assert engines.folder == tmp_path / "nvidia-a100-sxm4-80gb" / "tensorrt-11.0"
    # Another GPU of the same architecture does not take them for its own, nor overwrite them.
    monkeypatch.setattr(build_engine, "Cuda", lambda: SimpleNamespace(gpu=Gpu(0, "NVIDIA A30", "8.0")))
    beside = build_engines(nano, here, tmp_path, OtherBuilder())  # type: ignore[arg-type]
    assert (beside.gpu, beside.folder.parent.name) == ("NVIDIA A30", "nvidia-a30")
    assert read_manifest(engines.folder / "manifest.json") == engines
    other = replace(here, targets=(load_target("h100"),))
    with pytest.raises(RequestError, match=r"NVIDIA A30 \(8.0\); h100 has compute capability 9.0"):
        build_engines(nano, other, tmp_path, OtherBuilder())  # type: ignore[arg-type]


@pytest.mark.usefixtures("gpu")
def test_the_attention_of_a_plugin_bundle_stays_a_node_or_gets_its_body(
    plugin_bundle: Bundle, order: Order, tmp_path: Path
) -> None:
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"a library")
    here = replace(order, backend="tensorrt", targets=(load_target("a100"),), graphs=("transformer",))
    builder = OtherBuilder()
    kept = build_engines(
        plugin_bundle, replace(here, plugin=library), tmp_path / "kept", builder  # type: ignore[arg-type]
    )  # fmt: skip
    nodes = [node for node in builder.models["transformer"].graph if node.op_type == "RopeAttention"]
    assert len(nodes) == plugin_bundle.spec.model["transformer"]["num_blocks"]  # type: ignore[index]
    assert {node.domain for node in nodes} == {"editverse"}
    for node in nodes:
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        assert types == {ir.DataType.BFLOAT16, ir.DataType.INT64}
    assert builder.options.plugin == library
    (plan,) = kept.plans
    expected = {"file": "libplugin.so", "sha256": hashlib.sha256(b"a library").hexdigest()}
    assert plan.facts["plugin"] == expected
    assert 0 < plan.facts["relative_error"]["velocity"] < 0.06  # type: ignore[index]
    # Without the plugin the same bundle is built from standard operators.
    inline = build_engines(plugin_bundle, here, tmp_path / "inline", builder)  # type: ignore[arg-type]
    domains = {node.domain for node in builder.models["transformer"].graph}
    assert domains == {""}
    assert (inline.plans[0].facts["plugin"], builder.options.plugin) == (None, None)
    assert inline.plans[0].key != plan.key


def test_the_rounding_is_scored_before_anything_is_built(
    nano: Bundle, no_building: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[dict[str, str], int, int]] = []

    def score(bundle: Bundle, precisions: dict[str, str], per_kind: int, steps: int) -> dict[str, object]:
        assert no_building == []
        scored.append((precisions, per_kind, steps))
        summary = {"edits": 28, "success_rate": 0.5}
        return {"float32": summary, "rounded": summary, "psnr_db": {"median": 40.0, "least": 30.0}}

    monkeypatch.setattr(build_engine, "score_rounding", score)
    argv = ["nano", "--target", "l4", "--graph", "solver_step", "--graph", "transformer"]
    argv += ["--output", str(tmp_path), "--heldout-edits", "2", "--heldout-steps", "3"]
    assert main(argv) == 2  # the builder says no, after the score
    assert scored == [({"transformer": "bf16"}, 2, 3)]
    # Float32 rounds nothing, and 0 asks for nothing.
    assert main([*argv, "--precision", "fp32"]) == 2
    assert main([*argv, "--heldout-edits", "0"]) == 2
    assert len(scored) == 1


# --- the command line -------------------------------------------------------------------------------------


def test_a_dry_run_says_what_and_builds_nothing(
    capsys: pytest.CaptureFixture[str], no_building: list[str], tmp_path: Path
) -> None:
    code = main(["nano", "--all", "--dry-run", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert code == 0
    assert "nano for t4 (sm_75) with tensorrt-rtx" in out
    assert "sm_80+sm_86+sm_89+sm_120+sm_121" in out
    assert "transformer: bf16" in out
    assert "transformer: fp16" in out
    assert "h100" not in out
    assert no_building == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no target is given"),
        (["--target", "h100", "--backend", "tensorrt-rtx"], "use the backend tensorrt"),
        (["--target", "t4", "--precision", "bf16"], "use the precision fp16"),
        (["--target", "t4", "--target", "rtx4090"], "take different precisions"),
        (["--target", "a100", "--target", "h100"], "give one target"),
        (["--target", "rtx490"], "did you mean rtx4090"),
        (["--recipe", "absent.toml"], "cannot be read"),
        (["--target", "l4", "--maxShapes", "noisy"], "expected name:1x2x3"),
        (["--target", "l4", "--quality", "absent.json"], "cannot be read"),
        (["--target", "l4", "--timingCacheFile", "x"], "times no kernels .* leave --timingCacheFile out"),
        (["--target", "l4", "--plugin", "absent.so"], "TensorRT for RTX loads no plugins"),
        (["--target", "a100", "--plugin", "absent.so"], "absent.so is not there; build it"),
        (["--target", "a100", "--plugin", "absent.so", "--precision", "fp32"], "computes in fp16 and bf16"),
        (["--target", "a100", "--plugin", __file__], "export it with the attention as a plugin"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nano", *argv]) == 2
    captured = capsys.readouterr()
    assert re.search(said, captured.err)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"weights": "int8"},
            "multiplies in 8-bit integers, .* the bundle that export.integers made it from",
        ),
        ({"emulates": {"transformer": "bf16"}}, "emulates the rounding .* that export.emulate made it from"),
    ],
)
def test_a_bundle_that_is_not_the_models_own_is_refused_in_one_line(
    facts: dict[str, Any],
    said: str,
    nano: Bundle,
    order: Order,
    no_building: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    copy = Bundle(nano.root, replace(nano.spec, capabilities=replace(nano.spec.capabilities, **facts)))
    monkeypatch.setattr(build_engine, "load_bundle", lambda _: copy)
    for dry in ([], ["--dry-run"]):
        assert main(["nano-int8", "--target", "l4", "--output", str(tmp_path), *dry]) == 2
        captured = capsys.readouterr()
        assert re.search(said, captured.err)
        assert (captured.out, captured.err.count("\n")) == ("", 1)
    # A caller of the function is refused, too, and nothing was built.
    with pytest.raises(RequestError, match=said):
        build_engines(copy, order, tmp_path, Builder("tensorrt-rtx"))
    assert no_building == []
    assert not list(tmp_path.rglob("*.plan"))


def stored_in(nano: Bundle, dtype: str) -> Bundle:
    """nano as if its transformer and its text encoder had been exported in a dtype."""
    can = replace(nano.spec.capabilities, dtype=dtype)
    return Bundle(nano.root, replace(nano.spec, capabilities=can))


@pytest.mark.parametrize(
    ("dtype", "asked", "stored"),
    [("bfloat16", "fp16", "bf16"), ("bfloat16", "fp32", "bf16"), ("float16", None, "fp16"),
     ("float16", "bf16", "fp16"), ("float16", "fp32", "fp16")],
)  # fmt: skip
def test_a_bundle_in_16_bits_is_built_in_its_own_alone(
    dtype: str,
    asked: str | None,
    stored: str,
    nano: Bundle,
    order: Order,
    no_building: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Refused before the graphs that come first are built, and by what the bundle is."""
    narrow = stored_in(nano, dtype)
    monkeypatch.setattr(build_engine, "load_bundle", lambda _: narrow)
    said = f'the transformer of bundle "nano" is {dtype}, and {asked or "bf16"} is asked for; expected {stored}; '
    said += f"use --precision {stored}, or export it in float32"
    argv = ["nano", "--target", "l4", "--output", str(tmp_path), *(["--precision", asked] if asked else [])]
    for dry in ([], ["--dry-run"]):
        assert main([*argv, *dry]) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"error: {said}\n")
    # A caller of the function is refused, too; the text encoder is built first otherwise.
    wanted = replace(order, graphs=("text_encoder", "transformer"))
    wanted = replace(wanted, precision={**order.precision, "transformer": asked or "bf16"})
    with pytest.raises(RequestError, match=re.escape(said)):
        build_engines(narrow, wanted, tmp_path, Builder("tensorrt-rtx"))
    assert no_building == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "bf16"), ("float16", "fp16")])
def test_the_graphs_of_a_bundle_in_16_bits_have_their_precisions(
    dtype: str, stored: str, nano: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The VAE and the solver are float32 in every bundle, and are typed as in any other."""
    monkeypatch.setattr(build_engine, "load_bundle", lambda _: stored_in(nano, dtype))
    assert main(["nano", "--target", "l4", "--precision", stored, "--dry-run"]) == 0
    lines = [line.split(": ") for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    found = {name.strip(): precision for name, precision, *_ in lines}
    expected = {
        "transformer": stored,
        "text_encoder": stored,
        "vae_decoder_next": "fp32",
        "solver_step": "fp32",
    }
    assert {name: found[name] for name in expected} == expected


def test_a_quality_report_stays_beside_the_plans(
    nano: Bundle, built: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "quality.json"
    report.write_text(json.dumps({"success_rate": 0.25, "edits": 8}))
    argv = ["nano", "--target", "l4", "--graph", "solver_step", "--output", str(tmp_path / "out")]
    assert main([*argv, "--quality", str(report)]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert read_manifest(folder / "manifest.json").notes["quality"] == {"success_rate": 0.25, "edits": 8}
