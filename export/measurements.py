"""What a comparison of a bundle with PyTorch gives: measurements, their tolerances, a table, a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from editverse_rt.bundle.manifest import Bundle
from export.blocks import has_blocks

__all__ = [
    "EDIT_TOLERANCE",
    "REQUEST_PATCHES",
    "TOLERANCES",
    "Measure",
    "Measurement",
    "compare_keep_known",
    "format_table",
    "make_clip",
    "measure_against",
    "report_parity",
]

Array = NDArray[Any]

# Largest relative error, |bundle - reference| / |reference| over a whole tensor, by what the graphs compute
# in. Frames are measured by the share of pixels that differ by more than one grey level.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {
        "text_encoder": 1e-4,
        "vae_encoder_first": 1e-4,
        "vae_encoder_next": 1e-4,
        "condition": 1e-6,
        "transformer": 1e-4,
        "transformer, unconditional": 1e-4,
        "transformer_2": 1e-4,
        "add_noise": 1e-6,
        "keep_known": 1e-6,
        "solver_step": 1e-6,
        "schedule": 1e-9,
        "noise": 1e-6,
        "vae_decoder_first": 1e-3,
        "vae_decoder_next": 1e-3,
    },
}
_TRANSFORMERS = ("transformer", "transformer, unconditional", "transformer_2")
# Weights and activations of eight bits: far from float32, and judged by what edits come out right.
TOLERANCES["int8"] = TOLERANCES["float32"] | dict.fromkeys(_TRANSFORMERS, 5e-2)
TOLERANCES["float16"] = TOLERANCES["float32"] | dict.fromkeys((*_TRANSFORMERS, "text_encoder"), 5e-3)
BLOCKS_TOLERANCE = 5e-2
"""Of a text encoder whose matrices are in blocks of 8 bits: 1.9e-2 was measured of UMT5-XXL with random weights."""
# A whole request may be as far off as the widest of the graphs that its patches come from, and no further: an error
# must not grow on its way. Frames may be off by that share of their range, by one grey level at least.
REQUEST_PATCHES = "request, patches"
_REQUEST_GRAPHS = ("text_encoder", *_TRANSFORMERS)
# Largest share of the pixels of a whole edit that may differ by more than that.
EDIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Measurement:
    """One graph on one case: the largest difference, and what is held to the tolerance.

    grey_levels: of frames, the difference of a pixel that is still taken for equal.
    """

    graph: str
    case: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float
    tolerance: float
    grey_levels: int = 1

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.relative <= self.tolerance


Measure = Callable[[str, str, Array, Array], Measurement]
"""Measures (graph, case, found, expected)."""


def measure_against(bundle: Bundle) -> Measure:
    """A function that measures with the tolerances of a bundle; it raises ValueError for other shapes.

    Raises ValueError for a bundle whose graphs compute in a dtype that has no tolerances.
    """
    can = bundle.spec.capabilities
    dtype = can.weights if can.weights != "float" else can.dtype
    if dtype not in TOLERANCES:
        raise ValueError(f"the bundle computes in {dtype}; tolerances are known for {', '.join(TOLERANCES)}")
    tolerances = dict(TOLERANCES[dtype])
    if has_blocks(ir.load(bundle.graph_path("text_encoder"))):
        tolerances["text_encoder"] = BLOCKS_TOLERANCE
    tolerances[REQUEST_PATCHES] = max(tolerances[graph] for graph in _REQUEST_GRAPHS)
    levels_of_request = max(1, math.ceil(255 * tolerances[REQUEST_PATCHES]))

    def measure(graph: str, case: str, found: Array, expected: Array) -> Measurement:
        if found.shape != expected.shape:
            raise ValueError(f"{graph}, {case}: the bundle gives {found.shape}, PyTorch {expected.shape}")
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        size = float(np.linalg.norm(expected.astype(np.float64)))
        relative = float(np.linalg.norm(difference)) / max(size, 1e-30)
        is_whole = graph.startswith("whole ")
        grey_levels = levels_of_request if is_whole else 1
        if expected.dtype == np.uint8:
            relative = float((difference > grey_levels).mean())
        worst = float(difference.max(initial=0.0))
        tolerance = EDIT_TOLERANCE if is_whole else tolerances[graph]
        return Measurement(graph, case, expected.shape, worst, relative, tolerance, grey_levels)

    return measure


def compare_keep_known(
    measure: Measure, case: str, run: Callable[..., Mapping[str, Any]], sample: Array, noise: Array
) -> Measurement:
    """The graph keep_known on every third row, against float64. sample, noise: float32 [Lg, P]."""
    rows = np.arange(0, len(sample), 3, dtype=np.int64)
    known, time = np.cos(3 * noise[rows]), np.float32(0.3)
    found = run("keep_known", sample=sample, known=known, noise=noise, rows=rows, time=np.array(time))
    expected = sample.astype(np.float64)
    expected[rows] = float(time) * known.astype(np.float64) + (1 - float(time)) * noise[rows].astype(
        np.float64
    )
    return measure("keep_known", case, np.asarray(found["sample_next"]), expected)


def make_clip(num_frames: int, height_px: int, width_px: int, seed: int) -> Array:
    """A clip uint8 [T, H, W, 3] with smooth parts, edges, grain and motion."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height_px, 0:width_px] / max(height_px, width_px)
    slopes, phases, disc = rng.uniform(-1, 1, (3, 2)), rng.uniform(0, 6, 3), rng.uniform(0, 255, 3)
    frames = []
    for t in range(num_frames):
        waves = np.sin(6 * (y[..., None] * slopes[:, 0] + x[..., None] * slopes[:, 1]) + phases + 0.3 * t)
        picture = 128 + 90 * waves + rng.normal(0, 6, (height_px, width_px, 3))
        inside = (y - 0.3) ** 2 + (x - 0.2 - 0.05 * t) ** 2 < 0.03
        picture[inside] = disc
        frames.append(picture)
    clip: Array = np.clip(np.stack(frames), 0, 255).astype(np.uint8)
    return clip


