"""Seven requests to nano give the frames that they gave before: byte for byte on the kind of processor that the
frames are of, within a grey level elsewhere.

ONNX Runtime chooses its kernels by the instructions of the processor, and kernels add in different orders
(docs/machines.md). After an intended change of nano: `python tests/editverse_rt/test_nano_frames.py`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import onnxruntime
import pytest

from editverse_rt import EditRequest, Pipeline

FRAMES_FILE = Path(__file__).with_name("nano_frames.npz")
# An edit on emulated processors: 1 level in 0.005 % of the values (docs/machines.md).
MOST_LEVELS, MOST_SHARE = 1, 5e-3
FEATURES = ("AVX2", "FMA3", "AVX512F", "AVX512_SKX", "AVX512_CLX", "AVX512_ICL", "AVX512_SPR", "ASIMD")
"""The instructions by which ONNX Runtime's float kernels differ, by numpy's names."""


def machine_kind() -> dict[str, Any]:
    """What decides the bytes: the kind of processor, its instructions, and ONNX Runtime."""
    from numpy._core._multiarray_umath import __cpu_features__ as has

    return {
        "machine": platform.machine(),
        "features": [name for name in FEATURES if has.get(name, False)],
        "onnxruntime": onnxruntime.__version__,
    }


def draw_clip(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A red disc that moves right over a gradient, in integers."""
    rows, columns = np.mgrid[0:height, 0:width]
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[..., 1], frame[..., 2] = 60 + 2 * rows, 80 + columns
        frame[(rows - height // 2) ** 2 + (columns - 20 - 2 * i) ** 2 < 100] = (220, 30, 36)
    return frames


def draw_requests() -> dict[str, EditRequest]:
    """Every schedule, guidance, each number of inputs, and lengths from an image to three chunks."""
    image, video = draw_clip(1)[0], draw_clip(9)
    return {
        "a picture": EditRequest("A red circle", num_frames=1, size=(48, 64), num_inference_steps=4),
        "a video": EditRequest("A blue square", num_frames=5, size=(48, 64), schedule="fast", seed=3),
        "an image": EditRequest("<image1> Make it grayscale", {"image1": image}, schedule="balanced"),
        "nine frames": EditRequest("<video1> Turn the circle green", {"video1": video}, schedule="fast"),
        "no guidance": EditRequest(
            "<video1> Remove the circle", {"video1": video[:5]}, guidance_scale=1, num_inference_steps=3
        ),
        "two inputs": EditRequest(
            "<video1> Insert <image1>", {"video1": video[:5], "image1": image}, num_inference_steps=2
        ),
        "another number of steps": EditRequest(
            "<image1> Make it night",
            {"image1": image},
            schedule="balanced",
            num_inference_steps=7,
            seed=2**40,
        ),
    }


def run_requests(pipeline: Pipeline) -> dict[str, np.ndarray]:
    return {name: pipeline.run(pipeline.prepare(r)).frames for name, r in draw_requests().items()}


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, np.ndarray]]:
    with Pipeline.open("nano", "ort-cpu", num_threads=1) as pipeline:
        yield run_requests(pipeline)


@pytest.mark.parametrize("name", draw_requests())
def test_a_result_is_what_it_was(found: dict[str, np.ndarray], name: str) -> None:
    with np.load(FRAMES_FILE) as stored:
        kinds, expected = json.loads(str(stored["kinds"])), stored[name]
    assert found[name].shape == expected.shape
    difference = np.abs(found[name].astype(int) - expected)
    assert difference.max() <= MOST_LEVELS
    assert (difference > 0).mean() <= MOST_SHARE
    for kind in kinds:
        if kind["kind"] == machine_kind():
            assert hashlib.sha256(found[name].tobytes()).hexdigest() == kind["sha256"][name]


def write_frames() -> None:
    """Writes the frames and hashes of this machine in place of all others."""
    with Pipeline.open("nano", "ort-cpu", num_threads=1) as pipeline:
        frames = run_requests(pipeline)
    hashes = {name: hashlib.sha256(clip.tobytes()).hexdigest() for name, clip in frames.items()}
    kinds = json.dumps([{"kind": machine_kind(), "sha256": hashes}])
    np.savez_compressed(FRAMES_FILE, kinds=np.array(kinds), **frames)


if __name__ == "__main__":
    write_frames()
