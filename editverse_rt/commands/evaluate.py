"""The command `evaluate`: a benchmark from data to report; scores of results, and two runs beside each other."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editverse_rt.commands.arguments import (
    Command,
    add_gpu_options,
    add_ray_option,
    add_request_options,
    cluster_options,
    open_options,
    thread_count,
)
from editverse_rt.commands.terminal import EXIT_OK, print_json
from editverse_rt.errors import RequestError
from editverse_rt.evaluate.benchmarks import BENCHMARKS, Benchmark, find_benchmark
from editverse_rt.evaluate.comparing import (
    calibrate,
    compare_reports,
    describe_calibration,
    describe_comparison,
)
from editverse_rt.evaluate.editing import EditingOptions
from editverse_rt.evaluate.features import MetricModels
from editverse_rt.evaluate.judge import JudgeOptions, ServerJudge
from editverse_rt.evaluate.judging import PROFILES, Judge
from editverse_rt.evaluate.offline_judge import OfflineJudge
from editverse_rt.evaluate.report import describe_report, read_report
from editverse_rt.evaluate.runner import RunOptions, choose_items, dry_run, run_benchmark
from editverse_rt.pipeline import Pipeline

__all__ = ["EVALUATE"]

KEY_VARIABLE = "EDITVERSE_JUDGE_KEY"
EXAMPLES = f"""\
examples:
  editverse-rt evaluate editverse-bench --data EditVerseBench --bundle B --metrics M -o out
  editverse-rt evaluate editverse-bench --data EditVerseBench --bundle B -o out --limit 4 --dry-run
  editverse-rt evaluate folder clips --metrics M -o out          # clips/items.jsonl
  editverse-rt evaluate score RESULTS --benchmark editverse-bench --data EditVerseBench --metrics M -o out
  editverse-rt evaluate compare out-a out-b
  editverse-rt evaluate score RESULTS --benchmark editverse-bench --data D --metrics M -o out --calibrate CSV

benchmarks: {" ".join(BENCHMARKS)}. Results go to OUT/results, scores to OUT/scores, and OUT has report.json,
report.md, page.html and plots. A run that was stopped goes on where it was. The key of a judge is read from
the variable {KEY_VARIABLE}; the judge "offline" compares with right answers, where there are any.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "words", nargs="+", metavar="BENCHMARK", help="a benchmark; or score RESULTS, compare A B, folder DIR"
    )
    add("-o", "--output", type=Path, metavar="OUT", help="folder for results, scores and the report")
    add("--data", type=Path, metavar="DIR", help="the benchmark's folder")
    add("--benchmark", choices=tuple(BENCHMARKS), help="of RESULTS, for score")
    add("--bundle", default="nano", help="name or folder (default: nano)")
    add("--metrics", type=Path, metavar="M", help="folder of metric models, of python -m export.metrics")
    add("--backend", default="auto", help="of edits and metrics: auto, or a name from doctor (default: auto)")
    add("--workers", type=thread_count, default=1, metavar="N", help="edits at once (default: 1)")
    add_ray_option(parser)
    add("--threads", type=thread_count, metavar="N", help="CPU threads (default: one a core)")
    add("--limit", type=thread_count, metavar="N", help="the first N items only")
    add(
        "--category",
        action="append",
        default=[],
        metavar="NAME",
        help="items of this category only; again for more",
    )
    add("--allow-missing", action="store_true", help="report on the results that are there")
    add("--judge", metavar="URL", help="of a server of the OpenAI protocol, http://host/v1; or offline")
    add("--judge-model", metavar="NAME", help="the model that judges")
    add("--judge-profile", choices=tuple(PROFILES), help="protocol of judging (default: the benchmark's)")
    add("--paper-clone", type=Path, metavar="DIR", help="clone of the paper's repository, for its question")
    add("--judge-tries", type=thread_count, default=5, metavar="N", help="tries of one question (default: 5)")
    add("--judge-timeout", type=seconds, default=60.0, metavar="S", help="seconds of one try (default: 60)")
    add("--calibrate", type=Path, metavar="DIR", help="hold the scores to the CSV of published ones in DIR")
    add("--dry-run", action="store_true", help="say what would be done, and what it would cost")
    add("--json", action="store_true", help="print the report as one JSON object")
    add("--quiet", action="store_true", help="print nothing but errors (and the JSON object)")
    add("--allow-unverified", action="store_true", help="take plans that `verify` has not accepted here")
    add_request_options(parser, ("schedule", "num_inference_steps", "guidance_scale", "seed"))
    add_gpu_options(parser)


def run(args: argparse.Namespace) -> int:
    what, *paths = args.words
    if args.ray is not None and what in ("compare", "score"):
        raise RequestError(
            f"--ray is given with {what}, which edits nothing", hint="leave it out", code="command.usage"
        )
    if what == "compare":
        return compare(args, paths)
    if what == "score":
        (results,) = _take(paths, "score", "RESULTS")
        if args.benchmark is None:
            raise RequestError(
                "--benchmark is missing", expected="the benchmark of RESULTS", code="command.usage"
            )
        return evaluate(args, find_benchmark(args.benchmark), args.data, results)
    if what == "folder" and paths:
        (data,) = _take(paths, "folder", "DIR")
        return evaluate(args, find_benchmark(what), data, None)
    _take(paths, what)
    return evaluate(args, find_benchmark(what), args.data, None)


