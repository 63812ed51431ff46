"""`python -m export.minibench OUT`: a miniature of EditVerseBench from the procedural world of nano.

It has the layout of the benchmark (`test.json`, 20 categories, half of them horizontal and half vertical), and
the right answer of every edit besides. Six categories have no task of their own in nano's world; they are
drawn from the nearest one, as `TASK_OF_CATEGORY` says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python export/minibench.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from editverse_rt import media
from editverse_rt.errors import EditVerseError
from editverse_rt.files import write_json
from reference.nano.curate import draw_curated
from reference.nano.heldout import CHANGED_LEVELS, MIN_PRESERVED_DB, MIN_REGION_SHARE
from reference.nano.tasks import Sample
from reference.nano.world import Canvas, Scene

__all__ = ["TASK_OF_CATEGORY", "main", "write_minibench"]

TASK_OF_CATEGORY = {
    "add object": "add_object",
    "remove object": "remove_object",
    "change object": "change_object",
    "stylization": "stylize",
    "inpainting": "inpainting",
    "propagation": "propagation",
    "reference insertion": "reference_insertion",
    "reasoning": "change_object",
    "change background": "change_background",
    "change color": "change_color",
    "change material": "stylize",
    "change camera": "camera",
    "add effect": "stylize",
    "change weather": "stylize",
    "detection": "detection",
    "pose-to-video": "sketch",
    "depth-to-video": "sketch",
    "sketch-to-video": "sketch",
    "combined task": "combined",
    "edit with mask": "edit_with_mask",
}
DIRECTIONS = {"horizontal": (48, 80), "vertical": (80, 48)}
_SEED = 11
_FPS = 8.0


def write_minibench(folder: Path, *, num_items: int | None = None, num_frames: int = 9) -> int:
    """Write the miniature; returns how many items it has, 40 or num_items, the categories in turn.

    Clips are of 80x48 and 48x80 pixels. Right answers are pictures without loss; clips are videos, as in the
    benchmark. The same call writes the same items.
    """
    pairs = [(c, d) for d in range(2) for c in range(len(TASK_OF_CATEGORY))]
    entries: dict[str, dict[str, Any]] = {}
    categories, directions = [*TASK_OF_CATEGORY], [*DIRECTIONS]
    for number, (c, d) in enumerate(pairs[:num_items]):
        # Both directions also where only the first few items are written.
        direction = directions[(c + d) % 2]
        height, width = DIRECTIONS[direction]
        rng = np.random.default_rng([_SEED, c, d])
        task = TASK_OF_CATEGORY[categories[c]]
        sample = draw_curated(rng, task, Canvas(num_frames, height, width))
        entries[str(number)] = _write_item(folder, str(number), sample, categories[c], direction)
    rule = {
        "changed_levels": CHANGED_LEVELS,
        "min_preserved_db": MIN_PRESERVED_DB,
        "min_region_share": MIN_REGION_SHARE,
    }
    write_json(folder / "rule.json", rule)
    write_json(folder / "test.json", entries)
    return len(entries)


def _write_item(folder: Path, key: str, sample: Sample, category: str, direction: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"<text>": sample.prompt}
    for name, clip in sample.inputs.items():
        is_picture = len(clip) == 1
        path = f"images/{key}-{name}.png" if is_picture else f"videos/{key}-{name}.mp4"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        media.write_clip(folder / path, clip, _FPS)
        entry[f"<{name}>"] = path
        entry[f"<{name}> link"] = "drawn by export.minibench"
    answer = folder / "answers" / key
    answer.mkdir(parents=True, exist_ok=True)
    media.write_clip(answer / "%05d.png", sample.target, _FPS)
    source, target = sample.scenes[0], sample.scenes[-1]
    edit = "" if source != target else f", {sample.prompt}"
    return entry | {
        "direction": direction,
        "type": category,
        "source_prompt": _caption(source),
        "target_prompt": f"{_caption(target)}{edit}",
        "answer": f"answers/{key}",
    }


def _caption(scene: Scene) -> str:
    things = " and ".join(f"a {thing.name}" for thing in scene.things) or "nothing"
    return f"{things} on a {scene.background.name} background"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.minibench",
        description="Write a miniature of EditVerseBench from nano's world, with right answers.",
        epilog="example: python -m export.minibench build/minibench --items 6",
        allow_abbrev=False,
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--items", type=int, metavar="N", help="the first N items only (default: all 40)")
    parser.add_argument("--frames", type=int, default=9, metavar="T", help="of a clip, 4 k + 1 (default: 9)")
    args = parser.parse_args(argv)
    if args.items is not None and args.items < 1:
        parser.error("--items takes 1 or more")
    if args.frames < 5 or args.frames % 4 != 1:
        parser.error("--frames takes 5, 9, 13 and so on")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        num_items = write_minibench(args.output, num_items=args.items, num_frames=args.frames)
    except EditVerseError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{args.output}: {num_items} items")
    return 0


if __name__ == "__main__":
    sys.exit(main())
