"""Errors as data: their text, their JSON, their way between processes, and the page of codes."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import editverse_rt
from editverse_rt.errors import BundleError, EditVerseError, MediaError, QueueFull, RequestError

RUNTIME = Path(editverse_rt.__file__).parent
PAGE = RUNTIME.parent / "docs" / "errors.md"
CODE = re.compile(r"[a-z_]+(\.[a-z_]+)?")


def test_the_text_is_found_expected_and_hint() -> None:
    error = RequestError("the sky is green", expected="blue", hint="look again")
    assert str(error) == "the sky is green; expected blue; look again"
    assert str(RequestError("the sky is green")) == "the sky is green"


def test_a_value_is_told_with_its_field_and_under_a_callers_name_for_it() -> None:
    error = RequestError("0", expected="at least 1", field="num_frames", code="request.option", is_value=True)
    assert str(error) == "num_frames is 0; expected at least 1"
    assert error.describe({"num_frames": "--frames"}) == "--frames is 0; expected at least 1"


def test_json_has_every_part_and_the_text() -> None:
    error = BundleError("no folder", hint="make one", code="bundle.not_found")
    assert error.to_json() == {
        "code": "bundle.not_found",
        "field": "",
        "found": "no folder",
        "expected": "",
        "hint": "make one",
        "message": "no folder; make one",
    }


@pytest.mark.parametrize("kind", [EditVerseError, MediaError, QueueFull])
def test_an_error_goes_between_processes_whole(kind: type[EditVerseError]) -> None:
    error = kind("x", expected="y", hint="z", code="request.option", field="f", is_value=True)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.to_json() == error.to_json()
    assert str(again) == str(error)


def test_a_class_has_a_code_where_none_is_given() -> None:
    assert MediaError("x").code == "media"
    assert QueueFull("x").code == "queue_full"


def codes_in_the_source() -> Iterator[str]:
    """Codes given by keyword as constants, and the classes' own."""
    for path in RUNTIME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            is_code = isinstance(node, ast.keyword) and node.arg == "code"
            if is_code and isinstance(node.value, ast.Constant) and CODE.fullmatch(str(node.value.value)):
                yield str(node.value.value)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "default_code":
                yield ast.literal_eval(node.value)
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "default_code" and node.value:
                yield ast.literal_eval(node.value)


@pytest.mark.skipif(not PAGE.is_file(), reason="the wheel's tests run without the documentation")
def test_the_page_of_codes_lists_each_code_once_and_no_other() -> None:
    listed = re.findall(r"^\| `([a-z_.]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(set(listed)) == len(listed)
    put_together = {"bundle.field", "backend.field", "request.field"}  # from the class's code
    elsewhere = {
        "backend.cuda",
        "backend.outputs",
    }  # the first by the number of the fault, the second in C alone
    assert set(listed) == {*codes_in_the_source(), *put_together, *elsewhere}
