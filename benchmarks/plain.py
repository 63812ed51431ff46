"""The plain export: what `torch.onnx.export` gives of the same modules without any help of this project.

No node of its own for the attention, no translation of an operator, weights as they are. It is what a peer
that reads ONNX is given.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from editverse_rt.bundle.manifest import file_specs, load_bundle, write_bundle_json
from editverse_rt.engines.manifest import ENGINES_FOLDER
from export.families import build_graphs, family_export
from export.graphs import dynamic_shapes, example_inputs
from reference.checkpoint import load_any_checkpoint

__all__ = ["OPSET", "export_plain"]

OPSET = 18
"""The newest that OpenVINO reads whole."""


def export_plain(
    checkpoint_folder: Path, bundle_folder: Path, folder: Path, graphs: Collection[str] | None = None
) -> Path:
    """Write a bundle beside bundle_folder's whose graphs are plain; noise, solver and tokenizer are its.

    graphs: which are exported again, None for all; the others are left as they are. Raises what the exporter raises.
    """
    source = load_bundle(bundle_folder)
    checkpoint = load_any_checkpoint(checkpoint_folder)
    table = build_graphs(checkpoint)
    is_editverse = family_export(checkpoint).family == "editverse"
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source.root, partial, ignore=shutil.ignore_patterns(ENGINES_FOLDER))
    for name in table if graphs is None else graphs:
        graph = table[name]
        if graph.module is None or name == "solver_step" or name.startswith("schedule_"):
            continue
        module = graph.module().eval()
        if name == "transformer" and is_editverse:
            _add_batch(module)
        shapes = dynamic_shapes(graph.spec)
        num_caches = sum(tensor.name.startswith("cache_") for tensor in graph.spec.inputs)
        nested = tuple(shapes) if not num_caches else (*shapes[:-num_caches], tuple(shapes[-num_caches:]))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tuple(example_inputs(graph.spec)),
                partial / graph.spec.file,
                input_names=[tensor.name for tensor in graph.spec.inputs],
                output_names=[tensor.name for tensor in graph.spec.outputs],
                dynamic_shapes=nested,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                external_data=True,
            )
    _remove_unused_weights(partial)
    made = {**source.spec.made, "attention": "plain", "opset": OPSET}
    can = dataclasses.replace(source.spec.capabilities, attention="inline")
    spec = dataclasses.replace(source.spec, files=file_specs(partial), capabilities=can, made=made)
    write_bundle_json(partial, spec)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _remove_unused_weights(folder: Path) -> None:
    """Files of weights that no graph of a bundle's folder refers to any more."""
    used = {
        entry.value
        for path in folder.glob("*.onnx")
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for weights in folder.glob("*.weights"):
        if weights.name not in used:
            weights.unlink()


def _add_batch(module: Any) -> None:
    """Let the blocks run on a batch of one: the exporter translates attention only with a batch axis."""
    model = module.model

    def run_blocks(x: Tensor, positions: Tensor, is_noisy: Tensor, timestep: Tensor) -> Tensor:
        batch = (tensor.unsqueeze(0) for tensor in (x, positions, is_noisy, timestep))
        output: Tensor = type(model).run_blocks(model, *batch)
        return output.squeeze(0)

    model.run_blocks = run_blocks
