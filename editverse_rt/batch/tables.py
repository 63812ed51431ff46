"""Manifests that are tables: a row of CSV or Parquet as the JSON object that a line of a JSONL file would have."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from editverse_rt.errors import RequestError
from editverse_rt.parquet import read_parquet
from editverse_rt.request.options import OPTIONS
from editverse_rt.request.prompt import INPUT_NAME

__all__ = ["SUFFIXES", "objects_of_table"]

SUFFIXES = (".csv", ".parquet")
_KINDS = {option.name: option.kind for option in OPTIONS}


def objects_of_table(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, object) of each row; an empty cell is left out, and columns such as `video1` are inputs.

    line: of the file for CSV, counted from 1 for Parquet. Raises RequestError (`batch.manifest`) for a file that cannot
    be read and for a column that means nothing, BackendError for Parquet without pyarrow.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    for name in rows[0][1] if rows else ():
        if name not in ("id", "prompt", *_KINDS) and INPUT_NAME.fullmatch(name) is None:
            raise RequestError(
                f"{path} has a column {name!r}",
                expected="id, prompt, inputs such as video1, and options such as seed",
                hint="rename or remove it",
                code="batch.manifest",
            )
    return [(line, _object_of(row)) for line, row in rows]


def _object_of(row: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in row.items() if value is not None and value != ""}
    found = {name: value for name, value in given.items() if INPUT_NAME.fullmatch(name) is None}
    inputs = {name: value for name, value in given.items() if name not in found}
    return {**found, "inputs": inputs} if inputs else found


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restkey="", strict=True)
            names = list(reader.fieldnames or ())
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"the column {min(twice)!r} stands twice")
            rows = []
            for row in reader:
                if row.pop("", None):
                    raise ValueError(f"line {reader.line_num} has more cells than columns")
                rows.append((reader.line_num, {name: _value_of(name, text) for name, text in row.items()}))
            return rows
    except (OSError, ValueError, csv.Error) as error:
        raise RequestError(
            f"{path} cannot be read as CSV in UTF-8 ({error})",
            expected="a line with the names of the columns, and a line for each row",
            hint="check the file",
            code="batch.manifest",
        ) from error


def _value_of(name: str, text: str | None) -> object:
    """A cell's text as the number that its option takes, where it is one; else the text, which is refused later."""
    if not text:
        return None
    try:
        return {"int": int, "float": float}.get(_KINDS.get(name, ""), str)(text)
    except ValueError:
        return text


def _parquet_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = read_parquet(path, code="batch.manifest")
    return [
        (line, {name: _number_of(name, value) for name, value in row.items()})
        for line, row in enumerate(rows, start=1)
    ]


def _number_of(name: str, value: object) -> object:
    """What pandas makes of whole numbers beside empty cells, floats and NaN, as what it was."""
    if not isinstance(value, float) or not math.isfinite(value):
        return None if isinstance(value, float) and math.isnan(value) else value
    return int(value) if _KINDS.get(name) == "int" and value.is_integer() else value
