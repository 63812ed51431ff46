"""The planner's operations against a count of the operators that ONNX Runtime runs, with their shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from editverse_rt.bundle.description import json_from_spec, spec_from_json
from editverse_rt.bundle.interface import interfaces_of, tensor_from_line
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.bundle.spec import GraphSpec, TensorSpec
from editverse_rt.planning.costs import Tokens, cost_text_encoder, cost_transformer, cost_vae, weight_bytes
from export.blocks import round_blocks
from export.costs import count_costs
from export.export_onnx import export_graph
from export.families import family_export
from export.graphs import Graph, Transformer, axis_size
from export.lower import rope_config
from reference.checkpoint import load_checkpoint
from reference.families.wan import WanConfig, WanTransformer

# Of all operations, what the formula may miss: products of a few values, such as a frequency by a position.
TOLERANCE = 0.01


def count_operations(path: Path, inputs: Mapping[str, np.ndarray], folder: Path) -> int:
    """Two for each multiplication and addition of products, convolutions and attention, as they ran."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, dict(inputs))
    kernels = weights_of_convolutions(path)
    total = 0
    for event in json.loads(Path(session.end_profiling()).read_text()):
        facts = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            total += operations_of(facts, kernels.get(name))
    return total


def weights_of_convolutions(path: Path) -> dict[str, list[int]]:
    model = onnx.load(path, load_external_data=False)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    # Weights may stand in float16 behind a Cast.
    shapes |= {
        n.output[0]: shapes[n.input[0]]
        for n in model.graph.node
        if n.op_type == "Cast" and n.input[0] in shapes
    }
    return {node.name: shapes[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}


def operations_of(facts: dict[str, Any], kernel: list[int] | None) -> int:
    op = facts["op_name"]
    given = [next(iter(entry.values())) for entry in facts["input_type_shape"]]
    made = [next(iter(entry.values())) for entry in facts["output_type_shape"]]
    if op in ("MatMul", "Gemm"):
        return 2 * math.prod(made[0]) * given[0][-1]
    if op == "Conv":
        assert kernel is not None
        return 2 * math.prod(made[0]) * math.prod(kernel[1:])
    if op in ("Attention", "MultiHeadAttention"):
        # [1, L, heads * head_dim], or [1, heads, L, head_dim].
        return 4 * math.prod(given[0]) * given[1][-2]
    return 0


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return load_bundle("nano")


def random_inputs(bundle: Bundle, graph: str, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {}
    for tensor in bundle.spec.graphs[graph].inputs:
        shape = [axis_size(axis, sizes) for axis in tensor.shape]
        values[tensor.name] = rng.normal(size=shape).astype(tensor.dtype)
    return values


def test_the_transformer_costs_what_its_operators_say(nano: Bundle, tmp_path: Path) -> None:
    tokens = Tokens(text=13, clean=150, noisy=230, total=13 + 150 + 230 + 4)
    sizes = {"Lt": tokens.text, "Lc": tokens.clean, "Lg": tokens.noisy, "L": tokens.total}
    counted = count_operations(
        nano.graph_path("transformer"), random_inputs(nano, "transformer", sizes), tmp_path
    )
    formula = cost_transformer(nano.spec, tokens, "fp32", holds_scores=False).flops
    assert formula == pytest.approx(counted, rel=TOLERANCE)


def test_the_text_encoder_costs_what_its_operators_say(nano: Bundle, tmp_path: Path) -> None:
    path = nano.graph_path("text_encoder")
    counted = count_operations(path, {"ids": np.arange(2, 79, dtype=np.int64)}, tmp_path)
    assert cost_text_encoder(nano.spec, 77, "fp32").flops == pytest.approx(counted, rel=TOLERANCE)


@pytest.mark.parametrize("graph", ["encoder_first", "encoder_next", "decoder_first", "decoder_next"])
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (6, 4)])
def test_the_vae_costs_what_its_operators_say(
    nano: Bundle, tmp_path: Path, graph: str, rows: int, columns: int
) -> None:
    inputs = random_inputs(nano, f"vae_{graph}", {"h": rows, "w": columns})
    counted = count_operations(nano.graph_path(f"vae_{graph}"), inputs, tmp_path)
    half, _, chunk = graph.partition("_")
    side = nano.spec.geometry.size_multiple
    cost = cost_vae(
        nano.spec,
        half,
        first=chunk == "first",
        height_px=rows * side,
        width_px=columns * side,
        precision="fp32",
    )
    assert cost.flops == pytest.approx(counted, rel=TOLERANCE)


