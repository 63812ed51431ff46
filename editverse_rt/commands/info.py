"""The command `info`: what a bundle holds, as facts or as lines for a person."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from editverse_rt.bundle.description import json_from_spec
from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.commands.arguments import Command
from editverse_rt.commands.terminal import EXIT_OK, print_json

__all__ = ["INFO", "describe_bundle", "describe_quality"]

EXAMPLES = """\
examples:
  editverse-rt info
  editverse-rt info path/to/bundle --json
"""


_INPUTS = {
    "interleaved": "videos and images, in any order",
    "none": "none, or one video, which is noised and made anew",
    "rows": "none, or one image, which is the first frame",
    "channels": "one video, which is edited",
    "control": "a video, a second one that masks it, and reference images; all may be left out",
}
"""What a request may bring besides its instruction, by the bundle's conditioning."""


def describe_bundle(facts: dict[str, Any]) -> list[str]:
    """Return the lines that `info` prints for a person."""
    geometry, quality = facts["geometry"], facts["quality"]
    lines = [
        f"{facts['name']} (format version {facts['format_version']}), {facts['num_bytes'] / 1e6:.1f} MB",
        f"  folder       {facts['path']}",
        f"  area         {geometry['min_area_px']} to {geometry['max_area_px']} px a frame, "
        f"sides up to {geometry['max_side_px']} px",
        f"  frames       up to {geometry['max_frames']}",
        f"  default      {geometry['default_width_px']}x{geometry['default_height_px']}, "
        f"{geometry['default_frames']} frames at {geometry['default_fps']:g} fps",
        f"  instruction  up to {facts['tokenizer']['max_tokens']} tokens",
        f"  inputs       {_INPUTS[facts['conditioning']]}",
    ]
    for name, schedule in facts["schedules"].items():
        mark = " (default)" if name == facts["default_schedule"] else ""
        table = schedule["table"]
        steps = len(table["timesteps"])
        evaluations = steps + sum(scale != 1 for scale in table["guidance"])
        solver = schedule["graph"].removeprefix("schedule_") or "a fixed table"
        line = f"  schedule     {name}{mark}: {solver}, {steps} steps, {evaluations} evaluations"
        lines.append(line + describe_measured(quality, name))
    lines += [f"  graph        {name}: {graph['file']}" for name, graph in facts["graphs"].items()]
    lines += describe_parity(quality)
    measured = {name: value for name, value in quality.items() if name != "parity"}
    if measured:
        lines += describe_quality(measured)
    return lines


def describe_parity(quality: dict[str, Any]) -> list[str]:
    """Return the line on how the bundle compares with PyTorch, none if that was not measured."""
    try:
        parity = quality["parity"]
        stages, backend = parity["stages"], parity["backend"]
        broken = [name for name, stage in stages.items() if stage["relative"] > stage["tolerance"]]
        if broken:
            return [f"  parity       beyond its tolerance on {backend}: {', '.join(broken)}"]
        return [
            f"  parity       {len(stages)} stages within their tolerances of {parity['against']}, on {backend}"
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def describe_measured(quality: dict[str, Any], schedule: str) -> str:
    """Return what was measured of a schedule, "" if nothing that is understood."""
    try:
        found = quality["schedules"][schedule]
        right = f"; {found['success_rate']:.1%} of the held-out edits right"
        if schedule == found["psnr_against"]:
            return right
        return f"{right}, results {found['psnr_db']:.1f} dB (PSNR) from those of {found['psnr_against']}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""


def describe_quality(quality: dict[str, Any]) -> list[str]:
    """Return the lines on a bundle's quality report; one of another form is shown as it is."""
    try:
        lines = [f"  quality      {quality['success_rate']:.1%} of {quality['edits']} held-out edits right"]
        for task, score in quality["by_task"].items():
            lines.append(f"    {task:<20}{score['success_rate']:>5.0%} of {score['edits']}")
    except (AttributeError, KeyError, TypeError, ValueError):
        return [f"  quality      {json.dumps(quality)}"]
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", default="nano", help="name or folder (default: nano)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    facts = {
        "path": os.fspath(bundle.root),
        "num_bytes": sum(file.num_bytes for file in bundle.spec.files),
        **json_from_spec(bundle.spec),
    }
    if args.json:
        print_json(facts)
        return EXIT_OK
    print("\n".join(describe_bundle(facts)))
    return EXIT_OK


INFO = Command(EXAMPLES, add_arguments, run)
