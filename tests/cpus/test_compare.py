"""The comparison of processors finds each kind of difference that it is there for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cpus.compare import NEAR, PICTURES, SAME, compare

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((20, 10))
PIXELS = RNG.integers(1, 255, (5, 40, 40, 3), np.uint8)


def results() -> dict[str, np.ndarray[Any, Any]]:
    found = dict.fromkeys(SAME, PIXELS[0, 0, 0]) | dict.fromkeys(NEAR, FLOATS)
    found |= dict.fromkeys(("edit, 3 threads", "edit in integers", *PICTURES), PIXELS)
    return found | {"saturates": np.array(True), "transformer in integers": FLOATS * 1.01}


def failures(found: dict[str, np.ndarray[Any, Any]]) -> list[str]:
    return [what for what, _, passed in compare("Haswell-v4", found, results()) if not passed]


def test_the_same_results_pass() -> None:
    assert failures(results()) == []


@pytest.mark.parametrize("name", [*SAME, *NEAR, *PICTURES, "edit, 3 threads"])
def test_a_difference_is_found(name: str) -> None:
    found = results()
    found[name] = found[name] * 1.001 if name in NEAR else found[name] + np.uint8(1)
    assert any(row.startswith(name.split(",")[0]) for row in failures(found))


def test_products_that_saturate_are_found() -> None:
    found = results() | {"transformer in integers": FLOATS * 1.3}
    assert failures(found) == ["transformer in integers, to float32 here"]
    found = results() | {"edit in integers": PIXELS ^ np.uint8(8)}
    assert failures(found) == ["edit in integers, to float32 here"]


def test_an_emulator_that_is_another_processor_is_found() -> None:
    assert failures(results() | {"saturates": np.array(False)}) == ["8-bit products saturate"]