def test_a_second_family_costs_what_pytorch_counts(tmp_path: Path) -> None:
    """A small Wan transformer against PyTorch's own counter."""
    config = WanConfig(
        num_blocks=1, num_heads=2, head_dim=24, mlp_width=80, text_dim=20, latent_channels=4, max_text=16
    )
    spec = GraphSpec("transformer", "transformer.onnx", *_wan_interface(config))
    model = export_graph(
        Graph(spec, lambda: Transformer(WanTransformer(config).eval()), "w"), rope_config(config), "fused"
    )
    ir.save(model, tmp_path / spec.file)
    costs = count_costs(tmp_path, {"transformer": spec})["transformer"]
    L = 37
    values = {"1": 1, "L": L, "Lg": L, "Lc": 0, "Lt": 9}
    counted = sum(c * math.prod(values[a] for a in term.split("*")) for term, c in costs["flops"].items())
    shapes = {"text": (9, 20), "clean": (0, 16), "noisy": (L, 16)}
    inputs = [torch.zeros(shape) for shape in shapes.values()]
    positions = torch.zeros((L, 4), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        WanTransformer(config)(*inputs, torch.arange(L), positions, torch.tensor(0.5))
    # PyTorch's counter passes over its fused attention on a CPU: to the sequence, and to the padded text.
    attention = 4 * L * (L + config.max_text) * config.width
    assert counted == pytest.approx(counter.get_total_flops() + attention, rel=TOLERANCE)


def _wan_interface(config: WanConfig) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    sizes = {"P": config.patch_dim, "Pc": config.clean_dim, "Dt": config.text_dim}
    interface = interfaces_of("wan", "none", ())["transformer"]
    inputs, outputs = (
        tuple(tensor_from_line(line, sizes) for line in lines)
        for lines in (interface.inputs, interface.outputs)
    )
    return inputs, outputs


def test_the_bundle_that_ships_says_how_its_parts_are_built(nano: Bundle) -> None:
    checkpoint = load_checkpoint(Path(__file__).parents[2] / "reference" / "nano" / "checkpoint")
    assert nano.spec.model == json.loads(json.dumps(family_export(checkpoint).model_facts()))


def test_the_bundle_that_ships_has_the_counts_of_its_graphs(nano: Bundle) -> None:
    assert nano.spec.costs == count_costs(nano.root, nano.spec.graphs)


@pytest.mark.parametrize("graph", ["vae_encoder_next", "vae_decoder_first", "vae_decoder_next"])
def test_a_vae_of_another_shape_costs_what_its_operators_say(
    bundle_folder: Path, tmp_path: Path, graph: str
) -> None:
    tiny = load_bundle(bundle_folder)
    counted = count_operations(tiny.graph_path(graph), random_inputs(tiny, graph, {"h": 4, "w": 3}), tmp_path)
    _, half, chunk = graph.split("_")
    side = tiny.spec.geometry.size_multiple
    first = chunk == "first"
    cost = cost_vae(tiny.spec, half, first=first, height_px=4 * side, width_px=3 * side, precision="fp32")
    assert cost.flops == pytest.approx(counted, rel=TOLERANCE)


@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_weights_beside_the_graph_are_not_read(name: str, nano: Bundle, tmp_path: Path) -> None:
    """A large model's weights lie in a file, among them constants behind a Cast; they change no count."""
    model = onnx.load(nano.graph_path(name))
    path = tmp_path / nano.spec.graphs[name].file
    onnx.save_model(model, path, save_as_external_data=True, location="x.weights", size_threshold=1024)
    (tmp_path / "x.weights").unlink()
    assert count_costs(tmp_path, {name: nano.spec.graphs[name]}) == {name: nano.spec.costs[name]}


def test_a_graph_that_cannot_be_counted_leaves_no_file(
    nano: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's inference writes the model and its weights into the working folder then."""
    model = onnx.load(nano.graph_path("text_encoder"))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unknown", "of.nobody"
    model.opset_import.append(onnx.helper.make_opsetid("of.nobody", 1))
    graph = nano.spec.graphs["text_encoder"]
    (tmp_path / "bundle").mkdir()
    (tmp_path / "work").mkdir()
    onnx.save_model(model, tmp_path / "bundle" / graph.file)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(Exception, match="Incomplete symbolic shape inference"):
        count_costs(tmp_path / "bundle", {"text_encoder": graph})
    assert Path.cwd() == tmp_path / "work"
    assert not list((tmp_path / "work").iterdir())


def test_matrices_in_blocks_cost_the_same_operations_and_fewer_bytes(nano: Bundle, tmp_path: Path) -> None:
    graph = nano.spec.graphs["text_encoder"]
    model = ir.load(nano.graph_path("text_encoder"))
    round_blocks(model)
    ir.save(model, tmp_path / graph.file)
    costs = count_costs(tmp_path, {"text_encoder": graph})["text_encoder"]
    stored = costs.pop("weight_bytes")
    assert costs == nano.spec.costs["text_encoder"]
    # By hand: a byte a value and four a block of 32, of matrices whose sums are of whole blocks; all else float32.
    rounded = [
        array.const_value for name, array in model.graph.initializers.items() if name.endswith(".int8")
    ]
    values = sum(tensor.size for tensor in rounded if tensor is not None)
    parameters = nano.spec.model["parameters"]["text_encoder"]  # type: ignore[index]
    assert stored["1"] == pytest.approx(4 * (parameters - values) + values * (1 + 4 / 32), rel=TOLERANCE)
    # So a budget of memory counts what is held; a plan is built of an export without blocks, and counts as it did.
    spec = replace(nano.spec, costs={**nano.spec.costs, "text_encoder": {**costs, "weight_bytes": stored}})
    written = spec_from_json(json.loads(json.dumps(json_from_spec(spec))))
    assert weight_bytes(written, {"text_encoder": "fp32"}) == {"text_encoder": stored["1"]}
    assert weight_bytes(written, {"text_encoder": "bf16"}) == {"text_encoder": 2 * parameters}
    assert weight_bytes(nano.spec, {"text_encoder": "fp32"}) == {"text_encoder": 4 * parameters}


@pytest.mark.parametrize("lowering", ["inline", "plugin"])
def test_every_lowering_is_counted(lowering: Any, nano: Bundle, tmp_path: Path) -> None:
    """The standard's Attention and the plugin's node, whose shapes the inference does not find by itself."""
    checkpoint = load_checkpoint(Path(__file__).parents[2] / "reference" / "nano" / "checkpoint")
    family = family_export(checkpoint)
    graph = family.graphs()["transformer"]
    ir.save(export_graph(graph, family.rope, lowering), tmp_path / graph.spec.file)
    found = count_costs(tmp_path, {"transformer": graph.spec})["transformer"]["flops"]
    expected = dict(nano.spec.costs["transformer"]["flops"])
    # The plugin's last block attends from all rows, where the other forms take those of the result alone.
    if lowering == "plugin":
        blocks, width = nano.spec.model["transformer"]["num_blocks"], expected["L*L"]
        expected["L*L"] = width * blocks / (blocks - 1)
    for term in ("L*L", "L*Lg") if lowering == "inline" else ("L*L",):
        assert found[term] == expected[term]
