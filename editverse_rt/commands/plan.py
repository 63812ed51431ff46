"""The command `plan`: from its arguments to a request's cost, as lines for a person or as facts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from editverse_rt.bundle.manifest import load_spec, tokenizer_file
from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.commands.arguments import Command, add_request_options
from editverse_rt.commands.inputs import name_inputs
from editverse_rt.commands.terminal import EXIT_OK, print_json
from editverse_rt.errors import RequestError
from editverse_rt.planning.planner import (
    BANDWIDTH_SHARE,
    COMPUTE_SHARE,
    RESERVED_BYTES,
    Estimate,
    Work,
    check_fit,
    estimate_work,
)
from editverse_rt.planning.targets import (
    PRECISIONS,
    Target,
    check_build,
    default_precisions,
    load_recipe,
    load_target,
    target_names,
)
from editverse_rt.request.checked import choose_schedule, expect_work
from editverse_rt.request.edit_request import EditRequest, Source
from editverse_rt.request.inputs import examine_inputs
from editverse_rt.request.prompt import TextSegment, parse_prompt, with_tags
from editverse_rt.request.tokenizer import Tokenizer

__all__ = [
    "PLAN",
    "describe_estimate",
    "describe_targets",
    "describe_work",
    "estimate_facts",
    "report_estimate",
]

EXAMPLES = """\
examples:
  editverse-rt plan                                       # nano's own default request, on every target
  editverse-rt plan BUNDLE --input in.mp4 --target h100
  editverse-rt plan BUNDLE --frames 81 --size 576x320 --target rtx4090 --precision fp16 --json

It reads the bundle's facts and the inputs' headers, and runs nothing. What does not fit the target is refused
with the largest that does.
"""

PLAN_OPTIONS = ("schedule", "num_inference_steps", "guidance_scale", "size", "num_frames", "length")
_ANY_PROMPT = "any words"
ASSUMED = (
    f"times assume {COMPUTE_SHARE:.0%} of the dense peak and {BANDWIDTH_SHARE:.0%} of the bandwidth; memory "
    f"leaves {RESERVED_BYTES / 1e9:g} GB to the driver; launching kernels is not counted, which is most of "
    "what a small model takes; nothing here was measured on a GPU"
)


def report_estimate(
    args: argparse.Namespace, inputs: Mapping[str, Source]
) -> tuple[dict[str, Any], list[str]]:
    """What `plan` says, as facts for --json and as lines.

    Raises RequestError for a request that the bundle does not take, and for one that does not fit the named
    target, with the largest that does.
    """
    spec = load_spec(args.bundle)
    work, num_text_note = describe_work(args, spec, inputs)
    if args.target is None and args.recipe is None:
        plain = estimate_work(spec, work)
        rows, refused = _estimate_all(spec, work, args.precision)
        facts = {**estimate_facts(spec, work, plain), "targets": [_target_facts(row) for row in rows]}
        facts["refused"] = refused
        lines = [*describe_estimate(spec, work, plain), *describe_targets(rows), *refused]
        return facts, [*lines, num_text_note, ASSUMED]
    target = load_recipe(args.recipe) if args.recipe is not None else load_target(args.target)
    estimate = check_fit(spec, work, target, args.precision)
    facts = {**estimate_facts(spec, work, estimate), "target": _target_facts(estimate)}
    return facts, [*describe_estimate(spec, work, estimate), num_text_note, ASSUMED]


def _estimate_all(spec: BundleSpec, work: Work, precision: str | None) -> tuple[list[Estimate], list[str]]:
    """An estimate for every target that can be built in that precision, and why the others cannot."""
    rows: list[Estimate] = []
    refused: list[str] = []
    for target in map(load_target, target_names()):
        try:
            check_build(target, target.backend, default_precisions(target, precision))
        except RequestError as error:  # noqa: PERF203 - a dozen targets
            refused.append(str(error))
        else:
            rows.append(estimate_work(spec, work, target, precision))
    return rows, refused


def describe_work(
    args: argparse.Namespace, spec: BundleSpec, inputs: Mapping[str, Source]
) -> tuple[Work, str]:
    """The integers of the request that the arguments describe, and a line on how long its text is."""
    prompt = with_tags(_ANY_PROMPT if args.prompt is None else args.prompt, inputs)
    request = EditRequest(
        prompt, dict(inputs), size=args.size, num_frames=args.num_frames, length=args.length
    )
    examined = examine_inputs(request, spec.geometry, spec.conditioning)
    most = spec.tokenizer.max_tokens
    num_text, note = most, f"text: {most} tokens, the most that the bundle takes; --prompt counts your own"
    if args.prompt is not None:
        tokenizer = Tokenizer(tokenizer_file(args.bundle, spec), spec.tokenizer.eos_id, most)
        segments = parse_prompt(prompt, inputs)
        words = [segment.text for segment in segments if isinstance(segment, TextSegment)]
        num_text = sum(len(ids) for ids in tokenizer.encode_segments(words))
        note = f"text: {num_text} tokens"
    own = choose_schedule(spec, args.schedule, None, args.guidance_scale, _no_table)
    steps, guided = own.num_inference_steps, own.table.num_evaluations - own.num_inference_steps
    if args.num_inference_steps is not None:
        # No graph runs here: of another number of steps the same share is guided.
        guided = math.ceil(guided * args.num_inference_steps / steps)
        steps = args.num_inference_steps
    return expect_work(examined, num_text, steps, guided), note


def _no_table(schedule: Schedule, num_inference_steps: int, first_step: int) -> ScheduleTable:
    raise AssertionError(f"{schedule.name} in {num_inference_steps} steps: no graph runs here")


def estimate_facts(spec: BundleSpec, work: Work, estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON's kinds of values."""
    frames, height, width = work.result
    return {
        "bundle": spec.name,
        "frames": frames,
        "windows": work.num_windows,
        "height": height,
        "width": width,
        "clips": [list(clip) for clip in work.clips],
        "num_inference_steps": work.num_steps,
        "transformer_calls": sum(s.calls for s in estimate.stages if s.name.startswith("transformer")),
        "precision": estimate.precision,
        "tokens": asdict(estimate.tokens),
        "flops": estimate.flops,
        "weight_bytes": estimate.weight_bytes,
        "peak_bytes": estimate.peak_bytes,
        "stages": [asdict(stage) for stage in estimate.stages],
    }


