"""`python -m export.compare_forms CHECKPOINT`: one transformer in every form that a backend may run it in.

Each lowering of `RopeAttention` and each precision, on a CPU, against the PyTorch reference in float32. With
`--random editverse-2b --blocks 1` it is a block of that shape with random weights. Checkpoints of every family.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

if not __package__:  # run as a file: `python export/compare_forms.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from editverse_rt.backends.ort import import_onnxruntime
from editverse_rt.bundle.manifest import load_spec
from editverse_rt.request.layout import Grid
from export.export_onnx import export_graph
from export.families import FamilyExport, family_export
from export.precision import save_typed, set_precision, use_standard_attention
from export.precision_error import relative_error
from export.sequences import sample_rows
from reference.checkpoint import AnyCheckpoint, load_any_checkpoint, make_random_checkpoint
from reference.families.editverse import CONFIGS

__all__ = ["FORMS", "TOLERANCES", "Measured", "compare_forms", "format_forms"]

Array = NDArray[Any]
FORMS = (
    "inline", "fused", "inline, bf16 emulated", "inline, fp16 emulated", "inline, fp16", "PyTorch bfloat16",
)  # fmt: skip
TOLERANCES = {"float32": 1e-4, "fp16": 1e-2, "bf16": 6e-2, "bfloat16": 8e-2}
"""Largest relative error of the velocity, by what a form computes in."""


@dataclass(frozen=True)
class Measured:
    """One form's velocity against the reference's."""

    form: str
    relative: float
    max_abs: float

    @property
    def tolerance(self) -> float:
        """The largest relative error that this form may have."""
        return next((t for name, t in TOLERANCES.items() if name in self.form), TOLERANCES["float32"])

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.relative <= self.tolerance


@torch.no_grad()
def compare_forms(checkpoint: AnyCheckpoint, folder: Path, seed: int = 0) -> Iterator[Measured]:
    """Measure all of `FORMS` on one drawn request: text, a clip, and a result of the clip's size.

    folder: for the ONNX file of each form and the request (`inputs.npz`), for tools that compare such files.
    """
    family = family_export(checkpoint)
    inputs = draw_inputs(checkpoint, family, seed)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    model = checkpoint.transformer
    exact = model(**tensors).numpy()

    def measured(form: str, found: Array) -> Measured:
        return Measured(form, relative_error(found, exact), float(np.abs(found - exact).max()))

    graph = family.graphs()["transformer"]
    np.savez(folder / "inputs.npz", **cast(Any, inputs))
    sources: dict[str, Path] = {}
    for lowering in ("inline", "fused"):
        sources[lowering] = folder / f"{lowering}.onnx"
        save_typed(export_graph(graph, family.rope, lowering), sources[lowering])
        yield measured(lowering, _run(sources[lowering], inputs))
    for precision, emulate in (("bf16", True), ("fp16", True), ("fp16", False)):
        typed = ir.load(sources["inline"])
        use_standard_attention(typed)
        set_precision(typed, precision, emulate=emulate)
        form = f"{precision}_emulated" if emulate else precision
        save_typed(typed, folder / f"inline_{form}.onnx")
        yield measured(f"inline, {form.replace('_', ' ')}", _run(folder / f"inline_{form}.onnx", inputs))
    model.to(torch.bfloat16)
    narrow = {n: t.bfloat16() if t.is_floating_point() and n != "timestep" else t for n, t in tensors.items()}
    yield measured("PyTorch bfloat16", model(**narrow).float().numpy())
    model.to(torch.float32)


def draw_inputs(checkpoint: AnyCheckpoint, family: FamilyExport, seed: int) -> dict[str, Array]:
    """One request's inputs, normal values and a real layout."""
    rng = np.random.default_rng(seed)
    spec = replace(load_spec("nano"), family=family.family, conditioning=family.conditioning)
    found = sample_rows(spec, Grid(3, 4, 5))
    text_dim, geometry = checkpoint.transformer.config.text_dim, family.geometry

    def rows(count: int, width: int) -> Array:
        return rng.normal(size=(count, width)).astype(np.float32)

    return {
        "text": rows(found.num_text, text_dim),
        "clean": rows(found.num_clean, geometry.clean_dim),
        "noisy": rows(found.num_noisy, geometry.patch_dim),
        "layout": found.layout,
        "positions": found.positions,
        "timestep": np.array(0.4, np.float32),
    }


def format_forms(columns: dict[str, list[Measured]]) -> str:
    """A Markdown table: a line a form, a column a model, "relative / largest absolute error" in a cell."""
    lines = [f"| form | {' | '.join(columns)} | tolerance |", f"| --- |{' --- |' * (len(columns) + 1)}"]
    for form in FORMS:
        cells = [next(m for m in measured if m.form == form) for measured in columns.values()]
        shown = [f"{m.relative:.1e} / {m.max_abs:.1e}{'' if m.passed else ' FAILED'}" for m in cells]
        lines.append(f"| {form} | {' | '.join(shown)} | {cells[0].tolerance:.0e} |")
    return "\n".join(lines)


def _run(path: Path, inputs: dict[str, Array]) -> Array:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, inputs)[0]
    return result


def _depth(name: str, blocks: int | None) -> dict[str, Any]:
    """The option of a random checkpoint that says how many blocks it has."""
    if blocks is None:
        return {}
    return {"transformer_overrides": {"num_blocks": blocks}} if name in CONFIGS else {"blocks": blocks}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.compare_forms",
        description="Hold every form of a transformer to the PyTorch reference.",
        epilog="example: python -m export.compare_forms CHECKPOINT --random editverse-2b --blocks 1",
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "--random", metavar="CONFIG", help="also one with random weights: editverse-2b, wan2.1-t2v-1.3b"
    )
    parser.add_argument("--blocks", type=int, help="blocks of the random one (default: the config's)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the ONNX files of the forms here")
    args = parser.parse_args()
    if args.checkpoint is None and args.random is None:
        parser.error("give a checkpoint, or --random CONFIG")
    columns: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        keep = Path(scratch) / "forms" if args.keep is None else args.keep

        def measure(name: str, folder: Path, checkpoint: AnyCheckpoint) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            columns[name] = list(compare_forms(checkpoint, folder))

        if args.checkpoint is not None:
            checkpoint = load_any_checkpoint(args.checkpoint, dtype=torch.float32)
            measure(args.checkpoint.parent.name or "checkpoint", keep / "checkpoint", checkpoint)
        if args.random is not None:
            made = Path(scratch) / "random"
            make_random_checkpoint(args.random, made, **_depth(args.random, args.blocks))
            checkpoint = load_any_checkpoint(made, dtype=torch.float32)
            blocks = checkpoint.transformer.config.num_blocks
            name = f"{args.random}, {blocks} block{'' if blocks == 1 else 's'}, random"
            measure(name, keep / args.random, checkpoint)
    print(format_forms(columns))
    return 0 if all(m.passed for measured in columns.values() for m in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
