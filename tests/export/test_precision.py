"""Graphs in 16 bits: where float32 stays, and how far they are from it, against PyTorch's own bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.errors import RequestError
from export.precision import count_types, save_typed, set_precision, use_standard_attention
from export.precision_error import measure_error, relative_error, sample_inputs
from export.standard import load_standard
from export.weights import halve_exact_weights
from reference.checkpoint import load_checkpoint

CHECKPOINT = Path(__file__).parents[2] / "reference" / "nano" / "checkpoint"
GRAPHS = ("text_encoder", "vae_encoder_next", "transformer", "vae_decoder_next")
# Relative errors of the emulated graphs, latents and velocities; frames in grey levels. A bfloat16 is within
# 2^-9 of the exact value, a float16 within 2^-12; through the layers it grows about tenfold.
TOLERANCES = {"bf16": 0.06, "fp16": 0.01}
FRAME_TOLERANCES = {"bf16": 4.0, "fp16": 0.5}


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return load_bundle("nano")


def typed(bundle: Bundle, graph: str, precision: str, *, emulate: bool = False) -> ir.Model:
    model = ir.load(bundle.graph_path(graph))
    use_standard_attention(model)
    set_precision(model, precision, emulate=emulate)
    return model


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_errors_are_those_of_16_bits_and_no_more(nano: Bundle, graph: str, precision: str) -> None:
    (error,) = measure_error(nano, graph, precision).values()
    limit = (FRAME_TOLERANCES if graph == "vae_decoder_next" else TOLERANCES)[precision]
    assert error <= limit
    # Were nothing rounded, the emulation would say nothing.
    assert error > 1e-5


def test_float32_is_what_it_is_held_to(nano: Bundle) -> None:
    assert measure_error(nano, "transformer", "fp32") == {}
    assert measure_error(nano, "solver_step", "bf16") == {"sample_next": 0.0, "history_next": 0.0}


def test_a_type_that_cannot_hold_the_values_is_refused(nano: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_loud(bundle: Bundle, graph: str) -> ir.Model:
        """A feed-forward layer whose gated units are a million times as large."""
        model = load_standard(bundle, graph)
        for value in model.graph.initializers.values():
            if "block.1.layer.1.layer_norm" in str(value.name):
                array = value.const_value.numpy() * 1e3  # type: ignore[union-attr]
                value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        return model

    monkeypatch.setattr("export.precision_error.load_standard", load_loud)
    with pytest.raises(RequestError, match=r"text_encoder in fp16: text is no number .* \[precision\]"):
        measure_error(nano, "text_encoder", "fp16")
    assert measure_error(nano, "text_encoder", "bf16")["text"] < TOLERANCES["bf16"]


@torch.no_grad()
def test_the_emulation_errs_as_pytorch_does_in_bfloat16(nano: Bundle) -> None:
    model = load_checkpoint(CHECKPOINT, dtype=torch.float32).transformer
    inputs = {name: torch.from_numpy(np.asarray(x)) for name, x in sample_inputs(nano, "transformer").items()}
    exact = model(**inputs).numpy()
    model.to(torch.bfloat16)
    narrow = {n: x.bfloat16() if x.is_floating_point() and n != "timestep" else x for n, x in inputs.items()}
    pytorch = relative_error(model(**narrow).float().numpy(), exact)
    emulated = measure_error(nano, "transformer", "bf16")["velocity"]
    # PyTorch takes the last step, (sample - noisy) / (1 - t), in bfloat16 too; it is exact here.
    assert 0.2 * pytorch <= emulated <= 1.5 * pytorch


def with_rounded_weights(bundle: Bundle, graph: str) -> ir.Model:
    """All weights become values that float16 holds."""
    model = ir.load(bundle.graph_path(graph))
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            rounded = value.const_value.numpy().astype(np.float16).astype(np.float32)
            value.const_value = ir.tensor(rounded, name=value.name)
    return model


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_stored_in_float16_are_typed_as_the_float32_they_stand_for(
    nano: Bundle, precision: str, tmp_path: Path
) -> None:
    inputs = sample_inputs(nano, "transformer")
    results, counts = [], []
    for halve in (False, True):
        model = with_rounded_weights(nano, "transformer")
        if halve:
            halve_exact_weights(model)
            assert any(name.endswith(".float16") for name in model.graph.initializers)
        use_standard_attention(model)
        set_precision(model, precision, emulate=True)
        counts.append(count_types(model))
        path = tmp_path / f"{halve}.onnx"
        save_typed(model, path)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        results.append(session.run(None, dict(inputs))[0])
    assert counts[0] == counts[1]
    assert results[0].tobytes() == results[1].tobytes()


def types_by_operator(model: ir.Model) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is not None and value.dtype.is_floating_point():
                found.setdefault(node.op_type, set()).add(value.dtype.name)
    return found


@pytest.mark.parametrize(("precision", "low"), [("bf16", "BFLOAT16"), ("fp16", "FLOAT16")])
def test_islands_of_float32(nano: Bundle, precision: str, low: str, tmp_path: Path) -> None:
    for graph in GRAPHS:
        model = typed(nano, graph, precision)
        types = types_by_operator(model)
        for op in ("RMSNormalization", "Cos", "Sin", "Softmax", "ReduceL2", "Round", "Pow"):
            assert types.get(op, {"FLOAT"}) == {"FLOAT"}, (graph, op)
        for op in ("MatMul", "Gemm", "Conv", "Attention", "RotaryEmbedding"):
            assert types.get(op, {low}) == {low}, (graph, op)
        counts = count_types(model)
        assert counts[low] >= 20
        path = tmp_path / f"{graph}.onnx"
        save_typed(model, path)
        # Strong typing: the checker infers the same types from the operators' rules.
        onnx.checker.check_model(path, full_check=True)
        saved = onnx.load(path, load_external_data=False).graph
        expected = [(t.name, t.dtype) for t in nano.spec.graphs[graph].outputs]
        kinds = {1: "float32", 2: "uint8"}
        assert [(o.name, kinds[o.type.tensor_type.elem_type]) for o in saved.output] == expected


def test_float16_runs_as_typed(nano: Bundle, tmp_path: Path) -> None:
    inputs = sample_inputs(nano, "transformer")
    results = []
    for precision in ("fp32", "fp16"):
        path = tmp_path / f"{precision}.onnx"
        save_typed(typed(nano, "transformer", precision), path)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        results.append(session.run(None, inputs)[0])
    assert 0 < relative_error(results[1], results[0]) < TOLERANCES["fp16"]
    emulated = measure_error(nano, "transformer", "fp16")["velocity"]
    assert relative_error(results[1], results[0]) == pytest.approx(emulated, rel=1.0)


def test_what_cannot_be_typed_is_refused(nano: Bundle) -> None:
    with pytest.raises(ValueError, match="fp32, bf16, fp16"):
        set_precision(ir.load(nano.graph_path("solver_step")), "fp8")
    narrow = typed(nano, "transformer", "fp16")
    with pytest.raises(ValueError, match="export it in float32"):
        set_precision(narrow, "bf16")


def test_standard_operators_alone_remain(nano: Bundle) -> None:
    model = ir.load(nano.graph_path("transformer"))
    use_standard_attention(model)
    assert {node.domain for node in model.graph} == {""}
    assert not model.functions
    blocks = nano.spec.model["transformer"]["num_blocks"]  # type: ignore[index]
    assert sum(node.op_type == "Attention" for node in model.graph) == blocks
