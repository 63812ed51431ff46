"""Sizes and lengths: what a source is resized to, and how many frames a result has.

Integers only, and nothing that depends on a library: the C++ host repeats this file line by line.
Rules: paper section 5.1; where the paper is silent, docs/architecture.md.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import RequestError

__all__ = ["Size", "choose_num_frames", "choose_size", "choose_sizes", "count_windows", "fit_inside"]

Size = tuple[int, int]
"""Height and width in pixels."""
# Two sizes whose aspect ratios differ by no more than this many percent count as of one aspect ratio.
_SAME_ASPECT_PERCENT = 1
# A source is refused, and not distorted, if no size of the bundle has its aspect ratio within this many percent.
_MAX_DISTORTION_PERCENT = 33
# Of a size that is refused, the nearest one is advised if its aspect ratio is within this many percent, else one of the
# asked shape.
_NEAR_SHAPE_PERCENT = 10
_LARGEST_SIDE_PX = 65_536
"""Of a size that has a shape worth keeping in an advice; products of two such sides fit 64 bits."""


def choose_sizes(
    sources: Mapping[str, Size], main: str | None, geometry: Geometry, size: Size | None = None
) -> tuple[Size, dict[str, Size]]:
    """The size of the result, and the size that each source is resized to.

    sources: (height, width) in pixels of each input, after rotation. main: the input that the result
    follows, None without inputs. size: the caller's (height, width) for the result, or None.
    Every input follows the area rule on its own, but one of main's aspect ratio takes main's size, so that
    a mask or an edited first frame lies on the same grid as its video.
    Raises RequestError as `choose_size` does, and for a `size` that the bundle does not take.
    """
    if size is not None:
        target = _check_size(size, geometry)
    elif main is not None:
        target = choose_size(main, sources[main], geometry)
    else:
        target = (geometry.default_height_px, geometry.default_width_px)
    sizes = {}
    for name, source in sources.items():
        like_main = main is not None and _is_same_aspect(source, sources[main])
        sizes[name] = target if like_main else choose_size(name, source, geometry)
    return target, sizes


def choose_size(name: str, source: Size, geometry: Geometry) -> Size:
    """The area rule of paper section 5.1 on the bundle's grid: keep the aspect ratio, the area in range.

    Of the sizes that the bundle takes, those within 1 % of the source's aspect ratio are candidates, or, if
    there are none, the closest; of the candidates the one of the nearest area is taken, then the closest
    aspect ratio, then the lower. A source that is itself such a size keeps it.
    name: for the error's sake. source: (height, width) in pixels.
    Raises RequestError if the source is empty, or so long and narrow that every size would distort it.
    """
    height, width = source
    if height < 1 or width < 1:
        raise RequestError(
            f"{name} is {width}x{height} px (width x height)",
            hint="give one that has pixels",
            code="request.size",
        )
    sizes = list(_iterate_sizes(geometry))
    closest = min(sizes, key=lambda size: _aspect_error(size, source))
    if _differ_by_more(closest, source, _MAX_DISTORTION_PERCENT):
        raise RequestError(
            f"{name} is {width}x{height} px (width x height)",
            hint=f"the nearest shape that this bundle takes is {closest[1]}x{closest[0]}; crop it first",
            code="request.size",
        )
    return _choose_of_shape(source, sizes)


def fit_inside(source: Size, target: Size) -> Size:
    """The largest size of the source's shape inside target, in whole pixels, at least one a side."""
    height, width = source
    if target[0] * width <= target[1] * height:
        return target[0], max(1, width * target[0] // height)
    return max(1, height * target[1] // width), target[1]


def choose_num_frames(num_frames: int | None, has_video: bool, has_image: bool, geometry: Geometry) -> int:
    """How many frames to ask the main source for, or to generate: 1 + temporal_ratio * k.

    num_frames: the caller's, rounded down; None follows the inputs: up to the bundle's limit for a video, 1
    for images alone, the bundle's default without inputs. Raises RequestError if it is out of range.
    """
    if num_frames is None:
        if has_video:
            return geometry.max_frames
        return 1 if has_image else geometry.default_frames
    if not isinstance(num_frames, (int, np.integer)) or not 1 <= num_frames <= geometry.max_frames:
        raise RequestError(
            f"num_frames is {num_frames}",
            hint=f"this bundle takes 1 to {geometry.max_frames}",
            code="request.option",
            field="num_frames",
        )
    return geometry.round_frames(num_frames)


def count_windows(num_frames: int, geometry: Geometry) -> int:
    """In how many windows so many frames of one scene are done."""
    beyond = max(0, num_frames - geometry.max_frames)
    return 1 + -(-beyond // (geometry.max_frames - geometry.shared_frames))


def _iterate_sizes(geometry: Geometry) -> Iterator[Size]:
    multiple = geometry.size_multiple
    for height in range(multiple, geometry.max_side_px + 1, multiple):
        for width in range(multiple, geometry.max_side_px + 1, multiple):
            if geometry.min_area_px <= height * width <= geometry.max_area_px:
                yield height, width


def _choose_of_shape(source: Size, sizes: Sequence[Size]) -> Size:
    """Of the sizes of the source's shape, or of the closest one, that of the nearest area."""
    least = min(_aspect_error(size, source) for size in sizes)
    candidates = [size for size in sizes if _is_same_aspect(size, source)] or [
        size for size in sizes if _aspect_error(size, source) == least
    ]
    area = source[0] * source[1]
    return min(
        candidates, key=lambda size: (abs(size[0] * size[1] - area), _aspect_error(size, source), size)
    )


def _check_size(size: Size, geometry: Geometry) -> Size:
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"size is {size!r}", hint="give (height, width) in whole pixels", code="request.size"
        ) from error
    sizes = list(_iterate_sizes(geometry))
    if (height, width) in sizes:
        return height, width
    nearest = min(sizes, key=lambda s: (abs(s[0] - height) + abs(s[1] - width), s))
    has_shape = min(height, width) >= 1 and max(height, width) <= _LARGEST_SIDE_PX
    if has_shape and _differ_by_more(nearest, (height, width), _NEAR_SHAPE_PERCENT):
        nearest = _choose_of_shape((height, width), sizes)
    raise RequestError(
        f"size is {width}x{height} (width x height)",
        hint=(
            f"this bundle takes multiples of {geometry.size_multiple} up to {geometry.max_side_px} px "
            f"a side, with {geometry.min_area_px} to {geometry.max_area_px} px in all; the "
            f"nearest is {nearest[1]}x{nearest[0]}"
        ),
        code="request.size",
    )


def _aspect_error(size: Size, source: Size) -> Fraction:
    """How far two aspect ratios are apart, exactly: the larger over the smaller."""
    ratio = Fraction(size[0] * source[1], size[1] * source[0])
    return max(ratio, 1 / ratio)


def _is_same_aspect(size: Size, source: Size) -> bool:
    return not _differ_by_more(size, source, _SAME_ASPECT_PERCENT)


def _differ_by_more(size: Size, source: Size, percent: int) -> bool:
    return _aspect_error(size, source) > Fraction(100 + percent, 100)
