"""`python -m benchmarks.versus BUNDLE OTHER`: two exports of one model in turns, to keep what gains.

Graph by graph, at sizes in and beyond nano's range; each bundle in a process of its own, A B A B. The factor
is how many times faster OTHER is. Results are compared as well, since a change of a graph has to keep them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/versus.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.clock import take_turns
from benchmarks.contenders import OURS
from benchmarks.peers import compare_results
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_results
from benchmarks.work import VAE_KINDS, Work
from benchmarks.worker import Worker
from editverse_rt.bundle.manifest import load_bundle

__all__ = ["WORKS", "measure_versus", "works_at"]


def works_at(tokens: Sequence[int]) -> list[Work]:
    """One evaluation of the transformer at each number of tokens."""
    return [Work(f"transformer, {n} tokens", "", "transformer", tokens=n) for n in tokens]


WORKS = (
    Work("text encoder, 24 tokens", "", "text_encoder", tokens=24),
    *works_at((72, 180, 657)),
    *(
        Work(f"VAE {half}, {n} of 128x128", "", VAE_KINDS[half], frames=n, height_px=128, width_px=128)
        for half in ("encoder", "decoder")
        for n in (1, 17)
    ),
)


def measure_versus(work: Work, bundles: Sequence[str], threads: int, repeats: int) -> dict[str, Any]:
    """One row: the work by both bundles, the factor by either clock, and how far the results are apart."""
    roots = [str(load_bundle(bundle).root) for bundle in bundles]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        workers = [
            stack.enter_context(Worker(OURS, replace(work, model=root), {"bundle": root}, threads))
            for root in roots
        ]
        # By place, not by name: a bundle may be compared with itself.
        calls = {str(index): worker.run for index, worker in enumerate(workers)}
        first, second = take_turns(calls, repeats=repeats, warm_up=2).values()
        results = []
        for index, worker in enumerate(workers):
            path = Path(folder) / f"{index}.npy"
            worker.save(path)
            results.append(np.load(path))
        peaks = [worker.peak_bytes() for worker in workers]
    return {
        "work": work.name,
        "before": first.to_json(),
        "after": second.to_json(),
        "factor": first.median_of("wall_s") / second.median_of("wall_s"),
        "cpu_factor": first.median_of("cpu_s") / second.median_of("cpu_s"),
        "peak_bytes": peaks,
        "error": compare_results(results[1], results[0])[0],
        "is_equal": results[0].tobytes() == results[1].tobytes(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versus", description=__doc__)
    parser.add_argument("bundle", help="name or folder")
    parser.add_argument("other", help="name or folder")
    parser.add_argument("--only", choices=("text_encoder", "transformer", "vae_encoder", "vae_decoder"))
    parser.add_argument("--tokens", type=int, nargs="+", metavar="N", help="transformers of so many alone")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--repeats", type=int, default=9, help="timed turns (default: 9)")
    parser.add_argument("--out", type=Path, default=FOLDER / "versus.json")
    args = parser.parse_args(arguments)
    rows = [
        measure_versus(work, (args.bundle, args.other), args.threads, args.repeats)
        for work in (WORKS if args.tokens is None else works_at(args.tokens))
        if args.only in (None, work.kind)
    ]
    facts = {"bundle": args.bundle, "other": args.other, "threads": args.threads}
    print(write_report(write_results(args.out, "versus", rows, facts, arguments), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
