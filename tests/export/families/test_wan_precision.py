"""A small Wan request in fewer bits, against float32: frames of a whole request, and how near they must come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from editverse_rt import Pipeline, load_bundle
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.quality.heldout import measure_psnr_db
from export.emulate import emulate_bundle
from export.integers import quantize_bundle
from export.orders import built_graphs


def emulated(precision: str, *parts: str) -> Callable[[Bundle, Path], Path]:
    """Every value that a plan would hold in 16 bits is rounded; all graphs, or those that begin so."""

    def make(bundle: Bundle, folder: Path) -> Path:
        names = [name for name in built_graphs(bundle) if name.startswith(parts or ("",))]
        return emulate_bundle(bundle, {n: precision for n in names if n != "solver_step"}, folder).root

    return make


# The least PSNR in dB, some 10 below what was measured: 61.3, 65.0 and 59.9. Random weights, so it says what rounding
# does to numbers, and nothing of what it does to the pictures of a trained model.
FORMS = {
    "bf16 as the RTX 4090's recipe": (emulated("bf16", "transformer", "text_encoder"), 51.0),
    "fp16 throughout, as the T4's": (emulated("fp16"), 55.0),
    "8-bit integers": (lambda bundle, folder: quantize_bundle(bundle.root, folder), 50.0),
}


@pytest.fixture(scope="module")
def exact(wan_bundle: Path) -> np.ndarray:
    return run(wan_bundle)


def run(folder: Path) -> np.ndarray:
    with Pipeline.open(folder, "ort-cpu", num_threads=1) as pipeline:
        return pipeline("A cat walks.", size=(64, 64), num_frames=9, num_inference_steps=6, seed=3).frames


@pytest.mark.parametrize("form", list(FORMS))
def test_frames_in_fewer_bits(
    form: str, wan_bundle: Path, exact: np.ndarray, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    make, least_db = FORMS[form]
    found = run(make(load_bundle(wan_bundle), tmp_path / "fewer"))
    distance = measure_psnr_db(found, exact)
    record_property("psnr_db", distance)
    assert least_db <= distance < 99, f"{form}: {distance:.1f} dB"
