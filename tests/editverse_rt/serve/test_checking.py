"""The memory budget of a worker with several bundles: what is left for the jobs of each."""

from __future__ import annotations

import pytest

from editverse_rt.errors import RequestError
from editverse_rt.serve.checking import Limits, share_budget


def test_each_model_is_left_what_the_weights_of_the_others_do_not_take() -> None:
    """A request's own check counts the weights of its own model."""
    shared = share_budget(Limits(max_inputs=3, memory_budget_bytes=100), {"small": 10, "large": 60})
    assert {name: limits.memory_budget_bytes for name, limits in shared.items()} == {"small": 40, "large": 90}
    assert all(limits.max_inputs == 3 for limits in shared.values())


def test_without_a_budget_there_is_nothing_to_share() -> None:
    limits = Limits()
    assert share_budget(limits, {"one": 10}) == {"one": limits}


@pytest.mark.parametrize("budget", [1, 70])
def test_a_budget_for_less_than_the_weights_is_refused(budget: int) -> None:
    with pytest.raises(RequestError) as caught:
        share_budget(Limits(memory_budget_bytes=budget), {"small": 10, "large": 60})
    assert (caught.value.code, caught.value.field) == ("request.option", "memory_budget")
    assert "70" in str(caught.value)
