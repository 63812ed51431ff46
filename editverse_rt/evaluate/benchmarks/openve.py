"""OpenVE-Bench: `benchmark_videos.csv` with `edited_type`, `prompt` and `original_video`."""

from __future__ import annotations

from pathlib import Path

from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.evaluate.benchmarks.base import (
    Benchmark,
    BenchmarkItem,
    Catalogue,
    path_inside,
    read_csv_rows,
    results_by_key,
)

__all__ = ["OPENVE_BENCH", "load_openve"]


def load_openve(data: Path) -> Catalogue:
    """The items of `data/benchmark_videos.csv`; a key is the name of the original video's file.

    A row that cannot be used becomes a problem of the catalogue. Raises RequestError for a table that cannot be read.
    """
    items, problems, seen = [], [], set()
    rows = read_csv_rows(data / "benchmark_videos.csv", ("edited_type", "prompt", "original_video"))
    for number, row in enumerate(rows, start=2):
        try:
            source = path_inside(data, row["original_video"])
            if not row["prompt"].strip():
                raise RequestError("found no prompt", code="request.benchmark")
        except EditVerseError as error:
            problems.append(f"line {number}: {error}")
            continue
        key = source.stem if source.stem not in seen else f"{source.stem}-{number}"
        seen.add(key)
        items.append(BenchmarkItem(key, row["edited_type"], row["prompt"].strip(), {"video1": source}))
    return Catalogue(tuple(items), tuple(problems))


OPENVE_BENCH = Benchmark(
    name="openve-bench",
    title="OpenVE-Bench",
    load=load_openve,
    result=results_by_key,
    metrics=("clip_temporal", "dino_temporal"),
    judge_profile="own",
    note="its published scores are another judge's, from 1 to 5, by a question for each task; not these",
    num_items=431,
)
