"""Small Wan checkpoints, a whole bundle, and the transformer of each class: traced once for all tests here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest

from editverse_rt.bundle.manifest import Bundle, load_bundle, load_spec
from editverse_rt.bundle.spec import BundleSpec
from export import export_onnx
from export.export_onnx import export_bundle, export_graph
from export.families import family_export
from export.graphs import Graph
from export.lower import Lowering, RopeConfig
from export.precision import save_typed, use_standard_attention
from reference.checkpoint import Checkpoint, load_any_checkpoint
from reference.families.wan_checkpoint import WanCheckpoint
from reference.families.wan_random import make_random_wan

NARROW = {"num_layers": 2, "ffn_dim": 64}


@dataclass(frozen=True)
class TracedTransformer:
    """The transformer of a class, two blocks: for ONNX Runtime, and in standard operators.

    spec: what a bundle of it says of its rows; all else is nano's.
    """

    checkpoint: WanCheckpoint
    spec: BundleSpec
    fused: Path
    inline: Path


Traced = Callable[[str], TracedTransformer]


def load(folder: Path) -> WanCheckpoint:
    checkpoint = load_any_checkpoint(folder)
    assert isinstance(checkpoint, WanCheckpoint)
    return checkpoint


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """The traced transformer of a class, by its name."""
    root = tmp_path_factory.mktemp("traced")

    @cache
    def trace(name: str) -> TracedTransformer:
        checkpoint = load(make_random_wan(name, root / name, blocks=2, transformer_overrides=NARROW))
        family = family_export(checkpoint)
        fused, inline = root / f"{name}.onnx", root / f"{name}-inline.onnx"
        graph = family.graphs()["transformer"]
        ir.save(export_graph(graph, family.rope, "fused"), fused)
        standard = ir.load(fused)
        use_standard_attention(standard)
        save_typed(standard, inline)
        spec = replace(
            load_spec("nano"), family="wan", conditioning=family.conditioning, geometry=family.geometry,
            graphs={"transformer": graph.spec},
        )  # fmt: skip
        return TracedTransformer(checkpoint, spec, fused, inline)

    return trace


@pytest.fixture(scope="session")
def wan_folder(
    checkpoint: Checkpoint, checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A text-to-video checkpoint with the VAE of this folder's EditVerse checkpoint."""
    z, p = int(checkpoint.vae.config.z_dim), checkpoint.patch_size
    channels = {"in_channels": z, "out_channels": z, "patch_size": (1, p, p)}
    made = make_random_wan(
        "wan-t2v-tiny",
        tmp_path_factory.mktemp("wan") / "checkpoint",
        transformer_overrides=NARROW | channels,
        vae_overrides={"base_dim": 4, "num_res_blocks": 0, "dim_mult": [1, 1, 1], "z_dim": z,
                       "temperal_downsample": [True, True]},
    )  # fmt: skip
    shutil.rmtree(made / "vae")
    shutil.copytree(checkpoint_folder / "vae", made / "vae")
    return made


def _take_graphs(patch: pytest.MonkeyPatch, bundle: Bundle, prefix: str) -> None:
    def export(graph: Graph, rope: RopeConfig, lowering: Lowering) -> ir.Model:
        if not graph.spec.name.startswith(prefix):
            return export_graph(graph, rope, lowering)
        assert bundle.spec.graphs[graph.spec.name] == graph.spec
        model = ir.load(bundle.graph_path(graph.spec.name))
        ir.external_data.load_to_model(model)
        return model

    patch.setattr(export_onnx, "export_graph", export)


@pytest.fixture(scope="session")
def wan_bundle(
    wan_folder: Path, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Its bundle. The VAE's graphs are those of EditVerse's bundle, traced from the same weights."""
    with pytest.MonkeyPatch.context() as patch:
        _take_graphs(patch, load_bundle(bundle_folder), "vae_")
        yield export_bundle(wan_folder, tmp_path_factory.mktemp("wan") / "t2v")
