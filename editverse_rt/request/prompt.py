"""The instruction: its tags, and the segments of text and vision that they part it into."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from editverse_rt.errors import RequestError

__all__ = [
    "INPUT_NAME",
    "TAG_PATTERN",
    "TextSegment",
    "VisionSegment",
    "check_input_name",
    "parse_prompt",
    "with_tags",
]

TAG_PATTERN = re.compile(r"<((?:video|image)[1-9][0-9]*)>")
"""A tag of an instruction; its group is the input's name."""
_TAG_LIKE = re.compile(r"<\s*/?\s*(?:video|image)s?[\s_-]*[0-9]*\s*/?\s*>?", re.IGNORECASE)
INPUT_NAME = re.compile(r"(?:video|image)[1-9][0-9]*")


@dataclass(frozen=True)
class TextSegment:
    """A stretch of instruction between two tags, stripped."""

    text: str


@dataclass(frozen=True)
class VisionSegment:
    """The place of one input in the sequence; `name` is its tag without the brackets, "video1"."""

    name: str


def check_input_name(name: str) -> None:
    """Raises RequestError unless name is one that a tag can mention: video1, image2 ..."""
    if not INPUT_NAME.fullmatch(name):
        raise RequestError(
            f'an input is called "{name}"',
            hint="inputs are video1, video2, image1 ...; rename it",
            code="request.input_name",
        )


def with_tags(prompt: str, input_names: Iterable[str]) -> str:
    """Put the tags of all inputs, in their order, in front of an instruction that has no tag.

    An instruction with a tag says itself where its inputs belong and is returned as it is, even if the tag is
    misspelt or another one is missing: `parse_prompt` then refuses it and says why.
    """
    if _TAG_LIKE.search(prompt) is not None:
        return prompt
    return " ".join([*(f"<{name}>" for name in input_names), prompt])


def parse_prompt(prompt: str, input_names: Collection[str]) -> tuple[TextSegment | VisionSegment, ...]:
    """Split an instruction at its tags into segments, in order; text is stripped, empty text left out.

    Raises RequestError: no words, a tag without its input, an input without its tag, a tag mentioned
    twice (an input has one place in the sequence), or something that looks like a tag and is none.
    """
    if not isinstance(prompt, str):
        raise RequestError(
            f"the instruction is {type(prompt).__name__}", hint="give a string", code="request.prompt"
        )
    if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise RequestError(
            f"the instruction is {prompt!r}, which is not valid Unicode",
            expected="text in UTF-8",
            hint="correct the characters behind the backslashes",
            code="request.prompt",
        )
    for name in input_names:
        check_input_name(name)
    segments: list[TextSegment | VisionSegment] = []
    # A split at one group gives text, tag, text, tag ... text.
    for i, part in enumerate(TAG_PATTERN.split(prompt)):
        if i % 2:
            segment = VisionSegment(part)
            if part not in input_names:
                raise RequestError(
                    f"the instruction mentions <{part}>, but no {part} is given",
                    hint="add it or remove the tag",
                    code="request.tag",
                )
            if segment in segments:
                raise RequestError(
                    f"the instruction mentions <{part}> twice",
                    hint=(
                        'a tag stands once, where the input belongs in the sequence; call it "the '
                        'video" or "the image" elsewhere'
                    ),
                    code="request.tag",
                )
            segments.append(segment)
            continue
        like = _TAG_LIKE.search(part)
        if like:
            raise RequestError(
                f'the instruction has "{like[0]}", which is not a tag',
                hint="tags look like <video1>, <video2>, <image1>; correct it",
                code="request.tag",
            )
        if part.strip():
            segments.append(TextSegment(part.strip()))
    if not any(isinstance(segment, TextSegment) for segment in segments):
        raise RequestError(
            "the instruction is empty", hint="say what to make or what to change", code="request.prompt"
        )
    for name in input_names:
        if VisionSegment(name) not in segments:
            raise RequestError(
                f"{name} is given, but the instruction does not mention <{name}>",
                hint="put the tag in it",
                code="request.tag",
            )
    return tuple(segments)