def compare(args: argparse.Namespace, paths: Sequence[str]) -> int:
    first, second = (read_report(path) for path in _take(paths, "compare", "A", "B"))
    differences, notices = compare_reports(first, second)
    if args.json:
        print_json({"differences": {k: v.to_json() for k, v in differences.items()}, "notices": notices})
    else:
        print("\n".join(describe_comparison(differences, notices)))
    return EXIT_OK


def evaluate(args: argparse.Namespace, benchmark: Benchmark, data: Path | None, results: Path | None) -> int:
    """Run or score one benchmark. results: None where the pipeline makes what is missing."""
    if data is None or (args.output is None and not args.dry_run):
        missing = "--data" if data is None else "--output"
        raise RequestError(f"{missing} is missing", expected="a folder", code="command.usage")
    output = args.output or Path("evaluation")
    cluster = cluster_options(args)
    chosen = choose_items(benchmark, data, limit=args.limit, categories=args.category)
    judge = make_judge(args, benchmark, output)
    options = RunOptions(
        results=results or output / "results",
        output=output,
        editing=EditingOptions(
            args.schedule, args.num_inference_steps, args.guidance_scale, args.seed or 0, args.workers
        ),
        allow_missing=args.allow_missing,
        name=str(results or args.bundle),
    )
    with contextlib.ExitStack() as stack:
        pipeline = stack.enter_context(open_pipeline(args)) if results is None else None
        if args.dry_run:
            server = judge if isinstance(judge, ServerJudge) else None
            print("\n".join(dry_run(benchmark, chosen, options, pipeline=pipeline, judge=server)))
            return EXIT_OK
        models = None
        if args.metrics is not None:
            backend = args.backend if args.backend in ("auto", "ort-cpu", "ort-cuda") else "auto"
            models = stack.enter_context(
                MetricModels.open(args.metrics, backend, num_threads=args.threads, device=args.device)
            )
        report = run_benchmark(
            benchmark, chosen, options, pipeline=pipeline, models=models, judge=judge,
            say=(lambda line: None) if args.quiet else say, cluster=cluster,
        )  # fmt: skip
    show(args, report, output)
    return EXIT_OK


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    """The pipeline that edits; with --ray one that only checks and estimates, which a machine without a GPU can."""
    if args.ray is not None:
        return Pipeline.open(args.bundle, "ort-cpu", num_threads=args.threads)
    return Pipeline.open(args.bundle, args.backend, **open_options(args))


def make_judge(args: argparse.Namespace, benchmark: Benchmark, output: Path) -> Judge | None:
    """The judge that the options ask for. Raises RequestError for options that do not fit."""
    if args.judge is None:
        return None
    if args.judge == "offline":
        return OfflineJudge()
    if not args.judge_model:
        raise RequestError("--judge-model is missing", expected="the model that judges", code="command.usage")
    return ServerJudge(
        JudgeOptions(
            base_url=args.judge,
            model=args.judge_model,
            profile=args.judge_profile or benchmark.judge_profile or "own",
            api_key=os.environ.get(KEY_VARIABLE) or None,
            paper_clone=args.paper_clone,
            cache=output / "judge-cache",
            tries=args.judge_tries,
            timeout_s=args.judge_timeout,
        )
    )


def show(args: argparse.Namespace, report: dict[str, Any], output: Path) -> None:
    if args.json:
        print_json(report)
    elif not args.quiet:
        print("\n".join(describe_report(report)))
        for metric in report["metrics"].values():
            mean = "missing" if metric["mean"] is None else f"{metric['mean']:.4g}"
            label = metric["label"] + (" (random)" if metric["random"] else "")
            print(f"{label:<28}{mean:>10}  {metric['count']} items, {metric['missing']} missing")
        print(f"{output / 'page.html'}: source, result and scores side by side")
    if args.calibrate is not None:
        found, notices = calibrate(report, args.calibrate)
        print("\n".join(describe_calibration(found, notices)), file=sys.stderr if args.json else sys.stdout)


def say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is given, seconds above 0 are expected")
    return value


def _take(paths: Sequence[str], what: str, *names: str) -> list[Path]:
    if len(paths) != len(names):
        raise RequestError(
            f"found {len(paths)} words behind {what}",
            expected=" ".join(names) or "none",
            hint="`editverse-rt evaluate --help` shows examples",
            code="command.usage",
        )
    return [Path(path) for path in paths]


EVALUATE = Command(
    EXAMPLES,
    add_arguments,
    run,
    usage="editverse-rt evaluate BENCHMARK --data DIR -o OUT [options]",
    late_words="words",
)
