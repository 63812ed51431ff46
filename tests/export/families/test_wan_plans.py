"""Plans of Wan really built by TensorRT for RTX, without a GPU: a small bundle's, and each class's transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from editverse_rt.backends.cuda import Gpu
from editverse_rt.bundle.manifest import Bundle, file_specs, load_bundle, load_spec
from editverse_rt.engines.choice import is_host_graph
from editverse_rt.planning.targets import load_target
from export import build_engine
from export.attention_nodes import OP_TYPE
from export.build_engine import build_engines, main
from export.builder import Builder, Built, Options
from export.export_onnx import export_graph
from export.families import family_export
from export.orders import Order, built_graphs
from export.precision import save_typed, set_precision
from export.profiles import profiles_of
from export.sequences import sample_rows
from export.standard import load_standard
from reference.checkpoint import load_any_checkpoint
from reference.families.wan_checkpoint import WanCheckpoint
from reference.families.wan_random import make_random_wan

EXPERTS = ("transformer", "transformer_2")
BUILT = ("text_encoder", "transformer", "solver_step")
TARGET = load_target("rtx4090")


def test_plans_of_a_bundle(wan_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(wan_bundle)
    order = Order("tensorrt-rtx", (TARGET,), dict(TARGET.precision), graphs=BUILT)
    said: list[str] = []
    engines = build_engines(bundle, order, tmp_path, Builder("tensorrt-rtx"), report=said.append)
    plans = {plan.graph: plan for plan in engines.plans}
    assert {graph: plan.precision for graph, plan in plans.items()} == {
        "text_encoder": "bf16", "transformer": "bf16", "solver_step": "fp32",
    }  # fmt: skip
    transformer: Any = plans["transformer"].facts
    # Self-attention and cross-attention of two blocks, each one kernel.
    assert transformer["layers"]["ATTENTION_INPUT"] == 4
    assert sum("mha" in name for name, *_ in transformer["kernels"]) == 4
    # bfloat16 keeps 8 bits; 4e-3 was measured.
    for graph in ("transformer", "text_encoder"):
        (error,) = plans[graph].facts["relative_error"].values()  # type: ignore[attr-defined]
        assert 1e-4 < error < 0.06
    longest = plans["transformer"].profiles[-1].shapes
    assert longest["clean"][2][0] == 0
    assert longest["layout"][2] == longest["noisy"][2][:1]
    # What is not built runs on the CPU, whatever the backend.
    left = set(bundle.spec.graphs) - set(built_graphs(bundle))
    assert {"noise", "add_noise", "schedule_unipc2"} <= left
    assert all(map(is_host_graph, left))


@pytest.mark.parametrize("name", ["wan-ti2v-tiny", "lucy-tiny", "wan-vace-tiny"])
def test_the_transformer_of_a_class_is_built(name: str, traced: Callable[[str], Any], tmp_path: Path) -> None:
    """Clean rows in the sequence, beside each noisy row, and as control."""
    made = traced(name)
    model = ir.load(made.inline)
    set_precision(model, "bf16")
    save_typed(model, tmp_path / "transformer.onnx")
    profiles = profiles_of(made.spec, made.spec.graphs["transformer"], TARGET, None, {})
    options = Options((TARGET.compute_capability,), 1 << 30)
    built = Builder("tensorrt-rtx").build(
        tmp_path / "transformer.onnx", profiles, options, lambda phase, step, total: True
    )
    config = made.checkpoint.config
    blocks = config.num_blocks + len(config.control_blocks)
    assert built.layers["ATTENTION_INPUT"] == 2 * blocks
    assert sum("mha" in kernel.name for kernel in built.kernels) == 2 * blocks


def test_vaces_condition_is_built_of_a_bundle_in_16_bits(tmp_path: Path) -> None:
    """It has no weights and is float32, whatever the transformer is."""
    checkpoint = load_any_checkpoint(make_random_wan("wan-vace-tiny", tmp_path / "vace", blocks=1))
    family = family_export(checkpoint)
    graph = family.graphs()["condition"]
    ir.save(export_graph(graph, family.rope, "inline"), tmp_path / graph.spec.file)
    spec = replace(
        load_spec("nano"), family="wan", conditioning=family.conditioning, geometry=family.geometry,
        graphs={"condition": graph.spec}, files=file_specs(tmp_path), model=family.model_facts(),
        capabilities=family.capabilities("inline", torch.bfloat16),
    )  # fmt: skip
    order = Order("tensorrt-rtx", (TARGET,), dict(TARGET.precision), graphs=("condition",))
    (plan,) = build_engines(
        Bundle(tmp_path, spec), order, tmp_path / "engines", Builder("tensorrt-rtx")
    ).plans
    assert (plan.graph, plan.precision) == ("condition", "fp32")
    assert set(plan.facts["onnx_types"]) == {"FLOAT"}  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[WanCheckpoint, Bundle]:
    """Both transformers of a checkpoint with two, a block each, with their attention left to TensorRT's plugin."""
    root = tmp_path_factory.mktemp("experts")
    checkpoint = load_any_checkpoint(make_random_wan("wan-a14b-tiny", root / "a14b", blocks=1))
    assert isinstance(checkpoint, WanCheckpoint)
    family = family_export(checkpoint)
    folder = root / "bundle"
    folder.mkdir()
    graphs = {name: graph for name, graph in family.graphs().items() if name in EXPERTS}
    for graph in graphs.values():
        ir.save(export_graph(graph, family.rope, "plugin"), folder / graph.spec.file)
    spec = replace(
        load_spec("nano"), family="wan", conditioning=family.conditioning, geometry=family.geometry,
        graphs={name: graph.spec for name, graph in graphs.items()}, files=file_specs(folder),
        model=family.model_facts(), capabilities=family.capabilities("plugin", torch.float32),
    )  # fmt: skip
    return checkpoint, Bundle(folder, spec)