def _target_facts(estimate: Estimate) -> dict[str, Any]:
    target = estimate.target
    return {
        "name": None if target is None else target.name,
        "gpu": None if target is None else target.gpu,
        "backend": None if target is None else target.backend,
        "precision": estimate.precision,
        "fits": estimate.fits,
        "peak_bytes": estimate.peak_bytes,
        "available_bytes": estimate.available_bytes,
        "seconds": estimate.seconds,
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_estimate(spec: BundleSpec, work: Work, estimate: Estimate) -> list[str]:
    """The lines on one request: what it is, and what each stage costs."""
    frames, height, width = work.result
    tokens, steps, guided = estimate.tokens, work.num_steps, work.num_guided
    room = estimate.available_bytes
    where = "a CPU, float32" if estimate.target is None else _describe_target(estimate.target)
    lines = [
        f"{spec.name} on {where}",
        f"  result       {width}x{height}, {frames} frames, from {_count(len(work.clips), 'input')}; {steps} steps, "
        f"{guided} of them guided (a second evaluation each)",
        *(
            [f"  windows      {work.num_windows} of that length; the stages below count all of them"]
            if work.num_windows > 1
            else []
        ),
        f"  tokens       {tokens.total:,}: {tokens.text:,} of text, {tokens.clean:,} clean, "
        f"{tokens.noisy:,} noisy, {tokens.total - tokens.text - tokens.clean - tokens.noisy:,} marks",
        f"  memory       {_gb(estimate.peak_bytes)} at the peak, weights {_gb(estimate.weight_bytes)} of it"
        + ("" if room is None else f"; {_gb(room)} to give"),
        f"  {'stage':<28}{'calls':>6}{'TFLOP':>12}{'GB held':>10}{'seconds':>10}",
    ]
    for stage in estimate.stages:
        held, time = stage.activation_bytes / 1e9, "" if stage.seconds is None else f"{stage.seconds:.3g}"
        lines.append(f"  {stage.name:<28}{stage.calls:>6}{stage.flops / 1e12:>12.4g}{held:>10.3f}{time:>10}")
    total = "" if estimate.seconds is None else f"{estimate.seconds:.3g}"
    lines.append(f"  {'all':<28}{'':>6}{estimate.flops / 1e12:>12.4g}{'':>10}{total:>10}")
    return lines


def describe_targets(estimates: list[Estimate]) -> list[str]:
    """A line for each target: whether the request fits, and the time that its peak allows."""
    lines = [f"  {'target':<14}{'precision':<11}{'GB needed':>10}{'GB to give':>12}{'seconds':>10}"]
    for estimate in estimates:
        name = "" if estimate.target is None else estimate.target.name
        has, time = (estimate.available_bytes or 0) / 1e9, estimate.seconds or 0.0
        shown = f"{time:.3g}" if estimate.fits else "no room"
        lines.append(
            f"  {name:<14}{estimate.precision['transformer']:<11}{estimate.peak_bytes / 1e9:>10.2f}"
            f"{has:>12.1f}{shown:>10}"
        )
    return lines


def _describe_target(target: Target) -> str:
    return f"{target.gpu} ({target.name}, {target.sm}, {target.backend})"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", default="nano", help="name or folder (default: nano)")
    parser.add_argument("--input", action="append", default=[], metavar="FILE", help="a video or an image")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--target", metavar="GPU", help="rtx4090, h100, sm_89 ... (default: all of them)")
    where.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe of your own, TOML")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the transformer (default: the recipe's)")
    parser.add_argument("--prompt", metavar="TEXT", help="the instruction, to count its tokens")
    add_request_options(parser, PLAN_OPTIONS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    facts, lines = report_estimate(args, name_inputs(args.input))
    if args.json:
        print_json(facts)
    else:
        print("\n".join(lines))
    return EXIT_OK


PLAN = Command(EXAMPLES, add_arguments, run)
