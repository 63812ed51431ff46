"""Whole bundles: complete, valid, free of this machine, and there in one step."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import sentencepiece
import torch

from editverse_rt.bundle.manifest import load_bundle
from export import export_onnx, lower
from export.attention_nodes import DOMAIN, OP_TYPE
from export.export_onnx import export_bundle, export_graph
from export.families import build_graphs, family_export
from export.weights import MIN_MOVED_BYTES
from reference.checkpoint import Checkpoint, load_checkpoint
from reference.lora import Lora, MergedLora

GRAPH_NAMES = (
    *("text_encoder", "vae_encoder_first", "vae_encoder_next", "solver_step", "noise"),
    *("vae_decoder_first", "vae_decoder_next", "transformer", "keep_known", "schedule_euler", "schedule_ab2"),
)
ROOT = Path(__file__).resolve().parents[2]
ELEMENT_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "int64": onnx.TensorProto.INT64,
    "uint8": onnx.TensorProto.UINT8,
}


def test_a_bundle_loads_and_says_what_it_is(bundle_folder: Path, checkpoint: Checkpoint) -> None:
    spec = load_bundle(bundle_folder).spec
    assert spec.name == "tiny"
    assert tuple(spec.graphs) == GRAPH_NAMES
    assert spec.quality == {"success_rate": 0.5, "edits": 2}
    assert (spec.family, spec.conditioning, spec.unconditional) == ("editverse", "interleaved", "drop_text")
    assert spec.capabilities.attention == "fused"
    assert spec.capabilities.dtype == "float32"
    assert "date" not in spec.made
    schedule = spec.schedules[spec.default_schedule]
    assert schedule.graph == "schedule_euler"
    assert schedule.num_inference_steps == checkpoint.scheduler["num_inference_steps"]
    assert list(spec.schedules) == ["paper", "balanced", "fast"]
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(bundle_folder / spec.tokenizer.file))
    assert (spec.tokenizer.eos_id, spec.tokenizer.max_tokens) == (tokenizer.eos_id(), 128)
    counted = sum(weight.numel() for weight in checkpoint.transformer.parameters())
    assert spec.model["parameters"]["transformer"] == counted


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_a_graph_is_valid_and_keeps_to_the_table(bundle_folder: Path, name: str) -> None:
    spec = load_bundle(bundle_folder).spec.graphs[name]
    path = bundle_folder / spec.file
    onnx.checker.check_model(path)
    model = onnx.load(path, load_external_data=False)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 23
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        assert [value.name for value in values] == [tensor.name for tensor in tensors]
        for value, tensor in zip(values, tensors, strict=True):
            kind = value.type.tensor_type
            shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
            # The file of the noise is the same for every bundle, so it leaves the size of a row open.
            assert shape == (("N", "P") if name == tensor.name == "noise" else tensor.shape)
            assert kind.elem_type == ELEMENT_TYPES[tensor.dtype]


def test_the_transformer_keeps_rope_attention_as_a_function(
    bundle_folder: Path, checkpoint: Checkpoint
) -> None:
    model = onnx.load(bundle_folder / "transformer.onnx")
    nodes = [node for node in model.graph.node if node.op_type == OP_TYPE]
    config = checkpoint.transformer.config
    assert len(nodes) == config.num_blocks
    functions = {(f.domain, f.name) for f in model.functions}
    assert functions == {
        (DOMAIN, OP_TYPE),
        (DOMAIN, lower.TABLES_OP_TYPE),
    }
    assert sum(node.op_type == lower.TABLES_OP_TYPE for node in model.graph.node) == 1
    for node in nodes:
        facts = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert node.domain == DOMAIN
        assert facts["num_heads"] == config.num_heads
        assert tuple(facts["axis_dims"]) == config.axis_dims
        assert facts["axis_thetas"] == pytest.approx(config.axis_thetas)
        assert facts["epsilon"] == pytest.approx(config.norm_eps)


def test_first_and_next_share_one_file_of_weights(bundle_folder: Path) -> None:
    for half in ("vae_encoder", "vae_decoder"):
        places: list[dict[str, str]] = []
        for which in ("first", "next"):
            model = onnx.load(bundle_folder / f"{half}_{which}.onnx", load_external_data=False)
            facts = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
            assert {fact["location"] for fact in facts.values() if fact} == {f"{half}.weights"}
            places.append({name: fact["offset"] for name, fact in facts.items() if fact})
        # The first chunk leaves temporal resampling out; whatever it uses is what the next chunk uses, but
        # for kernels that are cut to the one frame of three that it sees.
        own = {name for name, offset in places[0].items() if offset not in places[1].values()}
        assert own < set(places[0])
        assert all(".taps_2_1" in name for name in own)


def test_no_file_names_this_machine(bundle_folder: Path, checkpoint_folder: Path) -> None:
    for path in bundle_folder.iterdir():
        data = path.read_bytes()
        for place in (ROOT, bundle_folder.parent, checkpoint_folder, Path(torch.__file__).parent):
            assert str(place).encode() not in data, (path.name, place)
        assert b".py" not in data, path.name


def test_the_same_weights_give_the_same_bytes(
    checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    rope = family_export(checkpoint).rope
    for name in ("transformer", "noise"):
        graph = build_graphs(checkpoint)[name]
        ir.save(export_graph(graph, rope, "fused"), tmp_path / graph.spec.file)
        again, before = tmp_path / graph.spec.file, bundle_folder / graph.spec.file
        assert again.read_bytes() == before.read_bytes(), name


def test_the_plugin_lowering_leaves_the_node_without_a_body(checkpoint: Checkpoint) -> None:
    model = ir.to_proto(
        export_graph(build_graphs(checkpoint)["transformer"], family_export(checkpoint).rope, "plugin")
    )
    assert not model.functions
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    assert len(nodes) == checkpoint.transformer.config.num_blocks
    # Shape inference knows nothing of the node, so its output says what it is.
    known = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    config = checkpoint.transformer.config
    for node in nodes:
        assert known[node.output[0]][1].dim_value == config.num_heads * config.head_dim


def test_a_bfloat16_transformer_has_float32_at_its_edges(checkpoint_folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_folder, dtype=torch.bfloat16)
    model = ir.to_proto(
        export_graph(build_graphs(checkpoint)["transformer"], family_export(checkpoint).rope, "inline")
    )
    onnx.save(model, tmp_path / "transformer.onnx")
    onnx.checker.check_model(tmp_path / "transformer.onnx")
    edges = {value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert edges == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    matrices = [
        tensor for tensor in model.graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 8
    ]
    assert matrices
    assert {tensor.data_type for tensor in matrices} == {onnx.TensorProto.BFLOAT16}


@pytest.fixture
def only_small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports write a placeholder for each graph, so that what happens around them can be tried quickly."""
    small = ir.from_proto(export_onnx.build_noise_model())
    monkeypatch.setattr(export_onnx, "export_graph", lambda *_: small.clone())
    monkeypatch.setattr(export_onnx, "count_costs", lambda *_: {})