@pytest.mark.parametrize("expert", [0, 1])
def test_each_of_two_transformers_gets_its_attention_back_from_the_plugin(
    expert: int, experts: tuple[WanCheckpoint, Bundle], tmp_path: Path
) -> None:
    checkpoint, bundle = experts
    kept = load_standard(bundle, EXPERTS[expert], keep_plugin=True)
    assert sum(node.op_type == OP_TYPE for node in kept.graph) == 1
    standard = load_standard(bundle, EXPERTS[expert])
    assert {node.domain for node in standard.graph} == {""}
    save_typed(standard, tmp_path / "standard.onnx")
    rows, config = sample_rows(bundle.spec), checkpoint.config
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "text": torch.randn((rows.num_text, config.text_dim), generator=generator),
        "clean": torch.randn((rows.num_clean, config.clean_dim), generator=generator),
        "noisy": torch.randn((rows.num_noisy, config.patch_dim), generator=generator),
        "layout": torch.from_numpy(rows.layout),
        "positions": torch.from_numpy(rows.positions),
        "timestep": torch.tensor(0.4),
    }
    with torch.no_grad():
        expected = checkpoint.transformers[expert](*inputs.values()).numpy()
    session = onnxruntime.InferenceSession(
        str(tmp_path / "standard.onnx"), providers=["CPUExecutionProvider"]
    )
    names = {tensor.name for tensor in session.get_inputs()}
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in names})
    # float32, other kernels and another order of sums
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_plans_of_two_transformers_are_built_of_a_bundle_for_the_plugin(
    experts: tuple[WanCheckpoint, Bundle], tmp_path: Path
) -> None:
    _, bundle = experts
    order = Order("tensorrt-rtx", (TARGET,), dict(TARGET.precision), graphs=EXPERTS)
    engines = build_engines(bundle, order, tmp_path, Builder("tensorrt-rtx"), report=str)
    assert {(plan.graph, plan.precision) for plan in engines.plans} == {(name, "bf16") for name in EXPERTS}
    for plan in engines.plans:
        assert plan.facts["layers"]["ATTENTION_INPUT"] == 2  # type: ignore[index]
        assert plan.facts["plugin"] is None


def test_the_plugin_goes_into_both_plans_of_two_transformers(
    experts: tuple[WanCheckpoint, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a builder that takes what it is given: TensorRT itself needs a GPU."""
    _, bundle = experts
    given: dict[str, tuple[Path | None, int]] = {}

    class TensorRT:
        version = "11.0"

        def build(self, onnx_file: Path, profiles: Any, options: Options, progress: Any) -> Built:
            nodes = [node for node in ir.load(onnx_file).graph if node.op_type == OP_TYPE]
            given[onnx_file.stem] = (options.plugin, len(nodes))
            return Built(memoryview(b"a plan"), 0.1, 1, {}, {})

    target = load_target("a100")
    here = SimpleNamespace(gpu=Gpu(0, target.gpu, target.compute_capability))
    monkeypatch.setattr(build_engine, "Cuda", lambda: here)
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"a library")
    order = Order("tensorrt", (target,), dict(target.precision), graphs=EXPERTS, plugin=library)
    builder: Any = TensorRT()
    engines = build_engines(bundle, order, tmp_path / "engines", builder, report=str)
    assert given == dict.fromkeys(EXPERTS, (library, 1))
    assert all(plan.facts["plugin"] for plan in engines.plans)


def test_a_graph_that_the_bundle_lacks_is_one_line(
    wan_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(wan_bundle), "--target", "rtx4090", "--graph", "transformer_2", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no graph transformer_2; it has text_encoder, " in line


def test_a_dry_run_says_how_long_a_sequence_is(wan_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(wan_bundle), "--target", "rtx4090", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "transformer: bf16" in said
    assert "transformer_2" not in said
