"""Manifests as tables: the same rows as from lines of JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.batch.rows import read_manifest
from editverse_rt.batch.tables import objects_of_table
from editverse_rt.errors import RequestError

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    lambda text: "<" not in text and text.strip()
)
ROW = st.fixed_dictionaries(
    {"prompt": TEXT},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "num_frames": st.integers(1, 9999),
        "guidance_scale": st.floats(0, 1000, allow_nan=False),
        "size": st.sampled_from(["64x48", "80x48"]),
        "inputs": st.dictionaries(st.sampled_from(["video1", "image1"]), TEXT, min_size=1).map(
            lambda inputs: dict(sorted(inputs.items(), reverse=True))
        ),
    },
)


@settings(deadline=None)
@given(st.lists(ROW, min_size=1, max_size=4), st.sampled_from(["csv", "parquet"]))
def test_a_table_gives_the_rows_that_lines_give(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    named = [{"id": f"r{index}", **row} for index, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named), "utf-8")
    expected, no_failures = read_manifest(folder / "rows.jsonl")
    flat = [{**{k: v for k, v in row.items() if k != "inputs"}, **row.get("inputs", {})} for row in named]
    write_table(folder / f"rows.{kind}", flat)
    found, failures = read_manifest(folder / f"rows.{kind}")
    assert failures == no_failures == []
    assert [(row.id, row.request) for row in found] == [(row.id, row.request) for row in expected]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    # The order of inputs is that of their columns, as in JSON it is that of their names.
    names = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name == "image1")
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(rows)
        return
    pyarrow = pytest.importorskip("pyarrow", reason="the extra evaluate is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)


def test_numbers_that_pandas_made_floats_of_are_whole_again(tmp_path: Path) -> None:
    write_table(
        tmp_path / "rows.parquet",
        [{"id": "a", "prompt": "x", "seed": 7.0}, {"id": "b", "prompt": "x", "seed": float("nan")}],
    )
    rows, failures = read_manifest(tmp_path / "rows.parquet")
    assert failures == []
    assert [row.request.seed for row in rows] == [7, 0]


def test_a_wrong_cell_fails_its_row_alone_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,prompt,seed\na,x,1\nb,x,seven\n,x,2\n", "utf-8")
    rows, failures = read_manifest(tmp_path / "rows.csv")
    assert [row.id for row in rows] == ["a"]
    assert [(failure.line, failure.to_json()["field"]) for failure in failures] == [(3, "seed"), (4, "id")]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("id,prompt,sede\na,x,1\n", "a column 'sede'"),
        ("id,prompt,prompt\na,x,y\n", "'prompt' stands twice"),
        ("id,prompt\na,x,y\n", "line 2 has more cells than columns"),
        ('id,prompt\na,"x\n', "cannot be read as CSV"),
    ],
)
def test_a_table_that_is_none_is_refused_as_a_whole(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "rows.csv").write_text(text, "utf-8")
    with pytest.raises(RequestError, match=match) as caught:
        objects_of_table(tmp_path / "rows.csv")
    assert caught.value.code == "batch.manifest"


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_bytes_that_are_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR1")
    with pytest.raises(RequestError) as caught:
        read_manifest(tmp_path / name)
    assert caught.value.code == "batch.manifest"


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("", "utf-8")
    assert read_manifest(tmp_path / "rows.csv") == ([], [])
