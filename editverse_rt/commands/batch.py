"""The command `batch`: many requests to one folder, each exactly once, and again where it was interrupted."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from editverse_rt.batch.folder import BatchFolder
from editverse_rt.batch.ray_batch import run_ray_batch
from editverse_rt.batch.rows import BatchRow, Failure, read_manifest, rows_of_folder
from editverse_rt.batch.running import BatchReport, run_batch
from editverse_rt.commands.arguments import (
    Command,
    add_gpu_options,
    add_pipeline_options,
    add_ray_option,
    add_request_options,
    bytes_from_text,
    cluster_options,
    open_options,
    thread_count,
)
from editverse_rt.commands.terminal import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Progress,
    print_error,
    print_json,
)
from editverse_rt.errors import RequestError
from editverse_rt.pipeline import Pipeline

__all__ = ["BATCH"]

EXAMPLES = """\
examples:
  editverse-rt batch requests.jsonl -o results
  editverse-rt batch clips "Make it night" -o results --workers 2 --threads 1

MANIFEST has a JSON object a line: {"id": "a1", "prompt": "Make it night", "inputs": {"video1": "in.mp4"}}; paths are
relative to it. A table with a column for each name does as well (.csv, .parquet). A folder is taken file by file, with
one instruction.

A result is called ID-KEY.mp4, or .png for one frame; KEY is a digest of the request, its inputs' contents and the
bundle. The same command makes what is missing and nothing twice, also after a kill. results.jsonl lists what is
there, failed.jsonl what failed and why. Ctrl-C finishes what runs, a second Ctrl-C cancels it. Exit code 0 means
that every row has its result.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="MANIFEST",
        help="requests as JSONL, CSV or Parquet, or a folder of clips",
    )
    add("prompt", nargs="?", help="the instruction, for a folder")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder of results")
    add("--workers", type=thread_count, default=1, metavar="N", help="requests at once (default: 1)")
    add(
        "--memory",
        type=bytes_from_text,
        metavar="SIZE",
        help="for the weights and what running requests hold, such as 8GB (default: no limit)",
    )
    add_ray_option(parser)
    add_pipeline_options(parser)
    add_request_options(parser, ("schedule",))
    add("--json", action="store_true", help="print one JSON object about the batch")
    add("--quiet", action="store_true", help="print nothing but errors (and the JSON object)")
    add_gpu_options(parser)


def run(args: argparse.Namespace) -> int:
    cluster = cluster_options(args)
    rows, failures = read_rows(args)
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(counting_interrupts())
        folder = stack.enter_context(BatchFolder(args.output))
        progress: list[Progress] = []

        def on_progress(done: int, total: int, found: int) -> None:
            if args.quiet:
                return
            if not progress:
                bar = Progress(sys.stderr, unit="edit", initial=done)
                progress.append(stack.enter_context(contextlib.closing(bar)))
            progress[0].show(done, total)

        common: Any = {
            "failures": failures,
            "schedule": args.schedule,
            "num_interrupts": lambda: len(interrupts),
            "on_progress": on_progress,
        }
        if cluster is not None:
            report = run_ray_batch(rows, folder, cluster, **common)
        else:
            report = run_batch(
                stack.enter_context(Pipeline.open(args.bundle, args.backend, **open_options(args))),
                rows,
                folder,
                num_workers=args.workers,
                memory_budget_bytes=args.memory,
                **common,
            )
    return say(args, report)


def read_rows(args: argparse.Namespace) -> tuple[list[BatchRow], list[Failure]]:
    """The rows of the manifest or the folder. Raises RequestError."""
    if args.source.is_dir():
        if args.prompt is None:
            raise RequestError(
                f"{args.source} is a folder, and no instruction is given",
                expected='a folder and an instruction, as in `editverse-rt batch clips "Make it night" -o results`',
                code="command.usage",
            )
        return rows_of_folder(args.source, args.prompt)
    if args.prompt is not None:
        raise RequestError(
            f"an instruction is given for {args.source}, which is no folder",
            hint="give a folder of clips, or leave the instruction out",
            code="command.usage",
        )
    return read_manifest(args.source)


def say(args: argparse.Namespace, report: BatchReport) -> int:
    """Print what became of the batch, and return the exit code."""
    total = report.num_done + len(report.failures) + report.num_left
    if args.json:
        print_json(
            {
                "output": str(args.output),
                "rows": total,
                "done": report.num_done,
                "found": report.num_found,
                "failed": len(report.failures),
                "left": report.num_left,
            }
        )
    elif not args.quiet:
        print(f"{args.output}: {report.num_done} of {total} done, {report.num_found} of them before")
    if report.num_left:
        print_error(f"stopped by Ctrl-C; {report.num_left} of {total} are left: run the same command again")
        return EXIT_INTERRUPTED
    if report.failures:
        first = report.failures[0]
        print_error(
            f"{len(report.failures)} of {total} failed, {first.id or f'line {first.line}'} first "
            f"({first.to_json()['message']}); {args.output / BatchFolder.FAILED} lists them"
        )
        return EXIT_BAD_INPUT
    return EXIT_OK


@contextlib.contextmanager
def counting_interrupts() -> Iterator[list[int]]:
    """Count Ctrl-C in place of raising it; a list that grows, because a signal's handler must take no lock."""
    seen: list[int] = []

    def count(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGINT, count)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


BATCH = Command(EXAMPLES, add_arguments, run)