@pytest.mark.usefixtures("only_small_graphs")
def test_a_bundle_takes_the_place_of_one_before(checkpoint_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    export_bundle(checkpoint_folder, target, name="before")
    (target / "left_over.onnx").write_bytes(b"")
    export_bundle(checkpoint_folder, target, name="after")
    assert json.loads((target / "bundle.json").read_text())["name"] == "after"
    assert not (target / "left_over.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("only_small_graphs")
def test_a_failed_export_changes_nothing(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    export_bundle(checkpoint_folder, target, name="before")

    def fail(*_: object) -> ir.Model:
        raise RuntimeError("no graph today")

    monkeypatch.setattr(export_onnx, "export_graph", fail)
    with pytest.raises(RuntimeError, match="no graph today"):
        export_bundle(checkpoint_folder, target, name="after")
    assert load_bundle(target).spec.name == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_left_alone(checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not a bundle"):
        export_bundle(checkpoint_folder, tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "dear"


@pytest.mark.usefixtures("only_small_graphs")
def test_a_date_is_written_when_the_build_has_one(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    export_bundle(checkpoint_folder, tmp_path / "dated")
    assert load_bundle(tmp_path / "dated").spec.made["date"] == "1970-01-02T00:00:00+00:00"


@pytest.mark.usefixtures("only_small_graphs")
def test_large_weights_stand_beside_the_graph(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    monkeypatch.undo()
    transformer = {"transformer": build_graphs(checkpoint)["transformer"]}
    monkeypatch.setattr(export_onnx, "MAX_INLINE_BYTES", 10_000)
    export_onnx._write_graphs(transformer, family_export(checkpoint).rope, "inline", tmp_path, False, None)
    assert {path.name for path in tmp_path.iterdir()} == {"transformer.onnx", "transformer.weights"}
    onnx.checker.check_model(tmp_path / "transformer.onnx")
    # What float16 holds exactly takes half the bytes; what is then small stays in the graph.
    stored = [
        w.nbytes // 2 if torch.equal(w.half().float(), w) else w.nbytes
        for w in checkpoint.transformer.parameters()
        if w.nbytes >= MIN_MOVED_BYTES
    ]
    weights = sum(num_bytes for num_bytes in stored if num_bytes >= MIN_MOVED_BYTES)
    assert (tmp_path / "transformer.weights").stat().st_size >= weights
    assert (tmp_path / "transformer.onnx").stat().st_size < 200_000


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["export_onnx", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        export_onnx.main()
    assert stop.value.code == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fewer_bits_and_another_dtype_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text_encoder_bits is 8 and dtype float16; expected one of them"):
        export_onnx.export_bundle(tmp_path / "no", tmp_path / "out", dtype=torch.float16, text_encoder_bits=8)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_named_with_its_strength_and_its_expert() -> None:
    for text, path, scale, expert in (
        ("a.safetensors", "a.safetensors", 1.0, None),
        ("a.safetensors:0.5", "a.safetensors", 0.5, None),
        ("a.safetensors@high", "a.safetensors", 1.0, 0),
        ("a.safetensors:-2@low", "a.safetensors", -2.0, 1),
        ("C:/me@home/a.safetensors", "C:/me@home/a.safetensors", 1.0, None),
        ("C:/me@home/a@low.safetensors:0.5@low", "C:/me@home/a@low.safetensors", 0.5, 1),
        ("a@high@low", "a@high", 1.0, 1),
        ("@high", "@high", 1.0, None),
        ("a:b", "a:b", 1.0, None),
    ):
        assert export_onnx.lora_from_text(text) == Lora(Path(path), scale, expert), text
    with pytest.raises(ValueError, match="its scale is inf; expected a finite number"):
        export_onnx.lora_from_text("a.safetensors:inf")


def test_notes_say_into_which_transformer_an_adapter_went() -> None:
    loras = [
        asdict(MergedLora("fast.safetensors", "0" * 64, 0.5, expert, 40, alpha_from="tensors"))
        for expert in (0, 1, None)
    ]
    loras[2] |= {"dropped": ["blocks.0.norm3.diff"], "alpha_from": None}
    assert export_onnx._notes_on_adapters({"loras": loras}) == [
        "fast.safetensors: merged into 40 layers of the transformer for high noise at 0.5",
        "fast.safetensors: merged into 40 layers of the transformer for low noise at 0.5",
        "fast.safetensors: merged into 40 layers at 0.5",
        "fast.safetensors: no alpha is stored with it; that of each layer was taken as its rank",
        "fast.safetensors: 1 values were dropped: blocks.0.norm3.diff",
    ]


def test_a_quality_report_that_cannot_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, said in ((None, "cannot be read"), ("{", "cannot be read"), ("[]", "holds no object")):
        report = tmp_path / "quality.json"
        if text is not None:
            report.write_text(text)
        arguments = [str(tmp_path), str(tmp_path / "out"), "--quality", str(report)]
        monkeypatch.setattr("sys.argv", ["export_onnx", *arguments])
        with pytest.raises(SystemExit) as stop:
            export_onnx.main()
        assert stop.value.code == 2
        assert f"quality.json {said}" in capsys.readouterr().err


def test_an_editverse_folder_that_cannot_be_exported_is_one_line(
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))
    config = folder / "transformer" / "config.json"
    own = json.loads(config.read_text())
    monkeypatch.setattr("sys.argv", ["export_onnx", str(folder), str(tmp_path / "out")])
    for changes, said in (
        ({"window": 9}, "config.json: window is 9, a field that the transformer does not have"),
        ({"num_blocks": own["num_blocks"] + 1}, "is missing; take the folder's own config.json"),
        (
            {"mlp_width": own["mlp_width"] + 1},
            "after config.json: take config.json and weights of one folder",
        ),
        ({"width": "wide"}, "config.json: width is 'wide'; expected a whole number above 0"),
    ):
        config.write_text(json.dumps(own | changes))
        with pytest.raises(SystemExit) as stop:
            export_onnx.main()
        assert stop.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert said in line
    assert not (tmp_path / "out").exists()
