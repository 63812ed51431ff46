"""Ids and manifests of a batch, of whatever text or bytes."""

from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editverse_rt.batch.rows import BatchRow, check_ids, read_manifest
from editverse_rt.errors import RequestError


@given(st.lists(st.text(st.sampled_from("aAbB"), min_size=1, max_size=2), max_size=5))
def test_ids_are_compared_without_capitals(names: list[str]) -> None:
    is_unique = len({name.lower() for name in names}) == len(names)
    try:
        check_ids((name, line) for line, name in enumerate(names, start=1))
    except RequestError:
        assert not is_unique
    else:
        assert is_unique


@given(name=st.text(max_size=120))
def test_an_id_is_taken_or_refused_and_never_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    path = tmp_path_factory.mktemp("ids") / "rows.jsonl"
    path.write_text(json.dumps({"id": name, "prompt": "x"}), "ascii")
    rows, failures = read_manifest(path)
    assert len(rows) + len(failures) == 1
    for row in rows:
        target = path.parent / f"{row.id}-0123456789abcdef.mp4"
        assert target.parent == path.parent
        target.write_bytes(b"")
        assert target.name in os.listdir(path.parent)


@given(st.binary(max_size=60))
def test_any_manifest_is_rows_failures_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "rows.jsonl"
    path.write_bytes(data)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        with pytest.raises(RequestError, match="cannot be read as UTF-8 text"):
            read_manifest(path)
    else:
        rows, failures = read_manifest(path)
        assert len(rows) + len(failures) == sum(bool(line.strip()) for line in lines)


def test_a_row_has_a_stem() -> None:
    assert re.fullmatch(r"a-0{16}", BatchRow("a", None, key="0" * 16).stem)  # type: ignore[arg-type]
