"""From a request to integers: segments, sizes, lengths, and the interleaved sequence's layout and positions.

Integers only, and nothing that depends on a library: another host repeats this file line by line.
Rules: paper sections 3.1 and 3.2; where the paper is silent, docs/architecture.md.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from editverse_rt.errors import RequestError
from editverse_rt.spec import Geometry

__all__ = [
    "TAG_PATTERN",
    "Grid",
    "Layout",
    "Size",
    "TextSegment",
    "VisionSegment",
    "check_input_name",
    "has_tags",
    "lay_out",
    "parse_prompt",
    "plan_frames",
    "plan_size",
    "plan_sizes",
]

Size = tuple[int, int]
"""Height and width in pixels."""

# Two sizes whose aspect ratios differ by no more than this many percent count as of one aspect ratio.
_SAME_ASPECT_PERCENT = 1
# A source whose aspect ratio no size of the bundle meets within this many percent is refused, not distorted.
_MAX_DISTORTION_PERCENT = 33

TAG_PATTERN = re.compile(r"<((?:video|image)[1-9][0-9]*)>")
"""A tag of an instruction; its group is the input's name."""
_TAG_LIKE = re.compile(r"<\s*/?\s*(?:video|image)s?[\s_-]*[0-9]*\s*/?\s*>?", re.IGNORECASE)
_INPUT_NAME = re.compile(r"(?:video|image)[1-9][0-9]*")


@dataclass(frozen=True)
class TextSegment:
    """A stretch of instruction between two tags, stripped."""

    text: str


@dataclass(frozen=True)
class VisionSegment:
    """The place of one input in the sequence; `name` is its tag without the brackets, "video1"."""

    name: str


@dataclass(frozen=True)
class Grid:
    """A vision segment in latent units: latent frames x patch rows x patch columns."""

    frames: int
    rows: int
    columns: int

    @property
    def num_patches(self) -> int:
        return self.frames * self.rows * self.columns


@dataclass(frozen=True)
class Layout:
    """The interleaved sequence of one branch, as the `transformer` graph takes it.

    layout: int64 [L], which row of (text, clean, noisy, start of vision, end of vision) each token is.
    positions: int64 [L, 4], columns sequential, temporal, height, width (paper section 3.2).
    """

    layout: NDArray[np.int64]
    positions: NDArray[np.int64]
    num_text: int
    num_clean: int
    num_noisy: int


def check_input_name(name: str) -> None:
    """Raises RequestError unless name is one that a tag can mention: video1, image2 ..."""
    if not _INPUT_NAME.fullmatch(name):
        raise RequestError(f'an input is called "{name}"; inputs are video1, video2, image1 ...; rename it')


def has_tags(prompt: str) -> bool:
    """Whether an instruction says where its inputs belong, if only by tags that `parse_prompt` refuses."""
    return _TAG_LIKE.search(prompt) is not None


