"""TGVE (LOVEU 2023) and TGVE+: clips of 480x480 as folders of pictures, and captions of source and result.

TGVE's captions are one CSV file: `Video name`, `Our GT caption` and a column for each kind of edit. TGVE+ is
one parquet table whose columns are found by their names. Results are `<subset>/<video>/<kind>/NNNNN.jpg`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.evaluate.benchmarks.base import (
    Benchmark,
    BenchmarkItem,
    Catalogue,
    path_inside,
    read_csv_rows,
)
from editverse_rt.parquet import read_parquet

__all__ = ["TGVE", "TGVE_PLUS", "load_tgve", "load_tgve_plus"]

SIZE_PX = (480, 480)
_KINDS = ("style", "object", "background", "multiple")
_NAME, _CAPTION = "Video name", "Our GT caption"
_HEADING = re.compile(r"(\w+) Videos:?")
_MEANINGS = {
    "instruction": ("instruction", "edit_instruction", "prompt"),
    "task": ("task", "edit_type", "type", "category"),
    "source_prompt": ("input_caption", "source_caption", "caption", "input_prompt"),
    "target_prompt": ("output_caption", "target_caption", "edited_caption", "output_prompt"),
    "path": ("video_file", "video_path", "path", "video", "file_name"),
}


def load_tgve(data: Path) -> Catalogue:
    """The items of the CSV file of captions; the clips lie in `data/<subset>/480p_frames/<video>/`.

    A row such as "DAVIS Videos:" begins a subset, whose folder's name begins with that word. Where there are
    no frames, `<subset>/480p_videos/<video>.mp4` is taken. Raises RequestError where there is not one table.
    """
    tables = sorted(data.glob("*.csv"))
    if len(tables) != 1:
        raise RequestError(
            f"{data}: found {len(tables)} CSV files", expected="one, of captions", code="request.benchmark"
        )
    rows = read_csv_rows(tables[0], (_NAME, _CAPTION))
    columns = {kind: _column_of(kind, list(rows[0]) if rows else []) for kind in _KINDS}
    items, problems, subset = [], [], ""
    for row in rows:
        video = row[_NAME].strip()
        if heading := _HEADING.fullmatch(video):
            subset = _subset_folder(data, heading[1])
            continue
        if not video:
            continue
        for kind, column in columns.items():
            target = row.get(column, "").strip()
            key = f"{subset}/{video}/{kind}".lstrip("/")
            try:
                if not target:
                    raise RequestError("found no caption of the edit", code="request.benchmark")
                source = _source(data, subset, video)
            except EditVerseError as error:
                problems.append(f"item {key}: {error}")
                continue
            items.append(
                BenchmarkItem(
                    key, kind, target, {"video1": source}, "video1", row[_CAPTION].strip() or None, target,
                    groups={"subset": subset},
                )
            )  # fmt: skip
    return Catalogue(tuple(items), tuple(problems))


def load_tgve_plus(data: Path) -> Catalogue:
    """The items of `data/*.parquet`; the clips lie below `data`, by each row's relative path.

    Raises RequestError where there is no table or a column is missing, BackendError without pyarrow.
    """
    rows = _parquet_rows(data)
    names = list(rows[0]) if rows else []
    columns = {meaning: _find_column(meaning, names) for meaning in _MEANINGS}
    items, problems, seen = [], [], set()
    for index, row in enumerate(rows):
        values = {meaning: str(row[column] or "").strip() for meaning, column in columns.items()}
        relative = Path(values["path"])
        key = f"{relative.parent.name or 'all'}/{relative.stem}/{values['task']}"
        if key in seen:
            key = f"{key}-{index}"
        try:
            parts = Path(key).parts
            if ".." in parts or not values["instruction"] or not values["task"]:
                raise RequestError("found no instruction or no task", code="request.benchmark")
            source = path_inside(data, values["path"])
        except EditVerseError as error:
            problems.append(f"row {index}: {error}")
            continue
        seen.add(key)
        items.append(
            BenchmarkItem(
                key, values["task"], values["instruction"], {"video1": source}, "video1",
                values["source_prompt"] or None, values["target_prompt"] or None,
            )
        )  # fmt: skip
    return Catalogue(tuple(items), tuple(problems))


def result_folder(results: Path, item: BenchmarkItem) -> Path:
    """`<results>/<subset>/<video>/<kind>`, a folder of numbered pictures."""
    return results / item.key


def _column_of(kind: str, names: list[str]) -> str:
    """Columns are called "Style Change Caption", "Object Change Caption" and so on."""
    return next((name for name in names if name.lower().startswith(kind)), "")


def _subset_folder(data: Path, word: str) -> str:
    """The folder whose name begins with the word of a heading: "DAVIS_480p" for "DAVIS"."""
    found = sorted(path.name for path in data.iterdir() if path.is_dir())
    return next((name for name in found if name.lower().startswith(word.lower())), f"{word}_480p")


def _source(data: Path, subset: str, video: str) -> Path:
    places = (
        path_inside(data, f"{subset}/480p_frames/{video}"),
        path_inside(data, f"{subset}/480p_videos/{video}.mp4"),
    )
    return next((place for place in places if place.exists()), places[0])


def _find_column(meaning: str, names: list[str]) -> str:
    for wanted in _MEANINGS[meaning]:
        for name in names:
            if name.lower().replace(" ", "_") == wanted:
                return name
    raise RequestError(
        f"found the columns {', '.join(names) or 'of an empty table'}",
        expected=f"one of {', '.join(_MEANINGS[meaning])}",
        code="request.benchmark",
    )


def _parquet_rows(data: Path) -> list[dict[str, Any]]:
    tables = sorted(data.rglob("*.parquet"))
    if not tables:
        raise RequestError(
            f"{data}: found no parquet file", expected="TGVE+'s table", code="request.benchmark"
        )
    return [row for table in tables for row in read_parquet(table, code="request.benchmark")]


TGVE = Benchmark(
    name="tgve",
    title="TGVE",
    load=load_tgve,
    result=result_folder,
    metrics=("tgve_clip_frame", "tgve_clip_score", "tgve_pick"),
    size=SIZE_PX,
    published={"EVE": {"tgve_pick": 20.88, "tgve_clip_frame": 0.926}},
    note="captions stand for instructions; clips of 480x480",
    num_items=304,
)
TGVE_PLUS = Benchmark(
    name="tgve-plus",
    title="TGVE+",
    load=load_tgve_plus,
    result=result_folder,
    metrics=("viclip_dir", "viclip_out"),
    size=SIZE_PX,
    published={
        "EVE": {"viclip_dir": 0.198, "viclip_out": 0.251},
        "EditVerse": {"viclip_dir": 0.225, "viclip_out": 0.252},
    },
    note="the variant of viclip_dir and its sampling of frames are assumed: no code of it is public",
    num_items=1417,
)
