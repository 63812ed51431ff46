"""cpp/src/tables.hpp is what cpp/tools/write_tables.py writes now, and says what the Python host's tables say."""

from __future__ import annotations

import re

import pytest

from cpp.tests.test_header import ROOT, load_module
from editverse_rt.bundle.interface import FAMILIES, SCHEDULE_INPUTS, interfaces_of
from editverse_rt.request.options import OPTIONS

writer = load_module(ROOT / "cpp" / "tools" / "write_tables.py")
HEADER = (ROOT / "cpp" / "src" / "tables.hpp").read_text("utf-8")


def test_the_tables_are_up_to_date() -> None:
    assert writer.make_header() == HEADER, "run: python cpp/tools/write_tables.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_graph_is_there(family: str) -> None:
    """By another way than the writer: each line of the Python table stands in the header, in order."""
    control = interfaces_of(family, "control", ())
    table = [
        *FAMILIES[family].items(),
        *(item for item in control.items() if item not in FAMILIES[family].items()),
    ]
    strings = re.findall(r'"([^"]*)"', HEADER[HEADER.index(f'{{"{family}", {{') :])
    position = 1
    for name, interface in table:
        for line in (name, *interface.inputs, *interface.outputs):
            assert strings[position] == line
            position += 1
    assert set(SCHEDULE_INPUTS) <= set(strings)


def test_every_number_of_a_request_has_a_range() -> None:
    ranges = re.findall(r'^  \{"(\w+)", [^"]+, "([^"]+)"\},$', HEADER, re.MULTILINE)
    numbers = [option for option in OPTIONS if option.kind in ("int", "float")]
    assert ranges == [(option.name, option.expected) for option in numbers]
