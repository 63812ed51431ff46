"""A request checked against a bundle: its schedule, its tokens, what the bundle cannot do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.errors import RequestError
from editverse_rt.planning.planner import Work
from editverse_rt.request.checked import check_request, choose_schedule
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.tokenizer import Tokenizer


@pytest.fixture
def spec(fake_bundle: Any) -> BundleSpec:
    return load_bundle(fake_bundle.root).spec


@pytest.fixture
def tokenizer(fake_bundle: Any) -> Tokenizer:
    facts = fake_bundle.spec.tokenizer
    return Tokenizer(fake_bundle.root / facts.file, facts.eos_id, facts.max_tokens)


def refuse_table(schedule: Schedule, num_inference_steps: int) -> ScheduleTable:
    raise AssertionError(f"{schedule.name}: its own table would do for {num_inference_steps} steps")


def test_the_bundles_own_table_needs_no_graph(spec: BundleSpec) -> None:
    assert choose_schedule(spec, None, None, None, refuse_table) is spec.schedules["paper"]
    assert choose_schedule(spec, "interval", 3, None, refuse_table) is spec.schedules["interval"]


def test_another_number_of_steps_is_asked_for_with_the_schedules_settings(spec: BundleSpec) -> None:
    asked: list[tuple[Schedule, int, int]] = []
    table = spec.schedules["interval"].table

    def make_table(schedule: Schedule, num_inference_steps: int, first_step: int) -> ScheduleTable:
        asked.append((schedule, num_inference_steps, first_step))
        return table

    chosen = choose_schedule(spec, "paper", 3, 2.0, make_table)
    assert asked == [(spec.schedules["paper"], 3, 0)]
    assert chosen.name == "paper"
    assert chosen.table.timesteps == table.timesteps
    # The caller's guidance applies where the table guides.
    assert chosen.table.guidance == (1.0, 2.0, 1.0)


def test_an_unknown_schedule_is_refused_with_those_there_are(spec: BundleSpec) -> None:
    with pytest.raises(RequestError, match='schedule is "fast"; this bundle has paper, interval') as caught:
        choose_schedule(spec, "fast", None, None, refuse_table)
    assert (caught.value.code, caught.value.field) == ("request.unknown_schedule", "schedule")


def test_ids_are_those_of_each_segment_and_the_end(
    spec: BundleSpec, tokenizer: Tokenizer, blocky_clip: Any
) -> None:
    request = EditRequest("Insert <video1> a paper boat", {"video1": blocky_clip(5)})
    checked = check_request(spec, tokenizer, request, refuse_table)
    assert checked.clip_names == ["video1"]
    assert list(map(list, checked.ids)) == tokenizer.encode_segments(["Insert", "a paper boat"])
    assert checked.ids[-1] == (1,)
    assert checked.negative_ids is None
    num_text = sum(map(len, checked.ids))
    # Four steps of the paper's schedule, all guided.
    assert checked.expected_work == Work(num_text, ((5, 48, 64),), (5, 48, 64), 4, 4)


@pytest.mark.parametrize(
    ("facts", "request_", "field", "said"),
    [
        ({}, EditRequest("A ring", negative_prompt="blur"), "negative_prompt", "leaves the text out"),
        ({"generates": False}, EditRequest("A ring"), "inputs", "edits and does not generate"),
        (
            {"edits": False},
            EditRequest("<image1> Go", {"image1": np.zeros((48, 48, 3), np.uint8)}),
            "inputs",
            "generates and does not edit",
        ),
    ],
)
def test_what_the_bundle_cannot_do_is_refused_by_name(
    spec: BundleSpec,
    tokenizer: Tokenizer,
    facts: dict[str, Any],
    request_: EditRequest,
    field: str,
    said: str,
) -> None:
    spec = replace(spec, capabilities=replace(spec.capabilities, **facts))
    with pytest.raises(RequestError, match=said) as caught:
        check_request(spec, tokenizer, request_, refuse_table)
    assert (caught.value.code, caught.value.field) == ("request.unsupported", field)


@pytest.mark.parametrize(("given", "expected"), [(None, "blue"), ("a red ring", "a red ring"), ("", "")])
def test_a_negative_prompt_is_the_callers_or_the_bundles(
    spec: BundleSpec, tokenizer: Tokenizer, given: str | None, expected: str
) -> None:
    can = replace(spec.capabilities, negative_prompt=True)
    spec = replace(spec, unconditional="prompt", default_negative_prompt="blue", capabilities=can)
    checked = check_request(spec, tokenizer, EditRequest("A ring", negative_prompt=given), refuse_table)
    words = [i for ids in tokenizer.encode_segments([expected] if expected else []) for i in ids]
    assert checked.negative_ids == tuple(words)
    assert checked.negative_ids[-1] == 1


def test_a_fixed_schedule_has_its_own_steps_only(spec: BundleSpec) -> None:
    fixed = replace(spec.schedules["paper"], name="fast", graph="", options={})
    spec = replace(spec, schedules={**spec.schedules, "fast": fixed})
    assert choose_schedule(spec, "fast", None, None, refuse_table) is fixed
    steps = fixed.num_inference_steps
    assert choose_schedule(spec, "fast", steps, None, refuse_table) is fixed
    for asked, strength, field in ((steps + 1, None, "num_inference_steps"), (None, 0.6, "strength")):
        with pytest.raises(RequestError, match=f"its {steps} steps, whose noise levels are fixed") as caught:
            choose_schedule(spec, "fast", asked, None, refuse_table, strength=strength)
        assert (caught.value.code, caught.value.field) == ("request.option", field)
