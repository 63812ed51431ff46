"""One tiny checkpoint with random weights and one bundle of it, exported once for all tests of the export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from editverse_rt.bundle.manifest import Bundle, file_specs, load_bundle, write_bundle_json
from export.export_onnx import export_bundle, export_graph
from export.families import build_graphs, family_export
from reference.checkpoint import Checkpoint, load_checkpoint, make_random_checkpoint

TRANSFORMER = {
    "width": 64, "num_blocks": 2, "num_heads": 2, "head_dim": 32, "mlp_width": 96, "time_width": 32,
    "text_dim": 48, "axis_dims": (4, 4, 12, 12),
}  # fmt: skip
# As few convolutions as the class allows: tracing them is what an export spends its time on.
VAE = {"base_dim": 4, "num_res_blocks": 0, "dim_mult": [1, 1, 1]}
NUM_INFERENCE_STEPS = 4


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    make_random_checkpoint("nano", folder, transformer_overrides=TRANSFORMER, vae_overrides=VAE)
    schedule = folder / "scheduler" / "scheduler_config.json"
    facts = json.loads(schedule.read_text())
    schedule.write_text(json.dumps({**facts, "num_inference_steps": NUM_INFERENCE_STEPS}))
    return folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_folder)


@pytest.fixture(scope="session")
def bundle_folder(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the default lowering; tests must not change it."""
    quality = {"success_rate": 0.5, "edits": 2}
    return export_bundle(checkpoint_folder, tmp_path_factory.mktemp("bundle") / "tiny", quality=quality)


@pytest.fixture(scope="session")
def plugin_bundle(
    checkpoint: Checkpoint, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The same bundle with its attention left to TensorRT's plugin; only the transformer is exported anew."""
    folder = tmp_path_factory.mktemp("plugin") / "tiny"
    shutil.copytree(bundle_folder, folder)
    transformer = export_graph(
        build_graphs(checkpoint)["transformer"], family_export(checkpoint).rope, "plugin"
    )
    ir.save(transformer, folder / "transformer.onnx")
    spec = load_bundle(bundle_folder).spec
    can = replace(spec.capabilities, attention="plugin")
    written = replace(spec, files=file_specs(folder), capabilities=can)
    write_bundle_json(folder, written)
    return load_bundle(folder)
