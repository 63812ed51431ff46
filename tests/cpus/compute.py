"""Computes a little of everything and writes what came out: `python tests/cpus/compute.py OUT.npz INT8_BUNDLE`.

`compare.py` runs it on this processor and on emulated ones. It needs the runtime and nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python tests/cpus/compute.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from editverse_rt import Pipeline, media
from editverse_rt.backends.ort import import_onnxruntime
from editverse_rt.backends.ort_probes import saturates_integers

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample.mp4"
NUM_TEXT, NUM_ROWS = 9, 24
SIZE, NUM_FRAMES, STEPS = (32, 48), 5, 3


def compute(int8_bundle: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Results by name; each is drawn from a seed of its own, so that one may be left out."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    found["saturates"] = np.array(saturates_integers(import_onnxruntime()))
    with Pipeline.open("nano", "ort-cpu", num_threads=1) as pipeline:
        found |= compute_graphs(pipeline)
        found["edit"] = edit(pipeline)
        found["edit of a file"] = pipeline(
            "<video1> Make it night", video1=SAMPLE, num_frames=1, num_inference_steps=1
        ).frames
    with Pipeline.open("nano", "ort-cpu", num_threads=3) as pipeline:
        found["edit, 3 threads"] = edit(pipeline)
    with Pipeline.open(int8_bundle, "ort-cpu", num_threads=1) as pipeline:
        found["transformer in integers"] = evaluate_transformer(pipeline)
        found["edit in integers"] = edit(pipeline)
    return found | pass_media()


def compute_graphs(pipeline: Pipeline) -> dict[str, np.ndarray[Any, Any]]:
    """One call of each kind of graph."""
    found, rng = {}, np.random.default_rng(1)
    ids = np.array([5, 40, 200, 17, 300, 9, 1], np.int64)
    found["text encoder"] = pipeline.run_graph("text_encoder", ids=ids)["text"]
    found["noise"] = pipeline.run_graph(
        "noise", seed=np.array(7, np.int64), shape=np.array([NUM_ROWS, 192], np.int64)
    )["noise"]
    found["transformer"] = evaluate_transformer(pipeline)
    picture = rng.integers(0, 256, (1, *SIZE, 3), np.uint8)
    encoded = pipeline.run_graph("vae_encoder_first", frames=picture)
    found["VAE encoder"] = encoded["patches"]
    decoded = pipeline.run_graph("vae_decoder_first", patches=encoded["patches"])
    found["VAE decoder"] = decoded["frames"]
    return found


def evaluate_transformer(pipeline: Pipeline) -> np.ndarray[Any, Any]:
    """velocity [24, 192] of random rows, with a sequence that mixes all three kinds."""
    rng, spec = np.random.default_rng(2), pipeline.bundle.spec.graphs["transformer"]
    widths = {tensor.name: tensor.shape[-1] for tensor in spec.inputs if tensor.name in ("text", "clean")}
    length = NUM_TEXT + 2 * NUM_ROWS
    velocity: np.ndarray[Any, Any] = pipeline.run_graph(
        "transformer",
        text=rng.standard_normal((NUM_TEXT, int(widths["text"])), np.float32),
        clean=rng.standard_normal((NUM_ROWS, int(widths["clean"])), np.float32),
        noisy=rng.standard_normal((NUM_ROWS, int(widths["clean"])), np.float32),
        layout=np.arange(length, dtype=np.int64),
        positions=rng.integers(0, 30, (length, 4)),
        timestep=np.array(0.5, np.float32),
    )["velocity"]
    return velocity


def edit(pipeline: Pipeline) -> np.ndarray[Any, Any]:
    frames = np.random.default_rng(3).integers(0, 256, (NUM_FRAMES, *SIZE, 3), np.uint8)
    return pipeline("<video1> Make it night", video1=frames, num_inference_steps=STEPS).frames


def pass_media() -> dict[str, np.ndarray[Any, Any]]:
    """What the readers give, and the bytes that the writers write."""
    frames = np.random.default_rng(4).integers(0, 256, (3, 48, 64, 3), np.uint8)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".png", ".gif"):
            path = Path(folder) / f"out{suffix}"
            media.write_clip(path, frames[:1] if suffix == ".png" else frames, 8.0)
            found[f"bytes of a {suffix}"] = np.fromfile(path, np.uint8)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    parser.add_argument("int8", type=Path, metavar="INT8_BUNDLE")
    args = parser.parse_args()
    np.savez(args.out, **compute(args.int8))
    return 0


if __name__ == "__main__":
    sys.exit(main())
