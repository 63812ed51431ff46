"""Convolutions frame by frame against PyTorch's own over time and space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from editverse_rt.backends import select_backend
from editverse_rt.bundle.manifest import load_bundle
from export.convolutions import unroll_convolutions

# Sums in another order, in float32.
TOLERANCE = 1e-5


def model_of(
    kernel: np.ndarray, frames: int | str, channels: int, strides: list[int], pads: list[int], **more: object
) -> ir.Model:
    """One convolution between two identities, so that its result stays inside."""
    conv = helper.make_node(
        "Conv", ["x_in", "kernel", "bias"], ["y_in"], name="conv", strides=strides, pads=pads,
        kernel_shape=list(kernel.shape[2:]), **more,
    )  # fmt: skip
    bias = np.linspace(-1, 1, kernel.shape[0]).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["x_in"]), conv, helper.make_node("Identity", ["y_in"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, frames, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 5)],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")],
        value_info=[
            helper.make_tensor_value_info("x_in", TensorProto.FLOAT, [1, channels, frames, "H", "W"])
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def run(model: ir.Model, x: np.ndarray, folder: Path) -> np.ndarray:
    path = folder / "model.onnx"
    ir.save(model, path)
    onnx.checker.check_model(path)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("size", "frames", "strides", "pads"),
    [
        ((3, 3, 3), 6, [1, 1, 1], [0, 1, 1, 0, 1, 1]),  # a chunk of four frames behind a cache of two
        ((3, 3, 3), 3, [1, 1, 1], [0, 1, 1, 0, 1, 1]),  # one frame behind a cache
        ((3, 3, 3), 1, [1, 1, 1], [2, 1, 1, 0, 1, 1]),  # the first frame behind zeros
        ((3, 3, 3), 4, [1, 1, 1], [2, 1, 1, 0, 1, 1]),
        ((3, 3, 3), 2, [1, 1, 1], [1, 1, 1, 1, 1, 1]),
        ((3, 1, 1), 5, [2, 1, 1], [0, 0, 0, 0, 0, 0]),  # half as many frames
        ((3, 1, 1), 1, [1, 1, 1], [2, 0, 0, 0, 0, 0]),
        ((1, 1, 1), 2, [1, 1, 1], [0, 0, 0, 0, 0, 0]),
        ((1, 3, 3), 2, [1, 2, 2], [0, 0, 1, 0, 1, 0]),
    ],
)
def test_a_convolution_is_pytorchs(size, frames: int, strides: list[int], pads: list[int], tmp_path: Path):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 4, *size)).astype(np.float32)
    model = model_of(kernel, frames, 4, strides, pads)
    assert unroll_convolutions(model) == 1
    x = rng.normal(size=(1, 4, frames, 6, 7)).astype(np.float32)
    found = run(model, x, tmp_path)
    t0, h0, w0, t1, h1, w1 = pads
    padded = F.pad(torch.from_numpy(x), (w0, w1, h0, h1, t0, t1))
    bias = torch.linspace(-1, 1, 5)
    expected = F.conv3d(padded, torch.from_numpy(kernel), bias, stride=strides).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()
    weights = [v.const_value.shape for v in model.graph.initializers.values() if "taps" in (v.name or "")]
    assert all(len(shape) == 4 for shape in weights)
    assert "kernel" not in model.graph.initializers


def test_frames_of_padding_cost_nothing():
    kernel = np.ones((2, 3, 3, 3, 3), np.float32)
    model = model_of(kernel, 1, 3, [1, 1, 1], [2, 1, 1, 0, 1, 1])
    unroll_convolutions(model)
    (weight,) = [v for name, v in model.graph.initializers.items() if "taps" in name]
    assert weight.const_value.shape == (2, 3, 3, 3)


def test_pictures_are_left_alone():
    kernel = np.ones((2, 3, 3, 3), np.float32)
    conv = helper.make_node("Conv", ["x", "kernel"], ["y"], kernel_shape=[3, 3])
    graph = helper.make_graph(
        [conv],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
    assert unroll_convolutions(model) == 0
    assert [node.op_type for node in model.graph] == ["Conv"]


@pytest.mark.parametrize(
    ("frames", "more", "message"),
    [
        ("T", {}, "expected a known number of frames"),
        (4, {"dilations": [2, 1, 1]}, "expected a plain convolution"),
        (4, {"group": 2}, "expected a plain convolution"),
    ],
)
def test_what_cannot_be_unrolled_is_refused(frames: int | str, more: dict, message: str):
    kernel = np.ones((2, 4 // int(more.get("group", 1)), 3, 3, 3), np.float32)
    model = model_of(kernel, frames, 4, [1, 1, 1], [0] * 6, **more)
    with pytest.raises(ValueError, match=message):
        unroll_convolutions(model)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_threads_change_no_byte_of_a_vae_that_goes_frame_by_frame(bundle_folder: Path, half: str):
    bundle = load_bundle(bundle_folder)
    assert bundle.spec.capabilities.convolutions == "frames"
    geometry = bundle.spec.geometry
    side, rng = geometry.size_multiple, np.random.default_rng(0)
    given = {
        "encoder": {"frames": rng.integers(0, 256, (1, 3 * side, 5 * side, 3)).astype(np.uint8)},
        "decoder": {"patches": rng.normal(size=(1, 3, 5, geometry.patch_dim)).astype(np.float32)},
    }[half]
    found = []
    for threads in (1, 2, 3):
        with select_backend("ort-cpu", bundle).backend.open_runner(bundle, threads) as runner:
            outputs = runner.run(f"vae_{half}_first", given)
            caches = {n.removeprefix("next_"): x for n, x in outputs.items() if n.startswith("next_cache")}
            chunk = given if half == "decoder" else {"frames": np.repeat(given["frames"], 4, 0)}
            found.append([*outputs.values(), *runner.run(f"vae_{half}_next", {**chunk, **caches}).values()])
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found[0], other, strict=True))
