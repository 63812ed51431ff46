"""The options of a request in one table: name, type, range, default, help, and the command line's flag.

`EditRequest` is checked by it, the command line is built from it, and `cpp/tools/write_tables.py` writes
the C++ host's checks and the page of options from it.
"""

from __future__ import annotations

import math
import numbers
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from editverse_rt.errors import RequestError

__all__ = [
    "DEFAULT_LENGTH",
    "FLAGS",
    "OPTIONS",
    "Option",
    "OptionValue",
    "check_option",
    "parse_size",
    "refuse_choices_of_bundles",
]

OptionValue = int | float | str | tuple[int, int] | None
DEFAULT_LENGTH = "whole"
"""The length of a request with a video that says neither `length` nor `num_frames`."""
_LARGEST_SEED = 2**63 - 1
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")


@dataclass(frozen=True)
class Option:
    """One option of a request.

    kind: "int", "float", "text", "choice" (one of `choices`), or "size", which is (height, width) in pixels. minimum,
    maximum: inclusive; above: exclusive. default: None leaves the choice to the bundle or to the inputs.
    """

    name: str
    kind: Literal["int", "float", "text", "choice", "size"]
    flag: str
    metavar: str
    help: str
    default: int | float | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What is right, as an error says it."""
        if self.kind == "text":
            return "a string"
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        if self.kind == "size":
            return "height and width in whole pixels, (height, width) in Python, WIDTHxHEIGHT elsewhere"
        number = "a whole number" if self.kind == "int" else "a number"
        if self.above is not None:
            low = f" above {_shown(self.above)}"
        elif self.minimum is not None:
            low = f" {'of at least' if self.maximum is None else 'from'} {_shown(self.minimum)}"
        else:
            low = ""
        high = "" if self.maximum is None else f" to {_shown(self.maximum)}"
        return f"{number}{low}{high}"


def _shown(limit: float) -> str:
    """A limit in full: 16777216 and 1000000000, not 1.67772e+07 and 1e+09."""
    return str(int(limit)) if limit == int(limit) else f"{limit:g}"


OPTIONS: tuple[Option, ...] = (
    Option(
        "negative_prompt", "text", "--negative-prompt", "TEXT",
        "what the result should not show, for bundles whose guidance takes one (default: the bundle's)",
    ),
    Option(
        "strength", "float", "--strength", "S",
        "how far a source that is noised may change, from near 0 to 1, for bundles that begin with one "
        "(default: 0.8)", above=0, maximum=1,
    ),
    Option(
        "schedule", "text", "--schedule", "NAME", "one of the bundle's schedules (default: the bundle's default)"
    ),
    Option(
        "num_inference_steps", "int", "--num-inference-steps", "N",
        "solver steps (default: the schedule's)", minimum=1, maximum=10_000,
    ),
    Option(
        "guidance_scale", "float", "--guidance-scale", "G",
        "strength of the guidance by text, 1 for none (default: the schedule's)", minimum=0, maximum=1000,
    ),
    Option(
        "seed", "int", "--seed", "N",
        "of the noise; the same seed gives the same bytes (default: 0)", default=0, minimum=0,
        maximum=_LARGEST_SEED,
    ),
    Option(
        "size", "size", "--size", "WxH",
        "of the result, in pixels (default: the main input's, or the bundle's)",
    ),
    Option(
        "num_frames", "int", "--frames", "N",
        "frames of the result (default: all of the main input, or the bundle's)", minimum=1,
        maximum=16_777_216,
    ),
    Option(
        "length", "choice", "--length", "whole|cut",
        "edit a video of any length window by window, or cut it to the bundle's limit "
        f"(default: {DEFAULT_LENGTH})",
        choices=("whole", "cut"),
    ),
    Option(
        "fps", "float", "--fps", "FPS",
        "frames a second to take from the videos (default: the main video's own)", above=0, maximum=1000,
    ),
    Option(
        "start_s", "float", "--start", "S",
        "where to begin in the videos, in seconds (default: 0)", default=0.0, minimum=0, maximum=1e9,
    ),
)  # fmt: skip

FLAGS: Mapping[str, str] = {option.name: option.flag for option in OPTIONS}
"""The command line's names of the options."""
_BY_NAME = {option.name: option for option in OPTIONS}

_CHOICES_OF_BUNDLES: Mapping[str, str] = {
    "precision": (
        "export a bundle with --dtype, or build its plans with --precision, and send the request to that bundle"
    ),
    "lora": "merge it into a bundle of its own (python -m export.export_onnx --lora FILE), and send the "
    "request to that bundle",
}
"""What is often asked of a request and is decided by its bundle: what to do instead."""


def check_option(name: str, value: object) -> OptionValue:
    """The value of an option as its type, or RequestError that names the option, its value and its range.

    Whole numbers of other libraries (numpy's) become Python's; strings are not read as numbers.
    """
    option = _BY_NAME[name]
    if value is None and option.default is None:
        return None
    checked: OptionValue = None
    if option.kind == "text":
        checked = value if isinstance(value, str) else None
    elif option.kind == "choice":
        checked = value if isinstance(value, str) and value in option.choices else None
    elif option.kind == "size":
        checked = _size_from(value)
    elif not isinstance(value, bool) and isinstance(value, numbers.Real):
        if option.kind == "float":
            checked = _finite(value)
        elif isinstance(value, numbers.Integral):
            checked = int(value)
        if isinstance(checked, (int, float)) and not _is_within(option, checked):
            checked = None
    if checked is None:
        raise RequestError(
            _shown_value(value), expected=option.expected, code="request.option", field=name, is_value=True
        )
    return checked


def refuse_choices_of_bundles(names: Iterable[str]) -> None:
    """Refuse names of options or inputs that only a bundle decides: its precision, and the LoRA in its weights.

    Raises RequestError with the code "request.unsupported" that says how to get such a bundle.
    """
    for name in names:
        if name in _CHOICES_OF_BUNDLES:
            raise RequestError(
                f"{name} is not an option of a request",
                expected="a bundle that has it",
                hint=_CHOICES_OF_BUNDLES[name],
                code="request.unsupported",
                field=name,
            )


def parse_size(text: str) -> tuple[int, int] | None:
    """(height, width) of "WIDTHxHEIGHT" in pixels, None for another text."""
    match = _SIZE.fullmatch(text)
    return None if match is None else (int(match[2]), int(match[1]))


def _finite(value: numbers.Real) -> float | None:
    """A number as a float; None for one that is not finite, or too large for a float."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _shown_value(value: object) -> str:
    """A value in a few characters. Python refuses to write whole numbers of thousands of digits."""
    try:
        shown = repr(value)
    except ValueError:
        return f"a {type(value).__name__} that is too large to be shown"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _size_from(value: object) -> tuple[int, int] | None:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return None
    try:
        height, width = (operator.index(side) for side in value)
    except (TypeError, ValueError):
        return None
    return (height, width)


def _is_within(option: Option, value: float) -> bool:
    return (
        (option.minimum is None or value >= option.minimum)
        and (option.above is None or value > option.above)
        and (option.maximum is None or value <= option.maximum)
    )
