"""A request as data: to JSON and back without loss, and every field refused by its name."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editverse_rt.errors import RequestError
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.options import OPTIONS

FULL: dict[str, Any] = {
    "prompt": "<video1> Go",
    "inputs": {"video1": "a.mp4", "image2": "b.png"},
    "negative_prompt": "blur",
    "schedule": "fast",
    "num_inference_steps": 7,
    "guidance_scale": 2.5,
    "seed": 3,
    "size": "64x48",
    "num_frames": 9,
    "fps": 12.5,
    "start_s": 1.5,
}

NUMBERS = [option.name for option in OPTIONS if option.kind in ("int", "float")]

names = st.builds("{}{}".format, st.sampled_from(["video", "image"]), st.integers(1, 99))
requests = st.builds(
    EditRequest,
    prompt=st.text(),
    inputs=st.dictionaries(names, st.text(min_size=1), max_size=3),
    negative_prompt=st.none() | st.text(),
    schedule=st.none() | st.text(),
    num_inference_steps=st.none() | st.integers(1, 10_000),
    guidance_scale=st.none() | st.floats(0, 1000),
    seed=st.integers(0, 2**63 - 1),
    size=st.none() | st.tuples(st.integers(0, 999_999), st.integers(0, 999_999)),
    num_frames=st.none() | st.integers(1, 2**24),
    fps=st.none() | st.floats(0, 1000, exclude_min=True),
    start_s=st.floats(0, 1e9),
)


@given(requests)
def test_json_and_back_is_the_same_request(request: EditRequest) -> None:
    text = json.dumps(request.to_json(), allow_nan=False)
    assert EditRequest.from_json(json.loads(text)) == request


def test_every_field_goes_through_json() -> None:
    request = EditRequest.from_json(FULL)
    assert {
        name for name, value in FULL.items() if name not in ("prompt", "inputs") and value is not None
    } <= {option.name for option in OPTIONS}
    assert request.size == (48, 64)
    assert request.to_json() == FULL


def test_defaults_are_left_out() -> None:
    assert EditRequest("A ring").to_json() == {"prompt": "A ring"}
    assert EditRequest.from_json({"prompt": "A ring", "seed": 0, "fps": None}) == EditRequest("A ring")


def test_paths_become_strings() -> None:
    assert EditRequest("x", {"video1": Path("a") / "b.mp4"}).to_json()["inputs"] == {"video1": "a/b.mp4"}


@pytest.mark.parametrize(("name", "clip"), [("video1", np.zeros((5, 8, 8, 3), np.uint8)), ("image2", 3)])
def test_frames_do_not_go_into_json_and_are_refused_by_name(name: str, clip: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} is .*expected a path") as caught:
        EditRequest("x", {name: clip}).to_json()
    assert (caught.value.code, caught.value.field) == ("request.input_type", f"inputs.{name}")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"promt": "x"}, "promt"),
        ({"video1": "a.mp4"}, "video1"),
        ({"inputs": ["a.mp4"]}, "inputs"),
        ({"inputs": {"video1": 3}}, "inputs.video1"),
        ({"inputs": {"video1": ""}}, "inputs.video1"),
        ({"inputs": {"video1": None}}, "inputs.video1"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"size": [48, 64]}, "size"),
        ({"size": "64"}, "size"),
        ({"size": "64*48"}, "size"),
        ({"seed": "3"}, "seed"),
        ({"seed": 3.5}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
        ({"seed": True}, "seed"),
        *(({name: sign * 10**400}, name) for name in NUMBERS for sign in (1, -1)),
        ({"num_frames": 0}, "num_frames"),
        ({"num_inference_steps": 2.0}, "num_inference_steps"),
        ({"fps": 0}, "fps"),
        ({"guidance_scale": {}}, "guidance_scale"),
        ({"schedule": 1}, "schedule"),
        ({"negative_prompt": ["x"]}, "negative_prompt"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        EditRequest.from_json({"prompt": "x", **changes}, "request.json")
    assert caught.value.field == field
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "x", 3, {}, {"inputs": {}}])
def test_what_is_no_request(value: object) -> None:
    with pytest.raises(RequestError, match=r"request\.json"):
        EditRequest.from_json(value, "request.json")


@pytest.mark.parametrize("name", ["video", "video0", "clip1", "Video1", "video1 ", ""])
def test_an_input_of_another_name_is_refused(name: str) -> None:
    for make in (
        lambda: EditRequest("x", {name: "a"}),
        lambda: EditRequest.from_json({"prompt": "x", "inputs": {name: "a"}}),
    ):
        with pytest.raises(RequestError) as caught:
            make()
        assert caught.value.code == "request.input_name"


@pytest.mark.parametrize(("name", "advice"), [("precision", "--dtype"), ("lora", "--lora FILE")])
def test_what_only_a_bundle_decides_is_refused_with_advice(name: str, advice: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is not an option of a request") as in_json:
        EditRequest.from_json({"prompt": "Make it night", name: "fp16"})
    with pytest.raises(RequestError) as in_python:
        EditRequest("Make it night", {name: "fp16"})
    for error in (in_json.value, in_python.value):
        assert (error.code, error.field) == ("request.unsupported", name)
        assert advice in error.hint


def test_a_request_is_a_value() -> None:
    request = EditRequest("x", {"video1": "a.mp4"}, seed=np.int64(4), size=[48, 64])  # type: ignore[arg-type]
    assert (type(request.seed), request.size) == (int, (48, 64))
    with pytest.raises(FrozenInstanceError):
        request.seed = 5  # type: ignore[misc]
    other = request.with_inputs({"video1": "b.mp4"})
    assert other.inputs == {"video1": "b.mp4"}
    assert request.inputs == {"video1": "a.mp4"}
    same = [f.name for f in fields(request) if f.name != "inputs"]
    assert all(getattr(other, name) == getattr(request, name) for name in same)