def parse_prompt(prompt: str, input_names: Collection[str]) -> tuple[TextSegment | VisionSegment, ...]:
    """Split an instruction at its tags into segments, in order; text is stripped, empty text left out.

    Raises RequestError: no words, a tag without its input, an input without its tag, a tag mentioned
    twice (an input has one place in the sequence), or something that looks like a tag and is none.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"the instruction is {type(prompt).__name__}; give a string")
    for name in input_names:
        check_input_name(name)
    segments: list[TextSegment | VisionSegment] = []
    # A split at one group gives text, tag, text, tag ... text.
    for i, part in enumerate(TAG_PATTERN.split(prompt)):
        if i % 2:
            segment = VisionSegment(part)
            if part not in input_names:
                raise RequestError(
                    f"the instruction mentions <{part}>, but no {part} is given; add it or remove the tag"
                )
            if segment in segments:
                raise RequestError(
                    f"the instruction mentions <{part}> twice; a tag stands once, where the input belongs in "
                    'the sequence; call it "the video" or "the image" elsewhere'
                )
            segments.append(segment)
            continue
        like = _TAG_LIKE.search(part)
        if like:
            raise RequestError(
                f'the instruction has "{like[0]}", which is not a tag; tags look like <video1>, <video2>, '
                "<image1>; correct it"
            )
        if part.strip():
            segments.append(TextSegment(part.strip()))
    if not any(isinstance(segment, TextSegment) for segment in segments):
        raise RequestError("the instruction is empty; say what to make or what to change")
    for name in input_names:
        if VisionSegment(name) not in segments:
            raise RequestError(
                f"{name} is given, but the instruction does not mention <{name}>; put the tag in it"
            )
    return tuple(segments)


def plan_sizes(
    sources: Mapping[str, Size], main: str | None, geometry: Geometry, size: Size | None = None
) -> tuple[Size, dict[str, Size]]:
    """The size of the result, and the size that each source is resized to.

    sources: (height, width) in pixels of each input, after rotation. main: the input that the result
    follows, None without inputs. size: the caller's (height, width) for the result, or None.
    Every input follows the area rule on its own, but one of main's aspect ratio takes main's size, so that
    a mask or an edited first frame lies on the same grid as its video.
    Raises RequestError as `plan_size` does, and for a `size` that the bundle does not take.
    """
    if size is not None:
        target = _check_size(size, geometry)
    elif main is not None:
        target = plan_size(main, sources[main], geometry)
    else:
        target = (geometry.default_height_px, geometry.default_width_px)
    sizes = {}
    for name, source in sources.items():
        like_main = main is not None and _is_same_aspect(source, sources[main])
        sizes[name] = target if like_main else plan_size(name, source, geometry)
    return target, sizes


def plan_size(name: str, source: Size, geometry: Geometry) -> Size:
    """The area rule of paper section 5.1 on the bundle's grid: keep the aspect ratio, the area in range.

    Of the sizes that the bundle takes, those within 1 % of the source's aspect ratio are candidates, or, if
    there are none, the closest; of the candidates the one of the nearest area is taken, then the closest
    aspect ratio, then the lower. A source that is itself such a size keeps it.
    name: for the error's sake. source: (height, width) in pixels.
    Raises RequestError if the source is empty, or so long and narrow that every size would distort it.
    """
    height, width = source
    if height < 1 or width < 1:
        raise RequestError(f"{name} is {width}x{height} px (width x height); give one that has pixels")
    sizes = list(_iterate_sizes(geometry))
    closest = min(sizes, key=lambda size: _AspectError(size, source))
    if _differ_by_more(closest, source, _MAX_DISTORTION_PERCENT):
        raise RequestError(
            f"{name} is {width}x{height} px (width x height); the nearest shape that this bundle takes is "
            f"{closest[1]}x{closest[0]}; crop it first"
        )
    candidates = [size for size in sizes if _is_same_aspect(size, source)] or [
        size for size in sizes if not _AspectError(closest, source) < _AspectError(size, source)
    ]
    area = height * width
    return min(candidates, key=lambda size: (abs(size[0] * size[1] - area), _AspectError(size, source), size))


def plan_frames(num_frames: int | None, has_video: bool, has_image: bool, geometry: Geometry) -> int:
    """How many frames to ask the main source for, or to generate: 1 + temporal_ratio * k.

    num_frames: the caller's, rounded down; None follows the inputs: up to the bundle's limit for a video, 1
    for images alone, the bundle's default without inputs. Raises RequestError if it is out of range.
    """
    if num_frames is None:
        if has_video:
            return geometry.max_frames
        return 1 if has_image else geometry.default_frames
    if not isinstance(num_frames, (int, np.integer)) or not 1 <= num_frames <= geometry.max_frames:
        raise RequestError(f"num_frames is {num_frames}; this bundle takes 1 to {geometry.max_frames}")
    return geometry.round_frames(num_frames)


def lay_out(segments: Sequence[int | Grid], target: Grid, *, with_text: bool = True) -> Layout:
    """Lay the sequence out: the request's segments in order, then the target, which is what is generated.

    segments: a number of text tokens, or the grid of a vision segment; the end-of-sequence token is the last
    text segment. with_text=False is guidance's unconditional branch: text rows are left out, vision stays,
    and sequential positions are counted without the text (paper section 3.1).
    """
    num_text = sum(segment for segment in segments if isinstance(segment, int)) if with_text else 0
    num_clean = sum(segment.num_patches for segment in segments if isinstance(segment, Grid))
    start_row = num_text + num_clean + target.num_patches
    rows: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    next_text, next_vision, sequential = 0, num_text, 0
    for segment in [*segments, target]:
        if isinstance(segment, Grid):
            num_patches = segment.num_patches
            vision = np.arange(next_vision, next_vision + num_patches)
            rows.append(np.concatenate([[start_row], vision, [start_row + 1]]))
            positions.append(_place_vision(segment, sequential))
            next_vision += num_patches
            sequential += segment.frames + 2
        elif with_text:
            rows.append(np.arange(next_text, next_text + segment))
            positions.append(_place_text(np.arange(sequential, sequential + segment)))
            next_text += segment
            sequential += segment
    return Layout(
        layout=np.concatenate(rows).astype(np.int64),
        positions=np.concatenate(positions).astype(np.int64),
        num_text=num_text,
        num_clean=num_clean,
        num_noisy=target.num_patches,
    )


def _place_text(sequential: NDArray[np.int64]) -> NDArray[np.int64]:
    zeros = np.zeros_like(sequential)
    return np.stack([sequential, zeros, zeros, zeros], axis=1)


def _place_vision(grid: Grid, sequential: int) -> NDArray[np.int64]:
    frame, row, column = (
        axis.reshape(-1) for axis in np.indices((grid.frames, grid.rows, grid.columns), dtype=np.int64)
    )
    patches = np.stack([sequential + 1 + frame, frame, row, column], axis=1)
    start, end = _place_text(np.array([sequential, sequential + 1 + grid.frames], dtype=np.int64))
    return np.concatenate([start[None], patches, end[None]])


def _iterate_sizes(geometry: Geometry) -> Iterator[Size]:
    multiple = geometry.size_multiple
    for height in range(multiple, geometry.max_side_px + 1, multiple):
        for width in range(multiple, geometry.max_side_px + 1, multiple):
            if geometry.min_area_px <= height * width <= geometry.max_area_px:
                yield height, width


def _check_size(size: Size, geometry: Geometry) -> Size:
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError) as error:
        raise RequestError(f"size is {size!r}; give (height, width) in whole pixels") from error
    sizes = list(_iterate_sizes(geometry))
    if (height, width) in sizes:
        return height, width
    nearest = min(sizes, key=lambda s: (abs(s[0] - height) + abs(s[1] - width), s))
    raise RequestError(
        f"size is {width}x{height} (width x height); this bundle takes multiples of {geometry.size_multiple} "
        f"up to {geometry.max_side_px} px a side, with {geometry.min_area_px} to {geometry.max_area_px} px "
        f"in all; the nearest is {nearest[1]}x{nearest[0]}"
    )


@dataclass(frozen=True, eq=False)
class _AspectError:
    """How far two aspect ratios are apart, compared exactly: the larger over the smaller, as a fraction."""

    size: Size
    source: Size

    def fraction(self) -> tuple[int, int]:
        a, b = self.size[0] * self.source[1], self.size[1] * self.source[0]
        return max(a, b), min(a, b)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _AspectError):
            return NotImplemented
        return not self < other and not other < self

    def __lt__(self, other: _AspectError) -> bool:
        (a, b), (c, d) = self.fraction(), other.fraction()
        return a * d < c * b


def _is_same_aspect(size: Size, source: Size) -> bool:
    return not _differ_by_more(size, source, _SAME_ASPECT_PERCENT)


def _differ_by_more(size: Size, source: Size, percent: int) -> bool:
    larger, smaller = _AspectError(size, source).fraction()
    return 100 * larger > (100 + percent) * smaller
