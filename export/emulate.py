"""`python -m export.emulate BUNDLE OUT --target rtx4090`: a bundle that rounds on a CPU as its plans would.

Every value that a plan of that precision would hold in 16 bits is rounded (export/precision.py), so
`python -m export.quality OUT` says what the precision does to whole edits before anything is built.
`score_rounding` asks the same of a few held-out edits, beside the same edits in float32.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as a file: `python export/emulate.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from editverse_rt.bundle.manifest import Bundle, file_specs, load_bundle, write_bundle_json
from editverse_rt.engines.choice import is_host_graph
from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.pipeline import Pipeline
from editverse_rt.planning.targets import PRECISIONS, default_precisions, load_target
from editverse_rt.quality.heldout import measure_psnr_db
from export.precision import precision_of_graph, save_typed, set_precision
from export.quality import bundle_editor, evaluate
from export.standard import load_standard
from reference.nano.heldout import heldout_samples, summarize

__all__ = ["emulate_bundle", "main", "score_rounding"]


def emulate_bundle(bundle: Bundle, precisions: Mapping[str, str], folder: Path) -> Bundle:
    """Write a bundle for ort-cpu whose graphs round as plans of these precisions would.

    precisions: by the name of a graph; a graph that is not named stays in float32. folder: new, or empty.
    Raises RequestError for a bundle that is not float32, which is what emulation rounds.
    """
    dtype = bundle.spec.capabilities.dtype
    if dtype != "float32":
        raise RequestError(f'bundle "{bundle.spec.name}" is {dtype}; export it in float32')
    if folder.exists() and any(folder.iterdir()):
        raise RequestError(f"{folder} is a folder that is not empty; name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {}
    for name, graph in bundle.spec.graphs.items():
        file = f"{name}.onnx"
        if is_host_graph(name):
            shutil.copyfile(bundle.graph_path(name), folder / file)
        else:
            model = load_standard(bundle, name)
            set_precision(model, precisions.get(name, "fp32"), emulate=True)
            save_typed(model, folder / file)
        graphs[name] = replace(graph, file=file)
    tokenizer = replace(bundle.spec.tokenizer, file="tokenizer.model")
    shutil.copyfile(bundle.tokenizer_path(), folder / tokenizer.file)
    spec = replace(
        bundle.spec,
        tokenizer=tokenizer,
        graphs=graphs,
        files=file_specs(folder),
        capabilities=replace(bundle.spec.capabilities, attention="inline", emulates=dict(precisions)),
        quality={},
    )
    write_bundle_json(folder, spec)
    return load_bundle(folder)


def score_rounding(
    bundle: Bundle,
    precisions: Mapping[str, str],
    per_kind: int,
    num_inference_steps: int | None = None,
    num_threads: int | None = 1,
) -> dict[str, object]:
    """The quality report of held-out edits in float32 and rounded, and how near the two results come.

    per_kind: edits of each task, for images and for videos. num_inference_steps: None for the schedule's own.
    Raises RequestError as `emulate_bundle` does, and for a bundle that was not made for these edits.
    """
    samples = list(heldout_samples(per_kind))
    scores, frames = [], []
    for rounding in ({}, precisions):
        with tempfile.TemporaryDirectory() as scratch:
            emulated = emulate_bundle(bundle, rounding, Path(scratch) / bundle.spec.name)
            with Pipeline.open(emulated.root, "ort-cpu", num_threads=num_threads) as pipeline:
                edit = bundle_editor(pipeline, num_inference_steps, None)
                found, results = evaluate(edit, samples)
        scores.append(found)
        frames.append([result for _, result in results])
    distances = [measure_psnr_db(a, b) for a, b in zip(*frames, strict=True)]
    schedule = bundle.spec.schedules[bundle.spec.default_schedule]
    return {
        "precisions": dict(precisions),
        "num_inference_steps": num_inference_steps or schedule.num_inference_steps,
        "float32": summarize(scores[0]),
        "rounded": summarize(scores[1]),
        "psnr_db": {
            "least": round(min(distances), 2),
            "tenth": round(float(np.quantile(distances, 0.1)), 2),
            "median": round(float(np.median(distances)), 2),
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.emulate",
        description="Write a bundle that rounds on a CPU as plans for a GPU would.",
        epilog="example: python -m export.emulate nano /tmp/nano-bf16 --target rtx4090",
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="its folder, or the name of one that ships")
    parser.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--target", required=True, metavar="GPU", help="rtx4090, sm_89 ...: whose recipe")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the transformer (default: the recipe's)")
    args = parser.parse_args(argv)
    try:
        bundle = load_bundle(args.bundle)
        parts = default_precisions(load_target(args.target), args.precision)
        names = [name for name in bundle.spec.graphs if not is_host_graph(name)]
        precisions = {name: precision_of_graph(name, parts) for name in names}
        emulate_bundle(bundle, precisions, args.output)
    except EditVerseError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
