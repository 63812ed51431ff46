"""A request as data: what a caller asks for, which goes to JSON and back without loss."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from editverse_rt.errors import RequestError
from editverse_rt.fields import Fields
from editverse_rt.media.frames import Frames
from editverse_rt.request.options import OPTIONS, check_option, parse_size, refuse_choices_of_bundles
from editverse_rt.request.prompt import check_input_name

__all__ = ["EditRequest", "Source", "request_of_call"]

Source = str | os.PathLike[str] | Frames
"""An input: the path of a video or an image, or an array uint8 [T, H, W, 3] (video) or [H, W, 3] (image)."""

_FIX = "correct the request"


@dataclass(frozen=True)
class EditRequest:
    """One request: an instruction, its inputs by tag, and options; None leaves an option to the bundle.

    prompt: the instruction, with tags such as <video1> where its inputs belong. inputs: by the name of their
    tag, "video1", "image1". size: (height, width) in pixels. The other options are told in `OPTIONS`.
    Raises RequestError that names the option for a value of another type or out of range.
    """

    prompt: str
    inputs: Mapping[str, Source] = field(default_factory=dict)
    negative_prompt: str | None = None
    strength: float | None = None
    schedule: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    length: str | None = None
    fps: float | None = None
    start_s: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise RequestError(
                f"the instruction is {type(self.prompt).__name__}",
                hint="give a string",
                code="request.prompt",
            )
        refuse_choices_of_bundles(self.inputs)
        for name in self.inputs:
            check_input_name(name)
        for option in OPTIONS:
            object.__setattr__(self, option.name, check_option(option.name, getattr(self, option.name)))

    def to_json(self) -> dict[str, Any]:
        """A JSON object: inputs as paths, size as "WIDTHxHEIGHT"; what is as by default is left out.

        Raises RequestError for an input that is no path.
        """
        value: dict[str, Any] = {"prompt": self.prompt}
        if self.inputs:
            value["inputs"] = {name: _path_of(name, source) for name, source in self.inputs.items()}
        for option in OPTIONS:
            chosen = getattr(self, option.name)
            if chosen != option.default:
                value[option.name] = f"{chosen[1]}x{chosen[0]}" if option.kind == "size" else chosen
        return value

    @classmethod
    def from_json(cls, value: object, where: str = "the request") -> EditRequest:
        """The request of a JSON object. where: stands at the head of errors.

        Raises RequestError that names a field that is missing, wrong or unknown.
        """
        reader = Fields(value, where, "", error=RequestError, fix=_FIX)
        refuse_choices_of_bundles(reader)
        prompt = reader.text("prompt")
        inputs: dict[str, Source] = {}
        if "inputs" in reader:
            paths = reader.child("inputs")
            inputs = {name: paths.string(name) for name in paths}
        options: dict[str, Any] = {}
        for option in OPTIONS:
            if option.name not in reader:
                continue
            given = reader.value(option.name)
            if option.kind == "size" and given is not None:
                given = parse_size(given) if isinstance(given, str) else None
                if given is None:
                    reader.refuse(option.name, reader.value(option.name), 'a string such as "64x48"')
            options[option.name] = given
        reader.finish()
        return cls(prompt, inputs, **options)

    def with_paths_from(self, folder: Path) -> EditRequest:
        """The same request whose inputs' relative paths begin in `folder`; arrays stay as they are."""
        return self.with_inputs(
            {
                name: os.path.join(folder, source) if isinstance(source, (str, os.PathLike)) else source
                for name, source in self.inputs.items()
            }
        )

    def with_inputs(self, inputs: Mapping[str, Source]) -> EditRequest:
        """The same request with other inputs, such as files in place of the names that JSON gave."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return EditRequest(**{**values, "inputs": inputs})


def request_of_call(prompt: str | EditRequest, values: Mapping[str, Any]) -> EditRequest:
    """The request of a call with a prompt, or with a request some of whose inputs and options are replaced.

    values: options by name, of which None leaves the request's own, or the default; the others are inputs.
    Raises RequestError as `EditRequest`.
    """
    names = {option.name for option in OPTIONS}
    options = {name: value for name, value in values.items() if name in names and value is not None}
    inputs = {name: value for name, value in values.items() if name not in names}
    if isinstance(prompt, EditRequest):
        return replace(prompt, inputs={**prompt.inputs, **inputs}, **options)
    return EditRequest(prompt, inputs, **options)


def _path_of(name: str, source: Source) -> str:
    if isinstance(source, np.ndarray) or not isinstance(source, (str, os.PathLike)):
        raise RequestError(
            f"{name} is {type(source).__name__}",
            expected="a path: JSON cannot hold frames",
            hint="write the clip to a file first",
            code="request.input_type",
            field=f"inputs.{name}",
        )
    return os.fspath(source)
