"""What every benchmark gives: its items, where their results lie, and by which protocol they are scored."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from editverse_rt.errors import RequestError
from editverse_rt.fields import Fields, read_json
from editverse_rt.quality.heldout import Rule

__all__ = [
    "Benchmark",
    "BenchmarkItem",
    "Catalogue",
    "path_inside",
    "read_csv_rows",
    "read_rule",
    "results_by_key",
]


@dataclass(frozen=True)
class BenchmarkItem:
    """One edit of a benchmark.

    key: unique, and stable between runs. instruction: raw, with tags where the benchmark has them. inputs:
    paths by tag ("video1", "image1"): a video, an image, or a folder of numbered pictures. source: the name
    of the input that is edited. masks: names of inputs that are masks; the other inputs are references.
    answer: the right answer, where one is known. groups: other divisions, such as {"direction": "vertical"}.
    """

    key: str
    category: str
    instruction: str
    inputs: Mapping[str, Path]
    source: str = "video1"
    source_prompt: str | None = None
    target_prompt: str | None = None
    masks: tuple[str, ...] = ()
    answer: Path | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the inputs that are neither the source nor a mask."""
        return tuple(name for name in self.inputs if name != self.source and name not in self.masks)


@dataclass(frozen=True)
class Catalogue:
    """The items of a benchmark's folder.

    problems: a line for each entry that could not be read. rule: when a result is right, where the items have
    right answers and the folder says so.
    """

    items: tuple[BenchmarkItem, ...]
    problems: tuple[str, ...] = ()
    rule: Rule | None = None


@dataclass(frozen=True)
class Benchmark:
    """A row of the table of benchmarks: one adapter.

    load: the data's folder -> its catalogue; raises RequestError where the whole of it cannot be read.
    result: results' folder, item -> where the item's result lies: a file, or a folder of pictures.
    metrics: names of `evaluate.metrics.METRICS`. judge_profile: of `evaluate.judging.PROFILES`; None where
    the benchmark has no judge of its own. size: height and width that results have, None for any.
    published: rows of published scores, metric -> value, in this benchmark's units. note: what a reader of
    the scores has to know. num_items: of the full benchmark, None where it is the user's.
    """

    name: str
    title: str
    load: Callable[[Path], Catalogue]
    result: Callable[[Path, BenchmarkItem], Path]
    metrics: tuple[str, ...]
    judge_profile: str | None = None
    size: tuple[int, int] | None = None
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""
    num_items: int | None = None


def results_by_key(results: Path, item: BenchmarkItem) -> Path:
    """`<results>/<key>/generate.mp4`, as EditVerseBench has it."""
    return results / item.key / "generate.mp4"


def path_inside(data: Path, relative: str) -> Path:
    """A path that a benchmark's file names, below its folder. Raises RequestError for one that leaves it."""
    path = data / relative
    if not relative or not path.resolve().is_relative_to(data.resolve()):
        raise RequestError(
            f'found the path "{relative}"',
            expected="one inside the benchmark's folder",
            code="request.benchmark",
        )
    return path


def read_rule(data: Path) -> Rule | None:
    """`data/rule.json`, by which results are judged beside right answers; None where there is none."""
    path = data / "rule.json"
    if not path.is_file():
        return None
    fix = "write the benchmark again"
    fields = Fields(read_json(path, error=RequestError, fix=fix), str(path), "", error=RequestError, fix=fix)
    rule = Rule(
        changed_levels=fields.integer("changed_levels", 0),
        min_preserved_db=fields.positive_number("min_preserved_db"),
        min_region_share=fields.positive_number("min_region_share"),
    )
    fields.finish()
    return rule


def read_csv_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header. Raises RequestError where it or a column is missing."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = tuple(reader.fieldnames or ())
            rows = [{name: value or "" for name, value in row.items() if name} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise RequestError(f"{path}: cannot be read as CSV ({error})", code="request.benchmark") from error
    lacking = [name for name in columns if name not in found]
    if lacking:
        raise RequestError(
            f"{path}: found the columns {', '.join(found)}",
            expected=f"{', '.join(lacking)} as well",
            code="request.benchmark",
        )
    return rows
