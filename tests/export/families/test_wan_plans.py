"""Plans of Wan really built by TensorRT for RTX, without a GPU: a small bundle's, and each class's transformer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.engines.choice import is_host_graph
from editverse_rt.planning.targets import load_target
from export.build_engine import build_engines, main
from export.builder import Builder, Options
from export.orders import Order, built_graphs
from export.precision import save_typed, set_precision
from export.profiles import profiles_of

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
