"""Wan checkpoints as bundles: whole and small, each class's transformer, adapters and their schedules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from editverse_rt import Pipeline, load_bundle
from editverse_rt.backends import select_backend
from editverse_rt.bundle.spec import GraphSpec, TensorSpec
from editverse_rt.errors import RequestError
from export import export_onnx
from export.compare_wan import compare_wan_graphs, compare_wan_request
from export.export_onnx import export_bundle, export_graph
from export.families import family_export
from export.families.distilled import distilled_schedule
from export.graphs import Graph
from export.lower import Lowering, RopeConfig
from export.sequences import sample_rows
from reference.checkpoint import load_any_checkpoint
from reference.families.wan_checkpoint import WanCheckpoint
from reference.families.wan_random import make_random_wan
from reference.lora import Lora

# Largest difference over the largest value: float32, other kernels and another order of sums; 3e-6 was measured.
TOLERANCE = 1e-4
CLASSES = (
    "wan-t2v-tiny", "wan-v2v-tiny", "wan-ti2v-tiny", "wan-ti2v-text-tiny", "wan-a14b-tiny", "wan-vace-tiny",
    "lucy-tiny",
)  # fmt: skip


def load(folder: Path) -> WanCheckpoint:
    checkpoint = load_any_checkpoint(folder)
    assert isinstance(checkpoint, WanCheckpoint)
    return checkpoint


def test_every_graph_equals_pytorch(wan_folder: Path, wan_bundle: Path) -> None:
    found = load_bundle(wan_bundle)
    with select_backend("ort-cpu", found).backend.open_runner(found, 1) as runner:
        measured = list(compare_wan_graphs(found, load(wan_folder), runner))
    assert [m for m in measured if not m.passed] == []
    names = {name.split("_unipc2")[0] for name in found.spec.graphs} - {"solver_step"}
    assert {m.graph for m in measured} == names


def test_a_whole_request_equals_the_slow_loop(wan_folder: Path, wan_bundle: Path) -> None:
    patches, frames = compare_wan_request(wan_bundle, load(wan_folder), num_threads=1)
    assert patches.max_abs <= TOLERANCE * 4
    assert patches.passed
    assert frames.passed
    assert frames.shape[0] > 5


def test_another_weight_is_seen(wan_folder: Path, wan_bundle: Path) -> None:
    checkpoint, found = load(wan_folder), load_bundle(wan_bundle)
    with torch.no_grad():
        checkpoint.transformer.blocks[1].cross.to_k.weight.mul_(1.5)
    with select_backend("ort-cpu", found).backend.open_runner(found, 1) as runner:
        broken = {m.graph for m in compare_wan_graphs(found, checkpoint, runner) if not m.passed}
    assert broken == {"transformer"}
    assert not compare_wan_request(wan_bundle, checkpoint, num_threads=1)[0].passed


def test_the_bundle_says_what_it_is(wan_bundle: Path) -> None:
    spec = load_bundle(wan_bundle).spec
    assert (spec.family, spec.conditioning, spec.unconditional) == ("wan", "none", "prompt")
    assert spec.tokenizer.max_tokens == 512
    assert spec.capabilities.strength
    assert spec.capabilities.negative_prompt
    assert spec.schedules[spec.default_schedule].num_inference_steps == 50


@pytest.mark.parametrize("name", ["wan-ti2v-tiny", "lucy-tiny", "wan-vace-tiny"])
def test_the_transformer_of_a_class_equals_pytorch(name: str, traced: Callable[[str], Any]) -> None:
    """In the lowering for ONNX Runtime, and in standard operators, which plans are built from."""
    made = traced(name)
    rows = sample_rows(made.spec)
    generator = torch.Generator().manual_seed(1)
    config = made.checkpoint.config
    inputs = {
        "text": torch.randn((rows.num_text, config.text_dim), generator=generator),
        "clean": torch.randn((rows.num_clean, config.clean_dim), generator=generator),
        "noisy": torch.randn((rows.num_noisy, config.patch_dim), generator=generator),
        "layout": torch.from_numpy(rows.layout),
        "positions": torch.from_numpy(rows.positions),
        "timestep": torch.tensor(0.4),
    }
    with torch.no_grad():
        expected = made.checkpoint.transformer(*inputs.values()).numpy()
    for path in (made.fused, made.inline):
        found = run_file(path, {k: v.numpy() for k, v in inputs.items()})
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def run_file(path: Path, feeds: dict[str, Any]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def test_vaces_condition_equals_pytorch(tmp_path: Path) -> None:
    checkpoint = load(make_random_wan("wan-vace-tiny", tmp_path / "vace", blocks=1))
    family = family_export(checkpoint)
    graph = family.graphs()["condition"]
    assert graph.module is not None
    ir.save(export_graph(graph, family.rope, "fused"), tmp_path / "condition.onnx")
    generator = torch.Generator().manual_seed(2)
    rows, columns, side = 3, 5, family.geometry.size_multiple
    inactive, reactive = torch.randn((2, 1, rows, columns, family.geometry.patch_dim), generator=generator)
    mask = torch.rand((rows * side, columns * side), generator=generator)
    feeds = {"inactive": inactive.numpy(), "reactive": reactive.numpy(), "mask": mask.numpy()}
    expected = graph.module()(inactive, reactive, mask).numpy()
    np.testing.assert_array_equal(run_file(tmp_path / "condition.onnx", feeds), expected)


class KeepFrames(torch.nn.Module):
    """As a masked encoder takes its inputs."""

    def forward(self, frames: torch.Tensor, *keep: torch.Tensor) -> torch.Tensor:
        return frames.to(torch.float32) * keep[0][..., None]


def test_what_a_masked_encoder_keeps_is_an_input(tmp_path: Path) -> None:
    axes = (1, "16*h", "16*w")
    frames, keep = TensorSpec("frames", "uint8", (*axes, 3)), TensorSpec("keep", "float32", axes)
    spec = GraphSpec("kept", "kept.onnx", (frames, keep), (TensorSpec("kept", "float32", (*axes, 3)),))
    ir.save(export_onnx.export_module(KeepFrames(), spec), tmp_path / "kept.onnx")
    picture = np.full((1, 32, 80, 3), 7, np.uint8)
    mask = np.zeros((1, 32, 80), np.float32)
    mask[:, :5] = 1
    found = run_file(tmp_path / "kept.onnx", {"frames": picture, "keep": mask})
    np.testing.assert_array_equal(found, picture * mask[..., None])


def make_adapter(path: Path, width: int) -> Path:
    generator = torch.Generator().manual_seed(3)
    layer = "transformer.blocks.0.attn1.to_q"
    values = {
        f"{layer}.lora_A.weight": torch.randn((4, width), generator=generator),
        f"{layer}.lora_B.weight": torch.randn((width, 4), generator=generator),
    }
    save_file(values, path)
    return path


def test_an_adapter_and_its_schedule_go_into_the_bundle(
    wan_folder: Path, wan_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tmp_path / "fast.safetensors", 64)
    # All graphs but the transformer are those of the bundle without the adapter.
    other = load_bundle(wan_bundle)
    for prefix in ("text_encoder", "vae_", "noise", "solver_step", "add_noise", "schedule_"):
        assert any(name.startswith(prefix) for name in other.spec.graphs)

    def export(graph: Graph, rope: RopeConfig, lowering: Lowering) -> ir.Model:
        if graph.spec.name == "transformer":
            return export_graph(graph, rope, lowering)
        model = ir.load(other.graph_path(graph.spec.name))
        ir.external_data.load_to_model(model)
        return model

    monkeypatch.setattr(export_onnx, "export_graph", export)
    made = export_bundle(
        wan_folder, tmp_path / "fast", loras=[Lora(adapter, 0.5)], schedule_from="lightx2v-4step"
    )
    spec = load_bundle(made).spec
    (noted,) = spec.made["loras"]  # type: ignore[misc]
    assert noted["file"] == "fast.safetensors"
    assert noted["scale"] == 0.5
    assert len(noted["sha256"]) == 64
    assert spec.default_schedule == "lightx2v-4step"
    fixed = spec.schedules["lightx2v-4step"]
    assert fixed.is_fixed
    # Shift 5 moves 1, 0.75, 0.5 and 0.25; LightX2V's formula, by hand.
    np.testing.assert_allclose(fixed.table.times, [0, 1 / 16, 1 / 6, 3 / 8], atol=1e-15)
    assert fixed.table.num_evaluations == 4
    merged = load_any_checkpoint(wan_folder, loras=[Lora(adapter, 0.5)])
    assert isinstance(merged, WanCheckpoint)
    patches, frames = compare_wan_request(made, merged, num_threads=1, num_inference_steps=3)
    assert patches.passed
    assert frames.passed
    assert not compare_wan_request(made, load(wan_folder), num_threads=1, num_inference_steps=3)[0].passed
    with Pipeline.open(made, "ort-cpu", num_threads=1) as pipeline:
        steps: list[float] = []
        pipeline(
            "A cat.", size=(32, 32), num_frames=1, callback_on_step_end=lambda _, n, t, x: steps.append(t)
        )
        assert steps == list(fixed.table.timesteps)
        with pytest.raises(RequestError, match="its 4 steps, whose noise levels are fixed") as caught:
            pipeline("A cat.", size=(32, 32), num_frames=1, num_inference_steps=5)
        assert caught.value.field == "num_inference_steps"


def test_the_second_expert_of_a_distilled_schedule_begins_at_the_boundary() -> None:
    table = distilled_schedule("lightx2v-4step", 3, boundary=0.875).table
    assert table.experts == (0, 0, 1, 1)
    # A straight walk with a velocity of one from noise: the steps add up to the whole way.
    assert sum(matrix[0][-1] for matrix in table.matrices) == pytest.approx(1, abs=1e-15)
    assert all(np.shape(matrix) == (4, 5) for matrix in table.matrices)
    with pytest.raises(ValueError, match="expected one of lightx2v-4step"):
        distilled_schedule("lightx2v-5step", 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_whole(name: str, tmp_path: Path) -> None:
    folder = make_random_wan(name, tmp_path / "checkpoint")
    made = load_bundle(export_bundle(folder, tmp_path / "bundle"))
    checkpoint = load(folder)
    with select_backend("ort-cpu", made).backend.open_runner(made, 1) as runner:
        measured = list(compare_wan_graphs(made, checkpoint, runner))
    measured += compare_wan_request(made.root, checkpoint, num_threads=1)
    assert [m for m in measured if not m.passed] == []


def test_an_export_says_nothing_unless_it_fails(wan_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torch.export prints the graph of an attempt that failed, also where its next one succeeds."""
    family = family_export(load(wan_folder))
    graph = family.graphs()["schedule_unipc2"]
    capsys.readouterr()
    export_graph(graph, family.rope, "fused")
    assert capsys.readouterr().err == ""

    class Failing(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            sys.stderr.write("what helps to find it")
            raise ValueError("no graph of this")

    with pytest.raises(Exception, match="no graph of this"):
        export_graph(replace(graph, module=Failing), family.rope, "fused")
    assert "what helps to find it" in capsys.readouterr().err
