"""Kernel one's source, run on the host lane by lane: its numbers, and that it touches every element once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cpp.plugin.kernel_libraries import EmulatedKernel, EmulatedRun, Rope
from export import lower
from export.attention_nodes import DOMAIN, INPUTS, OP_TYPE
from reference.families.editverse import TransformerConfig

# float32 sums of up to 256 squares in another order, and a few roundings after.
FLOAT_TOLERANCE = 2e-6
# Half a unit in the last place of the short format, and what float32 leaves before the rounding.
SHORT_TOLERANCE = {"float16": 2.0**-11 * 1.01, "bfloat16": 2.0**-8 * 1.01}
ATTENTION_TOLERANCE = 2e-6


def make_inputs(rope: Rope, tokens: int, seed: int, largest_position: int = 300) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    inner = rope.num_heads * rope.head_dim
    inputs = {name: random.standard_normal((tokens, inner), np.float32) for name in ("q", "k", "v")}
    for name in ("q_norm", "k_norm"):
        inputs[name] = (1 + 0.3 * random.standard_normal(rope.head_dim)).astype(np.float32)
    inputs["positions"] = random.integers(0, largest_position, (tokens, 4), endpoint=True)
    return inputs


def normalize_and_rotate_in_double(
    rope: Rope, x: np.ndarray, norm: np.ndarray | None, positions: np.ndarray, *, float_angles: bool = True
) -> np.ndarray:
    """The oracle; without a norm the rows are turned alone.

    float_angles: frequency and angle rounded to float32, as the reference defines them.
    """
    kind = np.float32 if float_angles else np.float64
    angles = []
    for axis, (dim, theta) in enumerate(zip(rope.axis_dims, rope.axis_thetas, strict=True)):
        exponents = np.arange(0, dim, 2).astype(kind) / kind(dim or 1)
        frequencies = np.power(float(kind(theta)), -exponents.astype(np.float64)).astype(kind)
        angles.append(positions[:, axis, None].astype(kind) * frequencies)
    angle = np.concatenate(angles, axis=1).astype(np.float64)[:, None, :]
    rows = x.astype(np.float64).reshape(len(x), rope.num_heads, rope.head_dim)
    if norm is not None:
        rows = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + np.float64(np.float32(rope.epsilon)))
        rows = rows * norm.astype(np.float64)
    first, second = np.split(rows, 2, axis=-1)
    turned = (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle))
    return np.concatenate(turned, axis=-1).reshape(x.shape)


def shorten(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The values rounded to the dtype: as their 16 bits, and widened again."""
    rounded = torch.from_numpy(values).to(getattr(torch, dtype))
    return rounded.view(torch.int16).numpy().view(np.uint16), rounded.float().numpy()


