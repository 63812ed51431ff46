"""The plain export computes what PyTorch does, so that its contenders are peers."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.artifacts import MODELS, make_model
from benchmarks.contenders import PlainOrtRunner, TorchRunner
from benchmarks.peers import compare_results
from benchmarks.plain import OPSET, export_plain
from benchmarks.work import Work, draw_transformer_inputs, prepare_work
from editverse_rt.bundle.manifest import load_bundle

CHECKPOINT = Path(__file__).parents[2] / "reference" / "nano" / "checkpoint"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano with the graphs exported plainly that have most in them; the others are the bundle's."""
    folder = tmp_path_factory.mktemp("plain") / "nano"
    graphs = ("transformer", "vae_decoder_first")
    return export_plain(CHECKPOINT, load_bundle("nano").root, folder, graphs)


def test_the_plain_export_is_a_bundle_without_nodes_of_this_project(plain: Path):
    bundle = load_bundle(plain)
    assert bundle.spec.made["attention"] == "plain"
    assert bundle.spec.capabilities.attention == "inline"
    model = onnx.load(bundle.graph_path("transformer"), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [OPSET]
    assert bundle.spec.graphs == load_bundle("nano").spec.graphs


@pytest.mark.parametrize(
    "work",
    [
        Work("t", "nano", "transformer", tokens=80),
        Work("d", "nano", "vae_decoder", frames=1, height_px=48, width_px=32),
    ],
)
def test_the_plain_export_computes_what_pytorch_does(plain: Path, work: Work):
    bundle = load_bundle(plain)
    found = prepare_work(work, bundle, PlainOrtRunner(plain, 1))()
    expected = prepare_work(work, bundle, TorchRunner(CHECKPOINT, bundle, 1, compiled=False))()
    error, tolerance = compare_results(found, expected)
    assert error <= tolerance


def test_a_runner_of_pytorch_names_its_results():
    bundle = load_bundle("nano")
    runner = TorchRunner(CHECKPOINT, bundle, 1, compiled=False)
    outputs = runner.run("transformer", draw_transformer_inputs(bundle, 70))
    assert list(outputs) == ["velocity"]


def test_a_model_that_is_not_measured_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=f"expected one of {', '.join(MODELS)}"):
        make_model("editverse-9b", tmp_path)


def test_nano_in_integers_is_made_of_the_bundle_that_ships_and_kept(tmp_path: Path):
    model = make_model("nano-int8", tmp_path, needs_plain=False)
    assert load_bundle(model.bundle).spec.capabilities.weights == "int8"
    assert model.checkpoint == CHECKPOINT
    made = (model.bundle / "bundle.json").stat().st_mtime_ns
    assert make_model("nano-int8", tmp_path, needs_plain=False) == model
    assert (model.bundle / "bundle.json").stat().st_mtime_ns == made


def test_the_plain_export_is_left_out_where_nobody_reads_it(tmp_path: Path):
    model = make_model("nano", tmp_path, needs_plain=False)
    assert model.bundle.is_dir()
    assert list(tmp_path.iterdir()) == []
