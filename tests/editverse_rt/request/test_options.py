"""The table of options: each kind of value, each limit, and what a refusal says."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editverse_rt.errors import RequestError
from editverse_rt.request.options import FLAGS, OPTIONS, check_option, parse_size

# Written out once more, on purpose: the names and limits that a caller may rely on.
LIMITS: dict[str, tuple[float, float]] = {
    "num_inference_steps": (1, 10_000),
    "guidance_scale": (0, 1000),
    "seed": (0, 2**63 - 1),
    "num_frames": (1, 2**24),
    "start_s": (0, 1e9),
}
WHOLE = ("num_inference_steps", "seed", "num_frames")
TEXTS = ("negative_prompt", "schedule")


def refusal(name: str, value: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        check_option(name, value)
    error = caught.value
    assert (error.code, error.field) == ("request.option", name)
    assert str(error).startswith(f"{name} is ")
    assert "\n" not in str(error)
    return error


def test_the_table_names_every_option_of_a_request_once() -> None:
    names = [option.name for option in OPTIONS]
    assert len(set(names)) == len(names)
    assert {*LIMITS, *TEXTS, "size", "fps"} <= set(names)
    assert len(set(FLAGS.values())) == len(names)
    assert all(re.fullmatch(r"--[a-z]+(-[a-z]+)*", flag) for flag in FLAGS.values())
    for option in OPTIONS:
        assert option.help
        assert option.metavar
        assert "--" not in option.help, "the library's words, not the command line's"
        assert check_option(option.name, option.default) == option.default


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_inclusive(name: str) -> None:
    low, high = LIMITS[name]
    assert check_option(name, low) == low
    assert check_option(name, high) == high
    for outside in (low - 1, int(high) + 1):
        assert "expected a" in str(refusal(name, outside))


def test_a_rate_is_above_zero() -> None:
    assert check_option("fps", 1e-3) == 1e-3
    assert check_option("fps", 1000) == 1000.0
    for outside in (0, -1, 1000.1):
        assert str(refusal("fps", outside)) == f"fps is {outside}; expected a number above 0 to 1000"


def test_the_largest_seed_is_told_in_full() -> None:
    said = "seed is 9223372036854775808; expected a whole number from 0 to 9223372036854775807"
    assert str(refusal("seed", 2**63)) == said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_frames", 0, "num_frames is 0; expected a whole number from 1 to 16777216"),
        ("start_s", -1, "start_s is -1; expected a number from 0 to 1000000000"),
        ("guidance_scale", -0.5, "guidance_scale is -0.5; expected a number from 0 to 1000"),
    ],
)
def test_limits_are_told_in_full(name: str, value: float, said: str) -> None:
    assert str(refusal(name, value)) == said


@pytest.mark.parametrize("name", [*LIMITS, "fps", "strength"])
def test_numbers_that_no_float_holds_are_out_of_range(name: str) -> None:
    # Of the last one, Python does not even write the digits.
    for value in (10**400, -(10**400), Fraction(10**400), 10**5000):
        assert len(str(refusal(name, value))) < 200


@pytest.mark.parametrize("name", [*LIMITS, "fps"])
@pytest.mark.parametrize(
    "value", [True, False, np.bool_(True), "1", "", b"1", math.nan, math.inf, -math.inf, [1], 1j, {}]
)
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    refusal(name, value)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.0, 1.5, np.float32(1), Fraction(1)])
def test_fractions_are_refused_where_whole_numbers_are_expected(name: str, value: Any) -> None:
    refusal(name, value)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.uint64])
def test_numbers_of_numpy_become_pythons(name: str, kind: type) -> None:
    assert type(check_option(name, kind(7))) is int


def test_a_number_is_kept_as_a_float() -> None:
    for value in (2, np.int32(2), np.float32(2), Fraction(2)):
        assert type(check_option("guidance_scale", value)) is float


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_a_string(name: str) -> None:
    assert check_option(name, "a") == "a"
    for value in (1, b"a", ["a"], True):
        assert str(refusal(name, value)).endswith("expected a string")


@pytest.mark.parametrize("value", [(48, 64), [48, 64], np.array([48, 64]), (np.int64(48), 64)])
def test_a_size_is_height_and_width(value: Any) -> None:
    assert check_option("size", value) == (48, 64)
    assert all(type(side) is int for side in (48, 64))


@pytest.mark.parametrize("value", ["64x48", (48,), (48, 64, 3), (48.0, 64), 48, {}, (None, 1), ("48", "64")])
def test_what_is_no_size(value: Any) -> None:
    refusal("size", value)


@pytest.mark.parametrize("name", ["seed", "start_s"])
def test_an_option_that_has_a_default_takes_no_none(name: str) -> None:
    refusal(name, None)


def test_a_long_value_is_shortened() -> None:
    assert len(str(refusal("schedule", ["x"] * 1000))) < 120


@given(st.integers(0, 999_999), st.integers(0, 999_999))
def test_a_size_as_text(height: int, width: int) -> None:
    assert parse_size(f"{width}x{height}") == (height, width)


@pytest.mark.parametrize(
    "text", ["", "64", "64x", "x48", "64X48", "64x48x3", "-1x2", "6 4x48", "1e2x3", "٣x٣"]
)
def test_texts_that_are_no_size(text: str) -> None:
    assert parse_size(text) is None