def format_table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table: a line a graph, a column a case, "largest absolute / relative error" in a cell."""
    cases = list(dict.fromkeys(m.case for m in measurements))
    graphs = list(dict.fromkeys(m.graph for m in measurements))
    rows = [["graph", *cases, "tolerance"]]
    for graph in graphs:
        row = [graph]
        for case in cases:
            # A graph may run on several clips of one case; the worst stands for all.
            same = [m for m in measurements if (m.graph, m.case) == (graph, case)]
            worst = max(same, key=lambda m: m.relative, default=None)
            mark = "" if worst is None or worst.passed else " FAILED"
            row.append("" if worst is None else f"{worst.max_abs:.1e} / {worst.relative:.1e}{mark}")
        tolerance = max(m.tolerance for m in measurements if m.graph == graph)
        rows.append([*row, f"{tolerance:.0e}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def report_parity(measurements: Sequence[Measurement], backend: str) -> dict[str, object]:
    """The measurements as JSON for `quality.parity` of bundle.json: the worst of each graph, and with what."""
    stages: dict[str, dict[str, float]] = {}
    for found in measurements:
        known = stages.get(found.graph)
        if known is None or found.relative > known["relative"]:
            stages[found.graph] = {
                "relative": found.relative,
                "largest": found.max_abs,
                "tolerance": found.tolerance,
                **({"grey_levels": found.grey_levels} if found.grey_levels > 1 else {}),
            }
    packages = ("torch", "diffusers", "onnxruntime")
    return {
        "against": "PyTorch, float32",
        "backend": backend,
        "passed": all(found.passed for found in measurements),
        "stages": stages,
        "versions": {package: version(package) for package in packages},
    }
