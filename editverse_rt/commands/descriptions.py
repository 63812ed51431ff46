"""What `info` prints for a person: facts in, lines out."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["describe_bundle", "describe_quality"]


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
    ]
    for name, schedule in facts["schedules"].items():
        mark = " (default)" if name == facts["default_schedule"] else ""
        table = schedule["table"]
        steps = len(table["timesteps"])
        evaluations = steps + sum(scale != 1 for scale in table["guidance"])
        solver = schedule["graph"].removeprefix("schedule_")
        line = f"  schedule     {name}{mark}: {solver}, {steps} steps, {evaluations} evaluations"
        lines.append(line + describe_measured(quality, name))
    lines += [f"  graph        {name}: {graph['file']}" for name, graph in facts["graphs"].items()]
    if quality:
        lines += describe_quality(quality)
    return lines


def describe_measured(quality: dict[str, Any], schedule: str) -> str:
    """Return what was measured of a schedule, "" if nothing that is understood."""
    try:
        found = quality["schedules"][schedule]
        return f"; {found['success_rate']:.1%} right, {found['psnr_db']:.1f} dB from {found['psnr_against']}"
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
