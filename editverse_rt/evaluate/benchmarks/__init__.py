"""The table of benchmarks. A new one is one file with a `Benchmark` and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Catalogue
from editverse_rt.evaluate.benchmarks.editverse_bench import EDITVERSE_BENCH
from editverse_rt.evaluate.benchmarks.folder import FOLDER
from editverse_rt.evaluate.benchmarks.openve import OPENVE_BENCH
from editverse_rt.evaluate.benchmarks.tgve import TGVE, TGVE_PLUS

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkItem", "Catalogue", "find_benchmark"]

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (EDITVERSE_BENCH, TGVE, TGVE_PLUS, OPENVE_BENCH, FOLDER)
}


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by name. Raises RequestError that lists the names there are."""
    if name not in BENCHMARKS:
        raise RequestError(
            f'found the benchmark "{name}"',
            expected=f"one of {', '.join(BENCHMARKS)}",
            code="request.benchmark",
        )
    return BENCHMARKS[name]
