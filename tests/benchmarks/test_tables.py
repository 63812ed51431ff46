"""The tables of docs/benchmarks.md are what the results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.tables import LONG_PAGE, NANO_PAGE, PAGE, fill_tables, main

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_tables_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_every_table_that_can_be_made_is_on_the_page() -> None:
    names = [
        re.findall(r"<!-- table (\w+) -->", page.read_text("utf-8")) for page in (PAGE, NANO_PAGE, LONG_PAGE)
    ]
    assert sorted(names[0]) == [
        "growth",
        "load",
        "memory",
        "peers",
        "schedules",
        "serving",
        "stages",
        "variety",
    ]
    assert names[1] == ["quality", "real", "photographs"]


def test_a_figure_of_the_results_is_in_the_table() -> None:
    rows = json.loads((RESULTS / "soak.json").read_text("utf-8"))["rows"]
    page = fill_tables("a\n<!-- table load -->\nold\n<!-- end of table -->\nb")
    assert page.startswith("a\n")
    assert page.endswith("\nb")
    assert "old" not in page
    for row in rows:
        assert f"| {row['requests_per_s']:.1f} |" in page


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of peers"):
        fill_tables("<!-- table weather -->\n<!-- end of table -->")