def widen(values: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(values.view(np.int16)).view(getattr(torch, dtype)).float().numpy()


def assert_each_element_is_touched_as_it_should(run: EmulatedRun, rope: Rope) -> None:
    assert run.error == ""
    for name in "qk":
        assert (run.reads[name] == 1).all(), f"{name}: an element is read {run.reads[name].max()} times"
        assert (run.writes[name] == 1).all(), f"{name}: an element is written {run.writes[name].max()} times"
    warps = min(rope.num_heads, 4)
    for name in ("q_norm", "k_norm"):
        assert (run.reads[name] == len(run.q) * warps).all()
    pairs_of_axis = np.array(rope.axis_dims) // 2
    assert (run.reads["positions"] == pairs_of_axis * warps).all()


@st.composite
def ropes(draw: st.DrawFn) -> Rope:
    head_dim = 16 * draw(st.integers(1, 16))
    cuts = sorted(draw(st.lists(st.integers(0, head_dim // 2), min_size=3, max_size=3)))
    halves = np.diff([0, *cuts, head_dim // 2])
    thetas = draw(st.lists(st.sampled_from([10000.0, 1000.0, 98765.4]), min_size=4, max_size=4))
    dims = tuple(int(2 * half) for half in halves)
    return Rope(draw(st.integers(1, 9)), dims, tuple(thetas), draw(st.sampled_from([1e-6, 0.5])))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), tokens=st.integers(1, 5), seed=st.integers(0, 100))
def test_every_geometry_covers_each_row_once(
    emulated_kernel: EmulatedKernel, data: st.DataObject, tokens: int, seed: int
) -> None:
    rope = data.draw(ropes())
    inputs = make_inputs(rope, tokens, seed)
    run = emulated_kernel.normalize_and_rotate(rope, "float32", inputs)
    assert_each_element_is_touched_as_it_should(run, rope)
    for found, name in ((run.q, "q"), (run.k, "k")):
        expected = normalize_and_rotate_in_double(
            rope, inputs[name], inputs[f"{name}_norm"], inputs["positions"]
        )
        np.testing.assert_allclose(found, expected, atol=FLOAT_TOLERANCE, rtol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("num_heads", "axis_dims", "tokens"),
    [(16, (12, 4, 56, 56), 11), (4, (12, 8, 22, 22), 30), (3, (8, 8, 32, 32), 1), (5, (4, 4, 4, 4), 7),
     (2, (64, 64, 64, 64), 3)],
)  # fmt: skip
def test_short_formats_are_rounded_once(
    emulated_kernel: EmulatedKernel, dtype: str, num_heads: int, axis_dims: Any, tokens: int
) -> None:
    rope = Rope(num_heads, axis_dims)
    inputs = make_inputs(rope, tokens, seed=3)
    bits = {name: shorten(inputs[name], dtype)[0] for name in ("q", "k", "q_norm", "k_norm")}
    run = emulated_kernel.normalize_and_rotate(rope, dtype, {**bits, "positions": inputs["positions"]})
    assert_each_element_is_touched_as_it_should(run, rope)
    for found, name in ((run.q, "q"), (run.k, "k")):
        rounded = shorten(inputs[name], dtype)[1], shorten(inputs[f"{name}_norm"], dtype)[1]
        expected = normalize_and_rotate_in_double(rope, *rounded, inputs["positions"])
        np.testing.assert_allclose(
            widen(found, dtype), expected, rtol=SHORT_TOLERANCE[dtype], atol=FLOAT_TOLERANCE
        )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("num_heads", "axis_dims"), [(12, (0, 44, 42, 42)), (3, (0, 12, 10, 10))])
def test_rows_that_come_normalised_are_turned_alone(
    emulated_kernel: EmulatedKernel, dtype: str, num_heads: int, axis_dims: Any
) -> None:
    """Wan norms over all heads before the node; the shapes are those of its 1.3 billion, and a small one."""
    rope = Rope(num_heads, axis_dims, epsilon=0.0)
    inputs = make_inputs(rope, 7, seed=8)
    # A row of zeros would have no norm, with an epsilon of zero.
    inputs["q"][2] = 0.0
    given = {name: inputs[name] for name in ("q", "k", "positions")}
    values = {name: inputs[name] for name in "qk"}
    if dtype != "float32":
        for name in "qk":
            given[name], values[name] = shorten(inputs[name], dtype)
    run = emulated_kernel.normalize_and_rotate(rope, dtype, given)
    assert run.error == ""
    for found, name in ((run.q, "q"), (run.k, "k")):
        assert (run.reads[name] == 1).all()
        assert (run.writes[name] == 1).all()
        expected = normalize_and_rotate_in_double(rope, values[name], None, inputs["positions"])
        np.testing.assert_allclose(
            found if dtype == "float32" else widen(found, dtype),
            expected,
            rtol=SHORT_TOLERANCE.get(dtype, FLOAT_TOLERANCE),
            atol=FLOAT_TOLERANCE,
        )


@pytest.mark.parametrize("largest_position", [0, 1, 1000, 110_822, 10**6, 2**31 - 1, 2**40])
@pytest.mark.parametrize("ntk", [1.0, 8.0])
def test_hostile_positions(emulated_kernel: EmulatedKernel, largest_position: int, ntk: float) -> None:
    """The angle is rounded to float32, so against angles in double the error grows with the position."""
    dims = (12, 4, 56, 56)
    thetas = tuple(float(np.float32(10000.0 * ntk ** (d / max(d - 2, 1)))) for d in dims)
    rope = Rope(2, dims, thetas)
    inputs = make_inputs(rope, 6, seed=5, largest_position=largest_position)
    inputs["positions"][0] = largest_position
    inputs["positions"][1] = -largest_position
    run = emulated_kernel.normalize_and_rotate(rope, "float32", inputs)
    assert run.error == ""
    values = inputs["q"], inputs["q_norm"], inputs["positions"]
    exact_angles = normalize_and_rotate_in_double(rope, *values, float_angles=False)
    float_angles = normalize_and_rotate_in_double(rope, *values)
    np.testing.assert_allclose(run.q, float_angles, atol=FLOAT_TOLERANCE, rtol=FLOAT_TOLERANCE)
    if largest_position <= 10**6:
        largest_value = np.abs(exact_angles).max()
        error = np.abs(run.q - exact_angles).max()
        assert error <= FLOAT_TOLERANCE + 2 * largest_value * largest_position * 2.0**-23


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_of_zeros_and_of_the_largest_values(emulated_kernel: EmulatedKernel, dtype: str) -> None:
    rope = Rope(2, (4, 4, 12, 12))
    inputs = make_inputs(rope, 2, seed=1)
    inputs["q"][0] = 0.0
    inputs["q"][1] = 65504.0 if dtype == "float16" else 1e18
    if dtype == "float32":
        run = emulated_kernel.normalize_and_rotate(rope, dtype, inputs)
        q = run.q
    else:
        bits = {name: shorten(inputs[name], dtype)[0] for name in ("q", "k", "q_norm", "k_norm")}
        run = emulated_kernel.normalize_and_rotate(rope, dtype, {**bits, "positions": inputs["positions"]})
        q = widen(run.q, dtype)
    assert (q[0] == 0).all()
    # A row of equal values is normalised to the learned scale, however large they are.
    assert np.isfinite(q).all()
    assert np.abs(q[1]).max() <= 1.01 * np.sqrt(2) * np.abs(inputs["q_norm"]).max()


def test_both_positions_and_each_axis_matter(emulated_kernel: EmulatedKernel) -> None:
    rope = Rope(2, (4, 4, 12, 12))
    inputs = make_inputs(rope, 5, seed=2)
    before = emulated_kernel.normalize_and_rotate(rope, "float32", inputs)
    for axis in range(4):
        positions = inputs["positions"].copy()
        positions[3, axis] += 5
        after = emulated_kernel.normalize_and_rotate(rope, "float32", {**inputs, "positions": positions})
        changed = np.abs(after.q - before.q).max(1) > 100 * FLOAT_TOLERANCE
        assert changed.tolist() == [False, False, False, True, False]


def bodies_of(rope: Rope) -> onnx.ModelProto:
    """The `inline` lowering of one node, its function bodies inlined, with the turned q and k as outputs."""
    config = TransformerConfig(
        width=8, num_blocks=1, num_heads=rope.num_heads, head_dim=rope.head_dim, mlp_width=8, time_width=8,
        patch_dim=8, text_dim=8, axis_dims=rope.axis_dims, rope_theta=rope.axis_thetas[0],
        norm_eps=rope.epsilon,
    )  # fmt: skip
    assert config.axis_thetas == rope.axis_thetas
    inner = rope.num_heads * rope.head_dim
    node = helper.make_node(
        OP_TYPE, list(INPUTS), ["mixed"], domain=DOMAIN, num_heads=rope.num_heads,
        axis_dims=list(rope.axis_dims), axis_thetas=list(rope.axis_thetas), epsilon=rope.epsilon,
    )  # fmt: skip
    shapes: dict[str, list[int | str]] = {name: ["L", inner] for name in ("q", "k", "v")}
    shapes |= {"q_norm": [rope.head_dim], "k_norm": [rope.head_dim]}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    inputs.append(helper.make_tensor_value_info("positions", TensorProto.INT64, ["L", 4]))
    output = helper.make_tensor_value_info("mixed", TensorProto.FLOAT, ["L", inner])
    graph = helper.make_graph([node], "node", inputs, [output])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    lower.lower_attention(model, lower.rope_config(config), "inline")
    inlined = onnx.inliner.inline_local_functions(ir.to_proto(model))
    turned = [n.output[0] for n in inlined.graph.node if n.op_type == "RotaryEmbedding"]
    assert len(turned) == 2
    inlined.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "L", inner]) for name in turned
    )
    return inlined


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, num_heads: int) -> np.ndarray:
    q, k, v = (x.astype(np.float64).reshape(len(x), num_heads, -1).swapaxes(0, 1) for x in (q, k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return mixed.swapaxes(0, 1).reshape(q.shape[1], -1)


@pytest.mark.parametrize(
    ("num_heads", "axis_dims", "tokens"),
    [(16, (12, 4, 56, 56), 9), (3, (12, 8, 22, 22), 33), (5, (4, 4, 12, 12), 1)],
)
def test_the_kernel_equals_the_function_body_in_onnx_runtime(
    emulated_kernel: EmulatedKernel, num_heads: int, axis_dims: Any, tokens: int
) -> None:
    rope = Rope(num_heads, axis_dims, epsilon=1e-5)
    inputs = make_inputs(rope, tokens, seed=7)
    session = ort.InferenceSession(bodies_of(rope).SerializeToString(), providers=["CPUExecutionProvider"])
    mixed, q, k = session.run(None, inputs)
    run = emulated_kernel.normalize_and_rotate(rope, "float32", inputs)
    np.testing.assert_allclose(run.q, q[0], atol=FLOAT_TOLERANCE, rtol=FLOAT_TOLERANCE)
    np.testing.assert_allclose(run.k, k[0], atol=FLOAT_TOLERANCE, rtol=FLOAT_TOLERANCE)
    attended = attend(run.q, run.k, inputs["v"], num_heads)
    np.testing.assert_allclose(attended, mixed, atol=ATTENTION_TOLERANCE, rtol=ATTENTION_TOLERANCE)


@pytest.mark.parametrize(
    ("tokens", "num_heads", "head_dim", "expected"),
    [
        (1, 1, 16, (1, 1, 1)),
        (32_760, 16, 128, (32_760, 4, 2)),
        (110_822, 16, 128, (110_822, 4, 2)),
        (32_760, 12, 128, (32_760, 4, 2)),
        (7, 3, 64, (7, 3, 1)),
        (7, 5, 80, (7, 4, 2)),
        (2**31 - 1, 40, 256, (2**31 - 1, 4, 4)),
    ],
)
def test_the_geometry_stays_within_the_limits_of_a_launch(
    emulated_kernel: EmulatedKernel,
    tokens: int,
    num_heads: int,
    head_dim: int,
    expected: tuple[int, int, int],
) -> None:
    blocks, warps, pairs = emulated_kernel.geometry_of(tokens, num_heads, head_dim)
    assert (blocks, warps, pairs) == expected
    assert 32 * pairs >= head_dim // 2
    assert (head_dim // 2) % pairs == 0


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 500), min_size=1, max_size=300))
def test_packed_sequences_are_described(emulated_kernel: EmulatedKernel, lengths: list[int]) -> None:
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    found, elements, run = emulated_kernel.describe_packing(offsets, 2048)
    assert run.error == ""
    np.testing.assert_array_equal(found, lengths)
    np.testing.assert_array_equal(elements, offsets * 2048)
    assert (run.writes["lengths"] == 1).all()
    assert (run.writes["elements"] == 1).all()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (0, "a shuffle that not every lane"),
        (1, "a read outside every buffer"),
        (2, "an access of 4 bytes is not aligned"),
        (3, "a write into an input"),
    ],
)
def test_the_emulation_notices_what_a_device_would_not_forgive(
    emulated_kernel: EmulatedKernel, kind: int, message: str
) -> None:
    assert message in emulated_kernel.run_broken_kernel(kind)


def test_another_attribute_gives_another_result(emulated_kernel: EmulatedKernel) -> None:
    rope = Rope(2, (4, 4, 12, 12))
    inputs = make_inputs(rope, 5, seed=4)
    before = emulated_kernel.normalize_and_rotate(rope, "float32", inputs).q
    for changed in (replace(rope, epsilon=0.5), replace(rope, axis_thetas=(1e4, 1e4, 1e4, 5e4))):
        after = emulated_kernel.normalize_and_rotate(changed, "float32", inputs).q
        assert np.abs(after - before).max() > 100 * FLOAT_TOLERANCE
