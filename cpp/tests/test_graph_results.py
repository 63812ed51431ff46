"""Graphs that give results of other shapes than the bundle says: the C library refuses them, and does not end.

Each bundle is a copy of nano in which one graph was replaced. What such a graph gives is a constant.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cpp.tests import library as native

NANO = native.ROOT / "editverse_rt" / "bundles" / "nano"
DTYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "int64": onnx.TensorProto.INT64,
    "uint8": onnx.TensorProto.UINT8,
}
Constants = Mapping[str, NDArray[Any]]


def bundle_with(folder: Path, graph: str, constants: Constants) -> Path:
    """A copy of nano whose graph gives these constants, of whatever shape."""
    shutil.copytree(NANO, folder)
    spec = json.loads((folder / "bundle.json").read_text("utf-8"))
    facts = spec["graphs"][graph]
    inputs = [
        helper.make_tensor_value_info(
            tensor["name"],
            DTYPES[tensor["dtype"]],
            [axis if isinstance(axis, int) else axis.replace("*", "_") for axis in tensor["shape"]],
        )
        for tensor in facts["inputs"]
    ]
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in constants.items()
    ]
    nodes = [helper.make_node("Identity", [f"{name}_given"], [name]) for name in constants]
    given = [numpy_helper.from_array(array, f"{name}_given") for name, array in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, graph, inputs, outputs, given),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, folder / facts["file"])
    for file in spec["files"]:
        data = (folder / file["path"]).read_bytes()
        file["num_bytes"], file["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(spec), "utf-8")
    return folder


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def table(num_steps: int, **changed: NDArray[Any]) -> Constants:
    """What a schedule's graph gives, but for some columns."""
    columns = {name: np.linspace(0, 0.5, num_steps) for name in ("times", "timesteps", "guidance")}
    matrices = np.zeros((num_steps, 3, 4))
    return {**columns, "matrices": matrices, "experts": np.zeros(num_steps, np.int64), **changed}


CASES: dict[str, tuple[str, Constants, str]] = {
    "a text that is a number": ("text_encoder", {"text": zeros()}, '"text" of shape []'),
    "a text of one row": ("text_encoder", {"text": zeros(1, 128)}, '"text" of shape [1, 128]'),
    "a text of narrow rows": ("text_encoder", {"text": zeros(5, 8)}, '"text" of shape [5, 8]'),
    "noise of one row": ("noise", {"noise": zeros(1, 256)}, '"noise" of shape [1, 256]'),
    "noise that is a number": ("noise", {"noise": zeros()}, '"noise" of shape []'),
    "a velocity of one row": ("transformer", {"velocity": zeros(1, 256)}, '"velocity" of shape [1, 256]'),
    "a sample of one row": (
        "solver_step",
        {"sample_next": zeros(1, 256), "history_next": zeros(2, 1, 256)},
        '"sample_next" of shape [1, 256]',
    ),
    "times of one step": (
        "schedule_euler",
        table(2, times=zeros(1).astype(np.float64)),
        '"times" of shape [1]',
    ),
    "a transformer that is not there": (
        "schedule_euler",
        table(2, experts=np.array([0, 1])),
        "gave a step of the transformer 1",
    ),
    "a transformer of no number": (
        "schedule_euler",
        table(2, experts=np.array([0, -7])),
        "gave a step of the transformer -7",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_result_of_another_shape_is_refused(name: str, tmp_path: Path) -> None:
    graph, constants, found = CASES[name]
    with native.NativePipeline(bundle_with(tmp_path / "bundle", graph, constants)) as pipeline:
        for _ in range(2):  # the pipeline can be used again
            with pytest.raises(native.LibraryError) as error:
                pipeline.run("A red circle", num_frames=5, num_inference_steps=2, guidance_scale=1)
    assert error.value.name == "BackendError"
    assert error.value.facts["code"] == "backend.outputs"
    assert error.value.facts["found"].startswith(f'graph "{graph}" gave ')
    assert found in error.value.facts["found"]
    assert error.value.facts["expected"]
    assert error.value.facts["hint"] == "export the bundle again"


@pytest.mark.parametrize(
    ("graph", "constants"),
    [
        ("vae_decoder_first", {"frames": np.zeros((1, 16, 16, 3), np.uint8)}),
        ("solver_step", {"sample_next": zeros(1, 256), "history_next": zeros(2, 1, 256)}),
    ],
)
def test_a_result_that_does_not_fill_its_place_is_refused(
    graph: str, constants: Constants, tmp_path: Path
) -> None:
    """What goes into the host's memory at once: ONNX Runtime holds it to the size of that memory."""
    spec = json.loads((NANO / "bundle.json").read_text("utf-8"))
    caches = {
        tensor["name"]: zeros(*(axis if isinstance(axis, int) else 2 for axis in tensor["shape"]))
        for tensor in spec["graphs"][graph]["outputs"]
        if tensor["name"].startswith("next_cache_")
    }
    folder = bundle_with(tmp_path / "bundle", graph, {**constants, **caches})
    with native.NativePipeline(folder) as pipeline, pytest.raises(native.LibraryError) as error:
        pipeline.run("A red circle", num_frames=1, num_inference_steps=1, guidance_scale=1)
    assert error.value.name == "BackendError"
