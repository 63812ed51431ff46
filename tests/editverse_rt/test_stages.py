"""Which of two transformers is done with, and when."""

from __future__ import annotations

import pytest

from editverse_rt.stages import done_transformer


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        ([0, 0, 1, 1], [None, "transformer", None, None]),
        ([1, 0], ["transformer_2", None]),
        ([0, 1, 0, 1], [None, None, "transformer", None]),
        ([0, 0, 0], [None, None, None]),
        ([1], [None]),
    ],
)
def test_a_transformer_makes_room_after_its_last_step_for_another(
    experts: list[int], expected: list[str | None]
) -> None:
    assert [done_transformer(experts, step) for step in range(len(experts))] == expected
