"""A user's own clips and instructions: `items.jsonl`, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.evaluate.benchmarks.base import (
    Benchmark,
    BenchmarkItem,
    Catalogue,
    path_inside,
    read_rule,
    results_by_key,
)
from editverse_rt.fields import Fields

__all__ = ["FOLDER", "load_folder"]

ITEMS_FILE = "items.jsonl"
_FIX = f"correct {ITEMS_FILE}"


def load_folder(data: Path) -> Catalogue:
    """The items of `data/items.jsonl`.

    A line has `instruction` and `inputs`, paths by tag, and may have `key`, `category`, `source`,
    `source_prompt`, `target_prompt`, `masks` and `answer`. A line that cannot be read becomes a problem.
    Raises RequestError where the file is missing.
    """
    path = data / ITEMS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{path}: cannot be read ({error})",
            expected="a JSON object a line, with instruction and inputs",
            code="request.benchmark",
        ) from error
    items, problems, seen = [], [], set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = _item(data, number, Fields(json.loads(line), where, "", error=RequestError, fix=_FIX))
            if item.key in seen:
                raise RequestError(f'found the key "{item.key}" twice', code="request.benchmark")
        except ValueError as error:
            problems.append(f"{where}: no JSON ({error})")
        except EditVerseError as error:
            problems.append(str(error))
        else:
            seen.add(item.key)
            items.append(item)
    return Catalogue(tuple(items), tuple(problems), read_rule(data))


def _item(data: Path, number: int, entry: Fields) -> BenchmarkItem:
    paths = entry.child("inputs")
    inputs = {name: path_inside(data, paths.string(name)) for name in paths}
    source = entry.string("source") if "source" in entry else next(iter(inputs), "")
    if source not in inputs:
        entry.refuse("source", source, "the name of one of the inputs")
    key = entry.string("key") if "key" in entry else f"{number:04d}"
    if Path(key).name != key or key.startswith("."):
        entry.refuse("key", key, "a plain name")

    def text(name: str) -> str | None:
        return entry.string(name) if name in entry else None

    item = BenchmarkItem(
        key=key,
        category=text("category") or "all",
        instruction=entry.string("instruction"),
        inputs=inputs,
        source=source,
        source_prompt=text("source_prompt"),
        target_prompt=text("target_prompt"),
        masks=tuple(str(name) for name in entry.array("masks")) if "masks" in entry else (),
        answer=path_inside(data, entry.string("answer")) if "answer" in entry else None,
    )
    entry.finish()
    return item


FOLDER = Benchmark(
    name="folder",
    title="own clips",
    load=load_folder,
    result=results_by_key,
    metrics=("pick", "frame_text", "video_text", "clip_temporal", "dino_temporal"),
    judge_profile="own",
)
