"""EditVerseBench: `test.json`, an object of entries by key ("0", "1", ...), and the paper's protocol.

An entry holds `<text>`, a path for each tag, `direction`, `type`, `source_prompt` and `target_prompt`
(EditVerse, appendix A.2). `answer`, a path to the right answer, is an addition of ours for miniatures.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from editverse_rt.fields import Fields, read_json
from editverse_rt.request.prompt import INPUT_NAME, TAG_PATTERN

__all__ = ["EDITVERSE_BENCH", "load_test_json"]

TEST_JSON = "test.json"
_FIX = "correct the benchmark's file, or fetch it again"
_ORDER = ("judge", "pick", "frame_text", "video_text", "clip_temporal", "dino_temporal")
# EditVerse, table 2.
_PUBLISHED = {
    "EditVerse": (7.65, 20.07, 26.73, 23.93, 98.56, 98.42),
    "Runway Aleph": (7.44, 20.42, 27.70, 24.27, 98.94, 98.60),
    "Senorita-2M": (6.97, 19.71, 26.34, 23.24, 98.05, 97.99),
    "Lucy Edit": (5.89, 19.67, 26.00, 23.11, 98.49, 98.38),
    "InsV2V": (5.21, 19.39, 24.99, 22.54, 97.15, 96.57),
    "TokenFlow": (5.26, 19.73, 25.57, 22.70, 98.36, 98.09),
    "STDF": (4.41, 19.45, 25.24, 22.26, 96.04, 95.22),
}


def load_test_json(data: Path) -> Catalogue:
    """The items of `data/test.json`. An entry that cannot be read becomes a problem; the others are kept.

    Raises RequestError where the file is missing or is not an object.
    """
    path = data / TEST_JSON
    entries = read_json(path, error=RequestError, fix=_FIX)
    if not isinstance(entries, dict):
        raise RequestError(
            f"{path}: found {type(entries).__name__}",
            expected="an object of entries by key",
            hint=_FIX,
            code="request.benchmark",
        )
    items, problems = [], []
    for key, entry in entries.items():
        try:
            items.append(_item(data, key, Fields(entry, str(path), key, error=RequestError, fix=_FIX)))
        except EditVerseError as error:  # noqa: PERF203
            problems.append(f"item {key}: {error}")
    return Catalogue(tuple(items), tuple(problems), read_rule(data))


def _item(data: Path, key: str, entry: Fields) -> BenchmarkItem:
    if not key or Path(key).name != key or key.startswith("."):
        raise RequestError(f'found the key "{key}"', expected="a plain name", code="request.benchmark")
    instruction = entry.string("<text>")
    inputs = {
        name: path_inside(data, entry.string(f"<{name}>"))
        for name in (field[1:-1] for field in entry if field.startswith("<") and field.endswith(">"))
        if INPUT_NAME.fullmatch(name)
    }
    for tag in TAG_PATTERN.findall(instruction):
        if tag not in inputs:
            entry.string(f"<{tag}>")
    source = "video1" if "video1" in inputs else next(iter(inputs), "")
    if not source:
        entry.refuse("<video1>", None, "the path of a video")
    category = entry.string("type")
    direction = {"direction": entry.string("direction")} if "direction" in entry else {}
    others = [name for name in inputs if name.startswith("video") and name != source]
    return BenchmarkItem(
        key=key,
        category=category,
        instruction=instruction,
        inputs=inputs,
        source=source,
        source_prompt=_text(entry, "source_prompt"),
        target_prompt=_text(entry, "target_prompt"),
        masks=tuple(others) if "mask" in category.lower() else (),
        answer=path_inside(data, entry.string("answer")) if "answer" in entry else None,
        groups=direction,
    )


def _text(entry: Fields, name: str) -> str | None:
    return (entry.text(name) or None) if name in entry else None


def _row(values: tuple[float, ...]) -> Mapping[str, float]:
    return dict(zip(_ORDER, values, strict=True))


EDITVERSE_BENCH = Benchmark(
    name="editverse-bench",
    title="EditVerseBench",
    load=load_test_json,
    result=results_by_key,
    metrics=("pick", "frame_text", "video_text", "clip_temporal", "dino_temporal"),
    judge_profile="published",
    published={name: _row(values) for name, values in _PUBLISHED.items()},
    note="published scores: plain means over 200 items; judge gpt-4o-2024-11-20",
    num_items=200,
)
