"""One run of a benchmark: edit what has no result, score, aggregate, and write the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editverse_rt.cluster import ClusterOptions
from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.evaluate.benchmarks import Benchmark, BenchmarkItem, Catalogue
from editverse_rt.evaluate.clips import clip_exists, read_clip_stored
from editverse_rt.evaluate.editing import EditingOptions, edit_missing, estimate_seconds
from editverse_rt.evaluate.features import MetricModels
from editverse_rt.evaluate.judge import DryRun, ServerJudge
from editverse_rt.evaluate.judging import EditToJudge, Judge
from editverse_rt.evaluate.page import draw_category_bars, page_from_report
from editverse_rt.evaluate.report import REPORT_JSON, build_report, table_from_report
from editverse_rt.evaluate.scoring import Scorer
from editverse_rt.files import replacing, write_json
from editverse_rt.pipeline import Pipeline

__all__ = ["Chosen", "RunOptions", "choose_items", "dry_run", "run_benchmark"]


@dataclass(frozen=True)
class Chosen:
    """The items of a run. problems: lines about entries that could not be read."""

    catalogue: Catalogue
    items: tuple[BenchmarkItem, ...]
    subset: dict[str, Any]


@dataclass(frozen=True)
class RunOptions:
    """What a run is beside its benchmark.

    results: where results lie. output: where scores and the report go. allow_missing: report on what there
    is; otherwise a missing result stops the run after editing.
    """

    results: Path
    output: Path
    editing: EditingOptions = field(default_factory=EditingOptions)
    allow_missing: bool = False
    name: str = ""


def choose_items(
    benchmark: Benchmark, data: Path, *, limit: int | None = None, categories: Sequence[str] = ()
) -> Chosen:
    """Load a benchmark and choose items: of some categories, then the first few.

    Raises RequestError for data that cannot be read, and where nothing is left.
    """
    catalogue = benchmark.load(data)
    items = [item for item in catalogue.items if not categories or item.category in categories]
    items = items[: len(items) if limit is None else limit]
    if not items:
        known = ", ".join(dict.fromkeys(item.category for item in catalogue.items)) or "none that can be read"
        raise RequestError(
            f"{data}: found no item to evaluate"
            + (f" of category {', '.join(categories)}" if categories else ""),
            expected=f"items; the benchmark's categories are: {known}",
            hint="; ".join(catalogue.problems[:3]),
            code="request.benchmark",
        )
    return Chosen(catalogue, tuple(items), {"categories": ", ".join(categories), "limit": limit})


def run_benchmark(
    benchmark: Benchmark,
    chosen: Chosen,
    options: RunOptions,
    *,
    pipeline: Pipeline | None = None,
    models: MetricModels | None = None,
    judge: Judge | None = None,
    say: Callable[[str], None] = lambda line: None,
    cluster: ClusterOptions | None = None,
) -> dict[str, Any]:
    """Run a benchmark and write `report.json`, `report.md`, `page.html` and `plots/`; returns the report.

    pipeline: edits what has no result, None to only score. cluster: edits in its place. A run that was stopped
    goes on where it was: results and scores that are there are kept. Raises RequestError where results are missing
    and may not be.
    """
    reasons: dict[str, str] = {}
    times: dict[str, Any] = {"num_items_all": benchmark.num_items or len(chosen.catalogue.items)}
    run: dict[str, Any] = {"name": options.name, "results": str(options.results)}
    if pipeline is not None:
        edited = edit_missing(
            benchmark, chosen.items, options.results, pipeline, options.editing, say, cluster
        )
        reasons |= edited.problems
        if edited.num_edited:
            times["edit_s_an_item"] = edited.seconds / edited.num_edited
            times["num_workers"] = edited.num_at_once
        times["estimates"] = estimate_seconds(benchmark, chosen.items, pipeline, options.editing)
        run |= {"pipeline": edited.made_with, "options": options.editing.to_json()}
    missing = [item.key for item in chosen.items if not clip_exists(benchmark.result(options.results, item))]
    if missing and not options.allow_missing:
        first = missing[0]
        raise RequestError(
            f"{len(missing)} of {len(chosen.items)} results are missing, the first of item {first} "
            f"({reasons.get(first, 'no result')})",
            hint="edit them, or take --allow-missing for scores of the others",
            code="request.results_missing",
        )
    if missing:
        say(f"coverage: {len(chosen.items) - len(missing)} of {len(chosen.items)} items have a result")
    options.output.mkdir(parents=True, exist_ok=True)
    scorer = Scorer(
        benchmark,
        options.results,
        options.output,
        models=models,
        judge=judge,
        rule=chosen.catalogue.rule,
    )
    scores = {score.key: score for score in scorer.score_all(chosen.items, say)}
    if scores:
        times["score_s_an_item"] = sum(score.seconds for score in scores.values()) / len(scores)
    report = build_report(
        benchmark,
        chosen.items,
        scores,
        num_all=len(chosen.catalogue.items) + len(chosen.catalogue.problems),
        subset=chosen.subset,
        problems=chosen.catalogue.problems,
        reasons=reasons,
        models=None if models is None else _model_facts(models),
        judge=None if judge is None else judge.facts,
        run=run,
        left_out=scorer.left_out,
        time=times,
    )
    write_report(report, options.output)
    return report


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write the report as JSON, Markdown, HTML and plots, each in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT_JSON, report)
    texts = {"report.md": table_from_report(report), "page.html": page_from_report(report, folder)}
    (folder / "plots").mkdir(exist_ok=True)
    texts |= {f"plots/{name}.svg": draw_category_bars(report, name) for name in report["metrics"]}
    for name, text in texts.items():
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")


def dry_run(
    benchmark: Benchmark,
    chosen: Chosen,
    options: RunOptions,
    *,
    pipeline: Pipeline | None = None,
    judge: ServerJudge | None = None,
) -> list[str]:
    """Lines about what a run would do: edits, their time by the planner, and a judge's calls and tokens."""
    results = [benchmark.result(options.results, item) for item in chosen.items]
    num_missing = sum(not clip_exists(path) for path in results)
    lines = [f"{len(chosen.items)} items, {num_missing} without a result", *chosen.catalogue.problems]
    if pipeline is not None:
        for name, one in estimate_seconds(benchmark, chosen.items, pipeline, options.editing).items():
            lines.append(
                f"editing on {name}: {one['seconds_an_item']:.3g} s an item, {one['seconds_all']:.3g} s for "
                f"{one['num_items']}, by the planner's estimate"
            )
    if judge is not None:
        found: DryRun = judge.dry_run(_edits(benchmark, chosen, options.results, lines))
        lines.append(
            f"judge: {found.calls} calls ({found.cached} answers are cached), about {found.input_tokens} "
            f"tokens in and {found.output_tokens} out"
        )
    return lines


def _edits(benchmark: Benchmark, chosen: Chosen, results: Path, lines: list[str]) -> list[EditToJudge]:
    """What would be judged; the source stands for a result that is not there yet."""
    edits = []
    for item in chosen.items:
        path = benchmark.result(results, item)
        try:
            source = read_clip_stored(item.inputs[item.source])
            result = read_clip_stored(path) if clip_exists(path) else source
        except EditVerseError as error:
            lines.append(f"item {item.key}: {error}")
            continue
        edits.append(EditToJudge(item.instruction, source, result))
    return edits


def _model_facts(models: MetricModels) -> dict[str, Any]:
    spec = models.bundle.spec
    files = json.dumps([[file.path, file.sha256] for file in spec.files])
    return {
        "name": spec.name,
        "random": spec.is_random,
        "backend": models.backend,
        "ids": {name: model.id for name, model in spec.models.items()},
        "revisions": {name: model.revision for name, model in spec.models.items()},
        "hash": hashlib.sha256(files.encode()).hexdigest(),
    }
